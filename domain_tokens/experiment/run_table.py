"""Every run in a folder as a row: what it is, whether it is finished, and its main numbers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from domain_tokens.errors import UserError
from domain_tokens.experiment.progress import progress_of, read_plan
from domain_tokens.runs import CARD_NAME, UNFINISHED_MARKER, code_identity, read_json

# Results file -> stage, and the numbers that tell most about it (where they are: "" or a key).
STAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "make_base_results.json": ("base", "", ("parameters",)),
    "export_report.json": ("base", "", ("parameters", "largest_logit_difference")),
    "tulu_sft_results.json": ("tulu", "", ("train_loss", "eval_loss", "injected_tokens")),
    "sft_results.json": ("gsm8k", "", ("train_loss", "eval_loss", "injected_tokens")),
    "gsm8k_results.json": ("eval gsm8k", "metrics", ("accuracy", "g1", "stop_rate")),
    "arithmetic_results.json": ("eval probes", "metrics", ("overall_accuracy", "a1")),
    "stories_results.json": ("eval stories", "metrics", ("accuracy", "a2")),
}


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run: when it ended (or was last written to), what it is, and what it found.

    treatment, half: how facts were written and which of them; None where none was. state: finished,
    unfinished, or "other code": finished by code that is not this checkout's. notes: keys of its
    results that are missing, of another kind or not known here.
    """

    when: str
    folder: str
    stage: str
    condition: str | None
    seed: int | None
    parent: str | None
    state: str
    numbers: dict[str, float | None] = field(default_factory=dict)
    treatment: str | None = None
    half: str | None = None
    notes: list[str] = field(default_factory=list)


def run_rows(root: Path) -> list[RunSummary]:
    """Return all runs below a folder, newest first; what cannot be read is a row that says so."""
    tree = code_identity()["tree"]
    rows = [row for folder in _folders(root) for row in _rows_of(folder, root, tree)]
    return sorted(rows, key=lambda row: (row.when, row.folder, row.stage), reverse=True)


def _folders(root: Path) -> Iterator[Path]:
    yield root
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_dir() and path.name != "checkpoints" and not hidden:
            yield path


def _rows_of(folder: Path, root: Path, tree: str) -> Iterator[RunSummary]:
    name = str(folder.relative_to(root)) if folder != root else folder.name
    card = _read(folder / CARD_NAME)
    for file, (stage, section, keys) in STAGES.items():
        path = folder / file
        if not path.is_file():
            continue
        results = _read(path)
        if results is None:
            yield RunSummary(_when(path), name, stage, None, None, None, "unreadable")
            continue
        own = results.get("card") or card or {}
        metrics = results.get(section, {}) if section else results
        yield RunSummary(
            when=_when(path),
            folder=name,
            stage=stage,
            condition=own.get("condition", results.get("condition")),
            seed=own.get("seed"),
            parent=_parent(own),
            state=_state(folder, own, tree),
            numbers={key: metrics.get(key) for key in keys},
            **_treated(own),
            notes=_notes(path, results),
        )
    yield from _unfinished(folder, name)


def _unfinished(folder: Path, name: str) -> Iterator[RunSummary]:
    marker = folder / UNFINISHED_MARKER
    finished = any((folder / file).is_file() for file in STAGES)
    if marker.is_file() and not finished:
        begun = _read(marker) or {}
        stage = "tulu" if "sft_tulu" in name else "gsm8k" if "sft_gsm8k" in name else "?"
        log = folder / "train_log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        last = json.loads(lines[-1]) if lines else {}
        numbers = {key: last[key] for key in ("step", "steps", "loss") if key in last}
        condition = begun.get("condition")
        when = _when(log if lines else marker)
        data = (begun.get("config") or {}).get("data") or {}
        yield RunSummary(
            *(when, name, stage, condition, None, None, "unfinished", numbers),
            treatment=data.get("treatment"),
            half=data.get("treated_facts"),
        )
    for partial in sorted(folder.glob("*_items.partial*.jsonl")):
        kind = partial.name.split("_")[0].replace("arithmetic", "probes")
        done = max(len(partial.read_text(encoding="utf-8").splitlines()) - 1, 0)
        stage = f"eval {kind}"
        answered: dict[str, float | None] = {"answered": done}
        yield RunSummary(_when(partial), name, stage, None, None, None, "unfinished", answered)


def _notes(path: Path, results: dict[str, Any]) -> list[str]:
    from domain_tokens.runs import check_record, file_model

    kind = file_model(path.name, results)
    assert kind is not None, path.name  # of STAGES
    try:
        notice = check_record(path, kind, results)
    except UserError as error:
        return [str(error)]
    return [notice] if notice else []


def _state(folder: Path, card: dict[str, Any], tree: str) -> str:
    if (folder / UNFINISHED_MARKER).is_file():
        return "unfinished"
    made_by = (card.get("code") or {}).get("tree")
    return "finished" if made_by in (None, tree) else "other code"


def _treated(card: dict[str, Any]) -> dict[str, str | None]:
    """Return treatment and half of a card; older ones wrote all facts as fact tokens, or none."""
    training = card.get("training") or card  # an evaluation's card holds that of its checkpoint
    if "treatment" in training:
        treatment = training["treatment"] or {}
    else:
        treatment = {"name": "fact_token", "treated_facts": "all"} if training.get("inject") else {}
    return {"treatment": treatment.get("name"), "half": treatment.get("treated_facts")}


def plans_in_words(root: Path) -> Iterator[str]:
    """Yield, for each plan of run_experiment.py --jobs below a folder, how far it is."""
    for folder in _folders(root):
        plan = read_plan(folder)
        if plan is not None:
            stages, jobs = plan
            yield f"plan {folder}: {progress_of(folder, stages, jobs=jobs)}"


def _parent(card: dict[str, Any]) -> str | None:
    parent = card.get("model_path") or (card.get("parent") or {}).get("path")
    return None if parent is None else Path(parent).name


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except UserError:
        return None


def _when(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M:%S")
