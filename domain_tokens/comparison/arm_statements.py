"""What may be said of a study with several arms: primaries first, then what goes with them."""

from collections.abc import Iterator, Sequence
from typing import Any

from domain_tokens.comparison.arms import Arms, pair_arms, reductions
from domain_tokens.comparison.claims import Statement
from domain_tokens.comparison.half_tables import NAME as HALF_TABLE
from domain_tokens.comparison.runs import Run
from domain_tokens.comparison.values import PRIMARIES
from domain_tokens.comparison.verdicts import (
    ContrastOf,
    _collapses,
    _left_out,
    _sameness,
    _too_few,
    judge,
)
from domain_tokens.comparison.words import in_words, interval_in_words, sentence
from domain_tokens.runs import ArmsPlan

EXPLORATORY = {
    "treated_less_baseline": "facts with a token against baseline",
    "spill_over": "facts without one against baseline (spill-over)",
    "whole": "all facts treated against baseline",
}


def statements(
    report: dict[str, Any], arms: Arms, plan: ArmsPlan, pilot: Sequence[Run]
) -> Iterator[Statement]:
    """Yield all that the plan permits to be said of a comparison of arms."""
    absent: dict[str, Any] = {"name": HALF_TABLE, "role": plan.half_table, "endpoints": []}
    absent["missing"] = dict.fromkeys(PRIMARIES, "half_a and half_b are not both there")
    contrasts = [report["half_table"] or absent, *report["contrasts"]]
    primary = [contrast for contrast in contrasts if contrast["role"] == "primary"]
    claims: set[str] = set()
    for contrast in primary:
        for statement in _of_contrast(contrast, plan):
            claims |= {verdict.claim for verdict in statement.verdicts}
            yield statement
    if {"improved", "worsened"} <= claims:
        yield Statement("The primary endpoints disagree: each is stated, no winner is named.")
    if report["half_table"]:
        yield from map(Statement, _next_to_the_half_table(report["half_table"]))
    yield from map(Statement, _ceilings(report))
    yield from map(Statement, _attribution(report))
    not_run: list[str] = []
    for contrast in [contrast for contrast in contrasts if contrast["role"] == "secondary"]:
        if contrast["endpoints"]:
            yield from _of_contrast(contrast, plan)
        else:
            not_run.append(contrast["name"])
    if not_run:
        yield Statement(
            f"Named by the plan, not measured, and counted as p = 1: {'; '.join(not_run)}."
        )
    yield from map(Statement, dict.fromkeys(_notes(report, arms, plan, pilot)))


def _of_contrast(contrast: dict[str, Any], plan: ArmsPlan) -> Iterator[Statement]:
    secondary = ", secondary" if contrast["role"] == "secondary" else ""
    for row in contrast["endpoints"]:
        about = f"{contrast['name']}, {row['endpoint']}{secondary}"
        if row["endpoint"] in PRIMARIES:
            verdict = judge(row, plan, contrast, contrast_of(contrast))
            yield Statement(sentence(verdict), about, (verdict,))
    for endpoint, why in contrast["missing"].items():
        words = f"{why}; the plan is not fulfilled, and it counts as p = 1."
        yield Statement(words, f"{contrast['name']}, {endpoint}{secondary}")


def contrast_of(row: dict[str, Any]) -> ContrastOf:
    """Return what a verdict on this contrast is about."""
    first, second = row["arms"]
    kind = "sft" if second == "baseline" else "over"
    if row["name"] == HALF_TABLE:
        kind = "half_table"
    return ContrastOf(row["name"], first, second, kind, row["role"], row["over"])


def _next_to_the_half_table(half: dict[str, Any]) -> Iterator[str]:
    """Yield what the half table does not hold, each by itself: they are never added up."""
    for row in half["endpoints"]:
        parts = [
            f"{words} {_amount(estimate, row['unit'])}"
            for name, words in EXPLORATORY.items()
            if (estimate := row["beside"][name])
        ]
        dose = row["beside"]["dose"]
        if dose:
            words = "each factor of e in a fact's occurrences adds"
            parts.append(f"{words} {_amount(dose, row['unit'])} to what its token gains")
        if parts:
            yield f"Next to the half table of {row['endpoint']}, exploratory: {'; '.join(parts)}."
        if row["endpoint"] == "g1":
            shares = ", ".join(f"{count:,}" for count in row["in_one_half"])
            words = f"; {row['left_out']:,} more use a fact that never occurs"
            yield (
                f"Of {row['items']:,} items whose solutions use facts, {shares} (by seed) have all "
                f"of them in one half and count in g1{words if row['left_out'] else ''}."
            )
        if row["randomisation_p"] is not None:
            yield (
                f"Fisher's randomisation test of {row['endpoint']}, {row['redraws']:,} redraws of "
                f"the halves: p {row['randomisation_p']:.3g}."
            )


def _amount(row: dict[str, Any], unit: str) -> str:
    interval = "" if row["interval"] is None else f" {interval_in_words(row['interval'], unit)}"
    return in_words(row["delta"], unit) + interval


def _ceilings(report: dict[str, Any]) -> Iterator[str]:
    for row in report["ceilings"]:
        before, after = (f"{row[k]:.2%}" for k in ("accuracy", "with_calculator"))
        what = "perfect table facts" if row["calculator"] == "facts" else "perfect arithmetic"
        up_to = "to at most" if row["with_calculator"] >= row["accuracy"] else "to"
        seeds = len(row["seeds"])
        yield (
            f"In {row['arm']} {what} would move accuracy from {before} {up_to} {after} (the same "
            f"{seeds} {'checkpoint' if seeds == 1 else 'checkpoints'}, decoded with a calculator)."
        )


def _attribution(report: dict[str, Any]) -> Iterator[str]:
    for name, arm in report["arms"].items():
        counts = arm["attribution"]
        if counts and sum(counts.values()):
            total = sum(counts.values())
            facts = counts.get("table_fact", 0)
            yield (
                f"Of {total:,} wrong answers of {name}, the first wrong equation is a table fact "
                f"in {facts:,} ({facts / total:.1%})."
            )


def _notes(
    report: dict[str, Any], arms: Arms, plan: ArmsPlan, pilot: Sequence[Run]
) -> Iterator[str]:
    """Yield what a reader has to know with the verdicts."""
    plain = {name: runs for name, runs in arms.items() if "+" not in name}
    half = report["half_table"]
    yield from half["notes"] if half else ()
    for contrast in [*([half] if half else []), *report["contrasts"]]:
        if not contrast["endpoints"]:
            continue
        first, second = (plain[arm] for arm in contrast["arms"])
        yield from _left_out(contrast["endpoints"], contrast, pilot)
        yield from _sameness(pair_arms(second, first))
        yield from _too_few(plan, contrast)
        if contrast["same_base"] is None:
            yield "The cards do not name the bases: whether the arms share one is not known here."
        if contrast["same_base"] is False and contrast["clusters"] == 1:
            yield "The bases differ: pretraining noise and condition cannot be separated."
    yield from _collapses(plain)
    yield from reductions(arms)
    yield from report["untold"]
    crossed = [
        str(run.folder)
        for runs in arms.values()
        for run in runs
        if (run.card["training"] or {}).get("cross_base")
    ]
    if crossed:
        yield (
            "A base × SFT factorial (--cross-base): the arm of the base is not that of the SFT in "
            f"{', '.join(crossed)}."
        )
