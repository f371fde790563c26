"""How long each script takes to show its help, next to the imports that it would need to work.

Every call is a process of its own; the first round, which may read from a cold disk, is left out.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from domain_tokens.runs import Parser, code_identity, run_environment, run_script, write_json

EXAMPLE = "uv run python benchmarks/startup.py --repeats 5"
FOLDERS = ("sft", "eval", "sample", "scripts", "benchmarks")
PEERS = {
    "import torch": ["-c", "import torch"],
    "import torch, transformers.Trainer": ["-c", "import torch; from transformers import Trainer"],
}


def seconds(words: list[str]) -> float:
    """Run Python with these words and return how long it took; raises where it fails."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Call everything by turns; return the seconds of each call."""
    scripts = sorted(str(path) for folder in FOLDERS for path in Path(folder).glob("*.py"))
    calls = {**{script: [script, "--help"] for script in scripts}, **PEERS}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(args.repeats + 1):
        for name, words in calls.items():
            taken = seconds(words)
            if number:
                times[name].append(taken)
    return times


def main(argv: list[str] | None = None) -> int:
    """Print a table of medians."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--output-path", metavar="FILE", help="write all measurements as JSON")
    args = parser.parse_args(argv)
    times = measure(args)
    print("| call | median, s | longest, s |\n|---|---|---|")
    for name, taken in sorted(times.items(), key=lambda item: statistics.median(item[1])):
        what = name if name in PEERS else f"{name} --help"
        print(f"| {what} | {statistics.median(taken):.2f} | {max(taken):.2f} |")
    if args.output_path:
        about = {
            "environment": run_environment("cpu", "float32"),
            "code": code_identity(),
        }
        write_json(Path(args.output_path), {"found": times, **about})
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
