"""Tests and intervals for paired evaluations, and what a model that ignores the question scores."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import product

import numpy as np


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


def mcnemar_midp(b: int, c: int) -> float:
    """Return the two-sided mid-p McNemar p: half the probability of what was seen (Fagerland 2013).

    Less conservative than the exact p and no longer exact. Raises ValueError for a negative count.
    """
    from scipy.stats import binom

    exact = mcnemar_exact(b, c)
    seen = float(binom.pmf(min(b, c), b + c, 0.5)) if b + c else 0.0
    return exact - (seen / 2 if b == c else seen)


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
    wanted = np.array([numbers.setdefault(_canonical(g), len(numbers)) for g in golds])
    said = [None if p is None else _canonical(p) for p in predictions]
    got = np.array([-1 if p is None else numbers.get(p, -1) for p in said])
    total, kinds = len(golds), len(numbers)
    frequency = np.bincount(wanted, minlength=kinds)
    floor = float(np.bincount(got[got >= 0], minlength=kinds) @ frequency) / total**2
    correct = int((got == wanted).sum())
    chooser = np.random.default_rng(seed)
    reached = sum(
        int((got == chooser.permutation(wanted)).sum()) >= correct for _ in range(permutations)
    )
    return floor, (1 + reached) / (1 + permutations)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean paired difference with its standard error and degrees of freedom, in the data's units.

    se is 0 where all runs are equal; then p is 1 for a mean of 0 and 0 for any other.
    """

    mean: float
    se: float
    df: float

    def p(self) -> float:
        """Return the two-sided p of a mean of zero."""
        from scipy.stats import t

        if self.se == 0:
            return float(self.mean == 0)
        return float(2 * t.sf(abs(self.mean) / self.se, self.df))

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the two-sided t interval of the mean."""
        from scipy.stats import t

        reach = float(t.ppf((1 + confidence) / 2, self.df)) * self.se if self.se else 0.0
        return self.mean - reach, self.mean + reach


def crossed_t(differences: np.ndarray) -> Estimate:
    """Return the mean of paired differences [S seeds, n items] with the error of both factors.

    Runs and items are both samples: SE² = V / (S n) with V = max(MS_s + MS_i − MS_r, MS_s, MS_i),
    degrees of freedom after Satterthwaite, at least S − 1 (Owen 2007 for crossed designs). Raises
    ValueError for fewer than two seeds or items, or a difference that is not finite.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 2 or min(d.shape) < 2 or not np.isfinite(d).all():
        raise ValueError(
            f"differences have shape {d.shape}; wanted finite ones of at least 2 seeds × 2 items"
        )
    seeds, items = d.shape
    rows, columns, mean = d.mean(axis=1), d.mean(axis=0), float(d.mean())
    ms_s = items * float(rows.var(ddof=1))
    ms_i = seeds * float(columns.var(ddof=1))
    residual = d - rows[:, None] - columns[None, :] + mean
    ms_r = float((residual**2).sum()) / ((seeds - 1) * (items - 1))
    v = max(ms_s + ms_i - ms_r, ms_s, ms_i)
    error = ms_s**2 / (seeds - 1) + ms_i**2 / (items - 1) + ms_r**2 / ((seeds - 1) * (items - 1))
    df = max(seeds - 1, v**2 / error) if error else seeds - 1
    return Estimate(mean, math.sqrt(v / (seeds * items)), float(df))


def run_means_t(means: Sequence[float] | np.ndarray) -> Estimate:
    """Return the mean of S run means, each over a census of items, so that only runs are a sample.

    A t over the run means with S − 1 degrees of freedom. Raises ValueError for fewer than two, or
    one that is not finite.
    """
    d = np.asarray(means, dtype=np.float64)
    if d.ndim != 1 or len(d) < 2 or not np.isfinite(d).all():
        raise ValueError(f"run means have shape {d.shape}; wanted finite ones of at least 2 seeds")
    return Estimate(float(d.mean()), float(d.std(ddof=1)) / math.sqrt(len(d)), len(d) - 1.0)


def permutation_of_runs(means: Sequence[float]) -> float:
    """Return the exact two-sided p of swapping the arms within pairs of runs (sign flips).

    means: one mean difference per pair. All 2^S swaps are tried, so p is at least 2^(1 − S): 0.0625
    with five pairs. Raises ValueError without pairs and for more than 20.
    """
    d = np.asarray(means, dtype=np.float64)
    if not 1 <= len(d) <= 20:
        raise ValueError(f"{len(d)} pairs of runs; wanted 1 to 20")
    signs = np.array(list(product((1.0, -1.0), repeat=len(d))))
    sums = np.abs(signs @ d)
    return float((sums >= abs(d.sum()) * (1 - 1e-12)).mean())


def equivalence_p(estimate: Estimate, margin: float) -> float:
    """Return the p of two one-sided tests that the mean lies within ±margin (Schuirmann 1987).

    Raises ValueError for a margin that is not positive.
    """
    from scipy.stats import t

    if not margin > 0:
        raise ValueError(f"the margin is {margin}; wanted a positive one")
    if estimate.se == 0:
        return float(abs(estimate.mean) >= margin)
    return float(t.sf((margin - abs(estimate.mean)) / estimate.se, estimate.df))


@dataclass(frozen=True, slots=True)
class RunNoise:
    """How much runs of one condition differ (an A/A pilot): variance of a run's mean, and its df.

    It holds what items × run noise adds to a mean of this many items, too.
    """

    variance: float
    df: float

    def difference(self, seeds: int) -> Estimate:
        """Return the error to plan with for a difference of two such arms with S seeds each.

        The pilot's variance enters by its upper 80 % confidence limit, since a small pilot that
        came out quiet would promise too much (Browne 1995). Degrees of freedom: those that a study
        of S pairs has at least, S − 1.
        """
        from scipy.stats import chi2

        upper = self.variance * self.df / float(chi2.ppf(0.2, self.df))
        return Estimate(0.0, math.sqrt(2 * upper / seeds), seeds - 1.0)


def run_noise(arms: Sequence[np.ndarray]) -> RunNoise:
    """Return the noise of runs, pooled over arms; each is [runs, items] of one condition.

    No difference between arms goes into it. Raises ValueError where no arm has two runs.
    """
    pooled = [np.asarray(arm, dtype=np.float64).mean(axis=1) for arm in arms if len(arm) > 1]
    if not pooled:
        raise ValueError("no arm has two runs; wanted at least two of one condition")
    df = sum(len(means) - 1 for means in pooled)
    return RunNoise(sum(float(((m - m.mean()) ** 2).sum()) for m in pooled) / df, float(df))


def detectable_effect(
    error: Estimate, *, alpha: float = 0.05, comparisons: int = 2, power: float = 0.8
) -> float:
    """Return the difference that is found with this power: (t_{1−α/2m, df} + t_{power, df})·SE.

    error: from A/A pilots, never from the difference that was observed (Bloom 1995).
    """
    from scipy.stats import t

    quantiles = t.ppf(1 - alpha / 2 / comparisons, error.df) + t.ppf(power, error.df)
    return float(quantiles) * error.se


def seeds_needed(noise: RunNoise, effect: float, *, most: int = 1000) -> int | None:
    """Return the seeds per arm with which an effect is detectable, or None beyond `most`."""
    for seeds in range(2, most + 1):
        if detectable_effect(noise.difference(seeds)) <= effect:
            return seeds
    return None


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
    found = bootstrap(
        (np.asarray(differences),),
        np.mean,
        confidence_level=confidence,
        n_resamples=4999,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=256,
    ).confidence_interval
    return float(found.low), float(found.high)


def _canonical(gold: object) -> str:
    text = str(gold).strip()
    try:
        number = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return text
    if not number.is_finite():
        return text
    return format(number.normalize() + 0, "f")
