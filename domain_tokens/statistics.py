"""Tests and intervals for paired evaluations, and what a model that ignores the question scores."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation


@dataclass(frozen=True, slots=True)
class Floor:
    """What one constant answer scores: the answer, and its accuracy as a fraction 0–1."""

    answer: str
    accuracy: float


def mcnemar_exact(b: int, c: int) -> float:
    """Return the two-sided exact McNemar p of discordant pairs: b only first right, c only second.

    Under the null a discordant item is as likely to favour either side, so b follows a binomial
    of b + c trials at one half; without discordant items p is 1. It describes two checkpoints on
    these items, never a method (Dror et al. 2018). Raises ValueError for a negative count.
    """
    from scipy.stats import binomtest

    if b < 0 or c < 0:
        raise ValueError(f"discordant counts are {b} and {c}; wanted two counts of at least 0")
    return float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0


def wilson_interval(successes: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a proportion as fractions 0–1 (Wilson 1927).

    Raises ValueError where successes is not between 0 and total, or total is not positive.
    """
    from scipy.stats import binomtest

    if not 0 <= successes <= total or total == 0:
        raise ValueError(f"{successes} of {total}; wanted 0 <= successes <= total and total > 0")
    interval = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference_interval(
    both: int, b: int, c: int, *, neither: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of second minus first accuracy on the same items (Newcombe 1998).

    both, neither: concordant items; b: only the first right; c: only the second right. It is the
    score interval that is built from both Wilson intervals and their correlation (method 10).
    """
    total = both + b + c + neither
    first, second = (both + b) / total, (both + c) / total
    low1, high1 = wilson_interval(both + b, total, confidence=confidence)
    low2, high2 = wilson_interval(both + c, total, confidence=confidence)
    margins = (both + b) * (c + neither) * (both + c) * (b + neither)
    excess = both * neither - b * c
    if excess > 0:  # the method's continuity correction shrinks a positive correlation only
        excess = max(excess - total / 2, 0)
    phi = excess / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))

    delta = second - first
    return delta - reach(second - low2, high1 - first), delta + reach(high2 - second, first - low1)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in the order given (Holm 1979).

    Raises ValueError for a value outside 0–1, NaN included.
    """
    if not all(0 <= p <= 1 for p in pvalues):
        raise ValueError(f"p-values are {list(pvalues)}; wanted fractions 0-1")
    adjusted = [0.0] * len(pvalues)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        largest = max(largest, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = largest
    return adjusted


def best_constant(golds: Sequence[object]) -> Floor:
    """Return the constant answer that scores best on these golds; of equals, the one seen first.

    Golds are compared as numbers (`18`, `18.0` and `1,018` parse), others as text. Raises
    ValueError without golds.
    """
    if not golds:
        raise ValueError("no gold answers; a floor needs at least one")
    answer, count = Counter(_canonical(gold) for gold in golds).most_common(1)[0]
    return Floor(answer, count / len(golds))


def training_mode_constant(training: Sequence[object], golds: Sequence[object]) -> Floor:
    """Return what the most frequent training answer scores on the golds: a floor without peeking.

    Raises ValueError where either list is empty.
    """
    answer = best_constant(training).answer
    if not golds:
        raise ValueError("no gold answers; a floor needs at least one")
    return Floor(answer, sum(_canonical(gold) == answer for gold in golds) / len(golds))


def _canonical(gold: object) -> str:
    text = str(gold).strip()
    try:
        number = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return text
    if not number.is_finite():
        return text
    return format(number.normalize() + 0, "f")
