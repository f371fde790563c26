"""Speed of two checkouts of this repository by turns: training and decoding, this one by the other.

Each measurement is a process of its own in a checkout with its own environment; a round starts with
the other checkout every second time. Tokens per second, and the ratio round by round.
"""

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

from domain_tokens.errors import UserError
from domain_tokens.runs import COUNT, ROOT, Parser, code_identity, run_script, write_json

EXAMPLE = (
    "uv run python benchmarks/versions.py --before ../before --model-path outputs/hf_smollm2 "
    "--train-data ../shared/data/gsm8k/train.jsonl --test-data ../shared/data/gsm8k/test.jsonl"
)


def tokens_per_second(checkout: Path, words: list[str]) -> float:
    """Run one measurement of `benchmarks/` in a checkout."""
    python = checkout / ".venv" / "bin" / "python"
    kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    command = [str(python), *words, "--peers", "ours", "--repeats", "1"]
    done = subprocess.run(command, cwd=checkout, env=kept, capture_output=True, text=True)
    match = re.search(r"^ours: ([\d.]+) tokens/s$", done.stdout, re.MULTILINE)
    if not match:
        raise UserError(f"{checkout}: {' '.join(words)} failed: {done.stderr[-500:]}")
    return float(match[1])


def table(speeds: dict[str, list[tuple[float, float]]]) -> str:
    """Return medians of both checkouts, the median ratio and its range as Markdown."""
    lines = ["| workload | this | other | this by other | range |", "|---|---|---|---|---|"]
    for workload, pairs in speeds.items():
        ratios = sorted(here / there for here, there in pairs)
        here, there = (statistics.median(side) for side in zip(*pairs, strict=True))
        lines.append(
            f"| {workload} | {here:.1f} | {there:.1f} | {statistics.median(ratios):.3f} × "
            f"| {ratios[0]:.3f}–{ratios[-1]:.3f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure by turns and print the table."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--before", required=True, metavar="DIR", help="checkout with a .venv")
    parser.add_argument("--model-path", required=True, metavar="DIR")
    parser.add_argument("--train-data", required=True, metavar="FILE", help="GSM8K rows")
    parser.add_argument("--test-data", required=True, metavar="FILE", help="GSM8K rows")
    parser.add_argument("--rows", type=COUNT, default=32, metavar="N", help="trained on (32)")
    parser.add_argument("--questions", type=COUNT, default=64, metavar="N", help="answered (64)")
    parser.add_argument("--max-new-tokens", type=COUNT, default=96, metavar="N", help="(96)")
    parser.add_argument("--rounds", type=COUNT, default=5, metavar="N", help="(5)")
    parser.add_argument("--output-path", metavar="FILE", help="write all measurements as JSON")
    args = parser.parse_args(argv)
    before = Path(args.before).absolute()
    if not (before / ".venv/bin/python").is_file():
        raise UserError(f"{before} has no .venv; run `uv sync --locked` there first")
    model = ["--model-path", str(Path(args.model_path).absolute())]
    train, test = (str(Path(path).absolute()) for path in (args.train_data, args.test_data))
    workloads = {
        "training": ["benchmarks/training.py", *model, "--data", train, "--rows", str(args.rows)],
        "decoding": [
            *["benchmarks/decoding.py", *model, "--data", test],
            *["--questions", str(args.questions), "--max-new-tokens", str(args.max_new_tokens)],
        ],
    }
    speeds: dict[str, list[tuple[float, float]]] = {workload: [] for workload in workloads}
    for number in range(args.rounds):
        for workload, words in workloads.items():
            turn = [ROOT, before][:: -1 if number % 2 else 1]
            result = {checkout: tokens_per_second(checkout, words) for checkout in turn}
            speeds[workload].append((result[ROOT], result[before]))
            print(f"{workload}: {result[ROOT]:.1f} and {result[before]:.1f} tokens/s", flush=True)
    print(table(speeds))
    if args.output_path:
        write_json(Path(args.output_path), {"tokens_per_second": speeds, "code": code_identity()})
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
