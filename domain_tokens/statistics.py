"""Tests and intervals for paired evaluations, and what a model that ignores the question scores."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import numpy as np

ROUNDING = 1e-10  # of the largest difference: a standard error below it is arithmetic, not spread


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

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a**2 - 2 * phi * a * b + b**2, 0.0))

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


def holm_levels(pvalues: Sequence[float], alpha: float) -> list[float]:
    """Return the level at which Holm's procedure tests each p-value, in the order given.

    The smallest is tested at α/m, the next, if that was rejected, at α/(m − 1), and so on; what
    comes after the first that is not rejected stays at its level. So a value is rejected if, and
    only if, it lies below its level: an interval of confidence 1 − level says the same.
    """
    order = sorted(range(len(pvalues)), key=lambda i: pvalues[i])
    rejected = 0
    while rejected < len(order) and pvalues[order[rejected]] < alpha / (len(order) - rejected):
        rejected += 1
    ranks = {index: min(rank, rejected) for rank, index in enumerate(order)}
    return [alpha / (len(order) - ranks[index]) for index in range(len(order))]


def collapsed(rates: Sequence[float]) -> list[int]:
    """Return which runs of one condition collapsed, by position; rates: 0-1, one per run.

    Such a run lies below a tenth of the median, and more than five robust standard deviations
    (1.4826 × the median absolute deviation) from it. Of fewer than three runs none can be told.
    """
    values = np.asarray(rates, dtype=np.float64)
    if len(values) < 3:
        return []
    middle = float(np.median(values))
    reach = 5 * 1.4826 * float(np.median(np.abs(values - middle)))
    return np.flatnonzero(values < min(middle / 10, middle - reach)).tolist()


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


def matched_floor(
    predictions: Sequence[object], golds: Sequence[object], *, permutations: int, seed: int
) -> tuple[float, float]:
    """Return what an arm scores by its answer habits alone, and a p for scoring more than that.

    The floor is Σ_v p̂_predicted(v)·p_gold(v), a fraction 0–1: the mean accuracy when golds are
    dealt to the items at random. p: the share of such deals, the real one included, that score at
    least what the arm scores (one-sided, Monte Carlo). A prediction of None is never right. Raises
    ValueError where the lists are empty or of unequal length.
    """
    if not golds or len(predictions) != len(golds):
        raise ValueError(f"{len(predictions)} predictions, {len(golds)} golds; wanted equally many")
    numbers: dict[str, int] = {}
    said = ["" if p is None else _canonical(p) for p in predictions]
    # Sorted, so that the order of items does not decide which deals are drawn.
    pairs = sorted(zip(map(_canonical, golds), said, strict=True))
    expected = np.array([numbers.setdefault(gold, len(numbers)) for gold, _ in pairs])
    got = np.array([numbers.get(prediction, -1) for _, prediction in pairs])
    total, kinds = len(golds), len(numbers)
    frequency = np.bincount(expected, minlength=kinds)
    floor = float(np.bincount(got[got >= 0], minlength=kinds) @ frequency) / total**2
    correct = int((got == expected).sum())
    chooser = np.random.default_rng(seed)
    reached = sum(
        int((got == chooser.permutation(expected)).sum()) >= correct for _ in range(permutations)
    )
    return floor, (1 + reached) / (1 + permutations)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean paired difference with its standard error and degrees of freedom, in the data's units.

    se is 0 where all runs are equal. Then nothing is known of how much runs differ, so that a mean
    other than 0 has neither p nor interval; a mean of 0 has p 1 and the interval from 0 to 0.
    """

    mean: float
    se: float
    df: float

    @property
    def spread(self) -> bool:
        """Whether the runs differ from each other at all."""
        return self.se > 0

    def p(self) -> float | None:
        """Return the two-sided p of a mean of zero."""
        from scipy.stats import t

        if not self.spread:
            return 1.0 if self.mean == 0 else None
        return float(2 * t.sf(abs(self.mean) / self.se, self.df))

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """Return the two-sided t interval of the mean."""
        from scipy.stats import t

        if not self.spread:
            return (0.0, 0.0) if self.mean == 0 else None
        reach = float(t.ppf((1 + confidence) / 2, self.df)) * self.se
        return self.mean - reach, self.mean + reach


@dataclass(frozen=True, slots=True)
class _Squares:
    """Mean squares of differences [S seeds, n items]: between runs, between items, and the rest.

    With run variance σ_s², item variance σ_i² and the rest σ², their expectations are n·σ_s² + σ²,
    S·σ_i² + σ² and σ². None of them holds the mean difference.
    """

    seeds: int
    items: int
    by_run: float
    by_item: float
    rest: float


def _squares(d: np.ndarray) -> _Squares:
    seeds, items = d.shape
    rows, columns = d.mean(axis=1), d.mean(axis=0)
    residual = d - rows[:, None] - columns[None, :] + d.mean()
    return _Squares(
        seeds,
        items,
        by_run=items * float(rows.var(ddof=1)),
        by_item=seeds * float(columns.var(ddof=1)),
        rest=float((residual**2).sum()) / ((seeds - 1) * (items - 1)),
    )


def _differences(differences: np.ndarray) -> np.ndarray:
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 2 or min(d.shape) < 2 or not np.isfinite(d).all():
        raise ValueError(
            f"differences have shape {d.shape}; wanted finite ones of at least 2 seeds × 2 items"
        )
    return d


def _estimate(mean: float, by_run: float, groups: Sequence[_Squares], *, scale: float) -> Estimate:
    """Return a mean whose squared error is by_run plus what each group of items adds by itself.

    by_run: squared error from runs, S − 1 degrees of freedom. scale: the largest difference.
    """
    seeds = groups[0].seeds
    by_item = [g.by_item / (seeds * g.items) for g in groups]
    rest = [g.rest / (seeds * g.items) for g in groups]
    squared = max(by_run + sum(by_item) - sum(rest), by_run, sum(by_item))
    error = by_run**2 / (seeds - 1) + sum(
        i**2 / (g.items - 1) + r**2 / ((seeds - 1) * (g.items - 1))
        for g, i, r in zip(groups, by_item, rest, strict=True)
    )
    df = max(seeds - 1, squared**2 / error) if error else seeds - 1
    se = math.sqrt(squared)
    return Estimate(mean, se if se > ROUNDING * scale else 0.0, float(df))


def crossed_t(differences: np.ndarray) -> Estimate:
    """Return the mean of paired differences [S seeds, n items] with the error of both factors.

    Runs and items are both samples: SE² = V / (S n) with V = max(MS_s + MS_i − MS_r, MS_s, MS_i),
    degrees of freedom after Satterthwaite, at least S − 1 (Owen 2007 for crossed designs). Raises
    ValueError for fewer than two seeds or items, or a difference that is not finite.
    """
    d = _differences(differences)
    squares = _squares(d)
    by_run = squares.by_run / d.size
    return _estimate(float(d.mean()), by_run, [squares], scale=float(np.abs(d).max()))


def crossed_contrast(differences: np.ndarray, chosen: np.ndarray) -> Estimate:
    """Return how much larger the mean difference is on chosen items than on the others.

    differences: [S seeds, n items]; chosen: [n] booleans. Whatever shifts a whole run cancels; runs
    count by how their contrast varies, items of either group as a sample of their kind, degrees of
    freedom after Welch and Satterthwaite, at least S − 1. Raises ValueError for fewer than two
    seeds, or two items of either kind.
    """
    d, chosen = np.asarray(differences, dtype=np.float64), np.asarray(chosen, dtype=bool)
    groups = [_differences(d[:, mask]) for mask in (chosen, ~chosen)]
    by_run = groups[0].mean(axis=1) - groups[1].mean(axis=1)
    squared = float(by_run.var(ddof=1)) / len(by_run)
    scale = float(np.abs(d).max())
    return _estimate(float(by_run.mean()), squared, [_squares(g) for g in groups], scale=scale)


def run_means_t(means: Sequence[float] | np.ndarray) -> Estimate:
    """Return the mean of S run means, each over a census of items, so that only runs are a sample.

    A t over the run means with S − 1 degrees of freedom. Raises ValueError for fewer than two, or
    one that is not finite.
    """
    d = np.asarray(means, dtype=np.float64)
    if d.ndim != 1 or len(d) < 2 or not np.isfinite(d).all():
        raise ValueError(f"run means have shape {d.shape}; wanted finite ones of at least 2 seeds")
    se = float(d.std(ddof=1)) / math.sqrt(len(d))
    return Estimate(float(d.mean()), se if se > ROUNDING * np.abs(d).max() else 0.0, len(d) - 1.0)


def permutation_of_runs(means: Sequence[float]) -> float:
    """Return the exact two-sided p of swapping the arms within pairs of runs (sign flips).

    means: one mean difference per pair. All 2^S swaps are tried, so p is at least 2^(1 − S): 0.0625
    with five pairs. Raises ValueError without pairs and for more than 20.
    """
    d = np.asarray(means, dtype=np.float64)
    if not 1 <= len(d) <= 20:
        raise ValueError(f"{len(d)} pairs of runs; wanted 1 to 20")
    sums = np.zeros(1)  # of all swaps, by doubling
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    # Rounding grows with the terms, not with their sum, which may be exactly 0.
    return float((np.abs(sums) >= abs(sums[0]) - 1e-12 * np.abs(d).sum()).mean())


def bootstrap_interval(
    differences: Sequence[float], *, confidence: float = 0.95, seed: int = 42
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over items of two checkpoints.

    It describes these checkpoints, never a method. Raises ValueError for fewer than two items.
    """
    from scipy.stats import bootstrap

    if len(differences) < 2:
        raise ValueError(f"{len(differences)} items; wanted at least 2")
    if len(set(differences)) == 1:
        return differences[0], differences[0]
    interval = bootstrap(
        (np.asarray(differences),),
        np.mean,
        confidence_level=confidence,
        n_resamples=4999,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=256,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _canonical(gold: object) -> str:
    text = str(gold).strip()
    try:
        number = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return text
    if not number.is_finite():
        return text
    return format(number.normalize() + 0, "f")
