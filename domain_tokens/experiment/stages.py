"""What a plan is made of: script calls, arms, replicates, and the lineages that they make."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from domain_tokens.runs import ROOT, in_repository

BASELINE, FACT_TOKEN = "baseline", "fact_token"
HALVES = ("half_a", "half_b")
# The controls of design §5: treatments other than the claim's own.
CONTROLS = (
    *("unsupervised", "generic", "operands", "result"),
    *("appended", "matched_merges", "mixed"),
)


def data_words(keys: Mapping[str, str]) -> list[str]:
    """Return the words that set keys of a config's section `data`."""
    return [word for key, value in keys.items() for word in ("--set", f"data.{key}={value}")]


@dataclass(frozen=True, slots=True)
class Stage:
    """One script call. inputs: files that have to be there; finished: the file that it ends with.

    kind: stages of one kind take about the same time. resumable: whether the script takes --resume.
    """

    script: str
    arguments: list[str]
    inputs: list[Path]
    finished: Path
    kind: str = ""
    resumable: bool = True

    def __str__(self) -> str:
        project = "" if Path.cwd() == ROOT else f" --project {shlex.quote(str(ROOT))}"
        return f"uv run{project} python {in_repository(self.script)} {shlex.join(self.arguments)}"

    @property
    def name(self) -> str:
        """How it is called where many are listed: its folder and its file."""
        return f"{self.finished.parent.name}/{self.finished.name}"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to write the facts of training text.

    treatment, treated_facts: what the stages are told; None leaves them their default, which is
    fact_token for all facts.
    """

    name: str
    treatment: str | None = None
    treated_facts: str | None = None

    @property
    def condition(self) -> str:
        """The scripts' --condition: whether facts are treated at all."""
        return BASELINE if self.name == BASELINE else "mul_tokens"

    @property
    def folder(self) -> str:
        """How its folders are told from those of other arms."""
        plain = self.name in (BASELINE, FACT_TOKEN)
        return self.condition if plain else f"{self.condition}_{self.name}"

    @property
    def arguments(self) -> list[str]:
        """What every training stage of it is told.

        The arm fact_token is told nothing: it is the same run, in the same folder, in each design.
        """
        keys = {"treatment": self.treatment, "treated_facts": self.treated_facts}
        given = {key: value for key, value in keys.items() if value is not None}
        return data_words(given)


def arms_of(design: str, treatments: tuple[str, ...]) -> list[Arm]:
    """Return the arms of a design ("two-arms" or "half-tables"), then a control per treatment."""
    halves = HALVES if design == "half-tables" else ()
    return [
        Arm(BASELINE),
        Arm(FACT_TOKEN),
        *(Arm(half, treated_facts=half) for half in halves),
        *(Arm(name, treatment=name) for name in treatments),
    ]


@dataclass(frozen=True, slots=True)
class Replicate:
    """One lineage of each arm; None means what the configs say."""

    seed: int | None
    learning_rate: float | None

    @property
    def suffix(self) -> str:
        """How its folders are told from those of other replicates."""
        return self.rate_suffix + ("" if self.seed is None else f"_seed_{self.seed}")

    @property
    def rate_suffix(self) -> str:
        """How folders of one learning rate are told from those of others."""
        return "" if self.learning_rate is None else f"_lr_{self.learning_rate!r}"

    @property
    def arguments(self) -> list[str]:
        """What the training scripts are told, next to their configs."""
        rate = self.learning_rate
        words = [] if self.seed is None else ["--seed", str(self.seed)]
        return words + ([] if rate is None else ["--set", f"training.learning_rate={rate!r}"])


@dataclass(frozen=True, slots=True)
class Lineage:
    """One replicate of one arm: its training stages, then its evaluations, in order."""

    name: str
    training: list[Stage]
    evaluations: list[Stage]

    @property
    def stages(self) -> list[Stage]:
        """Everything that it runs, in order."""
        return [*self.training, *self.evaluations]
