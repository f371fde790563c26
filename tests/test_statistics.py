"""Paired tests, intervals and floors, against published numbers and against brute force."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain_tokens.statistics import (
    Floor,
    best_constant,
    holm,
    mcnemar_exact,
    paired_difference_interval,
    training_mode_constant,
    wilson_interval,
)

COUNTS = st.integers(0, 60)


@pytest.mark.parametrize(
    ("b", "c", "p"), [(0, 0, 1.0), (5, 0, 2 / 32), (0, 6, 2 / 64), (1, 9, 22 / 1024), (4, 4, 1.0)]
)
def test_mcnemar_by_hand(b, c, p):
    assert mcnemar_exact(b, c) == pytest.approx(p)


@given(COUNTS, COUNTS)
def test_mcnemar_is_the_sum_of_both_binomial_tails(b, c):
    n = b + c
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    assert mcnemar_exact(b, c) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_the_published_comparison_shows_no_difference():
    """33 and 27 right of 1,319: even if no item were right in both, p stays far from .05."""
    assert mcnemar_exact(33, 27) > 0.5


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_formula_of_1927(pair):
    k, n = pair
    z = 1.959963984540054
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    assert wilson_interval(k, n) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_wilson_of_the_published_accuracy():
    low, high = wilson_interval(33, 1319)
    assert (round(low, 4), round(high, 4)) == (0.0179, 0.0349)
    wide = wilson_interval(33, 1319, confidence=0.975)
    assert wide[0] < low < high < wide[1]


@pytest.mark.parametrize(("k", "n"), [(1, 0), (0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match="of"):
        wilson_interval(k, n)


def test_counts_below_zero_and_p_values_outside_the_unit_interval_are_refused():
    with pytest.raises(ValueError, match="discordant"):
        mcnemar_exact(-1, 2)
    with pytest.raises(ValueError, match="p-values"):
        holm([0.5, math.nan])


def test_the_paired_interval_of_newcombes_first_example():
    """Newcombe 1998, method 10 for the cells 36, 12, 2, 0: 0.0569 to 0.3404."""
    low, high = paired_difference_interval(36, 2, 12, neither=0)
    assert (round(low, 4), round(high, 4)) == (0.0569, 0.3404)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_paired_interval_is_antisymmetric_and_holds_the_difference(both, b, c, neither):
    n = both + b + c + neither
    if n == 0:
        return
    low, high = paired_difference_interval(both, b, c, neither=neither)
    assert low - 1e-12 <= (c - b) / n <= high + 1e-12
    assert low >= -1 - 1e-12
    assert high <= 1 + 1e-12
    other = paired_difference_interval(both, c, b, neither=neither)
    assert other == pytest.approx((-high, -low), abs=1e-12)


def test_the_paired_interval_covers_what_it_says():
    """2,000 simulated pairs of correlated checkpoints, true difference 2 points."""
    draw = random.Random(0)
    n, shares, covered = 300, (0.20, 0.05, 0.07), 0
    for _ in range(2000):
        counts = [0, 0, 0, 0]
        for kind in draw.choices(range(4), weights=(*shares, 1 - sum(shares)), k=n):
            counts[kind] += 1
        low, high = paired_difference_interval(*counts[:3], neither=counts[3])
        covered += low <= 0.02 <= high
    assert 0.935 <= covered / 2000 <= 0.975


def test_holm_by_hand():
    assert holm([]) == []
    assert holm([0.04, 0.01]) == pytest.approx([0.04, 0.02])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(pvalues):
    adjusted = holm(pvalues)
    assert all(p <= a <= 1 for p, a in zip(pvalues, adjusted, strict=True))
    order = sorted(range(len(pvalues)), key=lambda i: pvalues[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)
    assert min(adjusted) == pytest.approx(min(1.0, min(pvalues) * len(pvalues)))


def test_golds_are_compared_as_numbers():
    assert best_constant(["5", 5, "5.0", "1,018", "1018"]) == Floor("5", 0.6)
    assert best_constant(["1,018", "1018.00", "7"]) == Floor("1018", 2 / 3)
    assert best_constant(["-0", "0", "x"]).answer == "0"
    assert best_constant(["7", "3"]) == Floor("7", 0.5)


def test_the_training_mode_is_chosen_without_the_test_golds():
    training, test = ["10", "10", "5"], ["5", "5", "10", "2"]
    assert training_mode_constant(training, test) == Floor("10", 0.25)
    assert best_constant(test) == Floor("5", 0.5)
    for lists in (([], ["5"]), (["5"], [])):
        with pytest.raises(ValueError, match="gold"):
            training_mode_constant(*lists)
