"""What a training run would take, from one of its own micro-batches."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from domain_tokens.modeling import packed_tokens, without_dropout, without_head
from domain_tokens.prompts import Example
from domain_tokens.runs import (
    Device,
    TrainingSection,
    peak_memory_bytes,
    reset_peak_memory,
    world_size,
)
from domain_tokens.training.loss import half_precision, summed_loss, to_device
from domain_tokens.training.step_graphs import StepGraphs, graphs_pay, planned_shapes
from domain_tokens.training.step_plan import StepPlan
from domain_tokens.training.trainer import MicroBatches

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def dry_run_estimate(
    model: "PreTrainedModel",
    examples: Sequence[Example],
    plan: StepPlan,
    settings: TrainingSection,
    chosen: Device,
) -> str:
    """Return what to expect, from forward and backward on the largest of the first micro-batches.

    Memory adds the two moments of AdamW in fp32.
    """
    device, dtype = chosen
    without_dropout(model)
    model.to(device)
    reset_peak_memory(device)
    parts = [rows for step in plan.steps[:8] for rows in step]
    sizes = [sum(len(examples[i].input_ids) for row in rows for i in row) for rows in parts]
    largest = max(range(len(parts)), key=sizes.__getitem__)
    graphed = graphs_pay(model, plan, settings, chosen)
    shapes = planned_shapes(examples, plan) if graphed else None
    pad_id = int(examples[0].input_ids[-1])
    inputs = to_device(MicroBatches(examples, plan, pad_id=pad_id, shapes=shapes)[largest], device)
    graphs = StepGraphs(model) if graphed else None
    seconds = 0.0
    with packed_tokens(model), without_head(model) as head:

        def run(inputs: dict[str, Any]) -> torch.Tensor:
            with half_precision(device, dtype):
                loss = summed_loss(model, inputs, head)
            loss.backward()
            return loss.detach()

        for _ in range(2):  # the first call warms up
            start = time.perf_counter()
            loss = graphs(inputs, run) if graphs else run(inputs)
            float(loss)  # waits for the device
            seconds = time.perf_counter() - start
    rate = sizes[largest] / seconds
    moments = 8 * sum(p.numel() for p in model.parameters())
    memory = peak_memory_bytes(device) + moments
    return (
        "dry run: nothing was trained, nothing written\n"
        f"  time    about {_duration(sum(plan.tokens) / rate / world_size())}, "
        f"at {rate:,.0f} tokens/s a process\n"
        f"  memory  about {memory / 2**30:.1f} GiB ({device})"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
