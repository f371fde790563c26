"""Export a nanoGPT checkpoint as a base in Hugging Face format, and prove that it is the same."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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

EXAMPLE = (
    "uv run python scripts/export_nanogpt.py --checkpoint ckpt.pt --condition baseline "
    "--output-dir outputs/hf_baseline_10b"
)
RESULTS = "export_report.json"


@dataclass(frozen=True, slots=True)
class ExportRun:
    """One export as it was asked for; activation: None for what is usual in such a file."""

    checkpoint: Path
    condition: str
    activation: Literal["gelu", "gelu_pytorch_tanh"] | None
    seed: int
    output_dir: Path
    command: str
    resume: bool
    overwrite: bool


def parse(argv: list[str] | None) -> ExportRun:
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
    args = parser.parse_args(argv)
    return ExportRun(
        checkpoint=Path(args.checkpoint),
        condition=args.condition,
        activation=args.activation,
        seed=args.seed,
        output_dir=Path(args.output_dir),
        command=args.command,
        resume=args.resume,
        overwrite=args.overwrite,
    )


def export(run: ExportRun, workspace: Workspace) -> dict:
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

    source = run.checkpoint
    digest = hash_files([source]) if source.is_file() else None
    checkpoint = load_nanogpt(source)
    activation = run.activation or checkpoint.usual_activation
    said = "as given" if run.activation else f"usual with {checkpoint.kind}, not in the file"
    print(f"activation {activation} ({said})", flush=True)
    for note in checkpoint.notes:
        print(note, flush=True)
    quiet_transformers()
    model = to_gpt2(checkpoint, activation=activation)
    workspace.begin()
    try:
        made = extend_and_save(model, gpt2_tokenizer(), workspace, seed=run.seed)
        proof = prove_export(source, workspace.work, activation=activation, seed=run.seed)
        if hash_files([source]) != digest:
            raise UserError(f"{source} changed while it was read; start again")
    except BaseException:
        shutil.rmtree(workspace.work)
        raise
    made |= {
        "checkpoint_sha256": digest,
        "checkpoint_kind": checkpoint.kind,
        "checkpoint_vocabulary": checkpoint.vocab_size,
        "activation": activation,
        "largest_logit_difference": proof["largest_logit_difference"],
        "tolerance": proof["tolerance"],
        "proof": proof,
    }
    finish_base(
        workspace,
        condition=run.condition,
        seed=run.seed,
        source=str(run.checkpoint),
        parent=None,
        made={"command": run.command, **made},
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Export one checkpoint."""
    run = parse(argv)
    identity = {
        "checkpoint": str(run.checkpoint),
        "condition": run.condition,
        "activation": run.activation,
        "seed": run.seed,
    }
    workspace = open_workspace(
        run.output_dir, RESULTS, identity, resume=run.resume, overwrite=run.overwrite
    )
    if workspace.finished:
        print(f"{run.output_dir} is already finished")
        return 0
    made = export(run, workspace)
    print(
        f"{run.output_dir}: {made['parameters']:,} parameters, vocabulary {made['vocabulary']:,}, "
        f"{made['proof']['values_compared']:,} values equal, logits to "
        f"{made['largest_logit_difference']:.1e}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
