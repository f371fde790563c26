"""Endpoints over seeds: estimates under the frozen plan, and the words that they permit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from domain_tokens import statistics
from domain_tokens.config import AnalysisPlan
from domain_tokens.run_card import hash_json

if TYPE_CHECKING:
    from domain_tokens.comparison import Evaluation, Run

Unit = Literal["nats", "points"]
BOOTSTRAP = "bootstrap over items"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is measured. census: its items are all there are, so that only runs are a sample.

    Values in points are fractions 0–1 until they are shown.
    """

    name: str
    evaluation: str
    unit: Unit
    primary: bool = False
    census: bool = False


ENDPOINTS = (
    Endpoint("a1", "arithmetic", "nats", primary=True, census=True),
    Endpoint("g1", "gsm8k", "points", primary=True),
    Endpoint("g1_log", "gsm8k", "nats"),
    Endpoint("g1_log_half", "gsm8k", "nats"),
    Endpoint("g2", "gsm8k", "nats"),
    Endpoint("accuracy", "gsm8k", "points"),
    Endpoint("stop_rate", "gsm8k", "points"),
)
# Prespecified, exploratory: does the difference sit in the items whose solution uses a fact?
INTERACTION = "g1, items with facts − others"
_ITEM_KEYS = {"accuracy": "correct"}


def values(evaluation: "Evaluation", endpoint: str) -> dict[str, float] | None:
    """Return an endpoint's value per item (for A1 per cell), or None where it was not measured."""
    if endpoint == "a1":
        cells = evaluation.metrics.get("a1_grid")
        return cells and {f"{a}×{b}": v for a, r in enumerate(cells, 1) for b, v in enumerate(r, 1)}
    if endpoint == "stop_rate":
        return {i: float(item["stop_reason"] == "eos") for i, item in evaluation.items.items()}
    key = _ITEM_KEYS.get(endpoint, endpoint)
    if any(key not in item for item in evaluation.items.values()):
        return None
    return {i: float(item[key]) for i, item in evaluation.items.items()}


def matrix(runs: Sequence["Run"], endpoint: Endpoint) -> np.ndarray | None:
    """Return the values of runs as [runs, items], or None where one of them lacks the endpoint."""
    rows = [
        values(run.evaluations[endpoint.evaluation], endpoint.name)
        if endpoint.evaluation in run.evaluations
        else None
        for run in runs
    ]
    if any(row is None for row in rows):
        return None
    keys = list(rows[0] or ())
    return np.array([[(row or {})[key] for key in keys] for row in rows])


def clusters(pairs: Sequence[tuple["Run", "Run"]]) -> list[list[int]]:
    """Return the pairs' numbers, those together that share a trained ancestor or weights."""
    groups: list[tuple[set[str], list[int]]] = []
    for number, pair in enumerate(pairs):
        names = set().union(*(lineage(run) for run in pair))
        joined = [group for group in groups if group[0] & names]
        for group in joined:
            groups.remove(group)
            names |= group[0]
        members = sorted([number, *(m for group in joined for m in group[1])])
        groups.append((names, members))
    return sorted(members for _, members in groups)


def lineage(run: "Run") -> set[str]:
    """Return the weights of a checkpoint and of all trained stages before it.

    Runs with any of them in common are no independent lineages. Bases are not trained stages.
    """
    training = run.card["training"] or {}
    parents = [training.get("parent") or {}, *(training.get("ancestors") or ())]
    trained = [p for p in parents if p.get("stage") not in (None, "base")]
    return {str(run.card["weights"]), *(str(parent["weights"]) for parent in trained)}


def same_base(runs: Sequence["Run"]) -> bool | None:
    """Return whether all runs start from one base, or None where the cards do not tell."""
    bases = set()
    for run in runs:
        training = run.card["training"] or {"stage": "base"}
        bases.add(run.card["weights"] if training["stage"] == "base" else training.get("base"))
    return None if None in bases else len(bases) == 1


def analyse(
    pairs: Sequence[tuple["Run", "Run"]], plan: AnalysisPlan, pilot: Sequence["Run"] = ()
) -> dict[str, Any]:
    """Return estimates of all endpoints, and the verdicts on the two primary ones.

    pilot: runs of one condition, whose noise gives the detectable effects; without them the noise
    within the arms does. What was observed between the arms never does.
    """
    groups = clusters(pairs)
    rows = [
        _estimate(endpoint, pairs, groups, plan, pilot)
        for endpoint in ENDPOINTS
        if endpoint.evaluation in pairs[0][0].evaluations
    ]
    found = [row for row in rows if row is not None]
    primaries = [row for row in found if row["role"] == "primary"]
    tested = [row for row in primaries if row["p"] is not None]
    for row, p in zip(tested, statistics.holm([r["p"] for r in tested]), strict=True):
        row["p_holm"] = p
    interaction = _interaction(pairs, groups)
    context = {
        "clusters": len(groups),
        "same_base": same_base([run for pair in pairs for run in pair]),
        "identical": any(a.card["weights"] == b.card["weights"] for a, b in pairs),
    }
    return {
        "plan": {**plan.model_dump(), "hash": hash_json(plan.model_dump())},
        **context,
        "pilot": [str(run.folder) for run in pilot] or None,
        "endpoints": found + ([interaction] if interaction else []),
        "verdicts": list(_verdicts(primaries, plan, context)),
    }


def _estimate(
    endpoint: Endpoint,
    pairs: Sequence[tuple["Run", "Run"]],
    groups: list[list[int]],
    plan: AnalysisPlan,
    pilot: Sequence["Run"],
) -> dict[str, Any] | None:
    arms = [matrix([pair[arm] for pair in pairs], endpoint) for arm in (0, 1)]
    if arms[0] is None or arms[1] is None:
        return None
    by_pair = arms[1] - arms[0]  # [pairs, items]
    d = np.stack([by_pair[group].mean(axis=0) for group in groups])  # [clusters, items]
    confidence = plan.confidence if endpoint.primary else 0.95
    row: dict[str, Any] = {
        "endpoint": endpoint.name,
        "evaluation": endpoint.evaluation,
        "unit": endpoint.unit,
        "role": "primary" if endpoint.primary else "exploratory",
        "items": d.shape[1],
        "baseline": float(arms[0].mean()),
        "mul_tokens": float(arms[1].mean()),
        "by_seed": {
            str(pair[0].seed): float(v) for pair, v in zip(pairs, by_pair.mean(axis=1), strict=True)
        },
        **_test(d, endpoint, confidence),
        "p_holm": None,
        "margin": plan.margins.get(endpoint.name),
        "detectable": None,
        "seeds_needed": None,
    }
    noise = _noise(endpoint, arms, groups, pilot)
    if noise is not None:
        row["run_sd"] = noise.variance**0.5
        error = noise.difference(max(len(groups), 2))
        row["detectable"] = statistics.detectable_effect(error, alpha=plan.alpha, power=plan.power)
        if row["margin"]:
            row["seeds_needed"] = statistics.seeds_needed(noise, row["margin"])
    return row


def _test(d: np.ndarray, endpoint: Endpoint, confidence: float) -> dict[str, Any]:
    """Return delta, interval and p of differences [clusters, items]; of one cluster no p."""
    if len(d) == 1:
        low, high = statistics.bootstrap_interval(d[0].tolist(), confidence=confidence)
        return {
            "delta": float(d.mean()),
            "confidence": confidence,
            "interval": [low, high],
            "method": BOOTSTRAP,
            "p": None,
        }
    means = d.mean(axis=1)
    found = statistics.run_means_t(means) if endpoint.census else statistics.crossed_t(d)
    return {
        "delta": found.mean,
        "confidence": confidence,
        "interval": list(found.interval(confidence)),
        "method": "t over run means" if endpoint.census else "crossed t",
        "se": found.se,
        "df": found.df,
        "p": found.p(),
        "permutation_p": statistics.permutation_of_runs(means) if len(d) <= 20 else None,
    }


def _noise(
    endpoint: Endpoint, arms: list[Any], groups: list[list[int]], pilot: Sequence["Run"]
) -> statistics.RunNoise | None:
    if pilot:
        values_of_pilot = matrix(pilot, endpoint)
        return None if values_of_pilot is None else statistics.run_noise([values_of_pilot])
    if len(groups) < 2:
        return None
    return statistics.run_noise(
        [np.stack([arm[group].mean(axis=0) for group in groups]) for arm in arms]
    )


def _interaction(
    pairs: Sequence[tuple["Run", "Run"]], groups: list[list[int]]
) -> dict[str, Any] | None:
    """Return how much more the difference in G1 is on items whose gold solution uses a fact."""
    evaluation = pairs[0][0].evaluations.get("gsm8k")
    endpoint = next(e for e in ENDPOINTS if e.name == "g1")
    arms = [matrix([pair[arm] for pair in pairs], endpoint) for arm in (0, 1)]
    if evaluation is None or arms[0] is None or arms[1] is None or len(groups) < 2:
        return None
    applies = np.array([bool(item.get("applicable")) for item in evaluation.items.values()])
    if applies.all() or not applies.any():
        return None
    d = np.stack([(arms[1] - arms[0])[group].mean(axis=0) for group in groups])
    contrast = d[:, applies].mean(axis=1) - d[:, ~applies].mean(axis=1)
    found = statistics.run_means_t(contrast)
    return {
        "endpoint": INTERACTION,
        "evaluation": "gsm8k",
        "unit": "points",
        "role": "exploratory",
        "items": int(applies.sum()),
        "delta": found.mean,
        "confidence": 0.95,
        "interval": list(found.interval(0.95)),
        "method": "t over run means",
        "p": found.p(),
    }


def amount(value: float, unit: str, *, sign: bool = True) -> str:
    """Return a value as people read it: fractions in points, log-probabilities in nats."""
    shown, digits = (100 * value, 2) if unit == "points" else (value, 3)
    return f"{shown:{'+' if sign else ''}.{digits}f} {unit}"


def verdict(row: dict[str, Any], plan: AnalysisPlan, context: dict[str, Any]) -> str:
    """Return what may be said of one primary endpoint, in the words of design §5.

    context: clusters (independent lineages per arm), same_base, identical (a pair with the same
    weights in both arms).
    """
    unit = row["unit"]
    low, high = row["interval"]
    span = (
        f"{amount(row['delta'], unit)} "
        f"[{amount(low, unit).split()[0]}, {amount(high, unit).split()[0]}]"
    )
    if context["identical"]:
        return "No claim: both arms hold the same weights."
    if context["clusters"] == 1:
        differ = not low <= 0 <= high
        words = f"These two checkpoints differ by {span}" if differ else "No difference detected"
        return f"{words} on these items; this says nothing about the method."
    if context["same_base"] is None:
        return f"The arms differ by {span}; the cards do not name the bases, so no claim is made."
    if not context["same_base"]:
        return (
            f"These base lineages differ by {span}; pretraining noise and condition cannot be "
            "separated."
        )
    margin = row["margin"]
    inside = margin is not None and -margin < low and high < margin
    within = "" if margin is None else amount(margin, unit, sign=False)
    if context["clusters"] >= plan.seeds and row["p_holm"] < plan.alpha:
        words = "improved" if row["delta"] > 0 else "worsened"
        return (
            f"Fact-token SFT {words} {row['endpoint']} by {span}, from this base, recipe and size"
            + (f" (inside the equivalence margin of {within})." if inside else ".")
        )
    if context["clusters"] >= plan.seeds and inside:
        return f"Equivalent within {within}: {span}."
    return f"Inconclusive: {_inconclusive(row, plan)}"


def _inconclusive(row: dict[str, Any], plan: AnalysisPlan) -> str:
    unit = row["unit"]
    low, high = (amount(bound, unit) for bound in row["interval"])
    words = f"{low} to {high} remain possible"
    if row["detectable"] is not None:
        words += f"; detectable {amount(row['detectable'], unit, sign=False)}"
    if row["margin"] is not None:
        needed = row["seeds_needed"]
        count = "over 1,000" if needed is None else str(max(needed, plan.seeds))
        words += f"; seeds needed for {amount(row['margin'], unit, sign=False)}: {count} per arm"
    return words + "."


def _verdicts(
    primaries: list[dict[str, Any]], plan: AnalysisPlan, context: dict[str, Any]
) -> Iterator[str]:
    claims = set()
    for row in primaries:
        words = verdict(row, plan, context)
        claims |= {claim for claim in ("improved", "worsened") if f"SFT {claim}" in words}
        yield f"{row['endpoint']}: {words}"
    if len(claims) == 2:
        yield "The primary endpoints disagree: each is stated, no winner is named."
    missing = {"a1", "g1"} - {row["endpoint"] for row in primaries}
    for name in sorted(missing):
        yield f"{name}: not measured in all of these folders, so the plan is not fulfilled."
    if context["same_base"] is False and context["clusters"] == 1:
        yield "The bases differ: pretraining noise and condition cannot be separated."
    if context["same_base"] is None:
        yield "The cards do not name the bases: whether both arms share one is not known here."
    if 1 < context["clusters"] < plan.seeds:
        yield (
            f"{context['clusters']} independent lineages per arm; the plan asks for {plan.seeds} "
            "before anything is claimed of the method."
        )
