"""One command runs every stage, for both arms alike, and a second call does nothing."""

import json

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
        injected_tokens injection_rate source_composition order_digest eval_split
        eval_bits_per_byte
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
