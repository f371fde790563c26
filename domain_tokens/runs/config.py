"""YAML files and --set overrides become one validated, frozen config."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from domain_tokens.errors import UserError
from domain_tokens.runs.yaml_values import read_yaml, read_yaml_value

MAX_SEED = 2**32 - 1  # of NumPy's generators
MAX_COUNT = 2**31 - 1  # rows, tokens, steps

# A test walks all configs: every number has bounds, so that none ends as a traceback in a library.
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountOrNone = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Width = Annotated[int, Field(ge=1, le=2**20)]  # of a model, of a row, of a batch
Rate = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of a config: frozen, strictly typed, unknown keys and infinite numbers refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TrainingSection(Section):
    """How one SFT stage trains; one optimizer step is batch_size × accumulation examples."""

    max_length: int = Field(ge=2, le=2**20)
    batch_size: Width
    gradient_accumulation_steps: Width
    num_epochs: int = Field(ge=1, le=10_000)
    learning_rate: Rate
    warmup_ratio: Decay
    weight_decay: float = Field(ge=0, le=10)
    max_train_samples: Count | None
    max_val_samples: CountOrNone
    seed: Seed = 42
    loss_on: Literal["assistant", "all"] = "assistant"
    packing: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    adam_beta1: Decay = 0.9
    adam_beta2: Decay = 0.999
    max_grad_norm: float = Field(1.0, gt=0, le=1e9)
    logging_steps: Count = 10
    save_steps: Count = 500


class DataSection(Section):
    """Where examples come from: a hub id, or a local file or folder."""

    source: str
    split: str = "train"
    validation_source: str | None = None
    validation_split: str | None = None
    holdout: Count | None = None
    subset_seed: Seed = 42
    injection_mode: Literal["weak", "strict"] = "weak"
    decontaminate_against: str | None = None
    decontaminate_split: str = "test"


class TrackingSection(Section):
    """Where a run's curves go besides train_log.jsonl; it changes nothing in the run itself.

    report_to: trackers that are installed. project, run_name: what trackers call it; a run is named
    after its output folder by default.
    """

    report_to: list[Literal["tensorboard", "trackio", "wandb", "mlflow", "swanlab"]] = []
    project: str = "domain-tokens"
    run_name: str | None = None


class SFTConfig(Section):
    """Everything that a training stage can be told by YAML."""

    training: TrainingSection
    data: DataSection
    tracking: TrackingSection = TrackingSection()

    def identity(self) -> dict[str, Any]:
        """Return what decides the weights: all but the tracking."""
        return self.model_dump(exclude={"tracking"})


class ModelSection(Section):
    """The shape of a GPT-2 that is trained from scratch."""

    n_layer: int = Field(ge=1, le=1000)
    n_embd: Width
    n_head: Width
    n_positions: int = Field(ge=2, le=2**20)
    initializer_range: Rate = 0.02

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "ModelSection":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is no multiple of n_head {self.n_head}")
        return self


class TextSection(Section):
    """Where plain text comes from: rows with the key `text`."""

    source: str
    split: str = "train"


class PretrainingConfig(Section):
    """A tiny base trained from scratch on plain text."""

    model: ModelSection
    training: TrainingSection
    data: TextSection


class GSM8KSection(Section):
    """How the GSM8K test questions are put and answered.

    rationales: K of the endpoint G1, sampled per item (0: no continuous endpoints).
    rationale_seed: of these samples; None means the training seed of the checkpoint.
    frequent_answers: the training answers in order of frequency; the first is a constant-answer
    floor, the first 16 that are not the gold answer are the distractors of G2.
    calculator: while decoding right results are written after `a*b=` of two digits ("facts") or
    after any `a op b=` ("all"). forbid_fact_tokens: while decoding no fact token is written.
    """

    batch_size: Width
    max_new_tokens: Width
    rationales: int = Field(16, ge=0, le=10_000)
    rationale_seed: Seed | None = None
    frequent_answers: list[str] = Field(min_length=17)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    calculator: Literal["facts", "all"] | None = None
    forbid_fact_tokens: bool = False


class GSM8KEvalConfig(Section):
    """The GSM8K evaluation."""

    data: DataSection
    evaluation: GSM8KSection


class ProbeSection(Section):
    """How the arithmetic probes are put and answered.

    forbid_fact_tokens: while decoding no fact token is written.
    """

    batch_size: Width
    max_new_tokens: Width
    forced_start: str
    suite: Literal["seed", "full"] = "seed"
    seed: Seed = 42
    multidigit: int = Field(100, ge=1, le=1_000_000)
    additions: int = Field(100, ge=1, le=1_000_000)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    forbid_fact_tokens: bool = False


class ProbeEvalConfig(Section):
    """The arithmetic probes."""

    evaluation: ProbeSection


class AnalysisPlan(Section):
    """What was fixed before the numbers were seen; its hash stands in every comparison.

    seeds: independent lineages per arm that a claim needs. alpha: over both primaries (Holm), whose
    intervals have the level at which Holm tests them. confidence: of the primaries' intervals of a
    single pair, which no test goes with.
    margins: equivalence margins, a1 in nats, g1 as a fraction.
    """

    seeds: int = Field(ge=5, le=10_000)
    alpha: Share
    confidence: Share
    power: Share
    margins: dict[Literal["a1", "g1"], Annotated[float, Field(gt=0, le=1000)]]


ConfigT = TypeVar("ConfigT", bound=Section)


def load_config(kind: type[ConfigT], path: str | Path, overrides: list[str]) -> ConfigT:
    """Read a YAML file, apply `a.b=value` overrides and validate the whole.

    Raises UserError for a missing file, broken YAML, a key that is there twice, an empty value, an
    unknown key (naming the nearest valid one) or a value of the wrong type or out of bounds.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"config {file} not found; wanted a YAML file, as in sft/configs")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config {file} cannot be read ({error}); wanted UTF-8 text") from None
    tree = read_yaml(text, str(file))
    if not isinstance(tree, dict):
        raise UserError(f"{file} holds {type(tree).__name__}; wanted a mapping of sections")
    for override in overrides:
        _apply(tree, override)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{file}: {_first_problem(kind, error)}") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override}: wanted KEY=VALUE, as in training.batch_size=2")
    value = read_yaml_value(text, f"--set {override}")
    *parents, last = key.strip().split(".")
    node = tree
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"--set {override}: {part} is a value, not a section")
    node[last] = value


def _first_problem(kind: type[Section], error: ValidationError) -> str:
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        valid = _keys(kind)
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(valid)}"
        return f"unknown key {key}: {hint}"
    if problem["type"] == "missing":
        return f"key {key} is missing; add it"
    got = problem["input"]
    return f"{key} is {got!r} ({type(got).__name__}): {problem['msg'].lower()}"


def _keys(kind: type[Section], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            keys.extend(_keys(inner, f"{prefix}{name}."))
        else:
            keys.append(f"{prefix}{name}")
    return keys
