"""Every verdict of the analysis plan from a constructed study, in its words."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain_tokens.comparison.over_seeds import analyse
from domain_tokens.comparison.power import Aim, detectable_effect, item_noise, run_noise
from domain_tokens.comparison.runs import Evaluation, Run
from domain_tokens.errors import UserError
from domain_tokens.runs.config import AnalysisPlan, load_config
from tests.conftest import ROOT

PLAN = load_config(AnalysisPlan, ROOT / "eval" / "configs" / "analysis_plan.yaml", [])
ITEMS = 60


def make_run(arm, seed, a1, g1, *, base="base", parent=None, weights=None):
    """A run that was never run: a1 [81] in nats, g1 [ITEMS] as fractions."""
    weights = weights or f"{arm}-{seed}"
    training = {
        "stage": "sft",
        "seed": seed,
        "base": base,
        "parent": {"stage": "tulu_sft", "weights": parent or f"parent-{arm}-{seed}"},
    }
    card = {"condition": arm, "weights": weights, "training": training, "seed": seed}
    grid = np.asarray(a1).reshape(9, 9).tolist()
    items = {
        f"i{n:03}": {
            "g1": float(value),
            "g1_log": float(np.log(value)),
            "correct": bool(value > 0.5),
            "stop_reason": "eos",
            "applicable": n % 3 == 0,
        }
        for n, value in enumerate(np.clip(g1, 1e-6, 1))
    }
    evaluations = {
        "arithmetic": Evaluation(Path("a"), {"a1_grid": grid}, card, {}, ""),
        "gsm8k": Evaluation(Path("g"), {}, card, items, ""),
    }
    return Run(Path(f"{arm}_{seed}"), seed, evaluations)


def study(seeds, *, a1=0.0, g1=0.0, run_sd=0.01, **more):
    """Pairs of runs whose arms differ by a1 nats and g1; run_sd: nats, a twentieth of it for g1."""
    rng = np.random.default_rng(7)
    items = rng.uniform(0.05, 0.2, ITEMS)
    pairs = []
    for seed in range(seeds):
        pair = []
        for arm, shift in (("baseline", 0.0), ("mul_tokens", 1.0)):
            noise = rng.normal(0, run_sd)
            cells = -1 + a1 * shift + noise + rng.normal(0, 0.001, 81)
            values = items + g1 * shift + noise / 20 + rng.normal(0, 0.0001, ITEMS)
            pair.append(make_run(arm, seed, cells, values, **more))
        pairs.append(tuple(pair))
    return pairs


def said(pairs, name, pilot=()):
    """The verdict on one primary endpoint."""
    verdicts = analyse(pairs, PLAN, pilot)["verdicts"]
    (verdict,) = [v for v in verdicts if v.startswith(f"{name}: ")]
    return verdict.removeprefix(f"{name}: ")


def test_one_seed_with_a_difference_is_two_checkpoints_and_no_method():
    words = said(study(1, a1=0.5, g1=0.05), "g1")
    assert words.startswith("These two checkpoints differ by +")
    assert words.endswith("on these items; this says nothing about the method.")


def test_one_seed_without_a_difference():
    words = said(study(1, run_sd=0.0), "a1")
    assert words == ("No difference detected on these items; this says nothing about the method.")


@pytest.mark.parametrize(("shift", "word"), [(0.5, "improved"), (-0.5, "worsened")])
def test_five_seeds_of_one_base_permit_a_claim(shift, word):
    words = said(study(5, a1=shift, g1=shift / 10), "a1")
    assert words.startswith(f"Fact-token SFT {word} a1 by ")
    assert words.endswith("from this base, recipe and size.")


def test_four_seeds_do_not():
    """Whatever the p: the plan asks for five independent lineages before anything is claimed."""
    pairs = study(4, a1=0.5)
    assert analyse(pairs, PLAN)["endpoints"][0]["p_holm"] < 0.05
    assert said(pairs, "a1").startswith("Inconclusive: ")
    assert "the plan asks for 5" in analyse(pairs, PLAN)["verdicts"][-1]


def test_an_interval_inside_the_margin_is_equivalence():
    words = said(study(6, run_sd=0.01), "a1")
    assert words.startswith("Equivalent within 0.100 nats")


def test_a_wide_interval_is_inconclusive_and_says_what_it_would_take():
    words = said(study(5, run_sd=0.5), "a1")
    assert words.startswith("Inconclusive: -") or words.startswith("Inconclusive: +")
    for part in ("remain possible", "detectable", "seeds needed for 0.100 nats"):
        assert part in words
    assert "no effect" not in words


def test_different_bases_cannot_be_told_from_the_condition():
    pairs = study(5, a1=0.5)
    mixed = [
        (a, make_run("mul_tokens", b.seed, np.zeros(81), np.full(ITEMS, 0.1), base="other"))
        for a, b in pairs
    ]
    words = said(mixed, "a1")
    assert words.startswith("These base lineages differ by ")
    assert words.endswith("pretraining noise and condition cannot be separated.")


def test_primaries_that_disagree_name_no_winner():
    verdicts = analyse(study(5, a1=0.5, g1=-0.03), PLAN)["verdicts"]
    assert "improved a1" in verdicts[0]
    assert "worsened g1" in verdicts[1]
    assert verdicts[2] == "The primary endpoints disagree: each is stated, no winner is named."


def test_two_identical_runs_give_no_claim():
    run = make_run("baseline", 1, np.zeros(81), np.full(ITEMS, 0.1), weights="same")
    for count in (1, 5):
        for words in analyse([(run, run)] * count, PLAN)["verdicts"][:2]:
            assert "No claim: both arms hold the same weights." in words


def test_runs_that_share_a_trained_parent_are_one_lineage():
    """Five GSM8K seeds on one Tulu checkpoint were once counted as five replicates of the study."""
    pairs = study(5, a1=0.5, parent="one Tulu checkpoint")
    analysis = analyse(pairs, PLAN)
    assert analysis["clusters"] == 1
    assert analysis["verdicts"][0].endswith("this says nothing about the method.")


@pytest.mark.parametrize("shared", ["grandparent", "own", "descendant", "base"])
def test_runs_that_share_any_trained_ancestor_are_one_lineage(shared):
    """Only the parent was looked at, not the stages before it or the checkpoint itself."""
    pairs = study(3)
    for number, pair in enumerate(pairs):
        for run in pair:
            card = run.card
            record = {"stage": "tulu_sft", "weights": f"{card['condition']}-{number}-tulu"}
            if shared == "grandparent":
                record["weights"] = "one"
            if shared == "own" and run is pair[0]:
                card["weights"] = "one"
            if shared == "descendant" and number and run is pair[0]:
                record["weights"] = pairs[0][0].card["weights"]
            base = {"stage": "base", "weights": "one"}
            card["training"]["ancestors"] = [{"stage": "base"} | record, base]
    assert analyse(pairs, PLAN)["clusters"] == (3 if shared == "base" else 1)


def test_the_detectable_effect_does_not_depend_on_what_was_observed():
    rows = [analyse(study(5, a1=shift), PLAN)["endpoints"][0] for shift in (0.0, 3.0)]
    assert rows[0]["detectable"] == pytest.approx(rows[1]["detectable"])
    assert rows[0]["seeds_needed"] == rows[1]["seeds_needed"]


def test_a_pilot_sets_the_detectable_effect():
    noisy = [pair[0] for pair in study(6, run_sd=1.0)]
    quiet, loud = (analyse(study(5), PLAN, pilot)["endpoints"][0] for pilot in ((), noisy))
    assert loud["detectable"] > 10 * quiet["detectable"]
    assert loud["p"] == quiet["p"]


def test_an_endpoint_that_was_not_measured_is_named():
    pairs = study(5)
    for run in (run for pair in pairs for run in pair):
        for item in run.evaluations["gsm8k"].items.values():
            del item["g1"]
    verdicts = analyse(pairs, PLAN)["verdicts"]
    assert any(v.startswith("g1: not measured") for v in verdicts)


def test_the_interaction_is_exploratory_and_sees_where_the_effect_sits():
    pairs = study(5)
    for _, run in pairs:
        for item in run.evaluations["gsm8k"].items.values():
            item["g1"] += 0.05 * item["applicable"]
    row = analyse(pairs, PLAN)["endpoints"][-1]
    assert row["role"] == "exploratory"
    assert row["delta"] == pytest.approx(0.05, abs=0.001)


def test_the_plan_is_recorded_with_its_hash():
    changed = PLAN.model_copy(update={"alpha": 0.1})
    own, changed_plan = (analyse(study(1), plan)["plan"] for plan in (PLAN, changed))
    assert own["hash"] != changed_plan["hash"]
    assert own["margins"] == {"a1": 0.1, "g1": 0.005}


def reordered(run, rng):
    """The same run, its items (and the cells' rows untouched) in another order of lines."""
    evaluation = run.evaluations["gsm8k"]
    keys = rng.permutation(list(evaluation.items)).tolist()
    items = {key: evaluation.items[key] for key in keys}
    changed = dataclasses.replace(evaluation, items=items)
    return dataclasses.replace(run, evaluations={**run.evaluations, "gsm8k": changed})


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 5]))
def test_the_order_of_items_changes_nothing(seed, seeds):
    """Each arm took the order of its own first run, so that arms were subtracted out of step:
    G1's standard error was .0129 or .0291, by the order of the lines of one file."""
    rng = np.random.default_rng(seed)
    pairs, pilot = study(seeds, run_sd=0.1), [pair[0] for pair in study(4, run_sd=0.2)]
    moved = [tuple(reordered(run, rng) for run in pair) for pair in pairs]
    assert analyse(moved, PLAN, [reordered(run, rng) for run in pilot]) == analyse(
        pairs, PLAN, pilot
    )


@pytest.mark.parametrize("where", ["arm", "seed", "pilot"])
def test_other_items_are_refused_by_name(where):
    pairs, pilot = study(3), [pair[0] for pair in study(3)]
    run = {"arm": pairs[0][1], "seed": pairs[2][0], "pilot": pilot[1]}[where]
    run.evaluations["gsm8k"].items["new"] = run.evaluations["gsm8k"].items.pop("i007")
    with pytest.raises(UserError, match=r"g1: 2 are in one only \(i007\)"):
        analyse(pairs, PLAN, pilot)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(-0.5, 0.5),
    st.floats(-0.02, 0.02),
    st.sampled_from([0.05, 0.01, 0.2]),
    st.booleans(),
)
def test_a_claim_stands_exactly_where_its_interval_holds_no_zero(seed, a1, g1, alpha, both):
    """Holm's second step tests at alpha while the interval had 97.5 %: "improved" stood next to
    an interval that held 0. A primary that was not measured made the family smaller."""
    plan = PLAN.model_copy(update={"alpha": alpha})
    rng = np.random.default_rng(seed)
    pairs = study(5, a1=a1, g1=g1, run_sd=float(rng.uniform(0.05, 0.4)))
    if not both:
        pairs = [
            tuple(
                dataclasses.replace(r, evaluations={"gsm8k": r.evaluations["gsm8k"]}) for r in pair
            )
            for pair in pairs
        ]
    analysis = analyse(pairs, plan)
    rows = [row for row in analysis["endpoints"] if row["role"] == "primary"]
    assert len(rows) == 1 + both
    for row, words in zip(rows, analysis["verdicts"], strict=False):
        low, high = row["interval"]
        claimed = "improved" in words or "worsened" in words
        assert claimed == (not low <= 0 <= high) == (row["p_holm"] < alpha)
        assert ("improved" in words) == (claimed and low > 0)
        if words.startswith("Equivalent"):
            assert -row["margin"] < low < high < row["margin"]
        assert any(row["confidence"] == pytest.approx(1 - alpha / m) for m in (1, 2))
    if not both:
        assert rows[0]["p_holm"] == pytest.approx(min(1, 2 * rows[0]["p"]))
        assert any("counts as p = 1" in verdict for verdict in analysis["verdicts"])


def test_both_primaries_claimed_show_the_levels_of_holms_steps():
    rows = analyse(study(5, a1=0.5, g1=0.05), PLAN)["endpoints"][:2]
    assert sorted(row["confidence"] for row in rows) == [0.95, 0.975]


def test_alpha_and_power_of_the_plan_set_what_is_planned():
    """.05 and .8 were used whatever the plan said."""
    strict = PLAN.model_copy(update={"alpha": 0.01, "power": 0.95})
    pairs = study(5, run_sd=0.3)
    rows, others = (analyse(pairs, plan)["endpoints"] for plan in (PLAN, strict))
    for row, other in zip(rows[:2], others[:2], strict=True):
        assert other["detectable"] > 1.3 * row["detectable"]
        assert other["seeds_needed"] > 1.5 * row["seeds_needed"]


def test_items_that_differ_between_arms_are_planned_with_and_can_forbid_the_margin():
    pairs = study(5, run_sd=0.01)
    rng = np.random.default_rng(5)
    shifts = rng.normal(0, 0.05, ITEMS)
    for _, run in pairs:
        for item, shift in zip(run.evaluations["gsm8k"].items.values(), shifts, strict=True):
            item["g1"] += shift
    row = analyse(pairs, PLAN)["endpoints"][1]
    assert row["item_arm_sd"] == pytest.approx(shifts.std(ddof=1), rel=0.02)
    least = (shifts.var(ddof=1) / ITEMS) ** 0.5
    assert row["detectable"] > row["detectable_limit"] == pytest.approx(3.083 * least, rel=0.02)
    assert row["detectable_limit"] > row["margin"]
    assert row["seeds_needed"] is None
    assert "cannot be reached with more seeds: 60 items detect" in said(pairs, "g1")


def test_cells_of_the_table_are_no_sample():
    """A1 is a census: what cells add is no error of the mean."""
    pairs = study(5, run_sd=0.1)
    for _, run in pairs:
        grid = run.evaluations["arithmetic"].metrics["a1_grid"]
        for a, cells in enumerate(grid):
            grid[a] = [value + 5 * (-1) ** a for value in cells]
    row = analyse(pairs, PLAN)["endpoints"][0]
    assert (row["item_arm_sd"], row["detectable_limit"]) == (None, 0)
    assert row["method"] == "t over run means"


def test_one_pair_with_a_pilot_says_what_is_left_out():
    pilot = [pair[0] for pair in study(6, run_sd=0.1)]
    analysis = analyse(study(1), PLAN, pilot)
    assert analysis["endpoints"][1]["detectable"] is None
    assert analysis["endpoints"][1]["seeds_needed"] > 1
    assert any("leave item × arm variance out" in verdict for verdict in analysis["verdicts"])


def test_the_interaction_counts_items_as_a_sample():
    """Items with facts of their own luck were called an interaction in 19-49 % of null studies."""
    pairs = study(5)
    shifts = np.random.default_rng(8).normal(0, 0.05, ITEMS)
    for _, run in pairs:
        for item, shift in zip(run.evaluations["gsm8k"].items.values(), shifts, strict=True):
            item["g1"] += shift
    row = analyse(pairs, PLAN)["endpoints"][-1]
    facts = np.arange(ITEMS) % 3 == 0
    expected = sum(shifts[mask].var(ddof=1) / mask.sum() for mask in (facts, ~facts)) ** 0.5
    assert row["endpoint"].startswith("g1, items with facts")
    assert row["se"] == pytest.approx(expected, rel=0.02)


def test_runs_that_disagree_on_which_items_use_a_fact_are_refused():
    pairs = study(3)
    pairs[1][1].evaluations["gsm8k"].items["i004"]["applicable"] = True
    with pytest.raises(UserError, match="do not agree on which items use a fact"):
        analyse(pairs, PLAN)


def test_runs_that_all_differ_alike_give_no_claim():
    """Without any spread p was 0 and the interval a point: "improved"."""
    grid, values = np.full(81, -1.0), np.full(ITEMS, 0.25)
    pairs = [
        (make_run("baseline", s, grid, values), make_run("mul_tokens", s, grid + 0.5, values))
        for s in range(5)
    ]
    analysis = analyse(pairs, PLAN)
    row = analysis["endpoints"][0]
    assert (row["p"], row["p_holm"], row["interval"]) == (None, None, None)
    first, second = analysis["verdicts"][:2]
    assert first.startswith("a1: No claim: all runs differ by exactly +0.500 nats")
    assert second.startswith("g1: No claim")
    json.dumps(analysis, allow_nan=False)


def test_a_collapsed_run_is_named():
    pairs = study(5)
    assert not any("Collapsed" in verdict for verdict in analyse(pairs, PLAN)["verdicts"])
    for run in (run for pair in pairs for run in pair):
        for item in run.evaluations["gsm8k"].items.values():
            item["g1"] += 0.3
    for item in pairs[3][1].evaluations["gsm8k"].items.values():
        item["g1"] = 1e-6
    (words,) = [v for v in analyse(pairs, PLAN)["verdicts"] if v.startswith("Collapsed")]
    assert "mul_tokens seed 3, far below" in words
    assert "baseline" not in words


def with_seeds(run, *, rows, rationales):
    """The same run with what its card and its evaluation say of their seeds."""
    run.card["training"]["fact_rows"] = {"rule": "drawn", "seed": rows}
    run.evaluations["gsm8k"].card["decode"] = {"rationale_seed": rationales}
    return run


def test_what_a_replicate_varies_is_said():
    """Replicates differed in order only, while the words promised independent lineages."""
    pairs = study(2)
    (words,) = [v for v in analyse(pairs, PLAN)["verdicts"] if v.startswith("Replicates")]
    assert "differ in order of examples only, not in initial fact rows and sampled" in words
    for pair in pairs:
        for run in pair:
            with_seeds(run, rows=run.seed, rationales=42)
    (words,) = [v for v in analyse(pairs, PLAN)["verdicts"] if v.startswith("Replicates")]
    assert "differ in order of examples and initial fact rows only, not in sampled" in words
    for pair in pairs:
        for run in pair:
            with_seeds(run, rows=run.seed, rationales=run.seed)
    analysis = analyse(pairs, PLAN)
    assert not any(v.startswith("Replicates") for v in analysis["verdicts"])
    assert len(analysis["replicates_differ_in"]) == 3


def test_planning_takes_nothing_from_the_observed_difference():
    near, far = (analyse(study(4, g1=g1), PLAN)["endpoints"][1] for g1 in (0.0, 0.05))
    for key in ("detectable", "detectable_limit", "item_arm_sd", "run_sd"):
        assert near[key] == pytest.approx(far[key], abs=1e-9)
    assert near["seeds_needed"] == far["seeds_needed"]


def test_exploratory_endpoints_are_planned_at_the_level_they_are_tested_at():
    pairs = study(5, run_sd=0.2)
    row = next(r for r in analyse(pairs, PLAN)["endpoints"] if r["endpoint"] == "g1_log")
    values = [
        np.array(
            [[i["g1_log"] for i in pair[arm].evaluations["gsm8k"].items.values()] for pair in pairs]
        )
        for arm in (0, 1)
    ]
    error = run_noise(values).difference(5, item_noise(values[1] - values[0]))
    assert row["detectable"] == pytest.approx(detectable_effect(error, Aim(0.05, 0.8)))
    assert row["confidence"] == 0.95
