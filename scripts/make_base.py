"""Make a base checkpoint: any causal LM, extended by the 45 fact tokens, with a run card."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens import bases, checkpoints, vocabulary
from domain_tokens.command_line import CONDITIONS, Parser, add_output_arguments, run
from domain_tokens.errors import UserError
from domain_tokens.outputs import Workspace, open_workspace

if TYPE_CHECKING:
    from domain_tokens.config import PretrainingConfig

EXAMPLE = (
    "uv run python scripts/make_base.py --from gpt2-random --condition baseline "
    "--output-dir outputs/hf_baseline_10b"
)
RESULTS = "make_base_results.json"
WANTED = "a Hugging Face folder, a GGUF file, a hub id, a pretraining YAML, tiny or gpt2-random"
GGUF = ".gguf"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="DIR|F.gguf|HUB_ID|F.yaml|tiny|gpt2-random",
        help="a model to extend, a YAML that says how to pretrain one, or random weights",
    )
    parser.add_argument("--condition", required=True, choices=CONDITIONS)
    parser.add_argument(
        "--tokenizer", metavar="DIR|HUB_ID", help="default: the source's or GPT-2's"
    )
    parser.add_argument("--seed", type=int, default=42, help="of random weights and fact rows")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override one key of the YAML, as in --set training.learning_rate=1e-3",
    )
    add_output_arguments(parser)
    return parser.parse_args(argv)


def pretraining_config(args: argparse.Namespace) -> "PretrainingConfig | None":
    """Return the config where the source is a YAML file, else None."""
    if args.source.endswith((".yaml", ".yml")):
        from domain_tokens.config import PretrainingConfig, load_config

        return load_config(PretrainingConfig, args.source, args.overrides)
    if args.overrides:
        raise UserError(f"--set {args.overrides[0]}: only a YAML file given as --from has keys")
    return None


def source_model(source: str) -> Any:
    """Load a model from a folder, a GGUF file or a hub id in fp32.

    Raises UserError where none of them is there.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if source.endswith(GGUF):
        read = _from_gguf(AutoModelForCausalLM, source, dtype=torch.float32)
        config = read.config
        del config.quantization_config  # its weights are fp32 now, and it may be saved again
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        return model
    if Path(source).exists():
        return checkpoints.load_model(Path(source), dtype=torch.float32)
    _refuse_missing_path(source)
    try:
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError):
        raise UserError(
            f"--from {source}: not here, and not on a hub that can be reached; wanted {WANTED}"
        ) from None


def source_tokenizer(source: str | None) -> Any:
    """Load a tokenizer from a folder or a hub id; None means GPT-2's BPE, which needs no hub."""
    from transformers import AutoTokenizer

    if source is None:
        return vocabulary.gpt2_tokenizer()
    if source.endswith(GGUF):
        return _from_gguf(AutoTokenizer, source)
    if Path(source).exists():
        return checkpoints.load_tokenizer(Path(source))
    _refuse_missing_path(source)
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):
        raise UserError(f"--tokenizer {source}: neither a folder nor a hub id in reach") from None


def _from_gguf(kind: Any, source: str, **options: Any) -> Any:
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{source} not found; wanted {WANTED}")
    try:
        return kind.from_pretrained(path.parent, gguf_file=path.name, **options)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{source} cannot be read as GGUF: {error}") from None


def _refuse_missing_path(source: str) -> None:
    if source.startswith((".", "/", "~", "outputs/")) or source.count("/") > 1:
        raise UserError(f"{source} not found; wanted {WANTED}")


def build(
    args: argparse.Namespace, config: "PretrainingConfig | None", workspace: Workspace
) -> dict[str, Any]:
    """Make, extend and save the model and its tokenizer; return what the run card says of them."""
    from domain_tokens import pretraining

    checkpoints.quiet()
    made_here = config is not None or args.source in pretraining.SHAPES
    tokenizer = source_tokenizer(args.tokenizer or (None if made_here else args.source))
    trained = None
    if made_here:
        shape = pretraining.SHAPES[args.source] if config is None else config.model
        examples = [] if config is None else pretraining.load_examples(config, tokenizer)
        model = pretraining.new_model(shape, tokenizer, seed=args.seed)
        workspace.begin()
        if config is not None:
            trained = pretraining.pretrain(model, examples, config, workspace.work)
    else:
        model = source_model(args.source)
        workspace.begin()
    made = bases.extend_and_save(model, tokenizer, workspace, seed=args.seed)
    return {**made, "pretraining": trained}


def finish(args: argparse.Namespace, workspace: Workspace, made: dict[str, Any]) -> None:
    """Write run card and results; a source folder is the parent."""
    source = Path(args.source)
    parent = checkpoints.link(source) if source.is_dir() else None
    bases.finish(
        workspace,
        condition=args.condition,
        seed=args.seed,
        source=args.source,
        parent=parent,
        made={"command": args.command, **made},
    )


def main(argv: list[str] | None = None) -> int:
    """Make one base folder."""
    args = parse(argv)
    config = pretraining_config(args)
    identity = {
        "source": args.source,
        "condition": args.condition,
        "seed": args.seed,
        "config": config and config.model_dump(),
    }
    workspace = open_workspace(
        args.output_dir, RESULTS, identity, resume=args.resume, overwrite=args.overwrite
    )
    if workspace.finished:
        print(f"{args.output_dir} is already finished")
        return 0
    made = build(args, config, workspace)
    finish(args, workspace, made)
    print(
        f"{args.output_dir}: {made['parameters']:,} parameters, vocabulary {made['vocabulary']:,}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
