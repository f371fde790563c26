"""Verify a chain base → Tulu → GSM8K → evaluation: each link is what the next was made from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from domain_tokens import checkpoints, run_card
from domain_tokens.errors import UserError

RESULTS = {"tulu_sft": "tulu_sft_results.json", "sft": "sft_results.json"}


class BrokenLinkError(Exception):
    """What does not fit in a chain, in one line."""


def verify_checkpoint(folder: Path) -> str:
    """Follow a checkpoint back to its base; return the links, newest first.

    Checked at each link: weights and tokenizer against the card, the card against the results and
    against what its child recorded, the data files on disk, the prompt format. What is no longer on
    this machine is named in the text. Raises BrokenLinkError.
    """
    return " <- ".join(_links(folder))


def verify_evaluation(results: Path) -> str:
    """Follow an evaluation's results to its checkpoint and on to the base; return the links.

    Raises BrokenLinkError.
    """
    card = run_card.read_json(results)["card"]
    _refuse_other_formats(results, card)
    _refuse_changed_files(results, card.get("sources") or {})
    folder = _place(Path(card["model_path"]), beside=results.parent)
    if not folder.is_dir():
        return f"{card['stage']} <- {folder} (not here)"
    found = checkpoints.weights_hash(folder)
    if found != card["weights"]:
        raise BrokenLinkError(
            f"{folder}: weights are {found[:12]}, {results} was measured on {card['weights'][:12]}"
        )
    _refuse_difference(folder, checkpoints.read_card(folder), card["training"], str(results))
    return f"{card['stage']} <- {verify_checkpoint(folder)}"


def _links(folder: Path) -> Iterator[str]:
    child, recorded, ancestors = "", None, None
    checkpoints.verify_folder(folder)
    while True:
        if not folder.is_dir():
            yield f"{folder} (not here)"
            return
        card = checkpoints.read_card(folder)
        if recorded is not None:
            _refuse_other_parent(folder, recorded, child)
            _refuse_other_ancestors(folder, card, ancestors, child)
        if card is None:
            yield f"base {checkpoints.weights_hash(folder)[:12]} (no card)"
            return
        _verify_link(folder, card)
        yield f"{card['stage']} {card['weights'][:12]}"
        recorded, child, ancestors = card["parent"], str(folder), card.get("ancestors")
        if not recorded:
            return
        folder = _place(Path(recorded["path"]), beside=folder)


def _place(recorded: Path, *, beside: Path) -> Path:
    """Return where a folder lies now: a study that was moved as a whole keeps its neighbours."""
    neighbour = beside.parent / recorded.name
    return neighbour if neighbour.is_dir() else recorded


def _verify_link(folder: Path, card: dict[str, Any]) -> None:
    for key, found in (
        ("weights", checkpoints.weights_hash(folder)),
        ("tokenizer", checkpoints.tokenizer_hash(folder)),
    ):
        if card[key] != found:
            raise BrokenLinkError(f"{folder}: {key} {found[:12]}, its card says {card[key][:12]}")
    if card["stage"] not in RESULTS:
        return
    _refuse_other_formats(folder, card)
    _refuse_changed_files(folder, card.get("sources") or {})
    results = run_card.read_json(folder / RESULTS[card["stage"]])
    for name, other in (("results", results["config"]), ("identity", card["identity"]["config"])):
        _refuse_difference(folder, card["config"], other, name)


def _refuse_other_parent(folder: Path, recorded: dict[str, Any], child: str) -> None:
    found = {
        "weights": checkpoints.weights_hash(folder),
        "tokenizer": checkpoints.tokenizer_hash(folder),
        "card_hash": run_card.hash_files([folder / run_card.CARD_NAME])
        if (folder / run_card.CARD_NAME).exists()
        else None,
    }
    for key, value in found.items():
        if key in recorded and recorded[key] != value:
            raise BrokenLinkError(
                f"{folder}: {key} is {str(value)[:12]}, {child} was made from "
                f"{str(recorded[key])[:12]}"
            )


def _refuse_other_ancestors(
    folder: Path, card: dict[str, Any] | None, recorded: list[dict[str, Any]] | None, child: str
) -> None:
    """Raise BrokenLinkError where a child's record of how its ancestors were trained is not theirs.

    A child from before this was recorded says nothing; a key that is newer than it is passed over.
    """
    found = checkpoints.ancestors(card or {"weights": checkpoints.weights_hash(folder)})
    if recorded is None:
        return
    if len(recorded) != len(found):
        raise BrokenLinkError(
            f"{child}: records {len(recorded)} ancestors, {folder} has {len(found) - 1} and itself"
        )
    for one, other in zip(recorded, found, strict=True):
        for key in _differing(one, {k: other[k] for k in other if k in one}, ""):
            raise BrokenLinkError(
                f"{child}: ancestors.{one.get('stage')}.{key} is another one there than in {folder}"
            )


def _refuse_other_formats(place: Path, card: dict[str, Any]) -> None:
    for key, version in run_card.formats().items():
        if card["formats"][key] != version:
            raise BrokenLinkError(
                f"{place}: {key} version is {card['formats'][key]}, this code has {version}"
            )


def _refuse_changed_files(place: Path, files: dict[str, str]) -> None:
    for name, digest in files.items():
        path = Path(name)
        if path.exists() and run_card.hash_files([path]) != digest:
            raise BrokenLinkError(f"{place}: the data in {name} are not those it was made from")


def _refuse_difference(folder: Path, one: Any, other: Any, name: str) -> None:
    """Raise BrokenLinkError at the first key in which a card and its copy differ."""
    for key in _differing(one, other, ""):
        raise BrokenLinkError(f"{folder}: {key} is another one in the card and in {name}")


def _differing(one: Any, other: Any, prefix: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from _differing(
                one.get(key), other.get(key), f"{prefix}.{key}" if prefix else key
            )
    elif one != other:
        yield prefix or "the card"


def evaluations(folder: Path) -> list[Path]:
    """Return the results files of an evaluation folder, none for any other folder."""
    names = ("gsm8k_results.json", "arithmetic_results.json")
    return [folder / name for name in names if (folder / name).is_file()]


def check_evaluation(folder: Path) -> Iterator[tuple[str, bool, str]]:
    """Yield (name, passed, detail) for each evaluation: its items, then its chain."""
    from domain_tokens import comparison

    def items() -> str:
        run = comparison.load_run(folder, condition=None)
        counts = {name: len(e.items) for name, e in run.evaluations.items()}
        return ", ".join(f"{count} {name} items" for name, count in counts.items())

    checks = [("items", items)]
    checks += [
        (f"lineage, {r.stem.split('_')[0]}", lambda r=r: verify_evaluation(r))
        for r in evaluations(folder)
    ]
    for name, function in checks:
        try:
            yield name, True, function()
        except (BrokenLinkError, UserError, KeyError) as error:
            yield name, False, str(error)
