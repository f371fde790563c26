"""Show every run in a folder in one table, newest first: what is finished, and its main numbers."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from domain_tokens.errors import UserError
from domain_tokens.experiment import RunSummary, plans_in_words, run_rows
from domain_tokens.runs import Parser, run_script

EXAMPLE = "uv run python scripts/show_runs.py outputs"
COLUMNS = (
    *("when", "folder", "stage", "condition", "treatment", "half", "seed", "parent", "state"),
    "numbers",
)


def _shown(row: RunSummary) -> list[str]:
    numbers = [f"{k} {v:.4g}" for k, v in row.numbers.items() if isinstance(v, int | float)]
    values = [getattr(row, name) for name in COLUMNS[:-1]]
    return ["-" if value is None else str(value) for value in values] + [", ".join(numbers)]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("folder", nargs="?", default="outputs", metavar="DIR", help="(outputs)")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    args = parse(argv)
    root = Path(args.folder)
    if not root.is_dir():
        raise UserError(f"{root} not found; wanted a folder that holds runs, as in outputs")
    rows, progress = run_rows(root), list(plans_in_words(root))
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
        return 0
    if not rows:
        print(f"{root} holds no runs", *progress, sep="\n")
        return 0
    table = [list(COLUMNS), *map(_shown, rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    for line in table:
        print(
            "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        )
    print(*progress, sep="\n", end="\n" if progress else "")
    for note in (note for row in rows for note in row.notes):
        print(f"note: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
