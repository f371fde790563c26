"""Make a base checkpoint: any causal LM, extended by the 45 fact tokens, with a run card."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens import checkpoints
from domain_tokens.errors import UserError
from domain_tokens.runs import (
    CONDITIONS,
    SEED,
    Parser,
    Workspace,
    add_output_arguments,
    open_workspace,
    run_script,
)

if TYPE_CHECKING:
    from domain_tokens.runs import PretrainingConfig

EXAMPLE = (
    "uv run python scripts/make_base.py --from gpt2-random --condition baseline "
    "--output-dir outputs/hf_baseline_10b"
)
RESULTS = "make_base_results.json"
RANDOM = ("tiny", "gpt2-random")  # shapes with random weights


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
    parser.add_argument("--seed", type=SEED, default=42, help="of random weights and fact rows")
    parser.add_argument(
        "--fact-init",
        choices=("subtoken_mean", "mean", "random"),
        help="how the 45 fact rows begin: near the mean of their spelling (the default) or of all "
        "rows, or as a random row",
    )
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
        from domain_tokens.runs import PretrainingConfig, load_config

        return load_config(PretrainingConfig, args.source, args.overrides)
    if args.overrides:
        raise UserError(f"--set {args.overrides[0]}: only a YAML file given as --from has keys")
    return None


def build(
    args: argparse.Namespace,
    config: "PretrainingConfig | None",
    workspace: Workspace,
    source: checkpoints.Source,
) -> dict[str, Any]:
    """Make, extend, save and prove the model and its tokenizer; return what the run card says.

    Everything that can refuse does so before the folder is touched, but for the proof of what was
    written: a folder that fails it is removed.
    """
    from domain_tokens.training import SHAPES, load_examples, new_model, pretrain

    checkpoints.quiet_transformers()
    tokenizer = checkpoints.load_source_tokenizer(source)
    trained = None
    if source.model is None:
        shape = SHAPES[args.source] if config is None else config.model
        examples = [] if config is None else load_examples(config, tokenizer)
        model = new_model(shape, tokenizer, seed=args.seed)
    else:
        model = checkpoints.load_source_model(source)
    checkpoints.refuse_unusable(model, tokenizer)
    if args.fact_init is not None:
        checkpoints.refuse_other_init(tokenizer, source.model, args.fact_init)
    init = args.fact_init or "subtoken_mean"
    workspace.begin()
    if config is not None:
        trained = pretrain(model, examples, config, workspace.work)
    made = checkpoints.extend_and_save(model, tokenizer, workspace, seed=args.seed, fact_init=init)
    try:
        proof = checkpoints.prove_base(source, workspace.work, seed=args.seed, fact_init=init)
    except UserError:
        shutil.rmtree(workspace.work)
        raise
    return {**made, **checkpoints.source_provenance(source), "proof": proof, "pretraining": trained}


def finish(args: argparse.Namespace, workspace: Workspace, made: dict[str, Any]) -> None:
    """Write run card and results; a source folder is the parent."""
    source = Path(args.source)
    parent = checkpoints.parent_link(source) if source.is_dir() else None
    checkpoints.finish_base(
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
        "fact_init": args.fact_init or "subtoken_mean",
        "config": config and config.model_dump(),
    }
    workspace = open_workspace(
        args.output_dir, RESULTS, identity, resume=args.resume, overwrite=args.overwrite
    )
    if workspace.finished:
        print(f"{args.output_dir} is already finished")
        return 0
    made_here = config is not None or args.source in RANDOM
    source = checkpoints.resolve_source(None if made_here else args.source, args.tokenizer)
    made = build(args, config, workspace, source)
    finish(args, workspace, made)
    print(
        f"{args.output_dir}: {made['parameters']:,} parameters, vocabulary {made['vocabulary']:,}"
    )
    print(f"proof: {checkpoints.proof_in_words(made['proof'])}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
