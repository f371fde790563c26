"""The parent of a stage: verified, identified, with all its ancestors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_tokens.checkpoints.folder import read_card, verify_folder
from domain_tokens.checkpoints.hashes import (
    checkpoint_hashes,
    refuse_changed,
    refuse_changed_while_read,
)
from domain_tokens.errors import UserError
from domain_tokens.runs import CARD_NAME, format_versions, hash_files

# What a stage's run card says of how it was trained, which its descendants' cards repeat.
ANCESTRY = (
    *("stage", "condition", "seed", "weights", "tokenizer", "config", "data", "order_digest"),
    *("formats", "inject", "injected_examples", "injected_tokens", "treatment", "cross_base"),
)
SETTING = {"code": ("tree",), "environment": ("device_type", "dtype")}


def ancestors_of(card: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a run card and those of its parents say of each stage, nearest first.

    A card from before this was recorded names its parent's stage and weights only.
    """
    stage: dict[str, Any] = {"stage": "base"} | {k: card[k] for k in ANCESTRY if k in card}
    for part, keys in SETTING.items():
        if part in card:
            stage[part] = {key: card[part][key] for key in keys}
    older, parent = card.get("ancestors"), card.get("parent")
    if older is None and parent and stage["stage"] != "base":
        older = [{"stage": parent.get("stage") or "base", "weights": parent["weights"]}]
    return [stage, *(older or [])]


@dataclass(frozen=True, slots=True)
class VerifiedParent:
    """A checkpoint as it was when it was verified: what every run card says of it comes from here.

    hashes: as `checkpoint_hashes` gives them. card: its run card, None for a base made elsewhere.
    link: what identifies it in a run card. ancestors: how it and those before it were trained,
    nearest first.
    """

    folder: Path
    hashes: dict[str, str]
    card: dict[str, Any] | None
    link: dict[str, Any]
    ancestors: list[dict[str, Any]]

    def refuse_changed_since(self) -> None:
        """Raise UserError where the folder is another one by now; called after it was loaded.

        What is in memory is then what was verified, whatever happens to the folder later.
        """
        refuse_changed_while_read(self.folder, self.hashes)


def check_parent(folder: Path, *, condition: str, cross_base: bool) -> VerifiedParent:
    """Verify a parent checkpoint for a stage and return what identifies it.

    Raises UserError where it is incomplete, written by another prompt format, or of the other arm
    without cross_base.
    """
    verify_folder(folder)
    card = read_card(folder)
    hashes = checkpoint_hashes(folder)
    parent = {
        "path": str(folder),
        **hashes,
        "condition": card["condition"] if card else None,
        "stage": card["stage"] if card else None,
        "card": card is not None,
        "card_hash": hash_files([folder / CARD_NAME]) if card else None,
        "cross_base": bool(card and card.get("cross_base")),
    }
    parent["base"] = (card or {}).get("base") or parent["weights"]  # a base is its own base
    ancestors = ancestors_of(card or {"weights": parent["weights"]})
    verified = VerifiedParent(folder, hashes, card, parent, ancestors)
    if card is None:
        return verified
    prompt = card["formats"]["prompt"]
    if card["stage"] != "base" and prompt != format_versions()["prompt"]:
        raise UserError(
            f"{folder} was trained with prompt format {prompt}, this code writes "
            f"{format_versions()['prompt']}; train it again"
        )
    refuse_changed(folder, card, hashes)
    if card["condition"] != condition and not cross_base:
        raise UserError(
            f"{folder} is a {card['condition']} checkpoint and --condition is {condition}; "
            "give the other folder, or --cross-base if a base × SFT factorial is meant"
        )
    return verified


def parent_link(folder: Path) -> dict[str, Any]:
    """Return what a base records of the folder that it was made from: path, hashes, its card's."""
    card = folder / CARD_NAME
    recorded = {"path": str(folder), **checkpoint_hashes(folder)}
    return {**recorded, "card_hash": hash_files([card]) if card.exists() else None}
