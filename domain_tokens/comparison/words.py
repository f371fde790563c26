"""Verdicts and numbers as people read them: the words that the design permits (design §5)."""

from collections.abc import Sequence
from typing import Any

from domain_tokens.comparison.claims import PairVerdict, Verdict

UNREACHABLE = "cannot be reached with more seeds"
MAX_SEEDS = 10_000
ORIGIN = "from this base, recipe and size"


def number_in_words(value: float, unit: str, *, sign: bool = True) -> str:
    """Return a value without its unit: fractions in points, log-probabilities in nats."""
    shown, digits = (100 * value, 2) if unit == "points" else (value, 3)
    return f"{shown:{'+' if sign else ''}.{digits}f}"


def in_words(value: float, unit: str, *, sign: bool = True) -> str:
    """Return a value as people read it: fractions in points, log-probabilities in nats."""
    return f"{number_in_words(value, unit, sign=sign)} {unit}"


def interval_in_words(interval: Sequence[float] | None, unit: str) -> str:
    """Return an interval as people read it, without its unit."""
    if interval is None:
        return "no interval"
    return f"[{', '.join(number_in_words(bound, unit) for bound in interval)}]"


def bounds_in_words(row: dict[str, Any]) -> str:
    """Return a row's interval as people read it."""
    return interval_in_words(row["interval"], row["unit"])


def sentence(v: Verdict) -> str:
    """Return what may be said of one endpoint, in the words of design §5."""
    span = f"{in_words(v.delta, v.unit)} {interval_in_words(v.interval, v.unit)}"
    if v.claim == "same_weights":
        return f"No claim: both {_sides(v)} hold the same weights."
    if v.claim == "no_spread":
        return (
            f"No claim: all runs differ by exactly {in_words(v.delta, v.unit)}, which tells "
            "nothing of how much runs vary."
        )
    if v.claim in ("differ", "not_detected"):
        return _of_two_checkpoints(v, span)
    if v.claim == "bases_unknown":
        return (
            f"The {_sides(v)} differ by {span}; the cards do not name the bases, so no claim is "
            "made."
        )
    if v.claim == "bases_differ":
        return (
            f"These base lineages differ by {span}; pretraining noise and condition cannot be "
            "separated."
        )
    if v.claimed:
        return _claim(v, span)
    if v.claim == "equivalent":
        within = in_words(v.margin or 0.0, v.unit, sign=False)
        return f"Equivalent within {within}: {span} ({100 * v.confidence:g} % interval)."
    return f"Inconclusive: {_inconclusive(v)}"


def _sides(v: Verdict) -> str:
    return "halves" if v.kind == "half_table" else "arms"


def _of_two_checkpoints(v: Verdict, span: str) -> str:
    differ = v.claim == "differ"
    if v.kind != "half_table":
        words = f"These two checkpoints differ by {span}" if differ else "No difference detected"
        return f"{words} on these items; this says nothing about the method."
    p = "" if v.randomisation_p is None else f" (randomisation p {v.randomisation_p:.3g})"
    words = f"In these two checkpoints {_fact_with_token(v)}{p}" if differ else f"No difference{p}"
    return f"{words}; one seed says nothing about the method."


def _fact_with_token(v: Verdict) -> str:
    more = "more" if v.delta > 0 else "less"
    amount = in_words(abs(v.delta), v.unit, sign=False)
    subject = (
        "a fact with a token had" if v.endpoint == "a1" else "items whose facts had tokens had"
    )
    return f"{subject} {amount} {more} {v.endpoint} than without"


def _claim(v: Verdict, span: str) -> str:
    span += f" ({100 * v.confidence:g} % interval)"
    end = "."
    if v.in_margin:
        within = in_words(v.margin or 0.0, v.unit, sign=False)
        end = f" (inside the equivalence margin of {within})."
    if v.kind == "half_table":
        interval = f"{interval_in_words(v.interval, v.unit)} ({100 * v.confidence:g} % interval)"
        return f"In these models {_fact_with_token(v)} {interval}, {ORIGIN}{end}"
    if v.kind == "sft":
        method = "Fact-token" if v.first in ("mul_tokens", "fact_token") else v.first.capitalize()
        return f"{method} SFT {v.claim} {v.endpoint} by {span}, {ORIGIN}{end}"
    token = "The token" if v.first == "fact_token" else v.first.capitalize()
    verb, against = ("adds", "over") if v.claim == "improved" else ("loses", "against")
    return f"{token} {verb} {span} of {v.endpoint} {against} {v.over}, {ORIGIN}{end}"


def _inconclusive(v: Verdict) -> str:
    assert v.interval is not None
    low, high = (in_words(bound, v.unit) for bound in v.interval)
    words = f"{low} to {high} remain possible ({100 * v.confidence:g} % interval)"
    if v.detectable is not None:
        words += f"; detectable {in_words(v.detectable, v.unit, sign=False)}"
    if v.margin is None or v.detectable is None:
        return words + "."
    margin = in_words(v.margin, v.unit, sign=False)
    if v.detectable_limit > v.margin:
        least = in_words(v.detectable_limit, v.unit, sign=False)
        return f"{words}; {margin} {UNREACHABLE}: {v.items:,} items detect {least} at best."
    count = f"over {MAX_SEEDS:,}" if v.seeds_needed is None else f"{v.seeds_needed:,}"
    return f"{words}; seeds needed for {margin}: {count} per arm."


def pair_sentence(v: PairVerdict) -> str:
    """Return what may be said of an accuracy of two checkpoints."""
    evidence = (
        f"(only baseline right {v.only_baseline_right}, only mul_tokens right "
        f"{v.only_mul_tokens_right}, exact McNemar p {v.p_holm:.3g}"
    )
    if v.p_holm != v.p:
        evidence += f" after Holm, {v.p:.3g} before"
    if v.claim == "differ":
        words = f"These two checkpoints differ on these items, {v.higher} is higher {evidence})"
    else:
        words = f"No difference detected on these items {evidence})"
    words += "; this says nothing about the method."
    if v.uninformative:
        words += (
            " Accuracy is uninformative here: neither interval lies above what always answering "
            f"{v.floor_answer} scores ({v.floor_accuracy:.2%})."
        )
    return words


def pairs_sentence(name: str, verdicts: Sequence[PairVerdict]) -> str:
    """Return what may be said of an accuracy, by its name, of several pairs of checkpoints."""
    seeds = ", ".join(f"{v.p_holm:.2g}" for v in verdicts)
    return (
        f"{name}, exact McNemar p of each pair after Holm: {seeds}. Each compares two "
        "checkpoints on these items; this says nothing about the method."
    )
