"""A checkpoint that is loaded to be evaluated, and the run card of an evaluation."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens.checkpoints import (
    VerifiedParent,
    architecture_of,
    check_parent,
    detach_from_file,
    load_model,
    load_tokenizer,
)
from domain_tokens.data import file_hashes
from domain_tokens.errors import UserError
from domain_tokens.evaluation.attribution import ATTRIBUTION_VERSION
from domain_tokens.inference import prepack_
from domain_tokens.runs import (
    EVALUATION_CARDS,
    PACKAGE,
    DataSection,
    Device,
    GSM8KSection,
    as_written_today,
    choose_device,
    code_hash,
    code_identity,
    format_versions,
    hardware_line,
    init_distributed,
    is_main_process,
    require_record,
    run_environment,
)
from domain_tokens.treatments import Treatment, record_in, refuse_other_treatment, treatment_of
from domain_tokens.vocabulary import Layout, layout_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from domain_tokens.evaluation.evaluation_run import EvaluationRun


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """The checkpoint under test.

    model, device and verified (the folder as it was loaded) are None where only its tokenizer is
    wanted. treatment: how its rows are read; None where they are read as the facts of their names.
    """

    folder: Path
    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    layout: Layout
    _: KW_ONLY
    device: Device | None = None
    verified: VerifiedParent | None = None
    treatment: Treatment | None = None


def load_for_evaluation(folder: Path, *, condition: str, precision: str) -> LoadedCheckpoint:
    """Load a checkpoint for evaluation; raises UserError where it is unfit or of the other arm."""
    verified = check_parent(folder, condition=condition, cross_base=False)
    init_distributed()
    device = choose_device(precision)
    if is_main_process():
        print(hardware_line(*device), flush=True)
    subject = load_to_decode(folder, device, verified.card)
    verified.refuse_changed_since()
    return replace(subject, verified=verified)


def load_to_decode(folder: Path, device: Device, card: dict[str, Any] | None) -> LoadedCheckpoint:
    """Load a checkpoint that was verified, ready to decode; UserError where it has no fact rows.

    card: its run card, as verified.
    """
    tokenizer = load_tokenizer(folder)
    try:
        layout = layout_of(tokenizer)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None
    treatment = treatment_in(folder, card)
    model = prepack_(load_model(folder, dtype=device.dtype).to(device.type))
    detach_from_file(model)  # what is not packed
    return LoadedCheckpoint(folder, model, tokenizer, layout, device=device, treatment=treatment)


def treatment_in(folder: Path, card: dict[str, Any] | None) -> Treatment | None:
    """Return what a checkpoint was trained under; UserError if its run card contradicts itself."""
    try:
        return treatment_of(card)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None


def refuse_other_data_treatment(subject: LoadedCheckpoint, data: DataSection) -> None:
    """Raise UserError where a config names another treatment than the checkpoint's run card."""
    assert subject.verified is not None
    refuse_other_treatment(
        record_in(subject.verified.card),
        name=data.treatment,
        treated_facts=data.treated_facts,
        folder=subject.folder,
    )


def resolved_rationale_seed(settings: GSM8KSection, subject: LoadedCheckpoint) -> int:
    """Return the seed of a checkpoint's sampled rationales: its training seed unless one is set.

    A checkpoint without a run card has 42.
    """
    if settings.rationale_seed is not None:
        return settings.rationale_seed
    card = subject.verified.card if subject.verified else None
    return int(card["seed"]) if card else 42


def _decode(subject: LoadedCheckpoint, token_ids: Sequence[int]) -> str:
    return str(subject.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def evaluation_card(
    run: "EvaluationRun",
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
    assert subject.device is not None
    assert subject.verified is not None
    (device, dtype), training = subject.device, subject.verified.card
    card = {
        "stage": stage,
        "command": run.command,
        "condition": run.condition,
        "seed": training["seed"] if training else None,
        "model_path": str(subject.folder),
        **subject.verified.hashes,
        "architecture": architecture_of(subject.folder),
        "training": training,
        "parent": {"path": str(subject.folder)},
        "formats": {**format_versions(), "attribution": ATTRIBUTION_VERSION},
        "data": data,
        "sources": file_hashes(reading["source"], split=reading["split"]) if reading else {},
        "reading": reading,
        "decode": decode,
        "code": code_identity(),
        "environment": run_environment(device, str(dtype).removeprefix("torch.")),
    }
    require_record(EVALUATION_CARDS[stage], card, "card")
    return card


def evaluation_identity(card: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same for a resumed evaluation, the code that decodes included.

    None for what an older card lacks. Of a finished one the code stands in the card: it is compared
    between arms, not refused here.
    """
    keys = ("stage", "condition", "weights", "model", "formats", "data", "decode")
    identity = {key: card.get(key) for key in keys}
    if identity["decode"] is not None:
        identity["decode"] = as_written_today(identity["decode"])
    if identity["formats"] is not None:  # how a response is judged later is no part of decoding it
        identity["formats"] = {k: v for k, v in identity["formats"].items() if k != "attribution"}
    return {
        **identity,
        "code": code_hash(sorted((PACKAGE / "evaluation").glob("*.py"))),
    }
