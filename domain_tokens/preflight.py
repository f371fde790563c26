"""What is tried before the first step, so that no run is lost to something that was known then."""

import json
import math
import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens import checkpoints, hardware
from domain_tokens.errors import UserError
from domain_tokens.outputs import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from domain_tokens.config import TrainingSection
    from domain_tokens.evaluation import Question, Subject

FLOAT = 4  # bytes of a weight; AdamW keeps two more numbers of each in a checkpoint
TOKENIZER = 32 * 2**20  # bytes that everything but the weights may take
SHOWN = 3  # questions that are named


def fit_to_train(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    settings: "TrainingSection",
    folder: Path,
) -> None:
    """Raise UserError where a checkpoint cannot be trained under these settings, in either arm."""
    hardware.choose(settings.precision)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{folder}: the tokenizer has no EOS token, so no answer could end; make the base "
            "again from a tokenizer that has one"
        )
    checkpoints.require_extended(tokenizer, folder)
    context = getattr(model.config, "max_position_embeddings", settings.max_length)
    if settings.max_length > context:
        raise UserError(
            f"training.max_length is {settings.max_length}, the model reads {context} tokens; "
            f"--set training.max_length={context}"
        )


def output_fits(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    workspace: Workspace,
    *,
    replaces: bool,
) -> None:
    """Raise UserError where a folder cannot take what a training run writes there.

    replaces: whether a later checkpoint takes the place of an earlier one, both being there for a
    moment.
    """
    numbers = sum(p.numel() for p in model.parameters())
    checkpoint, final = 3 * FLOAT * numbers, FLOAT * numbers
    kept = workspace.work / "checkpoints" if workspace.resuming else None
    there = sum(f.stat().st_size for f in kept.rglob("*") if f.is_file()) if kept else 0
    most = max(2 * checkpoint if replaces else 0, checkpoint + final) + TOKENIZER
    with trial_folder(workspace.work) as place:
        has_room(workspace.work, most - there, "the weights, and them again with AdamW's state")
        savable(model, tokenizer, Path(place))


def existing_parent(path: Path) -> Path:
    """Return the nearest folder above or at a path that is there."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place


def trial_folder(folder: Path) -> tempfile.TemporaryDirectory:
    """Make a folder that goes again, where another one is or will be.

    Raises UserError where nothing can be made there; a disk that is full remains an OSError.
    """
    place = existing_parent(folder)
    try:
        return tempfile.TemporaryDirectory(dir=place, prefix=".preflight.")
    except OSError as error:
        raise UserError(
            f"cannot make {folder}: {error.strerror} in {place}; name another folder"
        ) from None


def has_room(folder: Path, size: int, what: str) -> None:
    """Raise UserError where a disk has less free space than a run will take, in bytes."""
    place = existing_parent(folder)
    free = shutil.disk_usage(place).free
    if free < size:
        raise UserError(
            f"{place} has {free / 2**30:.2f} GiB of free space, {folder.name} needs "
            f"{size / 2**30:.2f} GiB ({what}); make room, or name an --output-dir elsewhere"
        )


def savable(model: Any, tokenizer: Any, place: Path) -> None:
    """Raise UserError where a checkpoint could be trained but not saved: all but the weights is.

    A generation config with sampling flags was once refused by the library after the last step.
    """
    try:
        checkpoints.save(_WithoutWeights(model), tokenizer, place)  # ty: ignore[invalid-argument-type]
    except (ValueError, TypeError, AttributeError) as error:
        words = " ".join(str(error).split())[:200]
        raise UserError(
            f"this checkpoint could not be saved after training ({words}); correct its config "
            "files (generation_config.json, config.json, tokenizer), or make the base again"
        ) from None


class _WithoutWeights:
    """A model for `checkpoints.save`, of which only the configs are written."""

    def __init__(self, model: Any):
        self.__dict__["_model"] = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)

    def save_pretrained(self, folder: Path, **options: Any) -> None:
        """Save as the model would, an empty file in place of the weights."""
        self._model.save_pretrained(folder, **{**options, "state_dict": {}})


def can_be_json(path: Path, tree: Any) -> None:
    """Raise UserError where results could not be written as JSON."""
    try:
        json.dumps(tree, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: what is to be recorded is not JSON: {error}") from None


def writable_file(path: str | None) -> None:
    """Raise UserError where a file could not be written at the end of a run; None is no file."""
    if path is None:
        return
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{target} is a folder; wanted the name of a file")
    trial_folder(target.parent).cleanup()
    if not existing_parent(target.parent).is_dir():
        raise UserError(f"{existing_parent(target.parent)} is a file; wanted a folder")


def questions_fit(
    subject: "Subject",
    questions: Sequence["Question"],
    max_new_tokens: int,
    *,
    answers: Collection[str] = (),
) -> None:
    """Raise UserError where a question and what follows it are more than the model reads.

    A response may take all of max_new_tokens. answers: what is scored behind a response, after
    `####` on a line of its own; none where nothing is.
    """
    from domain_tokens.endpoints import MARKER
    from domain_tokens.prompts import Renderer

    context = getattr(subject.model.config, "max_position_embeddings", None)
    if context is None:
        return
    renderer = Renderer(subject.tokenizer)
    tail = 0
    if answers:
        marker = max(len(renderer.encode(text)) for text in (f"\n{MARKER}", f" {MARKER}", MARKER))
        tail = marker + max(len(renderer.encode(f" {answer}")) for answer in answers)
    long = [q for q in questions if len(q.prompt_ids) + max_new_tokens + tail > context]
    if not long:
        return
    longest = max(long, key=lambda question: len(question.prompt_ids))
    size = len(longest.prompt_ids)
    left = context - tail - size
    named = ", ".join(question.id for question in long[:SHOWN]) + ", …" * (len(long) > SHOWN)
    fix = (
        f"--set evaluation.max_new_tokens={left}"
        if left > 0
        else f"leave {longest.id} out of the data"
    )
    raise UserError(
        f"{len(long)} of {len(questions)} questions do not fit ({named}): {longest.id} has {size} "
        f"tokens, its response up to {max_new_tokens}, the answer scored after it {tail}, and "
        f"the model reads {context}; {fix}"
    )


def probabilities_are_numbers(subject: "Subject", questions: Sequence["Question"]) -> None:
    """Raise UserError where a checkpoint gives NaN: no metric of it could be written."""
    from domain_tokens.scoring import continuation_log_probs

    if not questions:
        return
    end = [[subject.tokenizer.eos_token_id]]
    ((value,),) = continuation_log_probs(subject.model, [questions[0].prompt_ids], [end])
    if not math.isfinite(value):
        raise UserError(
            f"{subject.folder}: the log-probability of a token is {value}; the weights are broken "
            "(scripts/check_checkpoint.py names where)"
        )
