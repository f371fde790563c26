"""A comparison of several arms as one HTML page: the verdict first, then what it rests on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from domain_tokens.comparison.arms import Arms
from domain_tokens.comparison.figures import draw_forest, draw_heatmaps, draw_learning_curves
from domain_tokens.comparison.lineage_files import STAGE_NAMES, STAGE_RESULTS, lineage, stage_files
from domain_tokens.comparison.report import LABELS, command_lines, interval_row, render
from domain_tokens.comparison.values import PRIMARIES
from domain_tokens.comparison.words import in_words

EXPLORATORY = {
    "treated_less_baseline": "with a token − baseline",
    "spill_over": "without − baseline (spill-over)",
    "whole": "all facts treated − baseline",
    "dose": "gain per factor e of occurrences (dose)",
}
KINDS = {
    "table_fact": "table fact",
    "product": "other product",
    "sum": "sum",
    "difference": "difference",
    "quotient": "quotient",
    "none": "none (set-up)",
}
SCALE = {"nats": 1.0, "points": 100.0}


def write_arms_report(path: Path, comparison: dict[str, Any], arms: Arms) -> None:
    """Write the page of a comparison of arms; all text of models and data is escaped."""
    render(path, "arms.html.j2", arms_context(comparison, arms))


def arms_context(comparison: dict[str, Any], arms: Arms) -> dict[str, Any]:
    """Return what the template shows."""
    half, first = comparison["half_table"], next(iter(arms.values()))[0]
    return {
        "comparison": comparison,
        "arms": comparison["arms"],
        "statements": comparison["statements"],
        "rows": [dict(row) for row in _contrast_rows(comparison)],
        "forest": _forest(comparison),
        "half": half,
        "half_rows": list(_half_rows(half)) if half else [],
        "halves": _halves(half),
        "endpoints": _endpoint_rows(comparison),
        "accuracies": _accuracy_rows(comparison),
        "attribution": list(_attribution_rows(comparison)),
        "counts": list(_counts(comparison)),
        "curves": _curves(arms),
        "commands": list(command_lines(run for runs in arms.values() for run in runs)),
        "environment": first.card["environment"],
        "code": comparison["code"],
    }


def _contrasts(comparison: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield half table and contrasts, the primary ones first."""
    half = comparison["half_table"]
    rows = [*([half] if half else []), *comparison["contrasts"]]
    yield from sorted(rows, key=lambda row: row["role"] != "primary")


def _contrast_rows(comparison: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for contrast in _contrasts(comparison):
        for row in contrast["endpoints"]:
            sides = ("with_token", "without_token") if "with_token" in row else ("first", "second")
            shown = {"first": row[sides[0]], "second": row[sides[1]], "role": "exploratory"}
            if row["endpoint"] in PRIMARIES:
                shown["role"] = contrast["role"]
            yield {**interval_row(row), **shown, "contrast": contrast["name"]}


def _forest(comparison: dict[str, Any]) -> str | None:
    """Draw the primary endpoints of all contrasts, a panel each."""
    panels: dict[str, list[dict[str, Any]]] = {}
    for contrast in _contrasts(comparison):
        for row in contrast["endpoints"]:
            if row["endpoint"] not in PRIMARIES:
                continue
            scale, interval = SCALE[row["unit"]], row["interval"]
            panels.setdefault(
                f"{LABELS[row['endpoint']]}: first − second, {row['unit']}", []
            ).append(
                {
                    "label": contrast["name"],
                    "delta": scale * row["delta"],
                    "interval": None if interval is None else [scale * v for v in interval],
                    "primary": contrast["role"] == "primary",
                }
            )
    return draw_forest(panels) if panels else None


def _half_rows(half: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the half-table contrast and what stands next to it, as rows of one table."""
    for row in half["endpoints"]:
        yield {**row, "what": "with a token − without", "role": half["role"]}
        for name, what in EXPLORATORY.items():
            estimate = row["beside"][name]
            if estimate:
                yield {
                    "endpoint": row["endpoint"],
                    "unit": row["unit"],
                    "what": what,
                    "role": "exploratory",
                    "randomisation_p": None,
                    **estimate,
                }


def _halves(half: dict[str, Any] | None) -> str | None:
    if not half or not half["grid"]:
        return None
    with_token, without, _ = half["grid"]
    return draw_heatmaps(
        {"without a token": without, "with its token": with_token},
        unit="A1, nats",
        change_title="with − without",
        name="halves",
    )


def _endpoint_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    names = dict.fromkeys(n for arm in comparison["arms"].values() for n in arm["endpoints"])
    return [
        {
            "endpoint": name,
            "role": "primary" if name in PRIMARIES else "exploratory",
            "cells": [
                in_words(value["mean"], value["unit"], sign=False).replace("points", "%")
                if (value := arm["endpoints"].get(name))
                else "–"
                for arm in comparison["arms"].values()
            ],
        }
        for name in names
    ]


def _accuracy_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Return accuracies as rows; of one seed with its interval."""
    rows: dict[str, dict[str, str]] = {}
    for name, arm in comparison["arms"].items():
        for row in arm["accuracies"]:
            shown = f"{100 * row['mean']:.2f}"
            if len(row["by_seed"]) == 1:
                (only,) = row["by_seed"].values()
                low, high = (100 * bound for bound in only["interval_95"])
                shown += f" [{low:.2f}, {high:.2f}]"
            rows.setdefault(f"{row['evaluation']} {row['endpoint']}", {})[name] = shown
    return [
        {"what": what, "cells": [cells.get(arm, "–") for arm in comparison["arms"]]}
        for what, cells in rows.items()
    ]


def _attribution_rows(comparison: dict[str, Any]) -> Iterator[dict[str, Any]]:
    counts = [arm["attribution"] for arm in comparison["arms"].values()]
    if not any(counts):
        return
    kinds = dict.fromkeys([*KINDS, *(kind for of_arm in counts for kind in of_arm or ())])
    for kind in kinds:
        cells = []
        for of_arm in counts:
            total = sum((of_arm or {}).values())
            number = (of_arm or {}).get(kind, 0)
            cells.append("–" if not of_arm or not total else f"{number:,} ({number / total:.1%})")
        yield {"kind": KINDS.get(kind, kind), "cells": cells}


def _counts(comparison: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for stage, title in STAGE_NAMES.items():
        for name, arm in comparison["arms"].items():
            if stage in arm["counts"]:
                yield {"stage": title, "arm": name, **arm["counts"][stage]}


def _curves(arms: Arms) -> str | None:
    curves_of: dict[str, dict[str, list[Any]]] = {}
    plain = {name: runs for name, runs in arms.items() if "+" not in name}
    for stage in STAGE_RESULTS:
        curves: dict[str, list[Any]] = {}
        for name, runs in plain.items():
            logs = [
                files["log"] for run in runs if (files := stage_files(list(lineage(run)), stage))
            ]
            points = [[(line["step"], line["loss"]) for line in log] for log in logs if log]
            if points:
                curves[name] = points
        if curves:
            curves_of[STAGE_NAMES[stage]] = curves
    return draw_learning_curves(curves_of) if curves_of else None
