"""Half tables: the contrast, its tests, what stands next to it, and what ends in a clear line."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain_tokens.comparison.contrasts import compare_arms
from domain_tokens.comparison.fact_values import treated_facts, units_of, values_of
from domain_tokens.comparison.half_contrast import (
    dose_slopes,
    half_means,
    randomisation_p,
    redrawn_halves,
    signs_of,
)
from domain_tokens.comparison.half_tables import pair_halves
from domain_tokens.comparison.runs import Evaluation, Run
from domain_tokens.errors import UserError
from domain_tokens.runs.config import ArmsPlan, load_plan
from domain_tokens.treatments import draw_half
from domain_tokens.vocabulary import FACT_PAIRS, FACTS
from tests.conftest import ROOT

PLAN = load_plan(ROOT / "eval" / "configs" / "half_tables.yaml").model_copy(
    update={"redraws": 1000}
)
OCCURRENCES = {fact: 500 - 10 * n for n, fact in enumerate(FACTS)}
ITEMS = 120
VERDICTS = ("correct", "correct_flexible", "correct_credited")


def used_by_item():
    """Which facts each item's gold solution uses: none, one, two or three."""
    rng = np.random.default_rng(11)
    return [sorted(rng.choice(45, size=n % 4, replace=False).tolist()) for n in range(ITEMS)]


USED = used_by_item()


def make_run(arm, seed, a1, g1, *, facts=None, occurrences=OCCURRENCES, base="base", **card):
    """A run that was never run: a1 [45] in nats by fact, g1 [ITEMS]; facts: what it treats."""
    grid = np.zeros((9, 9))
    for (a, b), value in zip(FACT_PAIRS, a1, strict=True):
        grid[a - 1, b - 1], grid[b - 1, a - 1] = value - 0.25, value + 0.25
        if a == b:
            grid[a - 1, a - 1] = value
    half = arm if arm.startswith("half") else "all"
    name = "fact_token" if half != "all" else arm
    record = {"name": name, "version": "1", "treated_facts": half, "facts": list(facts or [])}
    record["draw"] = {"seed": seed, "occurrences": dict(occurrences)} if occurrences else None
    condition = "baseline" if arm == "baseline" else "mul_tokens"
    training = {
        "stage": "sft",
        "seed": seed,
        "condition": condition,
        "base": base,
        "treatment": None if arm == "baseline" else record,
        "parent": {"stage": "tulu_sft", "weights": f"parent-{arm}-{seed}"},
    }
    full = {"condition": condition, "weights": f"{arm}-{seed}", "training": training, "seed": seed}
    full |= {"model_path": "nowhere"} | card
    items = {
        f"i{n:03}": {
            "id": f"i{n:03}",
            "g1": float(value),
            **dict.fromkeys(VERDICTS, bool(value > 0.5)),
            "stop_reason": "eos",
            "applicable": bool(USED[n]),
            "gold_facts": [FACTS[k] for k in USED[n]],
        }
        for n, value in enumerate(g1)
    }
    probe = {"id": "p", "category": "mul_table", **dict.fromkeys(VERDICTS, True)}
    evaluations = {
        "arithmetic": Evaluation(Path("a"), {"a1_grid": grid.tolist()}, full, {"p": probe}, ""),
        "gsm8k": Evaluation(Path("g"), {}, full, items, ""),
    }
    return Run(Path(f"{arm}_{seed}"), seed, evaluations)


def values(rng, treated, *, direct, spill, noise, shift):
    """What a run with these treated facts scores: facts [45] and items [ITEMS]."""
    on = np.isin(np.arange(45), list(treated))
    a1 = np.linspace(-3, -1, 45) + direct * on + (spill if treated else 0) + shift
    whole = np.array([bool(used) and all(on[k] for k in used) for used in USED])
    g1 = np.linspace(0.2, 0.6, ITEMS) + direct / 20 * whole + shift / 20
    return a1 + rng.normal(0, noise, 45), g1 + rng.normal(0, noise / 20, ITEMS)


def study(seeds=5, *, direct=0.0, spill=0.0, noise=0.1, run_sd=0.7, shift=0.0, **more):
    """Arms of a half-table study; shift: added to every half_a."""
    rng = np.random.default_rng(5)
    arms = {arm: [] for arm in ("baseline", "fact_token", "half_a", "half_b")}
    for seed in range(seeds):
        first, second = ([FACTS.index(f) for f in half] for half in draw_half(OCCURRENCES, seed))
        for arm, facts in (
            ("baseline", []),
            ("fact_token", range(45)),
            ("half_a", first),
            ("half_b", second),
        ):
            moved = rng.normal(0, run_sd) + (shift if arm == "half_a" else 0.0)
            a1, g1 = values(rng, facts, direct=direct, spill=spill, noise=noise, shift=moved)
            names = [FACTS[k] for k in sorted(facts)]
            arms[arm].append(make_run(arm, seed, a1, g1, facts=names, **more))
    return arms


def compared(arms, plan=PLAN):
    report = compare_arms(arms, plan, draw_half)
    json.dumps(report, allow_nan=False)
    return report


def row_of(report, endpoint):
    (row,) = [r for r in report["half_table"]["endpoints"] if r["endpoint"] == endpoint]
    return row


def said(report, about):
    (words,) = [s["words"] for s in report["statements"] if s["about"] == about]
    return words


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(-50, 50), st.integers(1, 44))
def test_the_contrast_is_the_designs_formula_and_no_shift_of_a_run_moves_it(seed, shift, size):
    """Against a loop over facts, written from design §5."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(2, 45))
    treated = rng.permutation(45)[:size].tolist()
    others = [f for f in range(45) if f not in treated]
    inner = sum(y[0, f] - y[1, f] for f in treated) / len(treated)
    outer = sum(y[1, f] - y[0, f] for f in others) / len(others)
    signs = signs_of(np.eye(45, dtype=bool), np.isin(np.arange(45), treated))
    assert half_means(y[0] - y[1], signs) == pytest.approx((inner + outer) / 2)
    assert half_means(y[0] + shift - y[1], signs) == pytest.approx((inner + outer) / 2)


def test_items_count_where_all_their_facts_are_in_one_half():
    uses = np.zeros((4, 45), dtype=bool)
    uses[0, 0] = uses[1, [0, 1]] = uses[2, [0, 5]] = uses[3, [5, 6]] = True
    treated = np.isin(np.arange(45), [0, 1])
    assert signs_of(uses, treated).tolist() == [1, 1, 0, -1]


def test_a_facts_value_is_the_mean_of_its_two_cells():
    run = make_run("half_a", 1, np.arange(45.0), np.zeros(ITEMS), facts=FACTS[:22])
    units = units_of([run], "a1")
    assert values_of([run], "a1", units)[0].tolist() == list(range(45))
    assert treated_facts(run).sum() == 22


def test_the_randomisation_test_is_that_of_all_its_redraws():
    """Of two facts in pairs there are few halves: an oracle counts them all."""
    rng = np.random.default_rng(3)
    uses = np.eye(45, dtype=bool)[:6]
    halves = np.zeros((8, 45), dtype=bool)
    for number, coins in enumerate(itertools.product((0, 1), repeat=3)):
        halves[number, [2 * pair + coin for pair, coin in enumerate(coins)]] = True
    d, real = rng.normal(size=(1, 6)), halves[5]
    signs = signs_of(uses, real[None])
    statistics = [abs(d[0][h[:6]].mean() - d[0][~h[:6]].mean()) / 2 for h in halves]
    reached = sum(s >= statistics[5] - 1e-12 for s in statistics)
    assert randomisation_p(d, signs, [halves], uses) == (1 + reached) / 9


def test_halves_are_drawn_again_by_the_scheme_of_the_study():
    halves = redrawn_halves(OCCURRENCES, draw_half, count=200, seed=1)
    assert halves.shape == (200, 45)
    assert set(halves.sum(axis=1)) <= {22, 23}
    assert not (halves == halves[0]).all()
    assert (halves == redrawn_halves(OCCURRENCES, draw_half, count=200, seed=1)).all()


def test_dose_is_the_slope_of_the_gain_and_nothing_that_shifts_a_run():
    rng = np.random.default_rng(0)
    dose = np.log(np.arange(1, 46))
    signs = rng.permutation(np.repeat([1, -1], [22, 23]))[None].repeat(2, axis=0)
    d = 3.0 + 0.7 * dose + signs * (0.2 + 0.4 * dose)
    assert dose_slopes(d, signs, dose) == pytest.approx([0.4, 0.4])
    assert dose_slopes(d, signs, np.ones(45)) is None


def test_a_planted_direct_effect_is_found_and_said_in_the_designs_words():
    report = compared(study(direct=0.5, spill=0.3))
    row = row_of(report, "a1")
    assert row["delta"] == pytest.approx(0.5, abs=0.05)
    assert row["randomisation_p"] == pytest.approx(1 / 1001)
    words = said(report, "half table, a1")
    assert words.startswith("In these models a fact with a token had 0.")
    assert " more a1 than without [" in words
    assert words.endswith("from this base, recipe and size.")
    assert row["se_ratio"] < 1 / 3
    verdict = report["statements"][0]["verdicts"][0]
    assert (verdict["claim"], verdict["kind"], verdict["endpoint"]) == (
        "improved",
        "half_table",
        "a1",
    )
    assert (verdict["delta"], verdict["direction"]) == (row["delta"], "higher")
    assert verdict["interval"] == row["interval"]


def test_spill_over_and_the_whole_stand_beside_and_are_not_added():
    arms = study(direct=0.5, spill=0.3, run_sd=0.01, noise=0.01)
    beside = row_of(compared(arms), "a1")["beside"]
    assert beside["spill_over"]["delta"] == pytest.approx(0.3, abs=0.02)
    assert beside["treated_less_baseline"]["delta"] == pytest.approx(0.8, abs=0.02)
    assert beside["whole"]["delta"] == pytest.approx(0.8, abs=0.02)
    assert beside["dose"]["delta"] == pytest.approx(0.0, abs=0.05)
    alone = {arm: arms[arm] for arm in ("half_a", "half_b")}
    beside = row_of(compared(alone), "a1")["beside"]
    assert (beside["spill_over"], beside["whole"]) == (None, None)


@pytest.mark.parametrize("endpoint", ["a1", "g1"])
def test_a_shift_of_whole_runs_moves_nothing(endpoint):
    plain, shifted = (
        row_of(compared(study(direct=0.5, shift=shift)), endpoint) for shift in (0.0, 2.1)
    )
    for key in ("delta", "se", "detectable"):
        assert shifted[key] == pytest.approx(plain[key], abs=1e-9)


def test_a_null_is_inconclusive_and_says_what_it_would_take():
    report = compared(study(noise=0.5))
    words = said(report, "half table, a1")
    assert words.startswith("Inconclusive: ")
    for part in ("remain possible", "detectable", "seeds needed for 0.100 nats"):
        assert part in words


def test_a_precise_null_is_equivalence():
    assert said(compared(study(noise=0.02)), "half table, a1").startswith("Equivalent within 0.100")


def test_one_seed_says_nothing_of_the_method():
    for direct, words in ((0.5, "In these two checkpoints a fact"), (0.0, "No difference (rand")):
        report = compared(study(1, direct=direct))
        told = said(report, "half table, a1")
        assert told.startswith(words)
        assert told.endswith("one seed says nothing about the method.")
        assert "randomisation p" in told
        assert row_of(report, "a1")["p"] is None


def test_four_seeds_permit_no_claim():
    report = compared(study(4, direct=0.5))
    assert said(report, "half table, a1").startswith("Inconclusive: ")
    assert any("the plan asks for 5" in verdict for verdict in report["verdicts"])


def test_the_detectable_effect_does_not_depend_on_what_was_observed():
    rows = [row_of(compared(study(direct=direct)), "a1") for direct in (0.0, 3.0)]
    assert rows[0]["detectable"] == pytest.approx(rows[1]["detectable"])
    assert rows[0]["seeds_needed"] == rows[1]["seeds_needed"]


def test_facts_that_never_occur_are_left_out_and_named():
    never = {**OCCURRENCES, FACTS[3]: 0, FACTS[40]: 0}
    report = compared(study(occurrences=never))
    assert report["half_table"]["left_out"] == [FACTS[3], FACTS[40]]
    assert row_of(report, "a1")["items"] == 43
    (note,) = [v for v in report["verdicts"] if "facts never occur" in v]
    assert note.startswith("2 of 45 facts never occur")


def test_items_that_count_are_counted():
    report = compared(study(2))
    row, with_facts = row_of(report, "g1"), sum(map(bool, USED))
    halves = [{FACTS.index(f) for f in draw_half(OCCURRENCES, seed)[0]} for seed in (0, 1)]
    whole = [sum(set(u) <= h or not set(u) & h for u in USED if u) for h in halves]
    assert (row["items"], row["in_one_half"], row["left_out"]) == (with_facts, whole, 0)
    words = f"Of {with_facts} items whose solutions use facts, {whole[0]}, {whole[1]} (by seed)"
    assert any(verdict.startswith(words) for verdict in report["verdicts"])


def test_a_study_in_which_no_fact_occurs_is_refused():
    with pytest.raises(UserError, match="no fact occurs"):
        compared(study(occurrences=dict.fromkeys(FACTS, 0)))


def test_without_a_record_of_the_draw_there_is_no_randomisation_test():
    report = compared(study(direct=0.5, occurrences=None))
    assert row_of(report, "a1")["randomisation_p"] is None
    assert row_of(report, "a1")["beside"]["dose"] is None
    assert any("no randomisation test" in verdict for verdict in report["verdicts"])


def test_unequal_halves_are_said():
    arms = study(1)
    for arm, facts in (("half_a", FACTS[:10]), ("half_b", FACTS[10:])):
        arms[arm][0].card["training"]["treatment"]["facts"] = list(facts)
    report = compared(arms)
    assert report["half_table"]["treated"] == [10]
    assert any("Unequal halves in seed 0: 10 and 35 facts" in v for v in report["verdicts"])


def spoil(arms, how):
    record = arms["half_b"][1].card["training"]["treatment"]
    if how == "overlap":
        record["facts"] = [
            *record["facts"],
            arms["half_a"][1].card["training"]["treatment"]["facts"][0],
        ]
    elif how == "gap":
        record["facts"] = record["facts"][1:]
    elif how == "unknown":
        record["facts"] = [*record["facts"][1:], "<MUL_0_0_0>"]
    elif how == "base":
        arms["half_b"][1].card["training"]["base"] = "other"
    elif how == "draw":
        record["draw"]["occurrences"][FACTS[0]] += 1
    elif how == "treatment":
        record["name"] = "operands"
    elif how == "untold":
        del record["facts"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("overlap", "both treat <MUL_"),
        ("gap", "some facts are treated in neither"),
        ("unknown", "which is no fact token"),
        ("base", "start from two bases"),
        ("draw", "record other occurrences"),
        ("treatment", "have two treatments"),
        ("untold", "does not say which facts were treated"),
    ],
)
def test_halves_that_are_no_half_table_are_refused_in_one_line(how, words):
    arms = study(2)
    spoil(arms, how)
    with pytest.raises(UserError, match=words) as caught:
        pair_halves(list(zip(arms["half_a"], arms["half_b"], strict=True)))
    assert "half_b_1" in str(caught.value)
    assert "\n" not in str(caught.value)


def without(arms, arm, evaluation):
    arms[arm] = [
        Run(r.folder, r.seed, {k: v for k, v in r.evaluations.items() if k != evaluation})
        for r in arms[arm]
    ]


def test_an_arm_without_an_evaluation_counts_as_p_1_and_is_named():
    arms = study(direct=0.5)
    without(arms, "half_b", "gsm8k")
    report = compared(arms)
    assert "has no GSM8K evaluation" in said(report, "half table, g1")
    assert "counts as p = 1" in said(report, "half table, g1")
    a1 = row_of(report, "a1")
    assert a1["p_holm"] == pytest.approx(2 * a1["p"])


def test_a_baseline_without_an_evaluation_costs_only_what_needs_it():
    arms = study(direct=0.5)
    without(arms, "baseline", "gsm8k")
    report = compared(arms)
    assert row_of(report, "g1")["beside"]["spill_over"] is None
    assert row_of(report, "a1")["beside"]["spill_over"] is not None


def test_items_that_do_not_tell_their_facts_are_named_or_read_from_the_gold_solution():
    arms = study(direct=0.5)
    told = row_of(compared(arms), "g1")
    for run in (run for runs in arms.values() for run in runs):
        for item in run.evaluations["gsm8k"].items.values():
            facts = [FACT_PAIRS[FACTS.index(fact)] for fact in item.pop("gold_facts")]
            item["gold_solution"] = "\n".join(f"It is {a}*{b}={a * b} now." for a, b in facts)
    assert row_of(compared(arms), "g1") == told
    for item in arms["half_a"][2].evaluations["gsm8k"].items.values():
        del item["gold_solution"]
    assert "half_a_2 do not say which facts" in said(compared(arms), "half table, g1")


def test_halves_that_disagree_on_an_items_facts_are_refused():
    arms = study(2)
    arms["half_b"][1].evaluations["gsm8k"].items["i005"]["gold_facts"] = [FACTS[9]]
    with pytest.raises(UserError, match=r"do not agree on the items and their gold_facts \(i005\)"):
        compared(arms)


def test_seeds_of_one_trained_parent_are_one_lineage():
    arms = study(5, direct=0.5)
    for run in (run for runs in arms.values() for run in runs):
        run.card["training"]["parent"]["weights"] = "one Tulu checkpoint"
    report = compared(arms)
    assert report["half_table"]["clusters"] == 1
    assert said(report, "half table, a1").endswith("one seed says nothing about the method.")


def test_the_cells_with_and_without_a_token_come_from_the_half_that_says_so():
    with_token, without_token, change = compared(study(direct=0.5, noise=0.001, run_sd=0))[
        "half_table"
    ]["grid"]
    assert np.allclose(change, 0.5, atol=0.01)
    assert np.allclose(np.array(with_token) - np.array(without_token), change)


def test_the_plan_is_a_plan_of_arms():
    assert isinstance(PLAN, ArmsPlan)
    assert PLAN.half_table == "primary"
    assert all(contrast.role == "secondary" for contrast in PLAN.contrasts)
