"""The files that an SFT stage leaves: run card, results, and what was dropped."""

from typing import TYPE_CHECKING, Any

from domain_tokens.checkpoints import hashes_and_files
from domain_tokens.runs import (
    AFTER_TRAINING,
    CARD_NAME,
    MEASURED,
    Decontaminated,
    StageCard,
    StageResults,
    Workspace,
    require_record,
    sealed,
    write_record,
)

if TYPE_CHECKING:
    from domain_tokens.data import DataReport


def planned(card: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Return what a resumed segment has to find again: the examples, and what computes.

    card, results: as they are before the first step. Raises SchemaError where they could not be
    written after the last one.
    """
    require_record(StageCard, card, CARD_NAME, later=AFTER_TRAINING)
    require_record(StageResults, results, "results", later=(*MEASURED, "seal"))
    computes = {key: card["environment"][key] for key in ("device_type", "dtype")}
    names = ("order_digest", "optimizer_steps", "tokens", "supervised_tokens", "injected_tokens")
    return {**{name: results[name] for name in names}, **computes, "data": card["data"]}


def finish_stage(
    workspace: Workspace, account: "DataReport", card: dict[str, Any], results: dict[str, Any]
) -> None:
    """Write the dropped rows, the run card and, last of all, the results."""
    work = workspace.work
    if account.listed_drops:
        listed = {"dropped": account.listed_drops}
        write_record(work / "decontaminated.json", Decontaminated, sealed(listed))
    told = {key: value for key, value in results.items() if key != "config"}
    whole = {**card, **hashes_and_files(work), "results": told}
    write_record(work / CARD_NAME, StageCard, sealed(whole))
    write_record(work / workspace.results_name, StageResults, sealed(results))
    workspace.complete()
