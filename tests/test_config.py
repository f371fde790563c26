"""Configs: every YAML in the repository loads; typos and wrong types are refused by name."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from domain_tokens.errors import UserError
from domain_tokens.runs import config
from domain_tokens.runs.config import (
    MAX_SEED,
    AnalysisPlan,
    ArmsPlan,
    GSM8KEvalConfig,
    ModelSection,
    PretrainingConfig,
    ProbeEvalConfig,
    Section,
    SFTConfig,
    load_config,
)
from tests.conftest import ROOT

TULU = ROOT / "sft/configs/tulu.yaml"


def _kind(path: Path):
    if path.name == "base.yaml":
        return PretrainingConfig
    if path.name == "analysis_plan.yaml":
        return AnalysisPlan
    if path.name == "half_tables.yaml":
        return ArmsPlan
    if path.is_relative_to(ROOT / "sft"):
        return SFTConfig
    problems = path.name in ("gsm8k.yaml", "svamp.yaml")
    return GSM8KEvalConfig if problems else ProbeEvalConfig


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
        ("data.decontaminate_against=", "an empty value; write null to mean none"),
        ("data.decontaminate_against=  ", "an empty value; write null to mean none"),
        ("data.decontaminate_against=# none", "YAML reads None, not all that is there"),
        ("data.source=my #1 file.jsonl", "YAML reads 'my', not all that is there"),
        ("training.seed=7 # lucky", "YAML reads 7, not all that is there"),
        ("training={seed: 1, seed: 2}", "seed is there twice"),
        ("tracking={run_name: }", "run_name is empty (line 1); write null"),
        ("training.max_train_samples=1:30", "training.max_train_samples is '1:30'"),
        ("training.max_train_samples=1_000", "training.max_train_samples is '1_000'"),
        ("training.packing=yes", "training.packing is 'yes'"),
        ("training.learning_rate=.nan", "training.learning_rate is nan"),
        ("training.learning_rate=.inf", "training.learning_rate is inf"),
        ("training.seed=-1", "training.seed is -1"),
        ("training.seed=4294967296", "training.seed is 4294967296"),
        ("training.save_steps=0", "training.save_steps is 0"),
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


def test_an_empty_value_in_a_file_and_a_key_there_twice_are_refused(tmp_path):
    """Of two learning rates in one file the last won without a word."""
    text = TULU.read_text()
    file = tmp_path / "tulu.yaml"
    file.write_text(text.replace("learning_rate: 2e-5", "learning_rate: 2e-5\n  learning_rate: 1"))
    with pytest.raises(UserError, match=r"training\.learning_rate is there twice, in lines 7 "):
        load_config(SFTConfig, file, [])
    file.write_text(text + text[text.index("data:") :])
    with pytest.raises(UserError, match=r": data is there twice, in lines \d+ and \d+"):
        load_config(SFTConfig, file, [])
    file.write_text(text.replace("openai/gsm8k", ""))
    with pytest.raises(UserError, match=r"data\.decontaminate_against is empty \(line \d+\)"):
        load_config(SFTConfig, file, [])
    file.write_bytes(text.encode("utf-16"))
    with pytest.raises(UserError, match="cannot be read"):
        load_config(SFTConfig, file, [])


def test_null_means_none_and_strings_stay_strings():
    words = ["data.decontaminate_against=null", "tracking.run_name=no", "training.seed=042"]
    read = load_config(SFTConfig, TULU, words)
    assert read.data.decontaminate_against is None
    assert read.tracking.run_name == "no"
    assert read.training.seed == 42


# --- bounds ---------------------------------------------------------------------------------------


SECTIONS = [
    kind
    for kind in vars(config).values()
    if isinstance(kind, type) and issubclass(kind, Section) and kind is not Section
]
NUMBERS = [
    pytest.param(kind, name, id=f"{kind.__name__}.{name}")
    for kind in SECTIONS
    for name, field in kind.model_fields.items()
    if any(word in str(field.annotation) + str(field.metadata) for word in ("int", "float"))
    if "Literal" not in str(field.annotation) or "dict" in str(field.annotation)
]


def schema_of(kind: type[Section], name: str) -> dict:
    """The JSON schema of a field's number, out of a union with null or a mapping to it."""
    schema = kind.model_json_schema()["properties"][name]
    for part in schema.get("anyOf", [schema]):
        if part.get("type") == "object":
            return part["additionalProperties"]
        if part.get("type") in ("integer", "number"):
            return part
    raise AssertionError(f"{kind.__name__}.{name} is no number: {schema}")


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_every_number_has_bounds_on_both_sides(kind, name):
    """A seed of -1 ended as a traceback in NumPy, a K of 0 after the model was loaded."""
    schema = schema_of(kind, name)
    assert {"minimum", "exclusiveMinimum"} & schema.keys(), schema
    assert {"maximum", "exclusiveMaximum"} & schema.keys(), schema
    mapped = "dict" in str(kind.model_fields[name].annotation)
    for value in (float("inf"), float("-inf"), float("nan"), 10**300, -(10**300)):
        given = {"a1": value, "g1": value} if mapped else value
        with pytest.raises(ValidationError) as caught:
            kind.model_validate({name: given})
        assert any(problem["loc"][0] == name for problem in caught.value.errors()), value


def test_the_walk_over_configs_finds_the_numbers():
    names = {param.id for param in NUMBERS}
    assert {"TrainingSection.seed", "GSM8KSection.num_rationales", "AnalysisPlan.margins"} <= names
    assert {"DataSection.holdout", "TrainingSection.max_train_samples"} <= names
    assert len(names) > 35
    with pytest.raises(AssertionError):
        schema_of(SFTConfig, "data")


def test_seeds_are_numpys():
    for seed in (0, MAX_SEED):
        assert load_config(SFTConfig, TULU, [f"training.seed={seed}"]).training.seed == seed


def test_heads_divide_the_width():
    with pytest.raises(ValidationError, match="n_embd 10 is no multiple of n_head 4"):
        ModelSection(n_layer=1, n_embd=10, n_head=4, n_positions=8)
