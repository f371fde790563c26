"""Verdicts as data: what was found and what may be claimed of it; `words` turns them into text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from domain_tokens.comparison.values import Unit

Claim = Literal[
    "improved",  # of a method: the first arm is higher, after Holm, with the plan's seeds
    "worsened",
    "equivalent",
    "inconclusive",
    "differ",  # of two checkpoints, or of lineages whose bases differ
    "not_detected",  # of two checkpoints
    "bases_unknown",  # the cards do not name the bases
    "bases_differ",
    "same_weights",
    "no_spread",  # all runs differ by the same amount
]
Kind = Literal["sft", "over", "half_table"]  # against baseline, over a control, within one study


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Verdict(_Data):
    """What may be said of one endpoint in one contrast.

    contrast: its name; first, second: the arms of which delta is the difference; over: what the
    second arm is, in words. direction: of the first arm as observed, whatever is claimed.
    delta, interval, margin, detectable: in nats or as fractions (unit).
    confidence: the interval's. p_holm: after Holm over the family of `role`. in_margin: the
    interval lies inside ±margin. detectable_limit: what no number of seeds gets below. seeds:
    independent lineages per arm; seeds_needed: what the margin would take, at least the plan's
    (None: over 10,000, or not known). randomisation_p: Fisher's, of a half table.
    """

    endpoint: str
    contrast: str
    kind: Kind = "sft"
    role: Literal["primary", "secondary"] = "primary"
    first: str
    second: str
    over: str = ""
    claim: Claim
    direction: Literal["higher", "lower", "equal"]
    unit: Unit
    delta: float
    interval: tuple[float, float] | None
    confidence: float
    p: float | None = None
    p_holm: float | None = None
    randomisation_p: float | None = None
    margin: float | None = None
    in_margin: bool = False
    detectable: float | None = None
    detectable_limit: float = 0.0
    seeds: int
    seeds_needed: int | None = None
    items: int

    @property
    def claimed(self) -> bool:
        """Whether a difference between methods is claimed."""
        return self.claim in ("improved", "worsened")


class PairVerdict(_Data):
    """What may be said of an accuracy of two checkpoints.

    claim: after Holm over all pairs and evaluations. uninformative: neither arm's interval lies
    above what always answering floor_answer scores (floor_accuracy, 0–1).
    """

    evaluation: str
    endpoint: str
    seed: Any
    claim: Literal["differ", "not_detected"]
    higher: str | None
    only_baseline_right: int
    only_mul_tokens_right: int
    p: float
    p_holm: float
    uninformative: bool
    floor_answer: str
    floor_accuracy: float


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence of the verdict: what it is about (None for a note), its words, and their data."""

    words: str
    about: str | None = None
    verdicts: tuple[Verdict | PairVerdict, ...] = ()

    @property
    def text(self) -> str:
        """The statement in one line."""
        return self.words if self.about is None else f"{self.about}: {self.words}"

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        data = [verdict.model_dump(mode="json") for verdict in self.verdicts]
        return {"about": self.about, "words": self.words, "verdicts": data}


def as_reported(statements: Sequence[Statement]) -> dict[str, Any]:
    """Return statements as a comparison holds them: in words, and as data."""
    return {
        "verdicts": [statement.text for statement in statements],
        "statements": [statement.as_data() for statement in statements],
    }
