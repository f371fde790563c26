"""A comparison as one self-contained HTML page: the verdict first, then what it rests on."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from domain_tokens.comparison.figures import (
    Curve,
    draw_heatmaps,
    draw_learning_curves,
    draw_scatter,
)
from domain_tokens.comparison.lineage_files import STAGE_NAMES, STAGE_RESULTS, lineage, stage_files
from domain_tokens.comparison.must_equal import flatten
from domain_tokens.comparison.runs import ARMS, Run
from domain_tokens.comparison.words import in_words, number_in_words
from domain_tokens.errors import UserError
from domain_tokens.runs import write_text

# Of a run card: what tells two runs apart without saying anything of the experiment.
TECHNICAL = (
    *("identity", "card_hash", "environment.threads", "sources", "path", "ancestors"),
    *("treatment.meanings", "treatment.draw", "treatment.facts"),
)

LABELS = {
    "a1": "A1, arithmetic",
    "a2": "A2, the table in stories",
    "g1": "G1, GSM8K",
    "g1_log": "log of G1",
    "g1_log_half": "log of G1, half of the rationales",
    "g2": "G2, GSM8K without a rationale",
    "accuracy": "GSM8K accuracy",
    "stop_rate": "GSM8K stop rate",
}

Pairs = Sequence[tuple[Run, Run]]


def write_report(path: Path, comparison: dict[str, Any], pairs: Pairs) -> None:
    """Write the page of a comparison; all text of models and data is escaped."""
    render(path, "report.html.j2", context(comparison, pairs))


def render(path: Path, template: str, content: dict[str, Any]) -> None:
    """Write a page from its template and what that shows."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("domain_tokens.comparison"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["level"] = _level
    environment.filters["signed"] = in_words
    environment.filters["bound"] = number_in_words
    environment.filters["percent"] = lambda value: f"{100 * value:.2f}"
    environment.filters["label"] = lambda name: LABELS.get(name, name.replace("_", " "))
    environment.filters["short"] = _short
    environment.filters["flops"] = lambda value: f"{value:.3g}" if value else "–"
    page = environment.get_template(template).render(content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {path.parent}: {error.strerror}") from None
    write_text(path, page)


def context(comparison: dict[str, Any], pairs: Pairs) -> dict[str, Any]:
    """Return what the template shows."""
    lineages = {arm: [list(lineage(pair[i])) for pair in pairs] for i, arm in enumerate(ARMS)}
    stages = {
        stage: {arm: [stage_files(chain, stage) for chain in lineages[arm]] for arm in ARMS}
        for stage in STAGE_RESULTS
    }
    return {
        "arms": ARMS,
        "comparison": comparison,
        "statements": comparison["statements"],
        "analysis": comparison["analysis"],
        "rows": [interval_row(row) for row in comparison["analysis"]["endpoints"]],
        "curves": _curves(stages),
        "grid": _grid(pairs),
        "scatter": _scatter(pairs),
        "dose": list(_dose(stages)),
        "speed": list(_speed(stages, pairs)),
        "flips": list(_flips(pairs)),
        "seeds": [pair[0].seed for pair in pairs],
        "cards": _card_differences(pairs[0]),
        "commands": list(command_lines(pair[i] for i in range(len(ARMS)) for pair in pairs)),
        "environment": pairs[0][0].card["environment"],
        "code": comparison["code"],
    }


# --- what lies next to the evaluations ------------------------------------------------------------


def _curves(stages: dict[str, Any]) -> str | None:
    curves_of: dict[str, dict[str, list[Curve]]] = {}
    for stage, arms in stages.items():
        curves: dict[str, list[Curve]] = {
            arm: [
                [(x["step"], x["loss"]) for x in results["log"]]
                for results in runs
                if results and results["log"]
            ]
            for arm, runs in arms.items()
        }
        if any(curves.values()):
            curves_of[STAGE_NAMES[stage]] = curves
    return draw_learning_curves(curves_of) if curves_of else None


def _dose(stages: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for stage, arms in stages.items():
        for arm, runs in arms.items():
            results = next((run["results"] for run in runs if run), None)
            if results:
                keys = ("tokens", "supervised_tokens", "injected_examples", "injected_tokens")
                numbers = {key: results[key] for key in (*keys, "injected_example_share")}
                examples = results["total_train_samples"]
                yield {"stage": STAGE_NAMES[stage], "arm": arm, "examples": examples, **numbers}


def _speed(stages: dict[str, Any], pairs: Pairs) -> Iterator[dict[str, Any]]:
    for stage, arms in stages.items():
        for arm, runs in arms.items():
            results = next((run["results"] for run in runs if run), None)
            if results:
                yield {
                    "what": STAGE_NAMES[stage],
                    "arm": arm,
                    "seconds": results["train_runtime"],
                    "rate": results["tokens_per_second"],
                    "mfu": results["mfu"],
                    "memory": results["peak_memory_bytes"],
                }
    for index, arm in enumerate(ARMS):
        for name, evaluation in pairs[0][index].evaluations.items():
            metrics = evaluation.metrics
            yield {
                "what": f"{name} decoding",
                "arm": arm,
                "seconds": metrics.get("total", len(evaluation.items))
                / metrics["samples_per_second"],
                "rate": metrics["tokens_per_second"],
                "mfu": None,
                "memory": None,
            }


# --- endpoints ------------------------------------------------------------------------------------


def interval_row(row: dict[str, Any]) -> dict[str, Any]:
    """Add where delta and interval lie on a line from -reach to reach, in percent of its width.

    unreachable: no number of seeds detects the margin.
    """
    low, high = row["interval"] or (row["delta"], row["delta"])
    values = [v for v in (low, high, row["delta"]) if math.isfinite(v)]
    reach = 1.15 * max([abs(value) for value in values] + [1e-12])
    marks = {"low": low, "high": high, "delta": row["delta"]}
    drawn = {k: 50 + 50 * max(-reach, min(reach, v)) / reach for k, v in marks.items()}
    margin = row.get("margin")
    unreachable = margin is not None and row.get("detectable_limit", 0.0) > margin
    return {**row, "drawn": drawn, "unreachable": unreachable}


def _mean_grids(pairs: Pairs) -> dict[str, list[list[float]]] | None:
    grids: dict[str, list[list[float]]] = {}
    for index, arm in enumerate(ARMS):
        evaluations = [pair[index].evaluations.get("arithmetic") for pair in pairs]
        a1_grids = [e.metrics["a1_grid"] for e in evaluations if e and "a1_grid" in e.metrics]
        if not a1_grids:
            return None
        grids[arm] = [
            [math.fsum(grid[a][b] for grid in a1_grids) / len(a1_grids) for b in range(9)]
            for a in range(9)
        ]
    return grids


def _grid(pairs: Pairs) -> str | None:
    grids = _mean_grids(pairs)
    return draw_heatmaps(grids, unit="A1, nats") if grids else None


def _scatter(pairs: Pairs) -> str | None:
    if not all("gsm8k" in run.evaluations for pair in pairs for run in pair):
        return None
    arms = [[pair[arm].evaluations["gsm8k"].items for pair in pairs] for arm in (0, 1)]
    if not all("g1_log" in item for runs in arms for run in runs for item in run.values()):
        return None

    def mean(runs: list[dict[str, Any]], key: str) -> float:
        return math.fsum(run[key]["g1_log"] for run in runs) / len(runs)

    points = [
        (mean(arms[0], key), mean(arms[1], key), bool(item["applicable"]))
        for key, item in arms[0][0].items()
    ]
    return draw_scatter(points, unit="mean log P̂ (G1), nats")


# --- items ----------------------------------------------------------------------------------------


def _flips(pairs: Pairs) -> Iterator[dict[str, Any]]:
    """Yield the items that one arm has right and the other has not."""
    for pair in pairs:
        for name in [name for name in pair[0].evaluations if name in pair[1].evaluations]:
            a, b = (run.evaluations[name].items for run in pair)
            for key, item in a.items():
                if item["correct"] != b[key]["correct"]:
                    yield {
                        "seed": pair[0].seed,
                        "evaluation": name,
                        "prompt": item.get("prompt", key),
                        "gold": item["gold"],
                        "right": ARMS[b[key]["correct"]],
                        "responses": {
                            arm: {
                                "segments": response_segments(answer),
                                "correct": answer["correct"],
                                "stop_reason": answer.get("stop_reason", ""),
                            }
                            for arm, answer in zip(ARMS, (item, b[key]), strict=True)
                        },
                    }


def response_segments(item: dict[str, Any]) -> list[tuple[bool, str]]:
    """Return a response in pieces (whether it is a fact token, text)."""
    text, pieces, cursor = item.get("response", ""), [], 0
    for start, end in item.get("fact_spans", []):
        pieces += [(False, text[cursor:start]), (True, text[start:end])]
        cursor = end
    pieces.append((False, text[cursor:]))
    return [(fact, piece) for fact, piece in pieces if piece]


# --- run cards ------------------------------------------------------------------------------------


def _card_differences(pair: tuple[Run, Run]) -> list[tuple[str, Any, Any]]:
    """Return the keys in which the run cards of a pair differ, with both values."""
    flat = [flatten(run.card["training"] or {"weights": run.card["weights"]}, "") for run in pair]
    keys = sorted(set(flat[0]) | set(flat[1]))
    return [
        (key.removeprefix("."), flat[0].get(key), flat[1].get(key))
        for key in keys
        if flat[0].get(key) != flat[1].get(key) and not any(part in key for part in TECHNICAL)
    ]


def command_lines(runs: Iterable[Run]) -> Iterator[str]:
    """Yield the commands that made the study, parents first, each once."""
    told: dict[str, None] = {}
    for run in runs:
        for _, card in reversed(list(lineage(run))):
            told[card.get("command", "")] = None
        for evaluation in run.evaluations.values():
            told[evaluation.card.get("command", "")] = None
    yield from (command for command in told if command)


def _level(value: float, unit: str) -> str:
    """Return how high something is; of a fraction that is percent, not points."""
    return in_words(value, unit, sign=False).replace("points", "%")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
