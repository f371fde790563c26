"""Every verdict of the analysis plan from a constructed study, in its words."""

from pathlib import Path

import numpy as np
import pytest

from domain_tokens.analysis import analyse
from domain_tokens.comparison import Evaluation, Run
from domain_tokens.config import AnalysisPlan, load_config
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
    (found,) = [v for v in verdicts if v.startswith(f"{name}: ")]
    return found.removeprefix(f"{name}: ")


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
    found = analyse(pairs, PLAN)
    assert found["clusters"] == 1
    assert found["verdicts"][0].endswith("this says nothing about the method.")


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
    one, other = (analyse(study(1), plan)["plan"] for plan in (PLAN, changed))
    assert one["hash"] != other["hash"]
    assert one["margins"] == {"a1": 0.1, "g1": 0.005}
