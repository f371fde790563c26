"""The arithmetic of half tables (design §5: contrast, Fisher's randomisation test), and the dose.

Legend: S seeds, n units (facts, or items of which each uses some facts), N redraws, F facts.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from domain_tokens.vocabulary import FACTS

# occurrences by fact token, seed -> the treated half and its complement
Draw = Callable[[Mapping[str, int], int], tuple[frozenset[str], frozenset[str]]]
CHUNK = 1000  # redraws at a time, of some hundred units each


def signs_of(uses: np.ndarray, treated: np.ndarray) -> np.ndarray:
    """Return 1 for units whose facts are all treated in the first run, −1 for none, 0 for some.

    uses: [n, F] booleans, at least one per unit; treated: [..., F] booleans. Returns [..., n].
    """
    counts = treated.astype(np.float64) @ uses.T.astype(np.float64)
    size = uses.sum(axis=1)
    return (counts == size).astype(np.int8) - (counts == 0).astype(np.int8)


def half_means(differences: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return D = ½ [mean of d where the sign is 1 − mean of d where it is −1], NaN without either.

    differences: [n], first run less its complement; signs: [..., n]. Whatever shifts a whole run
    cancels exactly.
    """
    plus, minus = (signs > 0).astype(np.float64), (signs < 0).astype(np.float64)
    with np.errstate(invalid="ignore"):
        first = plus @ differences / plus.sum(axis=-1)
        second = minus @ differences / minus.sum(axis=-1)
    return (first - second) / 2


def redrawn_halves(
    occurrences: Mapping[str, int], draw: Draw, *, count: int, seed: int
) -> np.ndarray:
    """Return halves drawn again by the scheme of the study, [count, F] booleans in id order."""
    seeds = np.random.default_rng(seed).integers(2**32, size=count)
    drawn = (draw(occurrences, int(half_seed))[0] for half_seed in seeds)
    return np.array([[fact in half for fact in FACTS] for half in drawn])


def randomisation_p(
    differences: np.ndarray, signs: np.ndarray, redrawn: Sequence[np.ndarray], uses: np.ndarray
) -> float:
    """Return Fisher's two-sided p that which facts were treated made no difference to any outcome.

    differences, signs: [S, n]; redrawn: per seed [N, F], independent of the other seeds' in their
    order; uses: [n, F]. The statistic is |mean over seeds of D|; the real draw counts as one of the
    N + 1, and a redraw of which some half has no unit counts as reaching it (Fisher 1935).
    """
    pairs = list(zip(differences, signs, strict=True))
    observed = abs(float(np.mean([half_means(d, s) for d, s in pairs])))
    count = len(redrawn[0])
    reached = 0
    for start in range(0, count, CHUNK):
        again = [
            half_means(d, signs_of(uses, halves[start : start + CHUNK]))
            for (d, _), halves in zip(pairs, redrawn, strict=True)
        ]
        rounding = 1e-12 * float(np.abs(differences).max(initial=0.0))
        reached += int((~(np.abs(np.mean(again, axis=0)) < observed - rounding)).sum())
    return (1 + reached) / (1 + count)


def dose_slopes(differences: np.ndarray, signs: np.ndarray, dose: np.ndarray) -> np.ndarray | None:
    """Return per seed how much more a unit gains from its token per unit of dose, [S].

    differences, signs: [S, n]; dose: [n]. Least squares of d on 1, dose, sign and sign × dose, the
    last one's coefficient; so that what shifts a run, also by dose, is no gain. None where a seed's
    units do not tell them apart.
    """
    slopes = []
    for d, s in zip(differences, signs, strict=True):
        known = s != 0
        x, z = dose[known] - dose[known].mean() if known.any() else dose[known], s[known]
        design = np.stack([np.ones_like(x), x, z, z * x], axis=1)
        coefficients, _, rank, _ = np.linalg.lstsq(design, d[known], rcond=None)
        if rank < 4:
            return None
        slopes.append(float(coefficients[3]))
    return np.array(slopes)
