"""The plan: every stage finds what it reads, and no two lineages share a folder."""

import json
import re
import subprocess
import sys
from itertools import combinations

import pytest

from domain_tokens.errors import UserError
from domain_tokens.experiment import CONTROLS, Experiment, Options
from domain_tokens.experiment.settings import config_of
from tests.conftest import ROOT

STUDY = Experiment("demo", "outputs", [1, 2, 3], [1e-5, 2e-5])
HALVES = Options(design="half-tables", treatments=("generic", "operands"))
LAPTOP = Options(base="a.gguf", data="rows")
PLANS = {
    "two arms": STUDY,
    "half tables": Experiment("demo", "outputs", [1, 2], [1e-5, 2e-5], HALVES),
    "controls": Experiment("full", "runs", [1], None, Options(treatments=CONTROLS)),
    "laptop": Experiment("laptop", "outputs", options=LAPTOP),
}
BEFORE = {  # arguments of the plans in golden/plans.json, written before there were other arms
    "demo": ("demo", "outputs"),
    "demo_elsewhere": ("demo", "runs", [1, 2], [1e-5, 2e-5]),
    "full": ("full", "outputs"),
    "full_sweep": ("full", "outputs", [1, 2], [1e-5, 2e-5]),
}


def words_of(plan, lineage, script):
    (line,) = (line for line in plan.lineages() if line.name == lineage)
    return [" ".join(stage.arguments) for stage in line.stages if stage.script == script]


@pytest.mark.parametrize("name", BEFORE)
def test_two_arms_have_the_commands_that_they_had(name):
    plan = Experiment(*BEFORE[name])
    corpora = [plan.corpora()] if name.startswith("demo") else []
    commands = [*corpora, *plan.stages(), plan.check(), *plan.comparisons()]
    golden = json.loads((ROOT / "tests/golden/plans.json").read_text())
    assert [str(command) for command in commands] == golden[name]


@pytest.mark.parametrize("name", PLANS)
def test_what_a_stage_reads_was_left_by_an_earlier_one(name):
    plan = PLANS[name]
    there = {plan.corpora().finished}
    if not plan.profile.makes_base:
        there |= {plan.layout.base_file(condition) for condition in ("baseline", "mul_tokens")}
    for stage in plan.stages():
        assert set(stage.inputs) <= there, stage
        assert stage.finished not in there
        assert stage.kind
        there.add(stage.finished)
    for comparison in plan.comparisons():
        assert set(comparison.inputs) <= there
    assert set(plan.check().inputs) <= there


@pytest.mark.parametrize("name", PLANS)
def test_no_two_lineages_share_a_folder(name):
    plan = PLANS[name]
    lineages = plan.lineages()
    assert len({line.name for line in lineages}) == len(lineages)
    folders = [{stage.finished.parent for stage in line.stages} for line in lineages]
    assert not any(a & b for a, b in combinations(folders, 2))
    stages = {stage.finished for line in lineages for stage in line.stages}
    bases = {stage.finished for stage in plan.bases()}
    assert stages | bases == {stage.finished for stage in plan.stages()}


@pytest.mark.parametrize("name", PLANS)
def test_arms_of_a_replicate_get_the_same_words_but_for_the_arm(name):
    plan = PLANS[name]
    replicates = {}
    for line in plan.lineages():
        arm = next(arm for arm in plan.arms if line.name.startswith(arm.name))
        for stage in (s for s in line.stages if s.kind != "calculator"):
            text = (
                str(stage).replace(" ".join(arm.arguments), "").replace("--inject-mul-tokens", "")
            )
            if arm.name == "matched_merges" and stage.kind == "tulu":  # part of the treatment
                text, count = re.subn(r"--set data\.merges_(source|split)=\S+", "", text)
                assert count == 2
            text = text.replace(arm.folder, "ARM").replace(arm.condition, "ARM")
            key = line.name.removeprefix(arm.name), stage.kind
            replicates.setdefault(key, set()).add(" ".join(text.split()))
    assert replicates
    for key, commands in replicates.items():
        assert len(commands) == 1, (key, commands)


def test_what_no_primary_endpoint_needs_can_be_left_out():
    """Stories took as long as the training of a short study."""

    def kinds(*without):
        options = Options(base="b.gguf", without=without)
        plan = Experiment("laptop", "outputs", [1], options=options)
        comparison = " ".join(map(str, plan.comparisons()))
        return {stage.kind for stage in plan.stages()}, "+calculator" in comparison

    whole = {"base", "base_copy", "gsm8k", "eval_gsm8k", "probes", "stories", "calculator"}
    assert kinds() == (whole, True)
    assert kinds("stories") == (whole - {"stories"}, True)
    assert kinds("stories", "calculator") == (whole - {"stories", "calculator"}, False)
    with pytest.raises(UserError, match="wanted some of stories, calculator"):
        Experiment("demo", "outputs", options=Options(without=["stories"]))
    with pytest.raises(UserError, match="--without story"):
        Experiment("laptop", "outputs", options=Options(base="b.gguf", without=["story"]))
    plan = Experiment("laptop", "outputs", options=Options(base="b.gguf", without=["stories"]))
    with pytest.raises(UserError, match=r"--set stories"):
        config_of(plan.layout, "stories")


def test_baseline_and_fact_token_are_the_same_runs_in_every_design():
    """So that a study of two arms can be made one of half tables without training them again."""
    two, more = (Experiment("demo", "outputs", [1], options=o) for o in (None, HALVES))
    for stage, same in zip(two.lineages(), more.lineages(), strict=False):
        assert [*map(str, stage.stages)] == [*map(str, same.stages)]
    assert [str(stage) for stage in two.comparisons()] == [str(next(more.comparisons()))]


def test_every_training_stage_is_told_treatment_and_half():
    plan = Experiment("demo", "outputs", [1], options=HALVES)
    assert [line.name for line in plan.lineages()] == [
        f"{name}_seed_1"
        for name in ("baseline", "fact_token", "half_a", "half_b", "generic", "operands")
    ]
    for lineage, words, folder in (
        ("half_b_seed_1", "--set data.treated_facts=half_b", "mul_tokens_half_b_seed_1"),
        ("generic_seed_1", "--set data.treatment=generic", "mul_tokens_generic_seed_1"),
    ):
        for script in ("sft/sft_tulu.py", "sft/sft_gsm8k.py"):
            (told,) = words_of(plan, lineage, script)
            assert words in told
            assert f"_{folder} --condition mul_tokens " in told
        (told,) = words_of(plan, lineage, "eval/run_gsm8k.py")
        assert f"eval_{folder} " in told
        assert words not in told  # an evaluation reads it from the run card


def test_each_learning_rate_is_compared_for_itself():
    first, second = STUDY.comparisons()
    assert first.finished.name == "comparison_lr_1e-05.json"
    assert all("_lr_1e-05_" in str(file) for file in first.inputs)
    assert "--set training.learning_rate=2e-05" in " ".join(map(str, STUDY.stages()))
    assert len(second.inputs) == 12  # two arms, three seeds, two evaluations


def test_more_than_two_arms_are_compared_by_both_plans():
    two, arms = Experiment("demo", "outputs", [1, 2], options=HALVES).comparisons()
    assert two.finished.name == "comparison.json"
    assert (arms.finished.name, len(arms.inputs)) == ("comparison_arms.json", 24)
    words = " ".join(arms.arguments)
    for arm, folder in (("fact_token", "mul_tokens"), ("half_a", "mul_tokens_half_a")):
        places = (f"outputs/demo/eval_{folder}_seed_{seed}" for seed in (1, 2))
        assert f"--arm {arm}={' '.join(places)} --" in words
    assert "--plan eval/configs/half_tables.yaml" in words


def test_the_laptop_trains_one_stage_and_evaluates_it_at_once():
    plan = PLANS["laptop"]
    assert [arm.name for arm in plan.arms] == [
        *("baseline", "fact_token", "half_a", "half_b", "operands", "generic")
    ]
    assert plan.seeds == [1, 2, 3, 4, 5]
    kinds = ["gsm8k", "eval_gsm8k", "probes", "stories"]
    for line in plan.lineages():
        extra = ["calculator"] * line.name.startswith("baseline")
        assert [stage.kind for stage in line.stages] == kinds + extra
    order = [stage.kind for stage in plan.stages()]
    assert order[:8] == ["base", "base_copy", *kinds, "calculator", "gsm8k"]
    (training,) = words_of(plan, "half_a_seed_3", "sft/sft_gsm8k.py")
    assert "--model-path outputs/laptop/hf_mul_tokens " in training
    for key in ("source", "decontaminate_against"):
        assert f"--set data.{key}=rows" in training
    greedy, ceiling = words_of(plan, "baseline_seed_3", "eval/run_gsm8k.py")
    assert "--set data.source=rows --max-samples 500" in greedy
    assert "--output-dir outputs/laptop/eval_baseline_calculator_seed_3 " in ceiling
    assert ceiling.endswith("--calculator facts --set evaluation.num_rationales=0")
    two, arms = plan.comparisons()
    assert not any("calculator" in str(file) for file in two.inputs)
    assert sum(file.name == "stories_results.json" for file in two.inputs + arms.inputs) == 40
    ceilings = [f"outputs/laptop/eval_baseline_calculator_seed_{seed}" for seed in plan.seeds]
    assert f"--arm baseline+calculator={' '.join(ceilings)} --arm" in " ".join(arms.arguments)
    assert sum("calculator" in str(file) for file in arms.inputs) == 5


def test_what_the_user_sets_reaches_the_stages_that_it_names():
    sets = ("gsm8k.training.num_epochs=3", "eval_gsm8k.evaluation.num_rationales=16")
    options = Options(base="a", max_samples=0, overrides=sets, treatments=(), design="two-arms")
    plan = Experiment("laptop", "outputs", [7], options=options)
    assert [arm.name for arm in plan.arms] == ["baseline", "fact_token"]
    for stage in plan.stages():
        text = str(stage)
        assert ("--set training.num_epochs=3" in text) == (stage.kind == "gsm8k")
        assert ("num_rationales=16" in text) == (stage.kind in ("eval_gsm8k", "calculator"))
        assert "--max-samples" not in text
        assert "data.source" not in text  # the hub, as the YAML says


@pytest.mark.parametrize(
    ("profile", "options", "words"),
    [
        ("laptop", {}, "give --from with a GGUF file"),
        ("demo", {"base": "a"}, "--from a with --profile demo, which has its own"),
        ("full", {"data": "a"}, "--source a with --profile full, which has its own"),
        ("laptop", {"base": "a", "data": __file__}, "is a file; wanted a folder that holds"),
        ("demo", {"overrides": ["gsm9k.training.seed=1"]}, "did you mean gsm8k?"),
        ("demo", {"overrides": ["training.seed=1"]}, "wanted STAGE.KEY=VALUE"),
        ("demo", {"overrides": ["gsm8k.training.seed"]}, "wanted STAGE.KEY=VALUE"),
        ("demo", {"treatments": ["mixed", "mixed"]}, "'mixed' is named twice"),
        ("demo", {"treatments": ["fact_token"]}, "'fact_token' is no control"),
        ("demo", {"design": "half_tables"}, "wanted one of two-arms, half-tables"),
    ],
)
def test_what_a_profile_has_no_use_for_is_refused(profile, options, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        Experiment(profile, "outputs", options=Options(**options))


@pytest.mark.parametrize(
    "more",
    [
        ["seeds=1,2,3", "learning_rates=1e-5,2e-5"],
        ["seeds=1,2", "design=half-tables", "treatments=generic,mixed"],
        ["profile=laptop", "from=a.gguf", "source=rows", "set=gsm8k.training.num_epochs=3"],
    ],
)
def test_snakemake_sees_the_same_stages(more, tmp_path):
    pytest.importorskip("snakemake", reason="the group `sweep` is not installed")
    config = ["profile=demo", f"output_root={tmp_path}", *more]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "snakemake",
            "--profile",
            "scripts/sweep",
            "-n",
            "-p",
            "--config",
            *config,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    halves = Options(design="half-tables", treatments=("generic", "mixed"))
    laptop = Options(base="a.gguf", data="rows", overrides=("gsm8k.training.num_epochs=3",))
    plan = {
        "seeds=1,2,3": Experiment("demo", str(tmp_path), [1, 2, 3], [1e-5, 2e-5]),
        "seeds=1,2": Experiment("demo", str(tmp_path), [1, 2], options=halves),
        "profile=laptop": Experiment("laptop", str(tmp_path), options=laptop),
    }[more[0]]
    corpora = [plan.corpora()] if plan.profile.name == "demo" else []
    stages = [*corpora, *plan.stages(), *plan.comparisons()]
    for stage in stages:
        assert f"{stage.finished.parent.name}_{stage.finished.stem}" in done.stdout
        assert " ".join(stage.arguments) in done.stdout
    total = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("total")]
    assert int(total[0]) == len(stages) + 1  # and the rule `all`


def test_every_control_is_a_treatment_and_every_treatment_but_the_claims_own_a_control():
    from domain_tokens.experiment.stages import CONTROLS, FACT_TOKEN
    from domain_tokens.treatments import NAMES

    assert {*CONTROLS} == {*NAMES} - {FACT_TOKEN}
