"""Make a base checkpoint: any causal LM, extended by the 45 fact tokens, with a run card."""

import argparse
import sys
from pathlib import Path
from typing import Any

from domain_tokens import checkpoints, run_card, vocabulary
from domain_tokens.command_line import Parser, add_output_arguments, run
from domain_tokens.errors import UserError
from domain_tokens.outputs import Workspace, open_workspace
from domain_tokens.sft import CONDITIONS

EXAMPLE = (
    "uv run python scripts/make_base.py --from gpt2-random --condition baseline "
    "--output-dir outputs/hf_baseline_10b"
)
RESULTS = "make_base_results.json"
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 1024},
    "gpt2-random": {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024},
}


def random_model(shape: str, vocabulary_size: int, *, seed: int, eos_id: int) -> Any:
    """Return a GPT-2 of a named shape with GPT-2's own initialisation, dropout off."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        **SHAPES[shape],
        vocab_size=vocabulary_size,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def source_model(source: str) -> Any:
    """Load a model from a folder or a hub id in fp32; raises UserError where neither is there."""
    import torch
    from transformers import AutoModelForCausalLM

    if Path(source).exists():
        return checkpoints.load_model(Path(source), dtype=torch.float32)
    _refuse_missing_path(source)
    try:
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError):
        raise UserError(
            f"--from {source}: no such folder, and no such model on a hub that can be reached; "
            "give a folder in Hugging Face format, tiny or gpt2-random"
        ) from None


def source_tokenizer(source: str | None) -> Any:
    """Load a tokenizer from a folder or a hub id; None means GPT-2's BPE, which needs no hub."""
    from transformers import AutoTokenizer

    if source is None:
        return vocabulary.gpt2_tokenizer()
    if Path(source).exists():
        return checkpoints.load_tokenizer(Path(source))
    _refuse_missing_path(source)
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):
        raise UserError(f"--tokenizer {source}: neither a folder nor a hub id in reach") from None


def _refuse_missing_path(source: str) -> None:
    if source.startswith((".", "/", "~", "outputs/")) or source.count("/") > 1:
        raise UserError(
            f"{source} not found; wanted a Hugging Face folder, a hub id, tiny or gpt2-random"
        )


def build(args: argparse.Namespace, workspace: Workspace) -> None:
    """Extend the source's tokenizer and model, save both and write the card; results come last."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    random = args.source in SHAPES
    known = None if random else args.source
    tokenizer = source_tokenizer(args.tokenizer or known)
    model = None if random else source_model(args.source)
    rows = None if model is None else model.get_input_embeddings().weight.shape[0]
    base_size = len(tokenizer)
    layout = vocabulary.extend_tokenizer(tokenizer, model_vocab_size=rows)
    if model is None:
        eos = tokenizer.eos_token_id
        model = random_model(args.source, base_size, seed=args.seed, eos_id=eos)
    vocabulary.extend_model(model, layout, tokenizer, seed=args.seed)
    workspace.begin()
    work = workspace.work
    checkpoints.save(model, tokenizer, work)
    parent = None if random or not Path(args.source).exists() else Path(args.source)
    card = {
        "stage": "base",
        "condition": args.condition,
        "seed": args.seed,
        "source": args.source,
        "weights": checkpoints.weights_hash(work),
        "tokenizer": checkpoints.tokenizer_hash(work),
        "parent": parent and {"path": str(parent), "weights": checkpoints.weights_hash(parent)},
        "fact_rows": "already in the source" if rows == layout.total else "mean of a*b=c + noise",
        "formats": run_card.formats(),
        "code": run_card.code_identity(),
        "environment": run_card.environment("cpu", "float32"),
    }
    run_card.write_json(work / run_card.CARD_NAME, card)
    results = {
        "condition": args.condition,
        "source": args.source,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": layout.total,
        "first_fact_id": layout.first_fact_id,
        "weights": card["weights"],
    }
    run_card.write_json(work / RESULTS, results)
    workspace.complete()
    print(f"{args.output_dir}: {results['parameters']:,} parameters, vocabulary {layout.total:,}")


def main(argv: list[str] | None = None) -> int:
    """Make one base folder."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="DIR|HUB_ID|tiny|gpt2-random",
        help="a folder in Hugging Face format, a hub id, or a random model of a named shape",
    )
    parser.add_argument("--condition", required=True, choices=CONDITIONS)
    parser.add_argument("--tokenizer", metavar="DIR|HUB_ID", help="default: the source's")
    parser.add_argument("--seed", type=int, default=42, help="random weights and fact rows")
    add_output_arguments(parser)
    args = parser.parse_args(argv)
    identity = {"source": args.source, "condition": args.condition, "seed": args.seed}
    workspace = open_workspace(
        args.output_dir, RESULTS, identity, resume=args.resume, overwrite=args.overwrite
    )
    if workspace.finished:
        print(f"{args.output_dir} is already finished")
        return 0
    build(args, workspace)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
