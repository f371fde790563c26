"""A study of several arms under its plan: half table, contrasts, two families, and their words."""

from collections.abc import Sequence
from typing import Any

from domain_tokens.comparison.arm_account import account_of_arms, ceilings
from domain_tokens.comparison.arm_statements import statements
from domain_tokens.comparison.arms import Arms, pair_arms
from domain_tokens.comparison.claims import as_reported
from domain_tokens.comparison.half_contrast import Draw
from domain_tokens.comparison.half_tables import analyse_half_tables, pair_halves
from domain_tokens.comparison.must_equal import unrecorded_in_cards
from domain_tokens.comparison.over_seeds import _adjust, _estimate
from domain_tokens.comparison.runs import Run, lineage_clusters, same_base
from domain_tokens.comparison.values import ENDPOINTS, PRIMARIES
from domain_tokens.comparison.verdicts import replicates_differ_in
from domain_tokens.runs import ArmsPlan, ContrastSection, hash_json

HALVES = ("half_a", "half_b")


def compare_arms(
    arms: Arms, plan: ArmsPlan, draw: Draw, pilot: Sequence[Run] = ()
) -> dict[str, Any]:
    """Return the comparison of several arms as plain data: per arm, per contrast, and in words.

    Deltas are the first arm less the second; rates are fractions 0–1, log-probabilities in nats.
    draw: the scheme by which halves are drawn. pilot: runs of one condition, for the detectable
    effects. Raises UserError where runs have other items, or halves are no half table.
    """
    plain = {name: runs for name, runs in arms.items() if "+" not in name}
    sizes = {role: _family_size(plan, role) for role in ("primary", "secondary")}
    contrasts = [_contrast(c, plain, plan, pilot, family=sizes[c.role]) for c in plan.contrasts]
    half = _half_table(plain, plan, draw, family=sizes[plan.half_table])
    for role in sizes:
        family = [
            _row(contrast, e)
            for contrast in contrasts
            if contrast["role"] == role
            for e in PRIMARIES
        ]
        if plan.half_table == role:
            family = [_row(half, endpoint) for endpoint in PRIMARIES] + family
        _adjust(family, plan.alpha)
    runs = [run for arm in arms.values() for run in arm]
    report: dict[str, Any] = {
        "plan": {**plan.model_dump(), "hash": hash_json(plan.model_dump())},
        "families": sizes,
        "arms": account_of_arms(arms),
        "half_table": half,
        "contrasts": contrasts,
        "ceilings": ceilings(arms),
        "pilot": [str(run.folder) for run in pilot] or None,
        "notices": [n for run in runs for e in run.evaluations.values() for n in e.notices],
        "untold": list(unrecorded_in_cards(runs)),
    }
    return report | as_reported(list(statements(report, arms, plan, pilot)))


def _family_size(plan: ArmsPlan, role: str) -> int:
    roles = [plan.half_table, *(contrast.role for contrast in plan.contrasts)]
    return len(PRIMARIES) * roles.count(role)  # of every contrast, run or not


def _row(contrast: dict[str, Any] | None, endpoint: str) -> dict[str, Any] | None:
    rows = contrast["endpoints"] if contrast else []
    return next((row for row in rows if row["endpoint"] == endpoint), None)


def _half_table(arms: Arms, plan: ArmsPlan, draw: Draw, *, family: int) -> dict[str, Any] | None:
    if not all(arm in arms for arm in HALVES):
        return None
    pairs = pair_arms(arms["half_a"], arms["half_b"])
    if not pairs:
        return None
    others = {}
    for arm in ("baseline", "fact_token"):
        by_seed = {run.seed: run for run in arms.get(arm, ())}
        own = [by_seed.get(pair[0].seed) for pair in pairs]
        others[arm] = None if None in own else [run for run in own if run]
    analysis = analyse_half_tables(
        pair_halves(pairs), plan, draw, comparisons=family, others=others
    )
    return {**analysis, "arms": list(HALVES), "role": plan.half_table, "over": ""}


def _contrast(
    contrast: ContrastSection, arms: Arms, plan: ArmsPlan, pilot: Sequence[Run], *, family: int
) -> dict[str, Any]:
    """Return one contrast; without rows where an arm is not there, with the reason."""
    first, second = contrast.arms
    row: dict[str, Any] = {
        "name": contrast.name,
        "arms": [first, second],
        "role": contrast.role,
        "over": contrast.over,
        "seeds": [],
        "clusters": 0,
        "endpoints": [],
        "missing": {},
    }
    absent = [arm for arm in (first, second) if arm not in arms]
    pairs = [] if absent else pair_arms(arms[second], arms[first])  # as baseline and mul_tokens
    if not pairs:
        why = f"no arm {absent[0]}" if absent else "no seed is in both arms"
        return row | {"missing": dict.fromkeys(PRIMARIES, why)}
    groups = lineage_clusters(pairs)
    row |= {
        "seeds": [pair[0].seed for pair in pairs],
        "clusters": len(groups),
        "same_base": same_base([run for pair in pairs for run in pair]),
        "identical": any(a.card["weights"] == b.card["weights"] for a, b in pairs),
        "replicates_differ_in": replicates_differ_in(pairs),
    }
    for endpoint in ENDPOINTS:
        estimate = _estimate(endpoint, pairs, groups, plan, pilot, family=family)
        if estimate is not None:
            estimate = {
                "first": estimate.pop("mul_tokens"),
                "second": estimate.pop("baseline"),
                **estimate,
            }
            role = contrast.role if endpoint.primary else "exploratory"
            row["endpoints"].append({**estimate, "role": role})
        elif endpoint.primary:
            row["missing"][endpoint.name] = "not measured in all of its folders"
    return row
