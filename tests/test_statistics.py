"""Paired tests, intervals and floors, against published numbers and against brute force."""

import math
import random
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_ind

from domain_tokens.comparison.power import (
    Aim,
    ItemNoise,
    RunNoise,
    detectable_effect,
    detectable_limit,
    item_noise,
    run_noise,
    seeds_needed,
)
from domain_tokens.statistics import (
    Estimate,
    Floor,
    best_constant,
    bootstrap_interval,
    collapsed,
    crossed_contrast,
    crossed_t,
    holm,
    holm_levels,
    matched_floor,
    mcnemar_exact,
    paired_difference_interval,
    permutation_of_runs,
    run_means_t,
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


def test_matched_floor_is_the_mean_accuracy_of_dealt_golds():
    predictions, golds = ["18", "18.0", "4", None], ["18", "4", "5", "18"]
    floor, p = matched_floor(predictions, golds, permutations=4000, seed=1)
    assert floor == pytest.approx((2 * 2 + 1 * 1) / 16)
    # One of four is right; by hand 2 of the 12 distinct deals score nothing.
    dealt = [
        sum(a == b for a, b in zip([18, 18, 4, None], deal, strict=True))
        for deal in set(permutations([18, 4, 5, 18]))
    ]
    assert p == pytest.approx(np.mean([d >= 1 for d in dealt]), abs=0.03)


def test_a_model_that_always_says_five_is_exactly_at_its_floor():
    golds = [str(i % 7) for i in range(70)]
    assert matched_floor(["5"] * 70, golds, permutations=200, seed=3) == (1 / 7, 1.0)
    assert matched_floor(golds, golds, permutations=200, seed=3)[1] < 0.01


def test_run_means_t_is_the_t_test_over_run_means():
    d = np.random.default_rng(0).normal(0.3, 1, (6, 9))
    mine, other = run_means_t(d.mean(axis=1)), ttest_1samp(d.mean(axis=1), 0)
    assert mine.p() == pytest.approx(other.pvalue)
    assert mine.interval(0.95) == pytest.approx(tuple(other.confidence_interval(0.95)))


def test_crossed_t_by_hand():
    """Rows differ and columns do not: only the runs' mean square is left, df are at least S − 1."""
    d = np.repeat([[0.0], [1.0], [2.0]], 50, axis=1)
    estimate = crossed_t(d)
    assert estimate.mean == 1
    assert estimate.se == pytest.approx(1 / math.sqrt(3))
    assert estimate.df == pytest.approx(2)


def test_crossed_t_counts_items_as_a_sample():
    """Items that agree over runs leave an error that more runs do not shrink."""
    effect = np.random.default_rng(1).normal(0, 1, 200)
    few, many = (crossed_t(np.repeat(effect[None], s, axis=0)) for s in (2, 50))
    assert few.se == pytest.approx(many.se) == pytest.approx(effect.std(ddof=1) / math.sqrt(200))


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 30))
def test_crossed_t_is_never_surer_than_either_factor_alone(seed, s, n):
    d = np.random.default_rng(seed).normal(0, 1, (s, n))
    estimate = crossed_t(d)
    by_runs, by_items = (ttest_1samp(d.mean(axis=axis), 0) for axis in (1, 0))
    for one in (by_runs, by_items):
        assert estimate.se >= abs(estimate.mean / one.statistic) * (1 - 1e-9)
    assert estimate.df >= s - 1


def test_equal_runs_give_no_claim():
    nothing = crossed_t(np.zeros((5, 40)))
    assert (nothing.p(), nothing.interval(0.975)) == (1, (0, 0))


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (5,)])
def test_a_single_run_or_item_is_refused(shape):
    with pytest.raises(ValueError, match="at least 2 seeds"):
        crossed_t(np.zeros(shape))


def test_a_difference_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        run_means_t([0.0, math.nan])


def test_permutation_of_five_runs_of_one_sign_is_two_in_thirty_two():
    assert permutation_of_runs([1, 2, 3, 1, 5]) == 2 / 32
    assert permutation_of_runs([1, -1]) == 1
    assert permutation_of_runs([0.0, 0.0]) == 1


def test_detectable_effect_of_a_large_study_is_the_textbook_one():
    """Two-sided 5 %, power 80 %, normal: 2.8 standard errors."""
    error = Estimate(0, 1, 1e9)
    assert detectable_effect(error, Aim(0.05, 0.8)) == pytest.approx(2.8016, abs=1e-3)
    assert detectable_effect(error, Aim(0.05, 0.8, 2)) > detectable_effect(error, Aim(0.05, 0.8))


def test_run_noise_ignores_what_is_between_the_arms():
    rng = np.random.default_rng(5)
    one, other = rng.normal(0, 1, (4, 10)), rng.normal(0, 1, (6, 10))
    near, far = run_noise([one, other]), run_noise([one, other + 100])
    assert near.df == 8
    assert near.variance == pytest.approx(far.variance)
    assert near.difference(8).se == pytest.approx(near.difference(2).se / 2)


@pytest.mark.parametrize("aim", [Aim(0.05, 0.8, 2), Aim(0.01, 0.95, 2)])
@pytest.mark.parametrize("items", [None, ItemNoise(0.01, 0.02, 60)])
def test_seeds_needed_are_the_first_that_suffice(aim, items):
    """Whatever alpha and power the plan asked for, .05 and .8 were used: 566 seeds, not 1,178."""
    noise = run_noise([np.array([[0.0], [1.0], [2.0]])])
    seeds = seeds_needed(noise, 1.5, aim, items=items)
    for count, enough in ((seeds, True), (seeds - 1, False)):
        assert (detectable_effect(noise.difference(count, items), aim) <= 1.5) == enough
    assert seeds_needed(noise, 1e-6, aim, items=items, max_seeds=1000) is None


def test_more_seeds_do_not_help_beyond_what_items_leave_open():
    aim, items, noise = Aim(0.05, 0.8, 2), ItemNoise(0.01, 0.02, 60), RunNoise(0.5, 9)
    limit = detectable_limit(items, aim)
    assert detectable_effect(noise.difference(10**7, items), aim) == pytest.approx(limit, rel=1e-3)
    assert seeds_needed(noise, limit * 0.999, aim, items=items) is None
    assert seeds_needed(noise, limit * 1.2, aim, items=items) is not None
    assert detectable_limit(None, aim) == 0


def test_a_difference_is_planned_with_the_error_of_the_crossed_t():
    """At the mean squares that are expected, the planned error is that of the test, df included."""
    seeds, items, run, item, rest = 5, 40, 0.3, 0.2, 0.5
    noise = RunNoise((run + rest / items) / 2, 1e9)
    planned = noise.difference(seeds, ItemNoise(item / items, rest / items, items))
    ms = [items * run + rest, seeds * item + rest, rest]
    v = ms[0] + ms[1] - ms[2]
    error = ms[0] ** 2 / 4 + ms[1] ** 2 / 39 + ms[2] ** 2 / (4 * 39)
    assert planned.se == pytest.approx(math.sqrt(v / (seeds * items)), rel=1e-4)
    assert planned.df == pytest.approx(v**2 / error, rel=1e-3)


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(2, 12), st.floats(-9, 9))
def test_item_noise_does_not_see_the_mean_difference_or_run_shifts(seed, s, n, shift):
    rng = np.random.default_rng(seed)
    d = rng.normal(0, 1, (s, n))
    moved = item_noise(d + shift + rng.normal(0, 1, (s, 1)))
    noise = item_noise(d)
    assert moved.variance == pytest.approx(noise.variance, abs=1e-9)
    assert moved.rest == pytest.approx(noise.rest)
    assert moved.items == n


def test_what_is_printed_as_detectable_is_found():
    """Without item × arm variance "80 %" effects were found in 19-94 % of simulated studies.

    The pilot is of one condition, so it cannot show that variance; 3 of benchmarks/simulate_power.
    """
    rng, aim, studies = np.random.default_rng(11), Aim(0.05, 0.8, 2), 250
    for seeds, items, item_arm in ((5, 50, 0.2), (10, 200, 0.1), (10, 50, 0.2)):
        hits = {"now": 0, "without": 0}
        for _ in range(studies):
            pilot = run_noise([rng.normal(0, 0.15, (10, items))])
            d = rng.normal(0, 0.15 * math.sqrt(2), (seeds, items)) + rng.normal(0, item_arm, items)
            for name, noise in (("now", item_noise(d)), ("without", None)):
                effect = detectable_effect(pilot.difference(seeds, noise), aim)
                hits[name] += crossed_t(d + effect).p() < 0.025
        assert 0.74 <= hits["now"] / studies <= 0.95
        assert hits["without"] / studies < 0.7


def test_a_null_interaction_is_kept_where_items_differ():
    """Items taken as all there are gave 19-49 % false interactions."""
    rng, studies, hits, census = np.random.default_rng(3), 400, 0, 0
    chosen = np.arange(200) < 60
    for _ in range(studies):
        d = rng.normal(0, 0.2, 200) + rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.2, (5, 200))
        hits += crossed_contrast(d, chosen).p() < 0.05
        means = d[:, chosen].mean(axis=1) - d[:, ~chosen].mean(axis=1)
        census += run_means_t(means).p() < 0.05
    assert hits / studies <= 0.08  # 5 % and the band
    assert census / studies > 0.15


def test_a_contrast_of_two_kinds_of_items_by_hand():
    """Runs that agree leave Welch's t over items; items that agree leave a t over runs."""
    effect = np.random.default_rng(4).normal(0, 1, 30)
    chosen = np.arange(30) < 10
    estimate = crossed_contrast(np.repeat(effect[None], 3, axis=0), chosen)
    welch = ttest_ind(effect[:10], effect[10:], equal_var=False)
    assert (estimate.mean / estimate.se, estimate.df) == pytest.approx((welch.statistic, welch.df))
    runs = np.array([0.2, 0.5, 0.3, 0.9])
    estimate, by_runs = crossed_contrast(np.outer(runs, chosen), chosen), run_means_t(runs)
    ours, theirs = ((e.mean, e.se, e.df) for e in (estimate, by_runs))
    assert ours == pytest.approx(theirs)
    with pytest.raises(ValueError, match="at least 2 seeds"):
        crossed_contrast(np.ones((3, 4)), np.array([True, False, False, False]))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0.001, 0.2))
def test_holms_levels_reject_what_holms_adjusted_values_reject(pvalues, alpha):
    levels, adjusted = holm_levels(pvalues, alpha), holm(pvalues)
    for p, level, value in zip(pvalues, levels, adjusted, strict=True):
        if abs(p - level) > 1e-12:
            assert (p < level) == (value < alpha)
        assert alpha / len(pvalues) <= level <= alpha


def test_holms_levels_by_hand():
    assert holm_levels([0.03, 0.01], 0.05) == [0.05, 0.025]
    assert holm_levels([0.03, 0.04], 0.05) == [0.025, 0.025]
    assert holm_levels([0.01, 0.09], 0.05) == [0.025, 0.05]


def test_a_collapsed_run_is_one_far_below_the_others():
    assert collapsed([0.6, 0.61, 0.0, 0.59, 0.62]) == [2]
    assert collapsed([0.6, 0.3, 0.5, 0.9, 0.2]) == []
    assert collapsed([0.6, 0.0]) == []
    assert collapsed([0.0, 0.0, 0.0]) == []
    assert collapsed([0.5, 0.5, 0.52, 0.049, 0.0]) == [3, 4]


@pytest.mark.parametrize("shift", [0.1, -3.0, 1e-5])
def test_runs_without_any_spread_give_no_p(shift):
    """Five runs that all differ by .1 gave p = 0: how much runs vary was not seen, so no p."""
    d = np.full((5, 40), 0.7 + shift) - 0.7
    for estimate in (crossed_t(d), run_means_t(d.mean(axis=1)), crossed_t(d[:2, :2])):
        assert (estimate.p(), estimate.interval(0.95)) == (None, None)
        assert estimate.mean == pytest.approx(shift)


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=9), st.randoms())
def test_permutation_p_is_exact_and_blind_to_order(tenths, chooser):
    """A sum that is 0 but for rounding (.1 + .2 - .3) had p below 1; sums are exact here."""
    count = sum(
        abs(sum(s * t for s, t in zip(signs, tenths, strict=True))) >= abs(sum(tenths))
        for signs in product((1, -1), repeat=len(tenths))
    )
    means = [t / 10 for t in tenths]
    assert permutation_of_runs(means) == count / 2 ** len(tenths)
    chooser.shuffle(means)
    assert permutation_of_runs(means) == count / 2 ** len(tenths)


def test_bootstrap_of_many_items_is_the_normal_interval():
    d = np.random.default_rng(2).normal(0.1, 1, 3000)
    low, high = bootstrap_interval(d.tolist())
    reach = 1.96 * d.std() / math.sqrt(3000)
    assert (low, high) == pytest.approx((d.mean() - reach, d.mean() + reach), abs=0.004)
    assert bootstrap_interval([0.0, 0.0]) == (0, 0)
