"""The endpoints, and their values as a matrix of runs and items."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from domain_tokens.errors import UserError

if TYPE_CHECKING:
    from domain_tokens.comparison.runs import Evaluation, Run

Unit = Literal["nats", "points"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is measured. census: its items are all there are, so that only runs are a sample.

    Values in points are fractions 0–1 until they are shown.
    """

    name: str
    evaluation: str
    unit: Unit
    primary: bool = False
    census: bool = False


ENDPOINTS = (
    Endpoint("a1", "arithmetic", "nats", primary=True, census=True),
    Endpoint("g1", "gsm8k", "points", primary=True),
    Endpoint("a2", "stories", "nats", census=True),
    Endpoint("g1_log", "gsm8k", "nats"),
    Endpoint("g1_log_half", "gsm8k", "nats"),
    Endpoint("g2", "gsm8k", "nats"),
    Endpoint("accuracy", "gsm8k", "points"),
    Endpoint("stop_rate", "gsm8k", "points"),
)
PRIMARIES = tuple(endpoint.name for endpoint in ENDPOINTS if endpoint.primary)
# Prespecified, exploratory: does the difference sit in the items whose solution uses a fact?
INTERACTION = "g1, items with facts − others"
_ITEM_KEYS = {"accuracy": "correct"}


def item_values(evaluation: "Evaluation", endpoint: str) -> dict[str, float] | None:
    """Return an endpoint's value per item (A1, A2: per cell), or None where it was not measured."""
    if endpoint in ("a1", "a2"):
        cells = evaluation.metrics.get(f"{endpoint}_grid")
        return cells and {f"{a}×{b}": v for a, r in enumerate(cells, 1) for b, v in enumerate(r, 1)}
    if endpoint == "stop_rate":
        return {i: float(item["stop_reason"] == "eos") for i, item in evaluation.items.items()}
    key = _ITEM_KEYS.get(endpoint, endpoint)
    if any(key not in item for item in evaluation.items.values()):
        return None
    return {i: float(item[key]) for i, item in evaluation.items.items()}


def value_matrix(runs: Sequence["Run"], endpoint: Endpoint) -> np.ndarray | None:
    """Return the values of runs as [runs, items], or None where one of them lacks the endpoint.

    Columns are in the order of the items' ids, in all runs alike and whatever the order of their
    files. Raises UserError where two runs have other items.
    """
    rows: list[dict[str, float]] = []
    for run in runs:
        evaluation = run.evaluations.get(endpoint.evaluation)
        row = item_values(evaluation, endpoint.name) if evaluation else None
        if not row:
            return None
        rows.append(row)
        alone = sorted(row.keys() ^ rows[0].keys())
        if alone:
            raise UserError(
                f"{runs[0].folder} and {run.folder} are not of the same items for {endpoint.name}: "
                f"{len(alone)} are in one only ({alone[0]}); evaluate all runs on the same data"
            )
    keys = sorted(rows[0])
    return np.array([[row[key] for key in keys] for row in rows])


def both_arms(pairs: Sequence[tuple["Run", "Run"]], endpoint: Endpoint) -> np.ndarray | None:
    """Return the values of both arms as [2, pairs, items], or None where a run lacks them."""
    values = value_matrix([pair[arm] for arm in (0, 1) for pair in pairs], endpoint)
    return None if values is None else values.reshape(2, len(pairs), -1)
