"""Several arms: who is of which arm, contrasts and their families, the script and its page."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from domain_tokens.comparison.arms import arm_of, find_arm_differences, load_arms
from domain_tokens.comparison.contrasts import compare_arms
from domain_tokens.comparison.runs import load_run
from domain_tokens.errors import UserError
from domain_tokens.runs.config import ArmsPlan, load_config
from domain_tokens.statistics import holm
from domain_tokens.treatments import Treatment, draw_half, record_of
from domain_tokens.vocabulary import FACTS
from tests.conftest import ROOT, call, edit, rewrite_items
from tests.test_half_tables import OCCURRENCES, PLAN, make_run, said, study, values
from tests.test_report import CHROMIUM, chromium, visit  # noqa: F401 (a fixture)

GOLDEN = ROOT / "tests" / "golden" / "evaluations"


def plan_of(*contrasts, half_table="secondary"):
    return PLAN.model_copy(
        update={
            "half_table": half_table,
            "contrasts": [type(PLAN.contrasts[0])(**contrast) for contrast in contrasts],
        }
    )


OPERANDS = {"arms": ["fact_token", "operands"], "role": "primary", "over": "operands alone"}
SFT = {"arms": ["fact_token", "baseline"], "role": "primary", "over": "text as it is"}


def arm(name, *, level=0.0, seeds=range(5), noise=0.01):
    """Runs of an arm whose facts and items lie at a level, in nats (a twentieth of it for G1)."""
    rng = np.random.default_rng(len(name))
    runs = []
    for seed in seeds:
        a1, g1 = values(rng, [], direct=0, spill=0, noise=noise, shift=level)
        runs.append(make_run(name, seed, a1, g1))
    return runs


@pytest.mark.parametrize(
    ("level", "words"),
    [(0.5, "The token adds +0."), (-0.5, "The token loses -0."), (0.0, "Equivalent within")],
)
def test_a_contrast_is_said_in_its_own_words(level, words):
    arms = {"fact_token": arm("fact_token", level=level), "operands": arm("operands")}
    report = compare_arms(arms, plan_of(OPERANDS), draw_half)
    told = said(report, "fact_token − operands, a1")
    assert told.startswith(words)
    if level:
        assert ("over operands alone" if level > 0 else "against operands alone") in told
        assert told.endswith("from this base, recipe and size.")


def test_a_contrast_with_baseline_has_the_words_of_two_arms():
    arms = {"fact_token": arm("fact_token", level=0.5), "baseline": arm("baseline")}
    report = compare_arms(arms, plan_of(SFT), draw_half)
    told = said(report, "fact_token − baseline, a1")
    assert told.startswith("Fact-token SFT improved a1 by +0.")


def test_holm_runs_over_all_that_the_plan_names_and_over_secondaries_apart():
    arms = study(noise=0.5)
    arms["operands"] = arm("operands", noise=0.5)
    report = compare_arms(arms, PLAN, draw_half)
    assert report["families"] == {"primary": 2, "secondary": 16}
    primary = [row["p"] for row in report["half_table"]["endpoints"]]
    assert [row["p_holm"] for row in report["half_table"]["endpoints"]] == holm(primary)
    rows = [
        row
        for contrast in report["contrasts"]
        for row in contrast["endpoints"]
        if row["endpoint"] in ("a1", "g1")
    ]
    assert len(rows) == 4  # − baseline and − operands; the others count as p = 1
    expected = holm([row["p"] for row in rows] + [1.0] * 12)[:4]
    assert [row["p_holm"] for row in rows] == pytest.approx(expected)
    (words,) = [v for v in report["verdicts"] if v.startswith("Named by the plan, not measured")]
    assert "fact_token − generic" in words
    assert "fact_token − operands" not in words


def test_primaries_of_all_contrasts_that_disagree_name_no_winner():
    arms = {
        "fact_token": arm("fact_token", level=0.5),
        "operands": arm("operands", level=1.0),
        "baseline": arm("baseline"),
    }
    report = compare_arms(arms, plan_of(OPERANDS, SFT), draw_half)
    assert (
        "The primary endpoints disagree: each is stated, no winner is named." in report["verdicts"]
    )


def test_an_arm_with_fewer_seeds_reduces_its_contrast_and_is_named():
    arms = {
        "fact_token": arm("fact_token", level=0.5),
        "operands": arm("operands", seeds=(0, 1, 3)),
    }
    report = compare_arms(arms, plan_of(OPERANDS), draw_half)
    assert report["contrasts"][0]["seeds"] == [0, 1, 3]
    assert any(v.startswith("operands has no seed 2, 4") for v in report["verdicts"])
    assert said(report, "fact_token − operands, a1").startswith("Inconclusive")


def test_attribution_and_ceiling_stand_beside_the_accuracies():
    arms = {"fact_token": arm("fact_token"), "baseline": arm("baseline")}
    for run in arms["baseline"]:
        metrics = run.evaluations["gsm8k"].metrics
        metrics["attribution"] = {"table_fact": 3, "sum": 5, "none": 42}
    calculated = []
    for run in arms["baseline"]:
        evaluation = run.evaluations["gsm8k"]
        items = {
            k: i | {"correct": i["correct"] or k < "i020"} for k, i in evaluation.items.items()
        }
        changed = dataclasses.replace(evaluation, items=items)
        calculated.append(dataclasses.replace(run, evaluations={"gsm8k": changed}))
    arms["baseline+calculator"] = calculated
    report = compare_arms(arms, plan_of(SFT), draw_half)
    before, after = (
        np.mean([[i["correct"] for i in r.evaluations["gsm8k"].items.values()] for r in arms[name]])
        for name in ("baseline", "baseline+calculator")
    )
    assert before < after
    ceiling = (
        f"In baseline perfect table facts would move accuracy from {before:.2%} to at most "
        f"{after:.2%} (the same 5 checkpoints, decoded with a calculator)."
    )
    assert ceiling in report["verdicts"]
    assert report["arms"]["baseline"]["attribution"] == {"table_fact": 15, "sum": 25, "none": 210}
    words = (
        "Of 250 wrong answers of baseline, the first wrong equation is a table fact in 15 (6.0%)."
    )
    assert words in report["verdicts"]
    assert report["arms"]["fact_token"]["attribution"] is None


@pytest.mark.parametrize(
    ("condition", "record", "calculator", "name"),
    [
        ("baseline", None, None, "baseline"),
        ("baseline", "absent", None, "baseline"),
        ("mul_tokens", "absent", None, "fact_token"),  # a card from before there were treatments
        ("mul_tokens", {"name": "fact_token", "treated_facts": "all"}, None, "fact_token"),
        ("mul_tokens", {"name": "fact_token", "treated_facts": "half_b"}, None, "half_b"),
        ("mul_tokens", {"name": "operands", "treated_facts": "all"}, None, "operands"),
        ("mul_tokens", {"name": "operands", "treated_facts": "half_a"}, None, "operands_half_a"),
        ("baseline", None, "facts", "baseline+calculator"),
        ("baseline", None, "all", "baseline+calculator_all"),
    ],
)
def test_a_runs_arm_is_what_its_cards_say(condition, record, calculator, name):
    run = make_run("operands", 1, np.zeros(45), np.zeros(120))
    run.card["training"] |= {"condition": condition, "treatment": record}
    if record == "absent":
        del run.card["training"]["treatment"]
    run.evaluations["gsm8k"].card["decode"] = {"calculator": calculator}
    assert arm_of(run) == name


SAMPLER = ("card.decode.sampler", "2")


# --- on disk --------------------------------------------------------------------------------------


def evaluated(folder, arm, seed):
    """Copy a stored evaluation as one of an arm: other weights, its treatment in the card."""
    plain = arm.partition("+")[0]
    source = GOLDEN / f"{'baseline' if plain == 'baseline' else 'mul_tokens'}_{seed}"
    target = shutil.copytree(source, folder / f"eval_{arm}_{seed}")
    halves = dict(zip(("half_a", "half_b"), draw_half(OCCURRENCES, seed), strict=True))
    record = None
    if plain != "baseline":
        name = "fact_token" if plain in halves else plain
        record = record_of(
            Treatment(name, halves.get(plain, frozenset(FACTS))),
            treated_facts=plain if plain in halves else "all",
            draw=(seed, OCCURRENCES) if plain in halves else None,
        )
    for path in target.glob("*_results.json"):
        edit(path, "card.training.treatment", record)
        edit(path, "card.training.parent.weights", f"{plain}-{seed}")
        edit(path, "card.training.ancestors", [])
        for key in ("card.weights", "card.training.weights"):
            edit(path, key, f"{plain}-{seed}-last")
        if path.name.startswith("gsm8k"):
            # The runner samples no rationales with a calculator: the first real study was refused.
            calculated = arm.endswith("+calculator")
            edit(path, *(("card.decode.calculator", "facts") if calculated else SAMPLER))

    def facts_of(number, item):
        return {"gold_facts": [FACTS[number]] if item["applicable"] else []}

    rewrite_items(target, facts_of)
    if arm.endswith("+calculator"):
        for path in target.glob("arithmetic_*"):
            path.unlink()
    return target


ARMS = ("baseline", "fact_token", "half_a", "half_b", "operands", "baseline+calculator")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Two seeds of six arms. Do not write there."""
    root = tmp_path_factory.mktemp("arms")
    return {arm: [evaluated(root, arm, seed) for seed in (1, 2)] for arm in ARMS}


def words_of(folders, *more):
    flags = [w for arm, (f, *o) in folders.items() for w in ("--arm", f"{arm}={f}", *map(str, o))]
    return [*flags, *more]


@pytest.fixture(scope="module")
def compared(stored, tmp_path_factory):
    """The comparison of the six arms: its JSON and its page."""
    root = tmp_path_factory.mktemp("compared")
    words = words_of(stored, "--output-path", root / "arms.json", "--report", root / "arms.html")
    assert call("scripts/compare_runs.py", *words) == 0
    return root / "arms.json", root / "arms.html"


def test_the_script_compares_six_arms(compared):
    report = json.loads(compared[0].read_text())
    assert list(report["arms"]) == list(ARMS)
    assert [c["name"] for c in report["contrasts"] if c["endpoints"]] == [
        "fact_token − baseline",
        "fact_token − operands",
    ]
    assert report["half_table"]["seeds"] == [1, 2]
    assert [row["endpoint"] for row in report["half_table"]["endpoints"]] == ["a1", "g1"]
    (ceiling,) = report["ceilings"]
    assert (ceiling["arm"], ceiling["calculator"]) == ("baseline", "facts")
    assert any("perfect table facts would move accuracy" in v for v in report["verdicts"])
    assert [s["words"] for s in report["statements"]] == [
        verdict.partition(": ")[2] if s["about"] else verdict
        for s, verdict in zip(report["statements"], report["verdicts"], strict=True)
    ]


def test_the_page_is_whole_and_its_verdict_comes_first(compared):
    text = compared[1].read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", text)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert text.index('id="verdict"') < text.index('id="forest') < text.index('id="arms"')
    header = re.search(r'<table id="arms">.*?</thead>', text, re.DOTALL)[0]
    assert re.findall(r"<th class=[^>]*>([^<]+)</th>", header) == list(ARMS)
    assert 'id="halves' in text
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text)).replace("&#39;", "'")
    for statement in json.loads(compared[0].read_text())["statements"]:
        assert statement["words"].replace(">", "&gt;") in words or statement["words"] in words


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1200, "dark")])
def test_the_page_fits_a_phone_and_the_dark(chromium, compared, width, scheme):  # noqa: F811
    page = visit(chromium, compared[1], width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.complaints == []


def test_the_older_flags_are_two_of_the_arms(stored, tmp_path):
    words = ["--baseline-dir", *stored["baseline"], "--mul-tokens-dir", *stored["fact_token"]]
    target = tmp_path / "two.json"
    plan = ["--plan", ROOT / "eval" / "configs" / "half_tables.yaml"]
    assert call("scripts/compare_runs.py", *words, *plan, "--output-path", target) == 0
    report = json.loads(target.read_text())
    assert list(report["arms"]) == ["baseline", "fact_token"]
    assert any(
        v.startswith("half table, a1: half_a and half_b are not") for v in report["verdicts"]
    )
    assert call("scripts/compare_runs.py", *words, "--output-path", target) == 0
    assert "pairs" in json.loads(target.read_text())


def refused(capsys, *words):
    assert call("scripts/compare_runs.py", *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_what_is_no_study_is_refused_in_one_line(stored, capsys):
    (base, _), (half, _) = stored["baseline"], stored["half_a"]
    typed = ["--arm", f"operand={half}", "--arm", f"baseline={base}"]
    assert "did you mean operands?" in refused(capsys, *typed)
    swapped = ["--baseline-dir", base, "--mul-tokens-dir", half]
    assert "is of arm half_a and was given as fact_token" in refused(capsys, *swapped)
    assert "wanted NAME=DIR" in refused(capsys, "--arm", half)
    assert "fewer than two arms" in refused(capsys, "--arm", f"half_a={half}")
    assert "--mul-tokens-dir is missing" in refused(capsys, "--baseline-dir", base)
    alone = ["--arm", f"half_a={half}", "--arm", f"baseline+calculator={base}"]
    assert "needs --arm baseline=DIR" in refused(capsys, *alone)
    twice = ["--arm", f"half_a={half}", half, "--arm", f"baseline={base}"]
    assert "half_a has seed 1 2 times" in refused(capsys, *twice)
    plan = ["--plan", ROOT / "eval" / "configs" / "analysis_plan.yaml"]
    assert "names no contrasts" in refused(capsys, "--arm", f"half_a={half}", *plan)


def test_arms_that_differ_in_more_than_their_treatment_are_refused(stored):
    def runs():
        return load_arms({arm: stored[arm] for arm in ARMS})

    assert find_arm_differences(runs(), []) == []
    for arm, key in (
        ("operands", "learning_rate"),
        ("half_b", "max_length"),
        ("baseline+calculator", "num_epochs"),
    ):
        arms = runs()
        for evaluation in arms[arm][1].evaluations.values():
            evaluation.card["training"]["config"]["training"][key] = 7
        with pytest.raises(UserError, match=f"differ in training.config.training.{key}"):
            find_arm_differences(arms, [])
    arms = runs()
    for treatment, name in (("data.treatment", "operands"), ("data.treated_facts", "half_a")):
        section, key = treatment.split(".")
        for evaluation in arms["operands"][0].evaluations.values():
            evaluation.card["training"]["config"][section][key] = name
    assert find_arm_differences(arms, []) == []


def test_a_calculators_arm_is_of_the_same_checkpoints(stored):
    arms = load_arms({arm: stored[arm] for arm in ("baseline", "baseline+calculator")})
    arms["baseline+calculator"][0].card["weights"] = "others"
    with pytest.raises(UserError, match="is not of the checkpoints of baseline"):
        find_arm_differences(arms, [])


def test_a_plan_is_checked(tmp_path):
    text = (ROOT / "eval" / "configs" / "half_tables.yaml").read_text()
    for old, new, words in (
        ("half_table: primary", "half_table: secondary", "no contrast is primary"),
        ("[fact_token, generic]", "[fact_token, operands]", "fact_token − operands is there twice"),
        ("[fact_token, generic]", "[generic, generic]", "generic − generic is of one arm"),
        ("[fact_token, generic]", "[fact_token, genric]", "genric"),
        ("redraws: 10000", "redraws: 10000\nredrawz: 1", "did you mean redraws"),
    ):
        path = tmp_path / "plan.yaml"
        path.write_text(text.replace(old, new, 1))
        assert path.read_text() != text
        with pytest.raises(UserError, match=words):
            load_config(ArmsPlan, path, [])


def test_an_evaluation_folder_of_the_older_kind_is_of_its_old_arm():
    for arm, name in (("baseline", "baseline"), ("mul_tokens", "fact_token")):
        assert arm_of(load_run(GOLDEN / f"{arm}_1", condition=arm)) == name
