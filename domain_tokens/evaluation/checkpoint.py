"""A checkpoint that is loaded to be evaluated, and the run card of an evaluation."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens.checkpoints import (
    architecture_of,
    check_parent,
    checkpoint_hashes,
    load_model,
    load_tokenizer,
    read_card,
)
from domain_tokens.data import file_hashes
from domain_tokens.errors import UserError
from domain_tokens.inference import Response, prepack_
from domain_tokens.runs import (
    PACKAGE,
    GSM8KSection,
    choose_device,
    code_hash,
    code_identity,
    format_versions,
    hardware_line,
    init_distributed,
    is_main_process,
    run_environment,
)
from domain_tokens.vocabulary import Layout, layout_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """The checkpoint under test; model is None where only its tokenizer is wanted."""

    folder: Path
    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    layout: Layout
    precision: str


def load_for_evaluation(folder: Path, *, condition: str, precision: str) -> LoadedCheckpoint:
    """Load a checkpoint for evaluation; raises UserError where it is unfit or of the other arm."""
    check_parent(folder, condition=condition, cross_base=False)
    init_distributed()
    device, dtype = choose_device(precision)
    if is_main_process():
        print(hardware_line(device, dtype), flush=True)
    tokenizer = load_tokenizer(folder)
    try:
        layout = layout_of(tokenizer)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None
    model = prepack_(load_model(folder, dtype=dtype).to(device))
    return LoadedCheckpoint(folder, model, tokenizer, layout, precision)


def resolved_rationale_seed(settings: GSM8KSection, folder: Path) -> int:
    """Return the seed of a checkpoint's sampled rationales: its training seed unless one is set.

    A checkpoint without a run card has 42.
    """
    if settings.rationale_seed is not None:
        return settings.rationale_seed
    card = read_card(folder)
    return int(card["seed"]) if card else 42


def _decode(subject: LoadedCheckpoint, token_ids: Sequence[int]) -> str:
    return str(subject.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def evaluation_card(
    args: argparse.Namespace,
    subject: LoadedCheckpoint,
    *,
    stage: str,
    decode: dict[str, Any],
    data: dict,
    reading: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the run card of an evaluation, which lives inside its results JSON.

    reading: how `corpora.load_problems` was called, so that the items can be checked against the
    data; without it nothing was read.
    """
    device, dtype = choose_device(subject.precision)
    training = read_card(subject.folder)
    return {
        "stage": stage,
        "command": args.command,
        "condition": args.condition,
        "seed": training["seed"] if training else None,
        "model_path": str(subject.folder),
        **checkpoint_hashes(subject.folder),
        "architecture": architecture_of(subject.folder),
        "training": training,
        "parent": {"path": str(subject.folder)},
        "formats": format_versions(),
        "data": data,
        "sources": file_hashes(reading["source"], split=reading["split"]) if reading else {},
        "reading": reading,
        "decode": decode,
        "code": code_identity(),
        "environment": run_environment(device, str(dtype).removeprefix("torch.")),
    }


def evaluation_identity(card: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same for a resumed evaluation, the code that decodes included.

    None for what an older card lacks. Of a finished one the code stands in the card: it is compared
    between arms, not refused here.
    """
    keys = ("stage", "condition", "weights", "model", "formats", "data", "decode")
    return {
        **{key: card.get(key) for key in keys},
        "code": code_hash(sorted((PACKAGE / "evaluation").glob("*.py"))),
    }


def response_text(subject: LoadedCheckpoint, response: Response) -> str:
    """Return what a response says; fact tokens read `<MUL_6_9_54>`."""
    return _decode(subject, response.token_ids)
