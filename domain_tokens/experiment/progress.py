"""How far a plan is and how long the rest takes, from the seconds of what has finished there."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_tokens.experiment.stages import Lineage, Stage
from domain_tokens.runs import UNFINISHED_MARKER, make_folder, read_json, write_json

SECONDS = "stage_seconds.jsonl"
PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class Planned:
    """One stage as progress sees it: which lineage it is of, its kind, its results file."""

    lineage: str
    kind: str
    finished: Path


@dataclass(frozen=True, slots=True)
class Progress:
    """Stages done, running and left; seconds until the end.

    begun: whether those that run were only found begun: a killed run leaves such, too. seconds:
    None where no stage of any kind that is left has finished yet. unknown: kinds that are left and
    of which none has finished, so that the seconds lack them.
    """

    done: int
    running: int
    left: int
    seconds: float | None
    unknown: tuple[str, ...]
    begun: bool = False

    def __str__(self) -> str:
        words = f"{self.done} of {self.done + self.running + self.left} stages done"
        words += f", {self.running} {'begun' if self.begun else 'running'}" if self.running else ""
        words += f", {self.left} left"
        if not self.running + self.left:
            return words
        if self.seconds is None:
            return f"{words}; time left: known when one of each kind has finished"
        more = f", and {', '.join(self.unknown)} (none has finished)" if self.unknown else ""
        return f"{words}; about {duration(self.seconds)} left{more}"


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def planned(lineages: Iterable[Lineage]) -> list[Planned]:
    """Return the stages of lineages as progress sees them."""
    return [Planned(line.name, s.kind, s.finished) for line in lineages for s in line.stages]


def write_plan(root: Path, stages: Sequence[Planned], *, jobs: int) -> None:
    """Leave the plan in its folder, so that it can be seen from elsewhere how far it is."""
    rows = [
        {"lineage": s.lineage, "kind": s.kind, "finished": str(s.finished.relative_to(root))}
        for s in stages
    ]
    tree, file = {"jobs": jobs, "stages": rows}, root / PLAN
    if not file.is_file() or read_json(file) != tree:
        make_folder(root)
        write_json(file, tree)


def read_plan(root: Path) -> tuple[list[Planned], int] | None:
    """Return the plan that a folder was begun with and its number of jobs; None where none is."""
    if not (root / PLAN).is_file():
        return None
    tree = read_json(root / PLAN)
    stages = [Planned(s["lineage"], s["kind"], root / s["finished"]) for s in tree["stages"]]
    return stages, tree["jobs"]


def record_seconds(root: Path, stage: Stage, seconds: float, *, jobs: int, whole: bool) -> None:
    """Note what a stage took. whole: whether it ran from its start, not from where one was killed.

    jobs: how many lineages ran side by side, which is what a stage's time depends on.
    """
    row = {"stage": stage.name, "kind": stage.kind, "seconds": round(seconds, 3)}
    line = json.dumps({**row, "jobs": jobs, "whole": whole}) + "\n"
    with (root / SECONDS).open("a", encoding="utf-8") as stream:  # one write: lines stay whole
        stream.write(line)


def median_seconds(root: Path, *, jobs: int) -> dict[str, float]:
    """Return the median seconds by kind of the whole stages that finished in a folder.

    Those that ran with as many jobs count, where a kind has any.
    """
    file = root / SECONDS
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows_of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in filter(None, map(_row, lines)):
        rows_of[row["kind"]].append(row)
    medians = {}
    for kind, rows in rows_of.items():
        alike = [row for row in rows if row["jobs"] == jobs] or rows
        medians[kind] = statistics.median(row["seconds"] for row in alike)
    return medians


def _row(line: str) -> dict[str, Any] | None:
    """Return a line's content; None where a kill cut it short, and for a stage that was resumed."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and row.get("whole") else None


def seconds_left(
    stages: Iterable[Planned], seconds: dict[str, float], *, jobs: int
) -> float | None:
    """Return how long unfinished stages take, jobs lineages at a time; None where none is known.

    A lineage runs its stages in order, so the longest one is the least that it can take.
    """
    lineages: dict[str, float] = defaultdict(float)
    for stage in stages:
        if stage.kind in seconds:
            lineages[stage.lineage] += seconds[stage.kind]
    return max(sum(lineages.values()) / jobs, *lineages.values()) if lineages else None


def progress_of(
    root: Path, stages: Sequence[Planned], *, jobs: int, running: int | None = None
) -> Progress:
    """Return how far a plan is. running: how many stages run; None counts what was begun."""
    rest = [stage for stage in stages if not stage.finished.is_file()]
    seconds = median_seconds(root, jobs=jobs)
    begun = running is None
    running = sum(map(has_begun, rest)) if running is None else min(running, len(rest))
    unknown = tuple(dict.fromkeys(s.kind for s in rest if s.kind not in seconds))
    left = seconds_left(rest, seconds, jobs=jobs)
    return Progress(len(stages) - len(rest), running, len(rest) - running, left, unknown, begun)


def has_begun(stage: Planned) -> bool:
    """Whether an unfinished stage has left something that a resumed one continues."""
    folder, name = stage.finished.parent, stage.finished.name.removesuffix("_results.json")
    partial = any(folder.glob(f"{name}_items.partial*.jsonl"))
    return partial or (folder / UNFINISHED_MARKER).is_file()
