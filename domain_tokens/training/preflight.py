"""What is tried before the first step, so that no run is lost to what was known then."""

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from domain_tokens.checkpoints import refuse_unsavable, require_extended
from domain_tokens.errors import FailedError, UserError
from domain_tokens.runs import (
    Device,
    TrainingSection,
    Workspace,
    refuse_full_disk,
    refuse_without_memory,
    trial_folder,
)
from domain_tokens.training.step_plan import StepPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def learning_rates(settings: TrainingSection, steps: int) -> list[float]:
    """Return the rate of each optimizer step as Trainer's linear schedule sets it.

    Step k of w warm-up steps, counted from 0, has k/w of the rate: the first one has none.
    """
    warmup = _warmup_steps(settings, steps)
    shares = [
        step / warmup if step < warmup else (steps - step) / max(steps - warmup, 1)
        for step in range(steps)
    ]
    return [settings.learning_rate * share for share in shares]


def _warmup_steps(settings: TrainingSection, steps: int) -> int:
    return math.ceil(settings.warmup_ratio * steps)


def refuse_zero_rates(plan: StepPlan, settings: TrainingSection) -> None:
    """Raise UserError where every step lies in the warm-up at learning rate 0."""
    steps = len(plan.steps)
    if not any(learning_rates(settings, steps)):
        raise UserError(
            f"all of the run ({steps} optimizer step) lies in the warm-up, at learning rate 0: "
            f"nothing would be trained (training.warmup_ratio is {settings.warmup_ratio}); "
            "--set training.warmup_ratio=0, or give more examples"
        )


def long_warmup(plan: StepPlan, settings: TrainingSection) -> str:
    """Return a note where more than half of the steps are warm-up, else ""."""
    steps = len(plan.steps)
    warmup = _warmup_steps(settings, steps)
    if 2 * warmup <= steps:
        return ""
    return (
        f"\nnote: {warmup} of {steps} optimizer steps are warm-up, the first at learning rate 0 "
        "(training.warmup_ratio)"
    )


def weights_digest(model: torch.nn.Module) -> str:
    """Return a hash of all parameters as they are in memory."""
    digest = hashlib.blake2b()
    for name, weight in model.named_parameters():
        digest.update(name.encode() + b"\0")
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def refuse_useless(model: torch.nn.Module, before: str) -> None:
    """Raise FailedError where training changed no weight, or left one that is not finite.

    before: the digest of the weights that training began with.
    """
    if weights_digest(model) == before:
        raise FailedError(
            "training changed no weight: these are the parent's; look at the learning rates in "
            "train_log.jsonl, and train again into another --output-dir"
        )
    broken = [n for n, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise FailedError(
            f"{broken[0]} holds numbers that are not finite after the last step; lower "
            "training.learning_rate and train again into another --output-dir"
        )


def refuse_without_memory_to_train(model: torch.nn.Module, device: Device) -> None:
    """Raise UserError where gradients and AdamW's state alone are more than the memory left.

    Activations come on top of them: who passes may still run out, and is then told so by the
    library. On a GPU its own error does.
    """
    if device.type == "cpu":
        needed = sum(3 * FLOAT * p.numel() for p in model.parameters() if p.requires_grad)
        refuse_without_memory(needed, "the gradients and AdamW's state")


FLOAT = 4  # bytes of a weight; AdamW keeps two more numbers of each in a checkpoint
TOKENIZER = 32 * 2**20  # bytes that everything but the weights may take


def refuse_unfit_to_train(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    settings: "TrainingSection",
    folder: Path,
) -> None:
    """Raise UserError where a checkpoint cannot be trained under these settings, in either arm."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{folder}: the tokenizer has no EOS token, so no answer could end; make the base "
            "again from a tokenizer that has one"
        )
    require_extended(tokenizer, folder)
    context = getattr(model.config, "max_position_embeddings", settings.max_length)
    if settings.max_length > context:
        raise UserError(
            f"training.max_length is {settings.max_length}, the model reads {context} tokens; "
            f"--set training.max_length={context}"
        )


def refuse_without_room(
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
    peak = max(2 * checkpoint if replaces else 0, checkpoint + final) + TOKENIZER
    with trial_folder(workspace.work) as trial:
        refuse_full_disk(
            workspace.work, peak - there, "the weights, and them again with AdamW's state"
        )
        refuse_unsavable(model, tokenizer, Path(trial))
