"""What other work on the machine costs: training, decoding and the demo alone and next to others.

Each is timed alone, next to one process that is always busy, and two at once, with threads that
wait as the libraries have it (before) and as this project sets it (after), by turns in each round.
Training and decoding count the seconds in their results, without imports; the demo counts all, and
so does the sweep, which is the demo with its two arms side by side (`--jobs 2`).
Run it on a machine where nothing else runs.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_tokens.errors import UserError
from domain_tokens.runs import (
    COUNT,
    ROOT,
    Parser,
    code_identity,
    read_json,
    run_environment,
    run_script,
    usable_cpus,
    write_json,
)

EXAMPLE = "uv run python benchmarks/contention.py --demo-dir outputs/demo --rounds 5"
WORKLOADS = ("training", "decoding", "demo", "sweep")
SITUATIONS = ("alone", "busy", "two")
# What each arm adds to an environment without any setting of threads.
ARMS = {"before": {"DOMAIN_TOKENS_THREADS": "default"}, "after": {}}
SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "NUMBA_", "DOMAIN_TOKENS_THREADS")

Times = dict[tuple[str, str, str], list[float]]  # (workload, arm, situation) -> seconds


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured, where: demo, a finished demo; work, a folder for what the commands write.

    limit: rows that are trained on and questions that are answered, None for all.
    """

    demo: Path
    work: Path
    limit: int | None = None


def command(bench: Bench, workload: str, folder: Path) -> list[str]:
    """Return the command of one workload, which writes to a folder."""
    if workload in ("demo", "sweep"):
        words = ["scripts/run_experiment.py", "--output-root", str(folder)]
        words += ["--jobs", "2"] if workload == "sweep" else []
        if bench.limit is None:
            return words
        words += ["--max-samples", str(bench.limit)]
        for stage in ("tulu", "gsm8k"):
            words += ["--set", f"{stage}.training.max_train_samples={bench.limit}"]
        return words
    training = workload == "training"
    parent = "sft_tulu_baseline" if training else "sft_gsm8k_baseline"
    words = ["--model-path", str(bench.demo / parent), "--output-dir", str(folder)]
    words += ["--condition", "baseline"]
    data = bench.demo / "data"
    if training:
        words += ["--config", "sft/configs/demo/gsm8k.yaml"]
        words += ["--set", f"data.source={data / 'train.jsonl'}"]
        words += ["--set", f"data.validation_source={data / 'test.jsonl'}"]
        words += (
            [] if bench.limit is None else ["--set", f"training.max_train_samples={bench.limit}"]
        )
        return ["sft/sft_gsm8k.py", *words]
    words += ["--config", "eval/configs/demo/gsm8k.yaml", "--set", f"data.source={data}/test.jsonl"]
    words += [] if bench.limit is None else ["--max-samples", str(bench.limit)]
    return ["eval/run_gsm8k.py", *words]


def seconds_of(workload: str, folder: Path, whole: float) -> float:
    """Return how long the work took by the folder's own results, or the whole of the command."""
    if workload == "training":
        return float(read_json(folder / "sft_results.json")["train_runtime"])
    if workload == "decoding":
        return float(read_json(folder / "gsm8k_results.json")["metrics"]["seconds"])
    return whole


@contextmanager
def busy_process() -> Generator[subprocess.Popen[bytes]]:
    """Let one process keep one CPU busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield process
        finally:
            process.kill()


def run_once(bench: Bench, workload: str, arm: dict[str, str], *, count: int) -> float:
    """Run a workload `count` times at once; return the seconds of the slowest."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS)}
    folders = [bench.work / f"{workload}_{number}" for number in range(count)]
    start, running = time.perf_counter(), []
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        words = [sys.executable, *command(bench, workload, folder)]
        # Each has caches of its own: the second would wait for what the first renders.
        own = {"HF_HOME": str(bench.work / f"home_{folder.name}")}
        with open(bench.work / f"{folder.name}.log", "wb") as log:
            running.append(
                subprocess.Popen(
                    words, cwd=ROOT, env={**kept, **own, **arm}, stdout=log, stderr=log
                )
            )
    taken = []
    for process, folder in zip(running, folders, strict=True):
        if process.wait():
            text = (bench.work / f"{folder.name}.log").read_text(errors="replace")
            raise UserError(f"{workload} ended with {process.returncode}: {text[-300:]}")
        taken.append(seconds_of(workload, folder, time.perf_counter() - start))
    return max(taken)


def measure(
    bench: Bench,
    workloads: Sequence[str],
    arms: dict[str, dict[str, str]],
    *,
    situations: Sequence[str],
    rounds: int,
) -> Times:
    """Time everything by turns; the first call of each workload, which compiles, is left out."""
    times: Times = {}
    for workload in workloads:
        run_once(bench, workload, {}, count=2)
    for number in range(rounds):
        for workload in workloads:
            for situation in situations:
                for name, arm in list(arms.items())[:: -1 if number % 2 else 1]:
                    if situation == "busy":
                        with busy_process():
                            taken = run_once(bench, workload, arm, count=1)
                    else:
                        count = 2 if situation == "two" else 1
                        taken = run_once(bench, workload, arm, count=count)
                    times.setdefault((workload, name, situation), []).append(taken)
                    print(f"{workload} {name} {situation}: {taken:.1f} s", flush=True)
    return times


def table(times: Times) -> str:
    """Return medians and their ratios: next to others by alone, and alone by alone before."""
    middle = {key: statistics.median(taken) for key, taken in times.items()}
    lines = [
        "| workload | threads | alone, s | next to a busy process | two at once, by one after the "
        "other | alone, by before |",
        "|---|---|---|---|---|---|",
    ]
    for workload, arm in dict.fromkeys((workload, arm) for workload, arm, _ in times):
        alone = middle[workload, arm, "alone"]
        cells = [f"{alone:.1f}"]
        for situation, whole in (("busy", alone), ("two", 2 * alone)):
            taken = middle.get((workload, arm, situation))
            cells.append("" if taken is None else f"{taken / whole:.2f} ×")
        first = middle.get((workload, "before", "alone"))
        cells.append("" if first is None else f"{alone / first:.3f}")
        lines.append(f"| {workload} | {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, keep all times."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--demo-dir", default="outputs/demo", metavar="DIR")
    parser.add_argument("--work-dir", default="outputs/contention", metavar="DIR")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument(
        "--situations",
        nargs="+",
        choices=SITUATIONS[1:],
        default=list(SITUATIONS[1:]),
        help="besides alone, which is always measured",
    )
    parser.add_argument("--rounds", type=COUNT, default=5, metavar="N")
    parser.add_argument("--limit", type=COUNT, metavar="N", help="rows and questions")
    parser.add_argument(
        "--spins", type=int, nargs="+", default=[], metavar="N", help="more arms: GOMP_SPINCOUNT"
    )
    parser.add_argument("--output-path", metavar="FILE", help="write all measurements as JSON")
    args = parser.parse_args(argv)
    demo, work = Path(args.demo_dir).absolute(), Path(args.work_dir).absolute()
    if not (demo / "sft_gsm8k_baseline").is_dir():
        raise UserError(f"{demo} holds no finished demo; run scripts/run_experiment.py first")
    work.mkdir(parents=True, exist_ok=True)
    arms = ARMS | {f"{spins} spins": {"GOMP_SPINCOUNT": str(spins)} for spins in args.spins}
    busy = os.getloadavg()[0]
    print(f"{usable_cpus()} CPUs, load {busy:.1f} before the first call", flush=True)
    bench, situations = Bench(demo, work, args.limit), ["alone", *args.situations]
    times = measure(bench, args.workloads, arms, situations=situations, rounds=args.rounds)
    print(f"\n{table(times)}")
    if args.output_path:
        about: dict[str, Any] = {"load_before": busy, "rounds": args.rounds, "limit": args.limit}
        about |= {"environment": run_environment("cpu", "float32"), "code": code_identity()}
        seconds = {" / ".join(key): value for key, value in times.items()}
        write_json(Path(args.output_path), {"seconds": seconds, **about})
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
