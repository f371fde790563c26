"""Endpoints over seeds: estimates under the frozen plan, and the words that they permit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from domain_tokens.comparison.claims import Statement, as_reported
from domain_tokens.comparison.power import (
    Aim,
    RunNoise,
    detectable_effect,
    detectable_limit,
    item_noise,
    run_noise,
    seeds_needed,
)
from domain_tokens.comparison.runs import ARMS, lineage_clusters, same_base
from domain_tokens.comparison.values import (
    ENDPOINTS,
    INTERACTION,
    PRIMARIES,
    Endpoint,
    both_arms,
    value_matrix,
)
from domain_tokens.comparison.verdicts import (
    _collapses,
    _left_out,
    _sameness,
    _too_few,
    _verdicts,
    replicates_differ_in,
)
from domain_tokens.comparison.words import MAX_SEEDS
from domain_tokens.errors import UserError
from domain_tokens.runs import AnalysisPlan, hash_json
from domain_tokens.statistics import (
    Estimate,
    bootstrap_interval,
    crossed_contrast,
    crossed_t,
    holm,
    holm_levels,
    permutation_of_runs,
    run_means_t,
)

if TYPE_CHECKING:
    from domain_tokens.comparison.runs import Run

BOOTSTRAP = "bootstrap over items"


def analyse(
    pairs: Sequence[tuple["Run", "Run"]], plan: AnalysisPlan, pilot: Sequence["Run"] = ()
) -> dict[str, Any]:
    """Return estimates of all endpoints, and the verdicts on the two primary ones.

    pilot: runs of one condition, whose noise gives the detectable effects; without them the noise
    within the arms does. Item × arm variance, which no pilot shows, comes from the differences less
    their mean. The difference that was observed enters nowhere. Raises UserError where two runs
    have other items.
    """
    groups = lineage_clusters(pairs)
    rows = [
        _estimate(endpoint, pairs, groups, plan, pilot)
        for endpoint in ENDPOINTS
        if endpoint.evaluation in pairs[0][0].evaluations
    ]
    estimates = [row for row in rows if row is not None]
    primaries = [row for row in estimates if row["role"] == "primary"]
    by_name = {row["endpoint"]: row for row in primaries}
    _adjust([by_name.get(name) for name in PRIMARIES], plan.alpha)  # the family is both, always
    interaction = _interaction(pairs, groups, plan)
    context = {
        "clusters": len(groups),
        "same_base": same_base([run for pair in pairs for run in pair]),
        "identical": any(a.card["weights"] == b.card["weights"] for a, b in pairs),
    }
    notes = [
        *_left_out(estimates, context, pilot),
        *_collapses({arm: [pair[i] for pair in pairs] for i, arm in enumerate(ARMS)}),
        *_sameness(pairs),
        *_too_few(plan, context),
    ]
    return {
        "plan": {**plan.model_dump(), "hash": hash_json(plan.model_dump())},
        **context,
        "pilot": [str(run.folder) for run in pilot] or None,
        "replicates_differ_in": replicates_differ_in(pairs),
        "endpoints": estimates + ([interaction] if interaction else []),
        **as_reported([*_verdicts(primaries, plan, context), *(Statement(note) for note in notes)]),
    }


def _estimate(
    endpoint: Endpoint,
    pairs: Sequence[tuple["Run", "Run"]],
    groups: list[list[int]],
    plan: AnalysisPlan,
    pilot: Sequence["Run"],
    *,
    family: int = len(PRIMARIES),
) -> dict[str, Any] | None:
    """Return a row of one endpoint; family: how many tests Holm runs over if it is a primary."""
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
        **_prospects(
            endpoint, d, _noise(endpoint, pairs, arms, groups, pilot), plan, family=family
        ),
    }


def _test(d: np.ndarray, endpoint: Endpoint, confidence: float) -> dict[str, Any]:
    """Return delta, interval and p of differences [clusters, items]; of one cluster no p."""
    if len(d) == 1:
        low, high = bootstrap_interval(d[0].tolist(), confidence=confidence)
        return {
            "delta": float(d.mean()),
            "confidence": confidence,
            "interval": [low, high],
            "method": BOOTSTRAP,
            "p": None,
        }
    means = d.mean(axis=1)
    estimate = run_means_t(means) if endpoint.census else crossed_t(d)
    return {
        **_shown(estimate, confidence),
        "method": "t over run means" if endpoint.census else "crossed t",
        "permutation_p": permutation_of_runs(means) if len(d) <= 20 else None,
    }


def _shown(estimate: Estimate, confidence: float) -> dict[str, Any]:
    interval = estimate.interval(confidence)
    return {
        "delta": estimate.mean,
        "confidence": confidence,
        "interval": None if interval is None else list(interval),
        "se": estimate.se,
        "df": estimate.df,
        "p": estimate.p(),
    }


def _adjust(family: Sequence[dict[str, Any] | None], alpha: float) -> None:
    """Adjust the p of a family by Holm and give each the interval of the level it was tested at.

    One that was not measured (None), or has no p, counts as p = 1.
    """
    p = [1.0 if row is None or row["p"] is None else row["p"] for row in family]
    levels = holm_levels(p, alpha)
    for row, adjusted, level in zip(family, holm(p), levels, strict=True):
        if row is not None and row["p"] is not None:
            estimate = Estimate(row["delta"], row["se"], row["df"])
            row |= {**_shown(estimate, 1 - level), "p_holm": adjusted}


def _prospects(
    endpoint: Endpoint, d: np.ndarray, noise: RunNoise | None, plan: AnalysisPlan, *, family: int
) -> dict[str, Any]:
    """Return what a study like this can detect, and what its margin would take.

    d: [clusters, items]. A primary has to pass Holm's first step, at α over all. One pair can
    detect nothing of the method, and shows no item × arm variance.
    """
    margin = plan.margins.get(endpoint.name) if endpoint.primary else None
    row: dict[str, Any] = {"margin": margin, "detectable": None, "seeds_needed": None}
    if noise is None:
        return row
    aim = Aim(plan.alpha, plan.power, family if endpoint.primary else 1)
    items = None if endpoint.census or len(d) < 2 else item_noise(d)
    row["run_sd"] = noise.variance**0.5
    row["item_arm_sd"] = None if items is None else (items.variance * items.items) ** 0.5
    row["detectable_limit"] = detectable_limit(items, aim)
    if len(d) > 1:
        row["detectable"] = detectable_effect(noise.difference(len(d), items), aim)
    if margin is not None:
        row["seeds_needed"] = seeds_needed(noise, margin, aim, items=items, max_seeds=MAX_SEEDS)
    return row


def _noise(
    endpoint: Endpoint,
    pairs: Sequence[tuple["Run", "Run"]],
    arms: np.ndarray,
    groups: list[list[int]],
    pilot: Sequence["Run"],
) -> RunNoise | None:
    """Return the noise of runs from the pilot, which needs the study's items, or within arms."""
    if pilot:
        values = value_matrix([pairs[0][0], *pilot], endpoint)
        return None if values is None else run_noise([values[1:]])
    if len(groups) < 2:
        return None
    return run_noise([np.stack([arm[group].mean(axis=0) for group in groups]) for arm in arms])


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
        **_shown(crossed_contrast(d, applies), 1 - plan.alpha),
        "method": "crossed t, two kinds of items",
    }
