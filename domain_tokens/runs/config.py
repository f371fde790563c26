"""YAML files and --set overrides become one validated, frozen config."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from domain_tokens.errors import UserError
from domain_tokens.injection import Mode
from domain_tokens.runs.older_names import KEYS, Named, named_today, sections_today
from domain_tokens.runs.yaml_values import read_yaml, read_yaml_value
from domain_tokens.treatments import Name, TreatedFacts

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
Rationale = Literal["full", "equations"]
TrainedRows = Literal["all", "fact_rows", "all_but_fact_rows"]


class Section(Named):
    """A part of a config: frozen, strictly typed, unknown keys and infinite numbers refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TrainingSection(Section):
    """How one SFT stage trains; one optimizer step is batch_size × accumulation examples.

    train: which rows change; fact_rows are the 45 rows of the vocabulary, all else being frozen.
    cuda_graphs: whether a GPU replays recorded passes, where it can (training/step_graphs).
    """

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
    cuda_graphs: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    adam_beta1: Decay = 0.9
    adam_beta2: Decay = 0.999
    max_grad_norm: float = Field(1.0, gt=0, le=1e9)
    logging_steps: Count = 10
    save_steps: Count = 500
    train: TrainedRows = "all"


class DataSection(Section):
    """Where examples come from: a hub id, or a local file or folder.

    injection_mode: whether bare products are facts, too, or only equations, which have a result.
    treatment, treated_facts: what condition mul_tokens makes of which facts (treatments.py); null:
    as the parent's run card says, and fact_token for all facts where it says nothing.
    rationale: what is kept of a solution; equations are GSM8K's calculator annotations alone.
    """

    source: str
    split: str = "train"
    validation_source: str | None = None
    validation_split: str | None = None
    holdout: Count | None = None
    subset_seed: Seed = 42
    injection_mode: Mode = "products"
    treatment: Name | None = None
    treated_facts: TreatedFacts | None = None
    merges_source: str | None = None  # of matched_merges: whose solutions it counts; null: own rows
    merges_split: str = "train"
    decontaminate_against: str | None = None
    decontaminate_split: str = "test"
    rationale: Rationale = "full"

    @model_validator(mode="after")
    def _merges_are_of_their_treatment(self) -> "DataSection":
        if self.merges_source is not None and self.treatment != "matched_merges":
            raise ValueError(
                f"data.merges_source is of treatment matched_merges, got {self.treatment}"
            )
        return self


class TrackingSection(Section):
    """Where a run's curves go besides train_log.jsonl; it changes nothing in the run itself.

    report_to: trackers that are installed. project, run_name: what trackers call it; a run is named
    after its output folder by default.
    """

    report_to: list[Literal["tensorboard", "trackio", "wandb", "mlflow", "swanlab"]] = Field([])
    project: str = "domain-tokens"
    run_name: str | None = None


NEWER_KEYS = (  # at default: as runs without them
    ("training", "cuda_graphs"),
    ("data", "treatment"),
    ("data", "treated_facts"),
    ("data", "merges_source"),
    ("data", "merges_split"),
)


class SFTConfig(Section):
    """Everything that a training stage can be told by YAML."""

    training: TrainingSection
    data: DataSection
    tracking: TrackingSection = TrackingSection()

    def identity(self) -> dict[str, Any]:
        """Return what decides the weights: all but the tracking.

        Keys that are newer than some finished runs stand there only where they say something.
        """
        tree = self.model_dump(exclude={"tracking"})
        for section, key in NEWER_KEYS:
            if tree[section][key] == type(getattr(self, section)).model_fields[key].default:
                del tree[section][key]
        return tree


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

    @model_validator(mode="after")
    def _trains_all_rows(self) -> "PretrainingConfig":
        if self.training.train != "all":
            raise ValueError("training.train has to be all: a base has no fact rows yet")
        return self


class GSM8KSection(Section):
    """How the GSM8K test questions are put and answered.

    num_rationales: K of the endpoint G1, sampled per item (0: no continuous endpoints).
    rationale_seed: of these samples; None means the training seed of the checkpoint.
    frequent_answers: the training answers in order of frequency; the first is a constant-answer
    floor, the first 16 that are not the gold answer are the distractors of G2.
    calculator: while decoding right results are written after `a*b=` of two digits ("facts") or
    after any `a op b=` ("all"). forbid_fact_tokens: while decoding no fact token is written.
    """

    batch_size: Width
    max_new_tokens: Width
    num_rationales: int = Field(16, ge=0, le=10_000)
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
    response_prefix: str
    suite: Literal["standard", "full", "stories"] = "standard"
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


ArmName = Literal["baseline", "half_a", "half_b", Name]
Role = Literal["primary", "secondary"]


class ContrastSection(Section):
    """The first arm less the second. over: what the second one is, in the words of the verdict."""

    arms: list[ArmName] = Field(min_length=2, max_length=2)
    role: Role = "secondary"
    over: str = Field(min_length=1, max_length=200)

    @property
    def name(self) -> str:
        """How the contrast is called everywhere."""
        return f"{self.arms[0]} − {self.arms[1]}"


class ArmsPlan(AnalysisPlan):
    """The plan of a study with several arms: which contrasts, and which of them are primary.

    Holm runs over the primary contrasts × the primary endpoints, and once more, apart, over the
    secondary ones. half_table: the role of half_a against half_b. redraws: how often the halves are
    drawn again for Fisher's test, from redraw_seed.
    """

    half_table: Role
    contrasts: list[ContrastSection]
    redraws: int = Field(ge=1_000, le=1_000_000)
    redraw_seed: Seed

    @model_validator(mode="after")
    def _contrasts_are_distinct_and_one_is_primary(self) -> "ArmsPlan":
        names = [contrast.name for contrast in self.contrasts]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"the contrast {min(twice)} is there twice")
        same = [c.name for c in self.contrasts if len(set(c.arms)) < 2]
        if same:
            raise ValueError(f"the contrast {same[0]} is of one arm; wanted two")
        if "primary" not in {self.half_table, *(c.role for c in self.contrasts)}:
            raise ValueError("no contrast is primary; wanted at least one")
        return self


ConfigT = TypeVar("ConfigT", bound=Section)


def load_plan(path: str | Path) -> AnalysisPlan:
    """Read an analysis plan: an ArmsPlan where the file names contrasts, else one for two arms.

    Raises UserError as `load_config` does.
    """
    file = Path(path)
    text = file.read_text(encoding="utf-8-sig", errors="replace") if file.is_file() else ""
    several = re.search(r"(?m)^contrasts\s*:", text)
    return load_config(ArmsPlan if several else AnalysisPlan, file, [])


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
    tree = _named_today(kind, tree)
    for override in overrides:
        _apply(tree, override)
        tree = _named_today(kind, tree)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{file}: {_first_problem(kind, error)}") from None


def as_written_today(decode: dict[str, Any]) -> dict[str, Any]:
    """Return a card's decode settings by today's names, with what it lacks as it meant then."""
    return {"calculator": None, "forbid_fact_tokens": False, **named_today(decode)}


def with_later_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return a stage's config of a card by today's names, with what it lacks at its default."""
    parts: dict[str, type[Section]] = {"training": TrainingSection, "data": DataSection}
    filled = sections_today(config)
    for name, section in parts.items():
        if isinstance(filled.get(name), dict):
            defaults = {
                k: f.default for k, f in section.model_fields.items() if not f.is_required()
            }
            filled[name] = {**defaults, **filled[name]}
    return filled


def _named_today(kind: type[Section], tree: dict[str, Any]) -> dict[str, Any]:
    """Return what a person wrote with the names of today, and say which were older ones."""
    today = dict(tree)
    for name, field in kind.model_fields.items():
        section, part = field.annotation, tree.get(name)
        if isinstance(section, type) and issubclass(section, Section) and isinstance(part, dict):
            today[name] = named_today(part, section.model_fields, announce=name)
    return today


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
    node.pop(KEYS.get(last), None)  # what the file says under today's name
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
