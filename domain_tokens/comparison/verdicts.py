"""What may be said: the words that the design permits."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from domain_tokens.comparison.values import ENDPOINTS, PRIMARIES, both_arms
from domain_tokens.runs import AnalysisPlan
from domain_tokens.statistics import collapsed

if TYPE_CHECKING:
    from domain_tokens.comparison.runs import Run

UNREACHABLE = "cannot be reached with more seeds"
COLLAPSED_REJECTS = "7 %"  # instead of 5 %, by outside oracles; 5.7 % in progress/08
COLLAPSING = ("g1", "accuracy", "stop_rate")  # rates, of which a run can lose nearly all
MOST_SEEDS = 10_000


def replicates_differ_in(pairs: Sequence[tuple["Run", "Run"]]) -> list[str]:
    """Return what the seeds of these replicates decided, as far as the cards tell; [] for one."""
    if len(pairs) < 2:
        return []
    runs = [run for pair in pairs for run in pair]
    training = [run.card["training"] or {} for run in runs]
    decode = [
        (run.evaluations["gsm8k"].card.get("decode") or {}).get("rationale_seed")
        for run in runs
        if "gsm8k" in run.evaluations
    ]
    drawn = [(card.get("fact_rows") or {}).get("seed") for card in training]
    return [
        name
        for name, seeds in (
            ("order of examples", [card.get("seed") for card in training]),
            ("initial fact rows", drawn),
            ("sampled rationales", decode),
        )
        if None not in seeds and len(set(seeds)) > 1
    ]


def _sameness(pairs: Sequence[tuple["Run", "Run"]]) -> Iterator[str]:
    differ = replicates_differ_in(pairs)
    same = [name for name in ("initial fact rows", "sampled rationales") if name not in differ]
    if len(pairs) > 1 and same:
        yield (
            f"Replicates differ in {' and '.join(differ) or 'nothing that the cards tell'} only, "
            f"not in {' and '.join(same)}: what these add to the noise is not in the errors here."
        )


def _left_out(
    rows: list[dict[str, Any]], context: dict[str, Any], pilot: Sequence["Run"]
) -> Iterator[str]:
    if pilot and context["clusters"] == 1 and any(r["evaluation"] == "gsm8k" for r in rows):
        yield (
            "Seeds needed leave item × arm variance out: neither a pilot of one condition nor a "
            "single pair shows it."
        )


def _collapses(pairs: Sequence[tuple["Run", "Run"]]) -> Iterator[str]:
    """Yield one line where runs lie far below the others of their arm (statistics.collapsed)."""
    found: dict[str, None] = {}
    for endpoint in ENDPOINTS:
        arms = both_arms(pairs, endpoint) if endpoint.name in COLLAPSING else None
        for arm, rates in zip(("baseline", "mul_tokens"), [] if arms is None else arms):  # noqa: B905
            means = rates.mean(axis=1)
            if np.median(means) * rates.shape[1] < 10:  # fewer than ten items: chance alone
                continue
            for number in collapsed(means.tolist()):
                found[f"{arm} seed {pairs[number][0].seed}"] = None
    if found:
        yield (
            f"Collapsed: {', '.join(found)}, far below the other runs of the arm. Where runs "
            f"collapse, the tests here reject up to {COLLAPSED_REJECTS} of true nulls and find "
            "less than they say; see why before anything is claimed."
        )


def in_words(value: float, unit: str, *, sign: bool = True) -> str:
    """Return a value as people read it: fractions in points, log-probabilities in nats."""
    shown, digits = (100 * value, 2) if unit == "points" else (value, 3)
    return f"{shown:{'+' if sign else ''}.{digits}f} {unit}"


def bounds_in_words(row: dict[str, Any]) -> str:
    """Return a row's interval as people read it."""
    if row["interval"] is None:
        return "no interval"
    return f"[{', '.join(in_words(bound, row['unit']).split()[0] for bound in row['interval'])}]"


def primary_verdict(row: dict[str, Any], plan: AnalysisPlan, context: dict[str, Any]) -> str:
    """Return what may be said of one primary endpoint, in the words of design §5.

    context: clusters (independent lineages per arm), same_base, identical (a pair with the same
    weights in both arms). Words follow the interval that is shown: a claim stands where it holds no
    0, equivalence where it lies within the margin.
    """
    unit = row["unit"]
    if context["identical"]:
        return "No claim: both arms hold the same weights."
    if context["clusters"] > 1 and row["se"] == 0:
        return (
            f"No claim: all runs differ by exactly {in_words(row['delta'], unit)}, which tells "
            "nothing of how much runs vary."
        )
    low, high = row["interval"]
    span = f"{in_words(row['delta'], unit)} {bounds_in_words(row)}"
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
    within = "" if margin is None else in_words(margin, unit, sign=False)
    enough = context["clusters"] >= plan.seeds
    span += f" ({100 * row['confidence']:g} % interval)"
    if enough and row["p_holm"] < plan.alpha:
        words = "improved" if row["delta"] > 0 else "worsened"
        return (
            f"Fact-token SFT {words} {row['endpoint']} by {span}, from this base, recipe and size"
            + (f" (inside the equivalence margin of {within})." if inside else ".")
        )
    if enough and inside:
        return f"Equivalent within {within}: {span}."
    return f"Inconclusive: {_inconclusive(row, plan)}"


def _inconclusive(row: dict[str, Any], plan: AnalysisPlan) -> str:
    unit = row["unit"]
    low, high = (in_words(bound, unit) for bound in row["interval"])
    words = f"{low} to {high} remain possible ({100 * row['confidence']:g} % interval)"
    if row["detectable"] is not None:
        words += f"; detectable {in_words(row['detectable'], unit, sign=False)}"
    if row["margin"] is None or row["detectable"] is None:
        return words + "."
    margin = in_words(row["margin"], unit, sign=False)
    if row["detectable_limit"] > row["margin"]:
        least = in_words(row["detectable_limit"], unit, sign=False)
        return f"{words}; {margin} {UNREACHABLE}: {row['items']:,} items detect {least} at best."
    needed = row["seeds_needed"]
    count = f"over {MOST_SEEDS:,}" if needed is None else f"{max(needed, plan.seeds):,}"
    return f"{words}; seeds needed for {margin}: {count} per arm."


def _verdicts(
    primaries: list[dict[str, Any]], plan: AnalysisPlan, context: dict[str, Any]
) -> Iterator[str]:
    claims = set()
    for row in primaries:
        words = primary_verdict(row, plan, context)
        claims |= {claim for claim in ("improved", "worsened") if f"SFT {claim}" in words}
        yield f"{row['endpoint']}: {words}"
    if len(claims) == 2:
        yield "The primary endpoints disagree: each is stated, no winner is named."
    for name in sorted(set(PRIMARIES) - {row["endpoint"] for row in primaries}):
        yield (
            f"{name}: not measured in all of these folders, so the plan is not fulfilled; it "
            "counts as p = 1."
        )
    if context["same_base"] is False and context["clusters"] == 1:
        yield "The bases differ: pretraining noise and condition cannot be separated."
    if context["same_base"] is None:
        yield "The cards do not name the bases: whether both arms share one is not known here."


def _too_few(plan: AnalysisPlan, context: dict[str, Any]) -> Iterator[str]:
    if 1 < context["clusters"] < plan.seeds:
        yield (
            f"{context['clusters']} independent lineages per arm; the plan asks for {plan.seeds} "
            "before anything is claimed of the method."
        )
