"""Kill training and evaluation at random moments, resume, and compare with a run left in peace."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from domain_tokens.checkpoints import weights_hash
from domain_tokens.errors import UserError
from domain_tokens.runs import Parser, hash_files, run_script

EXAMPLE = "uv run python benchmarks/kill_points.py --demo-dir outputs/demo --kills 20"


def training_command(demo: Path, folder: Path) -> list[str]:
    """Return a short GSM8K stage of the demo that saves every few steps."""
    words = ["--model-path", str(demo / "sft_tulu_baseline"), "--output-dir", str(folder)]
    words += ["--condition", "baseline", "--config", "sft/configs/demo/gsm8k.yaml"]
    settings = {
        "data.source": demo / "data" / "train.jsonl",
        "data.validation_source": demo / "data" / "test.jsonl",
        "training.max_train_samples": 1600,
        "training.save_steps": 7,
    }
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    return [sys.executable, "sft/sft_gsm8k.py", *words]


def evaluation_command(demo: Path, folder: Path) -> list[str]:
    """Return a short GSM8K evaluation of the demo, rationales included."""
    words = ["--model-path", str(demo / "sft_gsm8k_baseline"), "--output-dir", str(folder)]
    words += ["--condition", "baseline", "--config", "eval/configs/demo/gsm8k.yaml"]
    words += ["--max-samples", "60", "--set", f"data.source={demo / 'data' / 'test.jsonl'}"]
    words += ["--batch-size", "32"]
    return [sys.executable, "eval/run_gsm8k.py", *words]


def outcome(folder: Path) -> str:
    """Return what must be bitwise the same: the weights, or the file of items."""
    items = folder / "gsm8k_items.jsonl"
    return hash_files([items]) if items.exists() else weights_hash(folder)


def finish(command: list[str]) -> float:
    """Run a command to its end; return the seconds it took."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-300:]}")
    return time.perf_counter() - start


def kill_once(command: list[str], after: float) -> bool:
    """Start a command, kill -9 it after some seconds; return whether it was still running."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return True
    return False


def main(argv: list[str] | None = None) -> int:
    """Kill, resume and compare; 1 if any outcome differs."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--demo-dir", default="outputs/demo", metavar="DIR")
    parser.add_argument("--work-dir", default="outputs/kill_points", metavar="DIR")
    parser.add_argument("--kills", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    demo, work = Path(args.demo_dir), Path(args.work_dir)
    if not (demo / "sft_gsm8k_baseline").is_dir():
        raise UserError(f"{demo} holds no finished demo; run scripts/run_experiment.py first")
    chooser, equal, kinds = random.Random(args.seed), 0, (training_command, evaluation_command)
    references = {}
    for kind in kinds:
        folder = work / kind.__name__
        shutil.rmtree(folder, ignore_errors=True)
        seconds = finish(kind(demo, folder))
        references[kind] = (outcome(folder), seconds)
    for number in range(args.kills):
        kind = kinds[number % 2]
        expected, seconds = references[kind]
        folder = work / f"kill_{number}"
        shutil.rmtree(folder, ignore_errors=True)
        command, after = kind(demo, folder), chooser.uniform(0.2, 1.0) * seconds
        killed = kill_once(command, after)
        left = len(list(folder.rglob("*"))) if folder.exists() else 0
        finish([*command, "--resume"])
        same = outcome(folder) == expected
        equal += same
        what = f"killed after {after:.1f} s ({left} files)" if killed else "had already ended"
        print(f"{kind.__name__}: {what}, {'equal' if same else 'DIFFERS'}", flush=True)
        shutil.rmtree(folder)
    print(f"{equal} of {args.kills} bitwise equal")
    return 0 if equal == args.kills else 1


if __name__ == "__main__":
    sys.exit(run_script(main))
