"""The loss of a micro-batch, summed; `trainer` divides it by the step's supervised tokens."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from domain_tokens.errors import FailedError
from domain_tokens.modeling import (
    PACKED_ATTENTION,
    cu_seqlens_of,
    packed_tokens,
    summed_cross_entropy,
    token_cross_entropy,
    without_head,
)
from domain_tokens.prompts import FACT, TEXT, Example
from domain_tokens.runs import Device, TrainingSection
from domain_tokens.training.step_plan import IGNORED, MicroBatch, build_micro_batch, split_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def as_tensors(batch: MicroBatch) -> dict[str, Any]:
    """Return what a forward pass needs.

    ids and positions [B, T]; keep [N], where in the rows, read one after another, targets [N] have
    loss; cu_seqlens [D + 1] and max_seqlen say where the documents lie.
    """
    targets = torch.from_numpy(batch.targets).flatten()
    positions = torch.from_numpy(batch.position_ids)
    keep = (targets != IGNORED).nonzero()[:, 0]
    return {
        "input_ids": torch.from_numpy(batch.input_ids),
        "position_ids": positions,
        "keep": keep,
        "targets": targets[keep],
        "cu_seqlens": cu_seqlens_of(positions),
        "max_seqlen": int(positions.max()) + 1,
    }


def to_device(inputs: dict[str, Any], device: str) -> dict[str, Any]:
    """Return inputs with their tensors on a device; the host does not wait for the copies."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(device, non_blocking=True)

    if device == "cpu":
        return dict(inputs)
    return {n: moved(v) if torch.is_tensor(v) else v for n, v in inputs.items()}


def half_precision(device: str, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which products are bf16, if that is the type; else nothing changes."""
    return torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)


def hidden_states(
    model: torch.nn.Module, inputs: dict[str, Any], head: torch.nn.Linear | None
) -> torch.Tensor:
    """Return what the model gives at supervised positions: [N, W] within `without_head`, or logits.

    head: what `without_head` yielded. No attention mask and no cache: only then do restarting
    positions keep packed documents apart.
    """
    plain: Any = getattr(model, "module", model)  # under DDP
    own = plain.config._attn_implementation == PACKED_ATTENTION
    shape = inputs["input_ids"].shape
    if head is None:  # logits are not computed where nobody asks for them
        keep_mask = torch.zeros(shape.numel(), dtype=torch.bool, device=inputs["keep"].device)
        keep_mask[inputs["keep"]] = True
    output = model(
        input_ids=inputs["input_ids"],
        position_ids=inputs["position_ids"],
        logits_to_keep=keep_mask.view(shape) if head is None else 0,
        use_cache=False,
        **({key: inputs[key] for key in ("cu_seqlens", "max_seqlen")} if own else {}),
    )
    hidden = output.logits.flatten(0, -2)
    # Indices, not a mask of truths: the host would wait to know how many are true.
    return hidden if head is None else hidden.index_select(0, inputs["keep"])


def summed_loss(
    model: torch.nn.Module, inputs: dict[str, Any], head: torch.nn.Linear | None
) -> torch.Tensor:
    """Return the summed loss in nats over the supervised tokens, fp32.

    head: the output layer that `without_head` took away, or None where the model has its own.
    """
    hidden = hidden_states(model, inputs, head)
    if head is not None:
        weights = inputs.get("loss_weights")  # of padding, see step_graphs
        return summed_cross_entropy(hidden, head.weight, inputs["targets"], weights)
    return cross_entropy(hidden.float(), inputs["targets"], reduction="sum")


@torch.no_grad()
def token_losses(model: "PreTrainedModel", inputs: dict[str, Any]) -> torch.Tensor:
    """Return the loss in nats of each supervised token, fp32 [N]."""
    with without_head(model) as head:
        hidden = hidden_states(model, inputs, head)
    if head is not None:
        return token_cross_entropy(hidden, head.weight, inputs["targets"])
    return cross_entropy(hidden.float(), inputs["targets"], reduction="none")


@torch.no_grad()
def evaluate_loss(
    model: "PreTrainedModel",
    examples: Sequence[Example],
    settings: TrainingSection,
    device: Device,
) -> dict[str, float | None]:
    """Return the token-weighted loss in nats and bits per byte of supervised text.

    eval_bits_per_byte leaves out EOS and whatever the injector replaces or would replace, with what
    shares a token with it in either arm (the space in ` 6*9`), so that both arms are measured on
    the same bytes; eval_eligible_bits_per_byte is of just those matches, where a fact token stands
    for many spellings, and no verdict may rest on it.
    """
    if not examples:
        return dict.fromkeys(("eval_loss", "eval_bits_per_byte", "eval_eligible_bits_per_byte"))
    model.eval()
    total = text = eligible = 0.0
    tokens = 0
    pad_id = int(examples[0].input_ids[-1])
    for start in range(0, len(examples), 32):
        chunk = examples[start : start + 32]
        parts = split_step(
            [len(e.input_ids) for e in chunk],
            max_length=settings.max_length,
            rows_at_once=settings.batch_size,
        )
        for rows in parts:
            grouped = [[chunk[i] for i in row] for row in rows]
            inputs = as_tensors(build_micro_batch(grouped, pad_id=pad_id))
            inputs = to_device(inputs, device.type)
            with half_precision(*device), packed_tokens(model):
                nats = token_losses(model, inputs).double().cpu().numpy()
            roles = np.concatenate([e.token_roles[1:] for row in grouped for e in row])
            roles = roles[roles > 0]
            total += float(nats.sum())
            text += float(nats[roles == TEXT].sum())
            eligible += float(nats[roles == FACT].sum())
            tokens += len(nats)
    if not math.isfinite(total):
        raise FailedError(
            f"the loss on the validation rows is {total}; lower training.learning_rate and train "
            "again into another --output-dir"
        )
    return {
        "eval_loss": total / tokens,
        "eval_bits_per_byte": _bits_per_byte(text, sum(e.text_bytes for e in examples)),
        "eval_eligible_bits_per_byte": _bits_per_byte(
            eligible, sum(e.match_bytes for e in examples)
        ),
    }


def _bits_per_byte(nats: float, size: int) -> float | None:
    return nats / math.log(2) / size if size else None
