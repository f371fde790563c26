"""An endpoint by fact: which facts a run was trained with as tokens, and its values for each unit.

A unit of A1 is a fact, a unit of G1 an item whose gold solution uses facts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from domain_tokens.errors import UserError
from domain_tokens.injection import find_facts
from domain_tokens.vocabulary import FACT_PAIRS, FACTS

if TYPE_CHECKING:
    from domain_tokens.comparison.runs import Run


@dataclass(frozen=True, slots=True)
class Units:
    """What an endpoint is measured on: names [n], and which facts each uses [n, 45 booleans]."""

    names: tuple[str, ...]
    uses: np.ndarray

    def without(self, facts: Sequence[str]) -> np.ndarray:
        """Return which units use none of these facts, [n] booleans."""
        return np.logical_not(self.uses[:, np.isin(FACTS, facts)].any(axis=1))


def treatment_record(run: "Run") -> dict[str, Any] | None:
    """Return the treatment of the run card, None for text as it is or a card that has no key."""
    return (run.card["training"] or {}).get("treatment")


def treated_facts(run: "Run") -> np.ndarray:
    """Return which of the 45 facts a run was treated with, [45] booleans.

    Raises UserError where the card does not say.
    """
    record = treatment_record(run)
    if not record or "facts" not in record:
        raise UserError(
            f"{run.folder}: its run card does not say which facts were treated "
            "(training.treatment.facts); train that half again"
        )
    unknown = sorted(set(record["facts"]) - set(FACTS))
    if unknown:
        raise UserError(f"{run.folder}: its run card treats {unknown[0]}, which is no fact token")
    return np.isin(FACTS, record["facts"])


def occurrences_of(run: "Run") -> dict[str, int] | None:
    """Return how often each fact occurs in the rows that the half was drawn from, if recorded."""
    draw = (treatment_record(run) or {}).get("draw")
    return None if not draw else {fact: int(draw["occurrences"].get(fact, 0)) for fact in FACTS}


def units_of(runs: Sequence["Run"], endpoint: str) -> Units | str:
    """Return the units of an endpoint that all runs share, or what keeps it from being measured.

    Raises UserError where two runs have other items, or do not agree on the facts of an item.
    """
    if endpoint == "a1":
        missing = [r for r in runs if "a1_grid" not in _metrics(r, "arithmetic")]
        if missing:
            return f"{missing[0].folder} has no a1_grid; run eval/run_arithmetic_probes.py"
        return Units(FACTS, np.eye(len(FACTS), dtype=bool))
    missing = [r for r in runs if "gsm8k" not in r.evaluations]
    if missing:
        return f"{missing[0].folder} has no GSM8K evaluation; run eval/run_gsm8k.py"
    facts: dict[str, tuple[str, ...]] = {}
    for run in runs:
        items = run.evaluations["gsm8k"].items
        if any("g1" not in item for item in items.values()):
            return f"{run.folder} has no g1 (evaluation.num_rationales is 0); evaluate it again"
        own = dict(_facts_by_item(items))
        if len(own) < len(items):
            return (
                f"the items of {run.folder} do not say which facts their gold solutions use "
                "(gold_facts); evaluate that checkpoint again"
            )
        differing = next(
            (key for key, used in own.items() if (facts or own).get(key) != used), None
        )
        if differing or len(own) != len(facts or own):
            raise UserError(
                f"{runs[0].folder} and {run.folder} do not agree on the items and their gold_facts "
                f"({differing or 'some are missing'}); evaluate both on the same data"
            )
        facts = facts or own
    names = tuple(key for key in sorted(facts) if facts[key])
    uses = np.array([[fact in facts[key] for fact in FACTS] for key in names], dtype=bool)
    return Units(names, uses.reshape(len(names), len(FACTS)))


def values_of(runs: Sequence["Run"], endpoint: str, units: Units) -> np.ndarray:
    """Return the values of runs, [runs, n]; for A1 a fact's mean of its cells (a,b) and (b,a)."""
    if endpoint == "a1":
        grids = [np.array(_metrics(run, "arithmetic")["a1_grid"], dtype=np.float64) for run in runs]
        return np.array(
            [[(g[a - 1, b - 1] + g[b - 1, a - 1]) / 2 for a, b in FACT_PAIRS] for g in grids]
        )
    items = [run.evaluations["gsm8k"].items for run in runs]
    return np.array([[float(own[name][endpoint]) for name in units.names] for own in items])


def _metrics(run: "Run", evaluation: str) -> Mapping[str, Any]:
    return run.evaluations[evaluation].metrics if evaluation in run.evaluations else {}


def _facts_by_item(items: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (id, facts) of the items that tell: their key, or their gold solution read again."""
    for key, item in items.items():
        if "gold_facts" in item:
            yield key, tuple(item["gold_facts"])
        elif "gold_solution" in item:
            used = {fact.token for fact in find_facts(item["gold_solution"])}
            yield key, tuple(fact for fact in FACTS if fact in used)
