"""Verify a chain base → Tulu → GSM8K → evaluation: each link is what the next was made from."""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from domain_tokens.checkpoints.folder import read_card, verify_folder
from domain_tokens.checkpoints.hashes import (
    LOGS,
    architecture_of,
    changed_file,
    checkpoint_hashes,
    refuse_changed,
    weights_hash,
)
from domain_tokens.checkpoints.parent import ancestors_of
from domain_tokens.errors import UserError
from domain_tokens.runs import (
    CARD_NAME,
    EVALUATION_RESULTS,
    SEAL,
    StageResults,
    TrainLogLine,
    card_model,
    check_records,
    format_versions,
    hash_files,
    read_lines,
    read_sealed,
)
from domain_tokens.treatments import record_in, treatment_from

# Versions of the rules that finished folders may have been made under.
OLDER_FORMATS = {"injector": ("1",), "answers": ("1",)}
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
    with _as_written(results):
        return _verify_evaluation(results)


def _verify_evaluation(results: Path) -> str:
    tree = read_sealed(results)
    name = results.name.removesuffix("_results.json")
    notice = _known(results, EVALUATION_RESULTS[name], [tree])
    card = tree["card"]
    older = _older_formats(results, card) + notice
    _refuse_changed_files(results, card.get("sources") or {})
    folder = current_folder(Path(card["model_path"]), neighbour_of=results.parent)
    if not folder.is_dir():
        return f"{card['stage']}{older} <- {folder} (not here)"
    hashes = checkpoint_hashes(folder)
    for key, value in hashes.items():
        if key in card and value != card[key]:
            file = changed_file(folder, (card["training"] or {}).get("files") or {})
            raise BrokenLinkError(
                f"{folder}: {file or key} is another one ({key} {value[:12]}), {results} was "
                f"measured on {card[key][:12]}"
            )
    if "architecture" in card:
        shape = architecture_of(folder)
        _refuse_difference(folder, shape, card["architecture"], f"{results} (architecture)")
    _refuse_difference(folder, read_card(folder), card["training"], str(results))
    return f"{card['stage']}{older} <- {verify_checkpoint(folder)}"


@contextmanager
def _as_written(file: Path) -> Generator[None]:
    """Name the file where a key is missing or of another kind than this project writes."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"{type(error).__name__}: {error}"
        raise BrokenLinkError(f"{file} is not as this project writes it ({what})") from None


def _known(file: Path, kind: type[Any], trees: list[Any]) -> str:
    """Return in words which keys of a file this code does not know, "" for none.

    Raises BrokenLinkError for a key that is missing or of another kind.
    """
    try:
        notice = check_records(file, kind, trees)
    except UserError as error:
        raise BrokenLinkError(str(error)) from None
    return f" ({notice})" if notice else ""


def _links(folder: Path) -> Iterator[str]:
    child, recorded, ancestors = "", None, None
    child_card: dict[str, Any] = {}
    verify_folder(folder)
    while True:
        if not folder.is_dir():
            yield f"{folder} (not here)"
            return
        card = read_card(folder)
        with _as_written(folder / CARD_NAME):
            if recorded is not None:
                _refuse_other_parent(folder, recorded, child)
                _refuse_other_ancestors(folder, card, ancestors, child)
                _refuse_other_treatment(folder, card, child_card, child)
            if card is None:
                yield f"base {weights_hash(folder)[:12]} (no card)"
                return
            older = _verify_link(folder, card)
            yield f"{card['stage']} {card['weights'][:12]}{older}"
            recorded, child, ancestors = card["parent"], str(folder), card.get("ancestors")
            child_card = card
            if not recorded:
                return
            folder = current_folder(Path(recorded["path"]), neighbour_of=folder)


def current_folder(recorded: Path, *, neighbour_of: Path) -> Path:
    """Return where a folder lies now: a study that was moved as a whole keeps its neighbours."""
    neighbour = neighbour_of.parent / recorded.name
    return neighbour if neighbour.is_dir() else recorded


def _verify_link(folder: Path, card: dict[str, Any]) -> str:
    """Check one folder against its card; return in words under which older rules it was made."""
    try:
        refuse_changed(folder, card, checkpoint_hashes(folder))
        _refuse_other_results(folder, card)
    except UserError as error:
        raise BrokenLinkError(str(error)) from None
    notice = _known(folder / CARD_NAME, card_model(card), [card])
    if card["stage"] not in RESULTS:
        return notice
    _refuse_unsound_treatment(folder, card)
    older = _older_formats(folder, card) + notice
    _refuse_changed_files(folder, card.get("sources") or {})
    path = folder / RESULTS[card["stage"]]
    results = read_sealed(path)
    older += _known(path, StageResults, [results])
    for name, copy in (("results", results["config"]), ("identity", card["identity"]["config"])):
        _refuse_difference(folder, card["config"], copy, name)
    return older


def _refuse_other_results(folder: Path, card: dict[str, Any]) -> None:
    """Raise BrokenLinkError where results or logs are not those that the card was written with.

    A file that is not there is passed over: a published checkpoint has no logs.
    """
    recorded = card.get("files") or {}  # those of the model were looked at
    logs = {name: digest for name, digest in recorded.items() if name in LOGS}
    changed = changed_file(folder, logs)
    if changed:
        raise BrokenLinkError(f"{folder}: {changed} is not the one that its card was written with")
    written = [*folder.glob("*_results.json"), *folder.glob("export_report.json")]
    for path in written if "results" in card else ():
        results = read_sealed(path)
        told = {k: v for k, v in results.items() if k not in (SEAL, "config")}
        _refuse_difference(folder, card["results"], told, path.name)
        _refuse_other_loss(folder, told)


def _refuse_other_loss(folder: Path, results: dict[str, Any]) -> None:
    """Raise BrokenLinkError where the train loss is not the mean of the log's over all steps."""
    trained = results.get("pretraining") or results
    log = folder / "train_log.jsonl"
    if "train_loss" not in trained or not log.is_file():
        return
    lines = read_lines(log)
    _known(log, TrainLogLine, lines)
    ends = [0, *(line["step"] for line in lines)]
    steps = [after - before for before, after in pairwise(ends)]
    mean = sum(s * line["loss"] for s, line in zip(steps, lines, strict=True)) / ends[-1]
    if not math.isclose(mean, trained["train_loss"], rel_tol=1e-9):
        raise BrokenLinkError(
            f"{folder}: train_loss is {trained['train_loss']}, {log.name} says {mean}"
        )
    if ends[-1] != trained["optimizer_steps"]:
        raise BrokenLinkError(f"{folder}: {log.name} ends at step {ends[-1]}")


def _refuse_other_parent(folder: Path, recorded: dict[str, Any], child: str) -> None:
    path = folder / CARD_NAME
    identity: dict[str, Any] = dict(checkpoint_hashes(folder))
    identity["card_hash"] = hash_files([path]) if path.exists() else None
    for key, value in identity.items():
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
    ancestors = ancestors_of(card or {"weights": weights_hash(folder)})
    if recorded is None:
        return
    if len(recorded) != len(ancestors):
        count = len(ancestors) - 1
        raise BrokenLinkError(
            f"{child}: records {len(recorded)} ancestors, {folder} has {count} and itself"
        )
    for a, b in zip(recorded, ancestors, strict=True):
        for key in _differing(a, {k: b[k] for k in b if k in a}, ""):
            raise BrokenLinkError(
                f"{child}: ancestors.{a.get('stage')}.{key} is another one there than in {folder}"
            )


def _refuse_unsound_treatment(folder: Path, card: dict[str, Any]) -> None:
    """Raise BrokenLinkError where a card's treatment does not follow from its draw and config."""
    try:
        treatment_from(record := record_in(card))
    except ValueError as error:
        raise BrokenLinkError(f"{folder}: {error}") from None
    if (record is not None) > (card["condition"] == "mul_tokens"):
        raise BrokenLinkError(f"{folder}: a treatment in a card of condition {card['condition']}")
    if record is not None:
        config = card["config"]["data"]
        pairs = (("treatment", "name"), ("treated_facts", "treated_facts"))
        for key, name in pairs:
            if config.get(key) not in (None, record[name]):
                raise BrokenLinkError(f"{folder}: treatment.{name} is not data.{key} of its config")


def _refuse_other_treatment(
    folder: Path, card: dict[str, Any] | None, child: dict[str, Any], name: str
) -> None:
    """Raise BrokenLinkError where a child was treated otherwise than its parent, if that one was.

    The first one of a lineage that is treated drew its half from its own seed.
    """
    parent, treated = record_in(card), record_in(child)
    if treated is None:
        return
    if parent is not None:
        for key in _differing(treated, parent, ""):
            raise BrokenLinkError(f"{name}: treatment.{key} is another one there than in {folder}")
    elif treated["draw"] and treated["draw"]["seed"] != child["seed"]:
        raise BrokenLinkError(f"{name}: its half was not drawn from its seed {child['seed']}")


def _older_formats(folder: Path, card: dict[str, Any]) -> str:
    """Return in words which older rules a folder was made under, "" where they are this code's.

    Such a folder is sound; its responses are not read again under other rules, and a comparison
    with a newer one is refused by its key. Raises BrokenLinkError for a version that never was, and
    for another prompt format, under which a checkpoint would be asked in words it never saw.
    """
    older = []
    for key, version in format_versions().items():
        recorded = card["formats"][key]
        if recorded != version and recorded not in OLDER_FORMATS.get(key, ()):
            raise BrokenLinkError(f"{folder}: {key} version is {recorded}, this code has {version}")
        older += [f"{key} version {recorded}"] if recorded != version else []
    return f" ({', '.join(older)}: this code has newer rules)" if older else ""


def _refuse_changed_files(folder: Path, files: dict[str, str]) -> None:
    for name, digest in files.items():
        path = Path(name)
        if path.exists() and hash_files([path]) != digest:
            raise BrokenLinkError(f"{folder}: the data in {name} are not those it was made from")


def _refuse_difference(folder: Path, a: Any, b: Any, name: str) -> None:
    """Raise BrokenLinkError at the first key in which a card and its copy differ."""
    for key in _differing(a, b, ""):
        raise BrokenLinkError(f"{folder}: {key} is another one in the card and in {name}")


def _differing(a: Any, b: Any, prefix: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from _differing(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
    elif a != b:
        yield prefix or "the card"


def evaluations(folder: Path) -> list[Path]:
    """Return the results files of an evaluation folder, none for any other folder."""
    names = ("gsm8k_results.json", "arithmetic_results.json", "stories_results.json")
    return [folder / name for name in names if (folder / name).is_file()]
