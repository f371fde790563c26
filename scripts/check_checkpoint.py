"""Check that checkpoints and evaluations are complete, sound and what their run cards say."""

import sys
from pathlib import Path

from domain_tokens import checkpoints, comparison
from domain_tokens.errors import UserError
from domain_tokens.runs import Parser, run_script

EXAMPLE = "uv run python scripts/check_checkpoint.py outputs/sft_baseline outputs/sft_mul_tokens"


def main(argv: list[str] | None = None) -> int:
    """Print a table per folder; 1 if any check found a fault."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument(
        "folders", nargs="+", metavar="DIR", help="checkpoint or evaluation folders"
    )
    folders = [Path(folder) for folder in parser.parse_args(argv).folders]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} not found; wanted a checkpoint folder")
    checkpoints.quiet_transformers()
    faults = 0
    for folder in folders:
        print(folder)
        evaluated = checkpoints.evaluations(folder)
        check = comparison.check_evaluation if evaluated else checkpoints.check_folder
        for name, passed, detail in check(folder):
            faults += not passed
            print(f"  {'ok' if passed else 'fault':<6} {name:<15} {detail}", flush=True)
    print(f"{faults} faults" if faults else "no faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
