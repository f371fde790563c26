"""The plan: every stage finds what it reads, and no two replicates share a folder."""

import subprocess
import sys

import pytest

from domain_tokens.experiment import Experiment
from tests.conftest import ROOT

STUDY = Experiment("demo", "outputs", [1, 2, 3], [1e-5, 2e-5])


def test_what_a_stage_reads_was_left_by_an_earlier_one():
    there = {STUDY.corpora().finished}
    for stage in STUDY.stages():
        assert set(stage.inputs) <= there, stage
        assert stage.finished not in there
        there.add(stage.finished)
    for comparison in STUDY.comparisons():
        assert set(comparison.inputs) <= there
    assert set(STUDY.check().inputs) <= there


def test_arms_of_a_replicate_get_the_same_words_but_for_the_arm():
    stages = [s for s in STUDY.stages() if s.script == "sft/sft_tulu.py"]
    arms = {"baseline": [], "mul_tokens": []}
    for stage in stages:
        condition = stage.arguments[stage.arguments.index("--condition") + 1]
        arms[condition].append(str(stage).replace(condition, "ARM"))
    assert arms["baseline"] == arms["mul_tokens"]
    assert len(set(arms["baseline"])) == 6


def test_each_learning_rate_is_compared_for_itself():
    first, second = STUDY.comparisons()
    assert first.finished.name == "comparison_lr_1e-05.json"
    assert all("_lr_1e-05_" in str(file) for file in first.inputs)
    assert "--set training.learning_rate=2e-05" in " ".join(map(str, STUDY.stages()))
    assert len(second.inputs) == 12  # two arms, three seeds, two evaluations


def test_snakemake_sees_the_same_stages(tmp_path):
    pytest.importorskip("snakemake", reason="the group `sweep` is not installed")
    config = ["profile=demo", "seeds=1,2,3", "learning_rates=1e-5,2e-5", f"output_root={tmp_path}"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "snakemake",
            "--profile",
            "scripts/sweep",
            "-n",
            "--config",
            *config,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    plan = Experiment("demo", str(tmp_path), [1, 2, 3], [1e-5, 2e-5])
    stages = [plan.corpora(), *plan.stages(), *plan.comparisons()]
    for stage in stages:
        assert f"{stage.finished.parent.name}_{stage.finished.stem}" in done.stdout
    total = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("total")]
    assert int(total[0]) == len(stages) + 1  # and the rule `all`
