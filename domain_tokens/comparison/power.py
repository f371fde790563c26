"""Detectable effects and the seeds that a study needs, from the noise of runs and items."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from domain_tokens.statistics import Estimate, _differences, _squares

PILOT_LIMIT = 0.8  # confidence with which a pilot's noise is no larger than what is planned with


@dataclass(frozen=True, slots=True)
class ItemNoise:
    """What items add to the error of a mean difference in a crossed t.

    variance: item × arm, of a mean over this many items; no number of seeds shrinks it. rest: item
    × run noise in the mean of one pair of runs. items: their number.
    """

    variance: float
    rest: float
    items: int


def item_noise(differences: np.ndarray) -> ItemNoise:
    """Return the item noise of paired differences [S seeds, n items], whatever their mean is.

    Only differences between arms show it: runs of one condition have no item × arm variance.
    Raises ValueError for fewer than two seeds or items.
    """
    s = _squares(_differences(differences))
    variance = max(0.0, s.by_item - s.rest) / (s.seeds * s.items)
    return ItemNoise(variance, s.rest / s.items, s.items)


@dataclass(frozen=True, slots=True)
class RunNoise:
    """How much runs of one condition differ (an A/A pilot): variance of a run's mean, and its df.

    It holds what items × run noise adds to a mean of this many items, too.
    """

    variance: float
    df: float

    def difference(self, seeds: int, items: ItemNoise | None = None) -> Estimate:
        """Return the error to plan with for a difference of two such arms with S seeds each.

        The pilot's variance enters by its upper 80 % confidence limit, since a small pilot that
        came out quiet would promise too much (Browne 1995); items add what the crossed t charges
        for them, and a census has none. Degrees of freedom: those of the crossed t at this
        variance, at least S − 1.
        """
        variance, df = self._planned(np.array([seeds]), items)
        return Estimate(0.0, math.sqrt(variance[0]), float(df[0]))

    def _planned(self, seeds: np.ndarray, items: ItemNoise | None) -> tuple[Any, Any]:
        from scipy.stats import chi2

        upper = self.variance * self.df / float(chi2.ppf(1 - PILOT_LIMIT, self.df))
        runs = 2 * upper / seeds
        if items is None or not (upper or items.variance):
            return runs, seeds - 1.0
        rest = items.rest / seeds
        variance = runs + items.variance
        error = runs**2 / (seeds - 1) + ((items.variance + rest) ** 2 + rest**2 / (seeds - 1)) / (
            items.items - 1
        )
        return variance, np.maximum(seeds - 1.0, variance**2 / error)


def run_noise(arms: Sequence[np.ndarray]) -> RunNoise:
    """Return the noise of runs, pooled over arms; each is [runs, items] of one condition.

    No difference between arms goes into it. Raises ValueError where no arm has two runs.
    """
    pooled = [np.asarray(arm, dtype=np.float64).mean(axis=1) for arm in arms if len(arm) > 1]
    if not pooled:
        raise ValueError("no arm has two runs; wanted at least two of one condition")
    df = sum(len(means) - 1 for means in pooled)
    return RunNoise(sum(float(((m - m.mean()) ** 2).sum()) for m in pooled) / df, float(df))


@dataclass(frozen=True, slots=True)
class Aim:
    """How sure a study wants to be: two-sided alpha over a number of comparisons, and power."""

    alpha: float
    power: float
    comparisons: int = 1

    def quantiles(self, df: Any) -> Any:
        """Return t_{1−α/2m, df} + t_{power, df}; df: a number or an array."""
        from scipy.stats import t

        return t.ppf(1 - self.alpha / 2 / self.comparisons, df) + t.ppf(self.power, df)


def detectable_effect(error: Estimate, aim: Aim) -> float:
    """Return the difference that is found with this power: (t_{1−α/2m, df} + t_{power, df})·SE.

    error: from A/A pilots, never from the difference that was observed (Bloom 1995).
    """
    return float(aim.quantiles(error.df)) * error.se


def detectable_limit(items: ItemNoise | None, aim: Aim) -> float:
    """Return the difference below which more seeds detect nothing, since items are a sample."""
    if items is None:
        return 0.0
    return detectable_effect(Estimate(0.0, math.sqrt(items.variance), math.inf), aim)


def seeds_needed(
    noise: RunNoise,
    effect: float,
    aim: Aim,
    *,
    items: ItemNoise | None = None,
    max_seeds: int = 10_000,
) -> int | None:
    """Return the seeds per arm with which an effect is detectable, or None beyond `max_seeds`."""
    seeds = np.arange(2, max_seeds + 1)
    variance, df = noise._planned(seeds, items)
    enough = aim.quantiles(df) * np.sqrt(variance) <= effect
    return int(seeds[enough.argmax()]) if enough.any() else None
