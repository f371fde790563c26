"""What may be claimed of an endpoint, and what a reader has to know with it (design §5)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from domain_tokens.comparison.claims import Claim, Kind, Statement, Verdict
from domain_tokens.comparison.values import ENDPOINTS, PRIMARIES, value_matrix
from domain_tokens.comparison.words import sentence
from domain_tokens.runs import AnalysisPlan
from domain_tokens.statistics import collapsed

if TYPE_CHECKING:
    from domain_tokens.comparison.runs import Run

COLLAPSED_REJECTS = "7 %"  # instead of 5 %, by outside oracles; 5.7 % in progress/08
COLLAPSING = ("g1", "accuracy", "stop_rate")  # rates, of which a run can lose nearly all


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


def _collapses(arms: Mapping[str, Sequence["Run"]]) -> Iterator[str]:
    """Yield one line where runs lie far below the others of their arm (statistics.collapsed)."""
    collapses: dict[str, None] = {}
    for endpoint in ENDPOINTS:
        for arm, runs in arms.items():
            rates = value_matrix(runs, endpoint) if endpoint.name in COLLAPSING else None
            if rates is None:
                continue
            means = rates.mean(axis=1)
            if np.median(means) * rates.shape[1] < 10:  # fewer than ten items: chance alone
                continue
            for number in collapsed(means.tolist()):
                collapses[f"{arm} seed {runs[number].seed}"] = None
    if collapses:
        yield (
            f"Collapsed: {', '.join(collapses)}, far below the other runs of the arm. Where runs "
            f"collapse, the tests here reject up to {COLLAPSED_REJECTS} of true nulls and find "
            "less than they say; see why before anything is claimed."
        )


@dataclass(frozen=True, slots=True)
class ContrastOf:
    """What a verdict is about: two arms, and how their difference is worded."""

    name: str
    first: str
    second: str
    kind: Kind = "sft"
    role: Literal["primary", "secondary"] = "primary"
    over: str = ""


TWO_ARMS = ContrastOf("mul_tokens − baseline", "mul_tokens", "baseline")


def judge(
    row: dict[str, Any], plan: AnalysisPlan, context: dict[str, Any], contrast: ContrastOf
) -> Verdict:
    """Return what may be claimed of one endpoint of a contrast (design §5).

    context: clusters (independent lineages per arm), same_base, identical (a pair with the same
    weights in both arms). A claim stands where the interval that is shown holds no 0, equivalence
    where it lies within the margin.
    """
    interval, margin = row["interval"], row["margin"]
    inside = margin is not None and interval is not None
    inside = inside and -margin < interval[0] and interval[1] < margin
    needed = row["seeds_needed"]
    return Verdict(
        endpoint=row["endpoint"],
        contrast=contrast.name,
        kind=contrast.kind,
        role=contrast.role,
        first=contrast.first,
        second=contrast.second,
        over=contrast.over,
        claim=_claim(row, plan, context, inside=inside),
        direction="equal" if row["delta"] == 0 else "higher" if row["delta"] > 0 else "lower",
        unit=row["unit"],
        delta=row["delta"],
        interval=None if interval is None else tuple(interval),
        confidence=row["confidence"],
        p=row["p"],
        p_holm=row["p_holm"],
        randomisation_p=row.get("randomisation_p"),
        margin=margin,
        in_margin=inside,
        detectable=row["detectable"],
        detectable_limit=row.get("detectable_limit", 0.0),
        seeds=context["clusters"],
        seeds_needed=None if needed is None else max(needed, plan.seeds),
        items=row["items"],
    )


def _claim(
    row: dict[str, Any], plan: AnalysisPlan, context: dict[str, Any], *, inside: bool
) -> Claim:
    interval = row["interval"]
    if context["identical"]:
        return "same_weights"
    if context["clusters"] > 1 and row["se"] == 0:
        return "no_spread"
    if context["clusters"] == 1:
        if interval is None:  # of a half table: no run noise is known, only the randomisation
            p = row.get("randomisation_p")
            return "differ" if p is not None and p < plan.alpha else "not_detected"
        return "not_detected" if interval[0] <= 0 <= interval[1] else "differ"
    if context["same_base"] is None:
        return "bases_unknown"
    if not context["same_base"]:
        return "bases_differ"
    if context["clusters"] >= plan.seeds:
        if row["p_holm"] < plan.alpha:
            return "improved" if row["delta"] > 0 else "worsened"
        if inside:
            return "equivalent"
    return "inconclusive"


def _verdicts(
    primaries: list[dict[str, Any]], plan: AnalysisPlan, context: dict[str, Any]
) -> Iterator[Statement]:
    verdicts = [judge(row, plan, context, TWO_ARMS) for row in primaries]
    for verdict in verdicts:
        yield Statement(sentence(verdict), verdict.endpoint, (verdict,))
    if {"improved", "worsened"} <= {verdict.claim for verdict in verdicts}:
        yield Statement("The primary endpoints disagree: each is stated, no winner is named.")
    for name in sorted(set(PRIMARIES) - {row["endpoint"] for row in primaries}):
        yield Statement(
            "not measured in all of these folders, so the plan is not fulfilled; it counts as "
            "p = 1.",
            name,
        )
    if context["same_base"] is False and context["clusters"] == 1:
        yield Statement("The bases differ: pretraining noise and condition cannot be separated.")
    if context["same_base"] is None:
        yield Statement(
            "The cards do not name the bases: whether both arms share one is not known here."
        )


def _too_few(plan: AnalysisPlan, context: dict[str, Any]) -> Iterator[str]:
    if 1 < context["clusters"] < plan.seeds:
        yield (
            f"{context['clusters']} independent lineages per arm; the plan asks for {plan.seeds} "
            "before anything is claimed of the method."
        )
