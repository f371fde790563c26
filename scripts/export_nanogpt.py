"""Export a nanoGPT checkpoint as a base in Hugging Face format, and prove that it is the same."""

import argparse
import shutil
import sys
from pathlib import Path

from domain_tokens.runs import (
    CONDITIONS,
    SEED,
    Parser,
    Workspace,
    add_output_arguments,
    open_workspace,
    run_script,
)

EXAMPLE = (
    "uv run python scripts/export_nanogpt.py --checkpoint ckpt.pt --condition baseline "
    "--output-dir outputs/hf_baseline_10b"
)
RESULTS = "export_report.json"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="nanoGPT's ckpt.pt")
    parser.add_argument("--condition", required=True, choices=CONDITIONS)
    parser.add_argument(
        "--activation",
        choices=("gelu", "gelu_pytorch_tanh"),
        help="not stored in such files; default: exact with model_args, tanh with config",
    )
    parser.add_argument("--seed", type=SEED, default=42, help="of new fact rows")
    add_output_arguments(parser)
    return parser.parse_args(argv)


def export(args: argparse.Namespace, workspace: Workspace) -> dict:
    """Convert, save, and prove from disk; raises UserError where the folder is another model.

    Whatever fails, what was written is removed; a finished folder that --overwrite was to replace
    is not touched before the proof.
    """
    from domain_tokens.checkpoints import (
        extend_and_save,
        finish_base,
        load_nanogpt,
        prove_export,
        quiet_transformers,
        to_gpt2,
    )
    from domain_tokens.runs import hash_files
    from domain_tokens.vocabulary import gpt2_tokenizer

    source = Path(args.checkpoint)
    checkpoint = load_nanogpt(source)
    activation = args.activation or checkpoint.usual_activation
    said = "as given" if args.activation else f"usual with {checkpoint.kind}, not in the file"
    print(f"activation {activation} ({said})", flush=True)
    for note in checkpoint.notes:
        print(note, flush=True)
    quiet_transformers()
    model = to_gpt2(checkpoint, activation=activation)
    workspace.begin()
    try:
        made = extend_and_save(model, gpt2_tokenizer(), workspace, seed=args.seed)
        proof = prove_export(source, workspace.work, activation=activation, seed=args.seed)
    except BaseException:
        shutil.rmtree(workspace.work)
        raise
    made |= {
        "checkpoint_sha256": hash_files([source]),
        "checkpoint_kind": checkpoint.kind,
        "checkpoint_vocabulary": checkpoint.vocab_size,
        "activation": activation,
        "largest_logit_difference": proof["largest_logit_difference"],
        "tolerance": proof["tolerance"],
        "proof": proof,
    }
    finish_base(
        workspace,
        condition=args.condition,
        seed=args.seed,
        source=args.checkpoint,
        parent=None,
        made={"command": args.command, **made},
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Export one checkpoint."""
    args = parse(argv)
    identity = {
        "checkpoint": args.checkpoint,
        "condition": args.condition,
        "activation": args.activation,
        "seed": args.seed,
    }
    workspace = open_workspace(
        args.output_dir, RESULTS, identity, resume=args.resume, overwrite=args.overwrite
    )
    if workspace.finished:
        print(f"{args.output_dir} is already finished")
        return 0
    made = export(args, workspace)
    print(
        f"{args.output_dir}: {made['parameters']:,} parameters, vocabulary {made['vocabulary']:,}, "
        f"{made['proof']['values_compared']:,} values equal, logits to "
        f"{made['largest_logit_difference']:.1e}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
