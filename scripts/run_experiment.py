"""Run the whole experiment by one command: base, SFT, evaluations and comparison of both arms."""

import argparse
import contextlib
import gc
import importlib.util
import io
import sys
import time
from pathlib import Path
from types import ModuleType

from domain_tokens.errors import UserError
from domain_tokens.experiment import Experiment, Stage
from domain_tokens.runs import CONDITIONS, SEED, Number, Parser, run_script

EXAMPLE = "uv run python scripts/run_experiment.py --profile demo"
ROOT = Path(__file__).resolve().parents[1]
CORPUS_SEED = 42
RATE = Number(float, 1e-12, 1)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument(
        "--profile",
        choices=("demo", "full"),
        default="demo",
        help="demo: a tiny model on generated data, in minutes, offline; full: the study (demo)",
    )
    parser.add_argument("--output-root", default="outputs", metavar="DIR", help="(outputs)")
    parser.add_argument(
        "--seeds", type=SEED, nargs="+", metavar="N", help="default: the configs' 42"
    )
    parser.add_argument(
        "--learning-rates",
        type=RATE,
        nargs="+",
        metavar="X",
        help="of both SFT stages; each has a comparison of its own (default: the configs')",
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="print the commands only")
    only.add_argument("--corpora-only", action="store_true", help="write the demo's corpora, stop")
    args = parser.parse_args(argv)
    for name in ("seeds", "learning_rates"):
        given = getattr(args, name) or []
        twice = next((value for value in given if given.count(value) > 1), None)
        if twice is not None:
            raise UserError(f"--{name.replace('_', '-')} names {twice} twice; wanted each once")
    return args


def load_script(path: str) -> ModuleType:
    """Import a script by its path."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def call(command: Stage) -> bool:
    """Run one command in this process, continuing what is unfinished; return whether it did work.

    A finished one is asked whether it is what this command would make, and not run again.
    """
    finished = command.finished.is_file()
    going_on = finished or any(command.finished.parent.glob("*unfinished*"))
    going_on = going_on or any(command.finished.parent.glob("*_items.partial.jsonl"))
    print(f"\n{'finished: ' if finished else '$ '}{command}", flush=True)
    output = io.StringIO() if finished else sys.stdout
    start = time.perf_counter()
    with contextlib.redirect_stdout(output):
        status = load_script(command.script).main(
            [*command.arguments, *(["--resume"] if going_on else [])]
        )
    if status:
        raise UserError(f"{command.script} failed; fix what it says above and call this again")
    gc.collect()
    if not finished:
        print(f"[{time.perf_counter() - start:.1f} s]")
    return not finished


def main(argv: list[str] | None = None) -> int:
    """Run what is not finished yet, then check and compare the final checkpoints."""
    args = parse(argv)
    plan = Experiment(args.profile, args.output_root, args.seeds, args.learning_rates)
    commands = list(plan.stages())
    comparisons = list(plan.comparisons())
    last = (plan.check(), *comparisons)
    if args.dry_run:
        print(*commands, *last, sep="\n")
        return 0
    start = time.perf_counter()
    if plan.demo:
        from domain_tokens.data import write_demo_corpora

        written = write_demo_corpora(plan.data, seed=CORPUS_SEED)
        print(f"demo corpora: {plan.data}{'' if written else ' (already there)'}")
        if args.corpora_only:
            return 0
    else:
        for condition in CONDITIONS:
            if not plan.base(condition).is_dir():
                raise UserError(
                    f"{plan.base(condition)} not found; put the {condition} base checkpoint "
                    "there, or make one with scripts/make_base.py"
                )
    worked = [call(command) for command in commands]
    if not any(worked) and all(stage.finished.is_file() for stage in comparisons):
        found = ", ".join(str(stage.finished) for stage in comparisons)
        print(f"\neverything is finished, nothing was done; the comparison is {found}")
        return 0
    for command in last:
        print(f"\n$ {command}", flush=True)
        if load_script(command.script).main(command.arguments):
            return 1
    print(f"\nfinished in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
