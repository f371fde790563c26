"""Configs: every YAML in the repository loads; typos and wrong types are refused by name."""

from pathlib import Path

import pytest

from domain_tokens.config import (
    AnalysisPlan,
    GSM8KEvalConfig,
    PretrainingConfig,
    ProbeEvalConfig,
    SFTConfig,
    load_config,
)
from domain_tokens.errors import UserError

ROOT = Path(__file__).parents[1]
TULU = ROOT / "sft/configs/tulu.yaml"


def _kind(path: Path):
    if path.name == "base.yaml":
        return PretrainingConfig
    if path.name == "analysis_plan.yaml":
        return AnalysisPlan
    if path.is_relative_to(ROOT / "sft"):
        return SFTConfig
    return GSM8KEvalConfig if "gsm8k" in path.name else ProbeEvalConfig


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/configs/**/*.yaml")), ids=lambda p: p.name)
def test_every_yaml_in_the_repository_loads(path):
    assert load_config(_kind(path), path, [])


def test_defaults_are_the_numbers_of_the_lab_note():
    tulu = load_config(SFTConfig, TULU, []).training
    gsm8k = load_config(SFTConfig, ROOT / "sft/configs/gsm8k.yaml", []).training
    assert tulu.batch_size * tulu.gradient_accumulation_steps == 32
    assert gsm8k.batch_size * gsm8k.gradient_accumulation_steps == 32
    assert (tulu.max_length, tulu.num_epochs, tulu.warmup_ratio) == (1024, 1, 0.05)
    assert (gsm8k.max_length, gsm8k.num_epochs, gsm8k.warmup_ratio) == (512, 3, 0.1)
    assert tulu.learning_rate == gsm8k.learning_rate == 2e-5
    assert tulu.weight_decay == gsm8k.weight_decay == 0.01


def test_an_exponent_without_a_point_is_a_number():
    """PyYAML reads 1e-5 as a string, which silently broke a learning rate elsewhere."""
    assert (
        load_config(SFTConfig, TULU, ["training.learning_rate=1e-5"]).training.learning_rate == 1e-5
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.batchsize=2", "did you mean training.batch_size?"),
        ("trainin.batch_size=2", "unknown key trainin"),
        ("training.batch_size=two", "training.batch_size is 'two'"),
        ("training.batch_size=2.5", "training.batch_size is 2.5"),
        ("training.warmup_ratio=1.5", "training.warmup_ratio is 1.5"),
        ("training.batch_size", "wanted KEY=VALUE"),
        ("data.source=null", "data.source is None"),
    ],
)
def test_a_bad_override_is_refused_by_name(override, words):
    with pytest.raises(UserError, match=r".") as caught:
        load_config(SFTConfig, TULU, [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_cannot_be_changed_after_loading():
    config = load_config(SFTConfig, TULU, [])
    with pytest.raises(ValueError, match="frozen"):
        config.training.batch_size = 1  # ty: ignore[invalid-assignment]


def test_a_missing_file_and_broken_yaml_are_one_line(tmp_path):
    with pytest.raises(UserError, match="not found"):
        load_config(SFTConfig, tmp_path / "none.yaml", [])
    (tmp_path / "broken.yaml").write_text("training: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(SFTConfig, tmp_path / "broken.yaml", [])
