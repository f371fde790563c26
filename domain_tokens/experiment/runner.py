"""The stages of a plan, run in this process or lineage by lineage in others."""

import contextlib
import difflib
import gc
import importlib.util
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from domain_tokens.errors import FailedError, UserError
from domain_tokens.experiment.plan import Experiment
from domain_tokens.experiment.progress import planned, progress_of, record_seconds, write_plan
from domain_tokens.experiment.side_by_side import run_side_by_side
from domain_tokens.experiment.stages import Lineage, Stage
from domain_tokens.runs import ROOT


def chosen_lineages(plan: Experiment, only: Sequence[str] | None) -> list[Lineage]:
    """Return the bases, and of the lineages those that are named, or all.

    Raises UserError for a name that the plan has not.
    """
    lineages = plan.lineages()
    names = [plan.base_lineage().name, *(line.name for line in lineages)]
    for name in only or ():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise UserError(f"--only {name}: no lineage of this plan; {hint}")
    return [plan.base_lineage(), *(line for line in lineages if not only or line.name in only)]


def run_stage(stage: Stage, root: Path, *, jobs: int) -> bool:
    """Run one stage in this process, continuing what is unfinished; return whether it did work.

    A finished one is asked whether it is what this command would make, and not run again. root:
    where the seconds that it took are noted. jobs: how many processes do the like at this time.
    """
    finished = stage.finished.is_file()
    going_on = any(stage.finished.parent.glob("*unfinished*"))
    going_on = going_on or any(stage.finished.parent.glob("*_items.partial*.jsonl"))
    print(f"\n{'finished: ' if finished else '$ '}{stage}", flush=True)
    output = io.StringIO() if finished else sys.stdout
    start = time.perf_counter()
    with contextlib.redirect_stdout(output):
        words = [*stage.arguments, *(["--resume"] if finished or going_on else [])]
        status = _script(stage.script).main(words)
    if status:
        raise UserError(f"{stage.script} failed; fix what it says above and call this again")
    gc.collect()
    if not finished:
        seconds = time.perf_counter() - start
        record_seconds(root, stage, seconds, jobs=jobs, whole=not going_on)
        print(f"[{seconds:.1f} s]", flush=True)
    return not finished


def run_here(plan: Experiment, stages: Sequence[Stage], *, jobs: int = 1) -> None:
    """Run stages in this process, in order, telling after each how far the whole plan is."""
    root = plan.layout.root
    every = planned([plan.base_lineage(), *plan.lineages()])
    for stage in stages:
        if run_stage(stage, root, jobs=jobs):
            print(progress_of(root, every, jobs=jobs, running=0), flush=True)


def run_apart(
    plan: Experiment, lineages: Sequence[Lineage], argv: Sequence[str], *, jobs: int
) -> None:
    """Run the bases, then lineages, `jobs` at a time, each in a process of its own.

    argv: of run_experiment.py. Raises FailedError where lineages failed, each named on a line
    before; the others have run to their end.
    """
    root, base = plan.layout.root, plan.base_lineage()
    every = planned([base, *plan.lineages()])
    write_plan(root, every, jobs=jobs)

    def tell(running: list[str]) -> None:
        progress = progress_of(root, every, jobs=jobs, running=len(running))
        names = f" ({', '.join(running)})" if running else ""
        print(f"[{time.strftime('%H:%M:%S')}] {progress}{names}", flush=True)

    others = [line for line in lineages if line.name != base.name]
    for group in filter(None, ([base] if base.stages else [], others)):
        print(f"\n{len(group)} to run, {jobs} at a time; logs in {root / 'logs'}", flush=True)
        failed = run_side_by_side(group, argv, jobs=jobs, logs=root / "logs", tell=tell)
        for name, how in failed.items():
            print(f"{name} failed: {how}", file=sys.stderr)
        if failed:
            raise FailedError(
                f"{len(failed)} of {len(group)} lineages ({', '.join(failed)}); fix what they say "
                "and give the same command again: what is finished is not repeated"
            )


def compare_arms(plan: Experiment) -> int:
    """Check the final checkpoints and compare the arms; return the exit status."""
    for stage in (plan.check(), *plan.comparisons()):
        print(f"\n$ {stage}", flush=True)
        status = _script(stage.script).main(stage.arguments)
        if status:
            return status
    return 0


def _script(path: str) -> ModuleType:
    """Import a script by its path."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module
