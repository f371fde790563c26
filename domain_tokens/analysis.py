"""Endpoints over seeds: estimates under the frozen plan, and the words that they permit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from domain_tokens import statistics
from domain_tokens.config import AnalysisPlan
from domain_tokens.errors import UserError
from domain_tokens.run_card import hash_json

if TYPE_CHECKING:
    from domain_tokens.comparison import Evaluation, Run

Unit = Literal["nats", "points"]
BOOTSTRAP = "bootstrap over items"
UNREACHABLE = "cannot be reached with more seeds"


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
PRIMARIES = tuple(endpoint.name for endpoint in ENDPOINTS if endpoint.primary)
COLLAPSED_REJECTS = "7 %"  # instead of 5 %, by outside oracles; 5.7 % in progress/08
COLLAPSING = ("g1", "accuracy", "stop_rate")  # rates, of which a run can lose nearly all
MOST_SEEDS = 10_000
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
    """Return the values of runs as [runs, items], or None where one of them lacks the endpoint.

    Columns are in the order of the items' ids, in all runs alike and whatever the order of their
    files. Raises UserError where two runs have other items.
    """
    rows: list[dict[str, float]] = []
    for run in runs:
        evaluation = run.evaluations.get(endpoint.evaluation)
        row = values(evaluation, endpoint.name) if evaluation else None
        if not row:
            return None
        rows.append(row)
        alone = sorted(row.keys() ^ rows[0].keys())
        if alone:
            raise UserError(
                f"{runs[0].folder} and {run.folder} are not of the same items for {endpoint.name}: "
                f"{len(alone)} are in one only ({alone[0]}); evaluate all runs on the same data"
            )
    keys = sorted(rows[0])
    return np.array([[row[key] for key in keys] for row in rows])


def both_arms(pairs: Sequence[tuple["Run", "Run"]], endpoint: Endpoint) -> np.ndarray | None:
    """Return the values of both arms as [2, pairs, items], or None where a run lacks them."""
    together = matrix([pair[arm] for arm in (0, 1) for pair in pairs], endpoint)
    return None if together is None else together.reshape(2, len(pairs), -1)


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
    within the arms does. Item × arm variance, which no pilot shows, comes from the differences less
    their mean. The difference that was observed enters nowhere. Raises UserError where two runs
    have other items.
    """
    groups = clusters(pairs)
    rows = [
        _estimate(endpoint, pairs, groups, plan, pilot)
        for endpoint in ENDPOINTS
        if endpoint.evaluation in pairs[0][0].evaluations
    ]
    found = [row for row in rows if row is not None]
    primaries = [row for row in found if row["role"] == "primary"]
    _adjust(primaries, plan.alpha)
    interaction = _interaction(pairs, groups, plan)
    context = {
        "clusters": len(groups),
        "same_base": same_base([run for pair in pairs for run in pair]),
        "identical": any(a.card["weights"] == b.card["weights"] for a, b in pairs),
    }
    notes = [
        *_left_out(found, context, pilot),
        *_collapses(pairs),
        *_sameness(pairs),
        *_too_few(plan, context),
    ]
    return {
        "plan": {**plan.model_dump(), "hash": hash_json(plan.model_dump())},
        **context,
        "pilot": [str(run.folder) for run in pilot] or None,
        "replicates_differ_in": replicates_differ_in(pairs),
        "endpoints": found + ([interaction] if interaction else []),
        "verdicts": [*_verdicts(primaries, plan, context), *notes],
    }


def _estimate(
    endpoint: Endpoint,
    pairs: Sequence[tuple["Run", "Run"]],
    groups: list[list[int]],
    plan: AnalysisPlan,
    pilot: Sequence["Run"],
) -> dict[str, Any] | None:
    arms = both_arms(pairs, endpoint)
    if arms is None:
        return None
    by_pair = arms[1] - arms[0]  # [pairs, items]
    d = np.stack([by_pair[group].mean(axis=0) for group in groups])  # [clusters, items]
    return {
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
        **_test(d, endpoint, plan.confidence if endpoint.primary else 1 - plan.alpha),
        "p_holm": None,
        **_prospects(endpoint, d, _noise(endpoint, pairs, arms, groups, pilot), plan),
    }


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
        **_shown(found, confidence),
        "method": "t over run means" if endpoint.census else "crossed t",
        "permutation_p": statistics.permutation_of_runs(means) if len(d) <= 20 else None,
    }


def _shown(found: statistics.Estimate, confidence: float) -> dict[str, Any]:
    interval = found.interval(confidence)
    return {
        "delta": found.mean,
        "confidence": confidence,
        "interval": None if interval is None else list(interval),
        "se": found.se,
        "df": found.df,
        "p": found.p(),
    }


def _adjust(primaries: list[dict[str, Any]], alpha: float) -> None:
    """Adjust the primaries' p by Holm and give each the interval of the level it was tested at.

    The family is both primaries: one that was not measured, or has no p, counts as p = 1.
    """
    by_name = {row["endpoint"]: row for row in primaries if row["p"] is not None}
    p = [by_name[name]["p"] if name in by_name else 1.0 for name in PRIMARIES]
    levels = statistics.holm_levels(p, alpha)
    for name, adjusted, level in zip(PRIMARIES, statistics.holm(p), levels, strict=True):
        if name in by_name:
            row = by_name[name]
            found = statistics.Estimate(row["delta"], row["se"], row["df"])
            row |= {**_shown(found, 1 - level), "p_holm": adjusted}


def _prospects(
    endpoint: Endpoint, d: np.ndarray, noise: statistics.RunNoise | None, plan: AnalysisPlan
) -> dict[str, Any]:
    """Return what a study like this can detect, and what its margin would take.

    d: [clusters, items]. A primary has to pass Holm's first step, at α over both. One pair can
    detect nothing of the method, and shows no item × arm variance.
    """
    margin = plan.margins.get(endpoint.name) if endpoint.primary else None
    row: dict[str, Any] = {"margin": margin, "detectable": None, "seeds_needed": None}
    if noise is None:
        return row
    aim = statistics.Aim(plan.alpha, plan.power, len(PRIMARIES) if endpoint.primary else 1)
    items = None if endpoint.census or len(d) < 2 else statistics.item_noise(d)
    row["run_sd"] = noise.variance**0.5
    row["item_arm_sd"] = None if items is None else (items.variance * items.items) ** 0.5
    row["detectable_limit"] = statistics.detectable_limit(items, aim)
    if len(d) > 1:
        row["detectable"] = statistics.detectable_effect(noise.difference(len(d), items), aim)
    if margin is not None:
        row["seeds_needed"] = statistics.seeds_needed(
            noise, margin, aim, items=items, most=MOST_SEEDS
        )
    return row


def _noise(
    endpoint: Endpoint,
    pairs: Sequence[tuple["Run", "Run"]],
    arms: np.ndarray,
    groups: list[list[int]],
    pilot: Sequence["Run"],
) -> statistics.RunNoise | None:
    """Return the noise of runs from the pilot, which needs the study's items, or within arms."""
    if pilot:
        together = matrix([pairs[0][0], *pilot], endpoint)
        return None if together is None else statistics.run_noise([together[1:]])
    if len(groups) < 2:
        return None
    return statistics.run_noise(
        [np.stack([arm[group].mean(axis=0) for group in groups]) for arm in arms]
    )


def _interaction(
    pairs: Sequence[tuple["Run", "Run"]], groups: list[list[int]], plan: AnalysisPlan
) -> dict[str, Any] | None:
    """Return how much more the difference in G1 is on items whose gold solution uses a fact."""
    endpoint = next(e for e in ENDPOINTS if e.name == "g1")
    arms = both_arms(pairs, endpoint)
    if arms is None or len(groups) < 2:
        return None
    kinds = []
    for run in (run for pair in pairs for run in pair):
        items = run.evaluations["gsm8k"].items
        kinds.append([bool(items[key].get("applicable")) for key in sorted(items)])
        if kinds[-1] != kinds[0]:
            raise UserError(
                f"{pairs[0][0].folder} and {run.folder} do not agree on which items use a fact "
                "(applicable); evaluate both with the same code"
            )
    applies = np.array(kinds[0])
    if min(applies.sum(), (~applies).sum()) < 2:
        return None
    d = np.stack([(arms[1] - arms[0])[group].mean(axis=0) for group in groups])
    return {
        "endpoint": INTERACTION,
        "evaluation": "gsm8k",
        "unit": "points",
        "role": "exploratory",
        "items": int(applies.sum()),
        **_shown(statistics.crossed_contrast(d, applies), 1 - plan.alpha),
        "method": "crossed t, two kinds of items",
    }


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
            for number in statistics.collapsed(means.tolist()):
                found[f"{arm} seed {pairs[number][0].seed}"] = None
    if found:
        yield (
            f"Collapsed: {', '.join(found)}, far below the other runs of the arm. Where runs "
            f"collapse, the tests here reject up to {COLLAPSED_REJECTS} of true nulls and find "
            "less than they say; see why before anything is claimed."
        )


def amount(value: float, unit: str, *, sign: bool = True) -> str:
    """Return a value as people read it: fractions in points, log-probabilities in nats."""
    shown, digits = (100 * value, 2) if unit == "points" else (value, 3)
    return f"{shown:{'+' if sign else ''}.{digits}f} {unit}"


def bounds(row: dict[str, Any]) -> str:
    """Return a row's interval as people read it."""
    if row["interval"] is None:
        return "no interval"
    return f"[{', '.join(amount(bound, row['unit']).split()[0] for bound in row['interval'])}]"


def verdict(row: dict[str, Any], plan: AnalysisPlan, context: dict[str, Any]) -> str:
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
            f"No claim: all runs differ by exactly {amount(row['delta'], unit)}, which tells "
            "nothing of how much runs vary."
        )
    low, high = row["interval"]
    span = f"{amount(row['delta'], unit)} {bounds(row)}"
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
    low, high = (amount(bound, unit) for bound in row["interval"])
    words = f"{low} to {high} remain possible ({100 * row['confidence']:g} % interval)"
    if row["detectable"] is not None:
        words += f"; detectable {amount(row['detectable'], unit, sign=False)}"
    if row["margin"] is None or row["detectable"] is None:
        return words + "."
    margin = amount(row["margin"], unit, sign=False)
    if row["detectable_limit"] > row["margin"]:
        least = amount(row["detectable_limit"], unit, sign=False)
        return f"{words}; {margin} {UNREACHABLE}: {row['items']:,} items detect {least} at best."
    needed = row["seeds_needed"]
    count = f"over {MOST_SEEDS:,}" if needed is None else f"{max(needed, plan.seeds):,}"
    return f"{words}; seeds needed for {margin}: {count} per arm."


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
