"""One command runs every stage, for both arms alike, and a second call does nothing."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from domain_tokens.experiment import Experiment
from tests.conftest import ROOT, call, plant, tree


def read(path):
    return json.loads(path.read_text())


def test_every_stage_leaves_what_the_next_one_and_the_reader_need(experiment):
    demo = experiment / "demo"
    for condition in ("baseline", "mul_tokens"):
        for folder, results in (("tulu", "tulu_sft_results.json"), ("gsm8k", "sft_results.json")):
            stage = demo / f"sft_{folder}_{condition}"
            names = {path.name for path in stage.iterdir()}
            assert {
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "generation_config.json",
                "run_card.json",
                "train_log.jsonl",
                results,
            } <= names
            assert not [n for n in names if n.startswith("checkpoint") or "unfinished" in n]
            log = [json.loads(line) for line in (stage / "train_log.jsonl").open()]
            assert log[-1]["step"] == read(stage / results)["optimizer_steps"]
        evaluation = {path.name for path in (demo / f"eval_{condition}").iterdir()}
        assert evaluation == {
            f"{name}_{kind}"
            for name in ("gsm8k", "arithmetic")
            for kind in ("results.json", "items.jsonl")
        } | {"gsm8k_rationales.jsonl", "arithmetic_scores.jsonl"}
    assert read(demo / "comparison.json")["analysis"]["same_base"] is True


@pytest.mark.parametrize("stage", ["tulu_sft", "sft"])
def test_both_arms_train_on_the_same_examples_in_the_same_order(experiment, stage):
    folder = {"tulu_sft": "sft_tulu", "sft": "sft_gsm8k"}[stage]
    baseline, mul_tokens = (
        read(experiment / "demo" / f"{folder}_{condition}" / f"{stage}_results.json")
        for condition in ("baseline", "mul_tokens")
    )
    for key in ("order_digest", "optimizer_steps", "total_train_samples", "dropped", "truncated"):
        assert baseline[key] == mul_tokens[key]
    assert baseline["injected_tokens"] == 0 < mul_tokens["injected_tokens"]
    assert baseline["config"] == mul_tokens["config"]


def test_results_hold_the_keys_that_are_promised(experiment):
    results = read(experiment / "demo" / "sft_gsm8k_baseline" / "sft_results.json")
    promised = """
        condition seed dataset train_loss eval_loss train_runtime train_samples_per_second
        total_train_samples total_val_samples config tokens supervised_tokens tokens_per_second mfu
        peak_flops_used peak_memory_bytes optimizer_steps dropped truncated injected_examples
        injected_tokens injected_example_share injection_rate source_composition order_digest
        eval_split eval_bits_per_byte
    """
    assert not set(promised.split()) - results.keys()
    assert results["eval_split"] == "test"
    metrics = read(experiment / "demo" / "eval_baseline" / "gsm8k_results.json")["metrics"]
    promised = """
        condition model_path correct total accuracy accuracy_expression_credited accuracy_flexible
        stop_rate run_on_rate avg_response_tokens mul_token_count mul_tokens_per_response
        mul_token_correct_rate reserved_token_count samples_per_second tokens_per_second
    """
    assert not set(promised.split()) - metrics.keys()
    assert metrics["reserved_token_count"] == 0


def test_a_second_call_does_nothing_and_says_so(experiment, capsys, monkeypatch):
    plant(
        monkeypatch,
        "domain_tokens.data.demo_corpora.SIZES",
        read(experiment / "demo" / "data" / "manifest.json")["sizes"],
    )
    before = tree(experiment)
    assert call("scripts/run_experiment.py", "--output-root", experiment) == 0
    assert "everything is finished, nothing was done" in capsys.readouterr().out
    assert tree(experiment) == before


def test_corpora_of_another_version_are_refused(experiment, capsys):
    before = tree(experiment)
    assert call("scripts/run_experiment.py", "--output-root", experiment) == 2
    assert "other demo corpora" in capsys.readouterr().err
    assert tree(experiment) == before


def test_the_full_profile_prints_the_commands_of_the_lab_note(capsys):
    assert call("scripts/run_experiment.py", "--profile", "full", "--dry-run") == 0
    printed = capsys.readouterr().out
    for command in (
        "sft/sft_tulu.py --model-path outputs/hf_mul_tokens_10b "
        "--output-dir outputs/sft_tulu_mul_tokens --condition mul_tokens "
        "--config sft/configs/tulu.yaml",
        "sft/sft_gsm8k.py --model-path outputs/sft_tulu_baseline "
        "--output-dir outputs/sft_gsm8k_baseline --condition baseline "
        "--config sft/configs/gsm8k.yaml",
    ):
        assert f"uv run python {command}\n" in printed


def test_seeds_get_folders_of_their_own():
    commands = [str(command) for command in Experiment("full", "outputs", [1, 2]).stages()]
    assert len(commands) == len(set(commands)) == 16
    assert sum("--seed 2" in command for command in commands) == 4
    (last,) = map(str, Experiment("full", "outputs", [1, 2]).comparisons())
    assert "--baseline-dir outputs/eval_baseline_seed_1 outputs/eval_baseline_seed_2" in last


def test_the_full_profile_names_the_base_that_is_missing(tmp_path, capsys):
    assert call("scripts/run_experiment.py", "--profile", "full", "--output-root", tmp_path) == 2
    assert "hf_baseline_10b not found" in capsys.readouterr().err


def test_every_printed_config_exists():
    for command in Experiment("demo", "outputs").stages():
        for word in command.arguments:
            if word.endswith(".yaml"):
                assert (ROOT / word).is_file(), word


SMALL = [  # every stage, in seconds
    *("--set", "tulu.training.max_train_samples=40", "--set", "tulu.training.max_val_samples=4"),
    *("--set", "gsm8k.training.max_train_samples=40", "--set", "gsm8k.training.max_val_samples=4"),
    *("--set", "tulu.training.max_length=256", "--set", "gsm8k.training.max_length=256"),
    *("--set", "eval_gsm8k.evaluation.num_rationales=1"),
    *("--set", "eval_gsm8k.evaluation.max_new_tokens=8", "--max-samples", "4"),
    *("--set", "probes.evaluation.multidigit=1", "--set", "probes.evaluation.additions=1"),
]


def started(root, data):
    """Start run_experiment.py on the bases in a folder, with two lineages side by side."""
    sources = {
        "tulu.data.source": "chat",
        "tulu.data.decontaminate_against": "test",
        "gsm8k.data.source": "train",
        "gsm8k.data.validation_source": "test",
        "eval_gsm8k.data.source": "test",
    }
    words = [w for k, name in sources.items() for w in ("--set", f"{k}={data / name}.jsonl")]
    words += ["--set", "gsm8k.data.decontaminate_against=null"]
    command = [sys.executable, "scripts/run_experiment.py", "--profile", "full"]
    return subprocess.Popen(
        [*command, "--output-root", str(root), *SMALL, *words, "--jobs", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_lineages_side_by_side_fail_alone_and_go_on_after_a_kill(experiment, tmp_path):
    """One lineage fails while the other ends; killed in between, the same command ends it all."""
    data = experiment / "demo" / "data"
    for condition in ("baseline", "mul_tokens"):
        base = experiment / "demo" / f"hf_{condition}"
        shutil.copytree(base, tmp_path / f"hf_{condition}_10b")
    stranger = tmp_path / "sft_tulu_mul_tokens" / "notes.txt"
    stranger.parent.mkdir()
    stranger.write_text("not ours")
    run = started(tmp_path, data)
    output, complaint = run.communicate()
    assert run.returncode == 1
    assert "fact_token failed: exit status 2: error: " in complaint
    assert "files of another kind (notes.txt)" in complaint
    assert "failed: 1 of 2 lineages (fact_token); fix what they say" in complaint
    assert (tmp_path / "eval_baseline" / "arithmetic_results.json").is_file()
    assert "4 of 8 stages done, 4 left; about" in output
    assert not (tmp_path / "comparison.json").exists()

    stranger.unlink()
    before = tree(tmp_path / "eval_baseline") | tree(tmp_path / "sft_gsm8k_baseline")
    killed = started(tmp_path, data)
    while not (tmp_path / "sft_tulu_mul_tokens" / "tulu_sft_results.json").exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "eval_mul_tokens" / "arithmetic_results.json").exists()

    again = started(tmp_path, data)
    output, complaint = again.communicate()
    assert again.returncode == 0, complaint
    assert "8 of 8 stages done, 0 left" in output
    assert (tmp_path / "comparison.json").is_file()
    assert tree(tmp_path / "eval_baseline") | tree(tmp_path / "sft_gsm8k_baseline") == before
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "stage_seconds.jsonl").open()]
    assert sorted(set(kinds)) == ["eval_gsm8k", "gsm8k", "probes", "tulu"]


def test_only_the_lineages_that_are_named(capsys):
    words = ["--dry-run", "--design", "half-tables", "--seeds", "1", "2"]
    assert call("scripts/run_experiment.py", *words, "--only", "half_b_seed_2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 4  # the bases, two trainings, two evaluations
    assert all("half_b_seed_2" in line for line in lines[2:])
    assert call("scripts/run_experiment.py", *words, "--only", "half_b_sed_2") == 2
    assert "did you mean half_b_seed_2?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--set", "gsm8k.training.num_epoch=3"], "unknown key training.num_epoch: did you mean"),
        (["--set", "stories.evaluation.seed=1"], "profile demo has no such keys; it has those of"),
        (["--profile", "full", "--set", "base.training.seed=1"], "no such keys"),
        (["--profile", "full", "--corpora-only"], "only the demo has corpora"),
        (["--treatments", "operand"], "invalid choice: 'operand'"),
    ],
)
def test_what_would_fail_hours_later_is_refused_at_once(words, complaint, capsys):
    dry = [] if "--corpora-only" in words else ["--dry-run"]
    assert call("scripts/run_experiment.py", *dry, *words) == 2
    assert complaint in capsys.readouterr().err
