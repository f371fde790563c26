"""Micro-batches as CUDA graphs: launching the kernels of a pass takes longer than running them.

A graph replays one shape only, so packed micro-batches are padded to a few shapes, each of which is
recorded when it is first needed. Padding is documents of its own, without loss: it changes what a
pass costs, not what it computes. T tokens, N supervised positions, D documents.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from domain_tokens.modeling import GraphRecorder, flash_takes_heads, plain_head
from domain_tokens.prompts import Example
from domain_tokens.runs import Device, TrainingSection, world_size
from domain_tokens.training.step_plan import StepPlan, supervised_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MIN_USES = 8  # of a shape: to record one takes as long as a few passes
STEPS_PER_DOUBLING = 16  # of T: at most a 16th of a micro-batch is padding, but for rare sizes
MIN_MULTIPLE = 8  # of T and N: products of other sizes are slower


@dataclass(frozen=True, slots=True)
class Shape:
    """What a micro-batch is padded to; max_seqlen: tokens of the run's longest document."""

    tokens: int
    supervised: int
    documents: int
    max_seqlen: int


def graphs_pay(
    model: "PreTrainedModel", plan: StepPlan, settings: TrainingSection, device: Device
) -> bool:
    """Return whether a run's passes can be recorded, and are many enough to be worth it.

    In bf16 on one GPU, for models whose attention and output layer are ours: elsewhere a pass has
    to wait for the device, which a recording may not.
    """
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        settings.cuda_graphs
        and settings.packing
        and device == ("cuda", torch.bfloat16)
        and world_size() == 1
        and bool(getattr(model, "_supports_attention_backend", False))
        and plain_head(model) is not None
        and flash_takes_heads(width)
        and sum(map(len, plan.steps)) >= 2 * MIN_USES
    )


def planned_shapes(examples: Sequence[Example], plan: StepPlan) -> list[Shape]:
    """Return the shape of each micro-batch of a plan, in order; equal plans have equal shapes.

    Sizes that are alike share a shape, which is that of the largest of them in each respect.
    """
    parts = [[i for row in rows for i in row] for step in plan.steps for rows in step]
    tokens = [max(1, sum(len(examples[i].input_ids) for i in part)) for part in parts]
    supervised = [sum(supervised_tokens(examples[i]) for i in part) for part in parts]
    max_seqlen = max(len(example.input_ids) for example in examples)
    shapes: dict[int, Shape] = {}
    for group in _alike(tokens):
        padded_tokens = max(_rounded_up(tokens[part]) for part in group)
        # Padding may be longer than any document is, so it is several.
        documents = max(
            max(1, len(parts[part])) + math.ceil((padded_tokens - tokens[part]) / max_seqlen)
            for part in group
        )
        targets = max(supervised[part] for part in group)
        shape = Shape(padded_tokens, _multiple(targets, MIN_MULTIPLE), documents, max_seqlen)
        shapes |= dict.fromkeys(group, shape)
    return [shapes[part] for part in range(len(parts))]


def _alike(tokens: Sequence[int]) -> list[list[int]]:
    """Group micro-batches that are padded to one size; each group has MIN_USES or more of them."""
    groups: list[list[int]] = []
    size = 0
    for part in sorted(range(len(tokens)), key=lambda part: -tokens[part]):
        rounded = _rounded_up(tokens[part])
        if not groups or (rounded != size and len(groups[-1]) >= MIN_USES):
            groups.append([])
        groups[-1].append(part)
        size = rounded
    if len(groups) > 1 and len(groups[-1]) < MIN_USES:
        rare = groups.pop()
        groups[-1] += rare
    return groups


def _rounded_up(tokens: int) -> int:
    """Return the next of the sizes of which there are so many between a size and its double."""
    power = 1 << (tokens - 1).bit_length() if tokens > 1 else 1
    return _multiple(tokens, max(MIN_MULTIPLE, power // 2 // STEPS_PER_DOUBLING))


def _multiple(number: int, of: int) -> int:
    return max(of, -(-number // of) * of)


def padded(inputs: dict[str, Any], shape: Shape, *, pad_id: int) -> dict[str, Any]:
    """Return what `as_tensors` gave for one packed row, padded: documents of pad_id without loss.

    What is added to keep [N] and targets [N] has weight 0 in loss_weights [N].
    """
    here = inputs["input_ids"].shape[1]
    rest, more = shape.tokens - here, shape.supervised - len(inputs["keep"])
    documents = inputs["cu_seqlens"]
    padding = torch.arange(here, shape.tokens, shape.max_seqlen, dtype=documents.dtype)[1:]
    bounds = torch.cat([documents, padding])
    more_bounds = shape.documents + 1 - len(bounds)
    return {
        "input_ids": pad(inputs["input_ids"], (0, rest), value=pad_id),
        "position_ids": pad(inputs["position_ids"], (0, rest)),
        "keep": pad(inputs["keep"], (0, more)),
        "targets": pad(inputs["targets"], (0, more)),
        "loss_weights": pad(torch.ones(len(inputs["keep"])), (0, more)),
        "cu_seqlens": pad(bounds, (0, more_bounds), value=shape.tokens),
        "max_seqlen": shape.max_seqlen,
    }


class StepGraphs:
    """Forward and backward passes, each shape run as it is the first time and then replayed.

    A replay adds to the gradients that it was recorded with, so these stay where they are.
    """

    def __init__(self, model: "PreTrainedModel"):
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        total = sum(weight.numel() for weight in self._weights)
        first = self._weights[0]
        self._flat = torch.zeros(total, dtype=first.dtype, device=first.device)
        parts = self._flat.split([weight.numel() for weight in self._weights])
        self._gradients = [
            part.view_as(weight) for part, weight in zip(parts, self._weights, strict=True)
        ]
        self._loss = torch.zeros((), device=first.device)
        self._graphs: dict[tuple[Any, ...], tuple[dict[str, Any], Callable[[], None]]] = {}
        self._record = GraphRecorder()

    def __call__(
        self, inputs: dict[str, Any], run: Callable[[dict[str, Any]], torch.Tensor]
    ) -> torch.Tensor:
        """Return the loss of a padded micro-batch, whose gradients are added.

        run: forward and backward pass; gives the loss, waits for nothing, and is the same in each
        call.
        """
        if self._weights[0].grad is None:  # Trainer forgets them after each optimizer step
            self._flat.zero_()
            for weight, gradient in zip(self._weights, self._gradients, strict=True):
                weight.grad = gradient
        shape = tuple(tuple(x.shape) if torch.is_tensor(x) else x for x in inputs.values())
        if shape not in self._graphs:
            static = {n: x.clone() if torch.is_tensor(x) else x for n, x in inputs.items()}

            def body() -> None:
                self._loss.copy_(run(static))

            # The run that prepares libraries is this micro-batch's own; recording runs nothing.
            self._graphs[shape] = static, self._record(body, keep=static)
            return self._loss.clone()
        static, replay = self._graphs[shape]
        for name, value in inputs.items():
            if torch.is_tensor(value):
                static[name].copy_(value, non_blocking=True)
        replay()
        return self._loss.clone()
