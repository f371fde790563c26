"""How much of an optimizer step a GPU reads at once: all of it, where that fits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from domain_tokens.prompts import Example
from domain_tokens.runs import Device, TrainingSection, world_size
from domain_tokens.training.step_plan import StepPlan, plan_steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATE = 20  # bytes of a weight: itself, its gradient, two moments, and its copy in bf16
HEAD_BYTES = 1.5e9  # of the output layer's chunk and its gradient
# Bytes that a token's forward pass keeps per layer, for each number of the width and of the MLP's;
# measured on an H200 with GPT-2 124M: 0.37 to 0.5 MB a token, of which this makes 0.7.
WIDTH_BYTES, MLP_BYTES = 28, 12
# Of what is left: twice that, for the first pass of a shape next to the memory of the graphs, where
# the numbers above are half as much again as what was measured.
SHARE = 0.6


def rows_at_once(model: "PreTrainedModel", settings: TrainingSection, device: Device) -> int:
    """Return how many rows of max_length may be in memory at once: batch_size, or more on a GPU.

    Fewer and larger micro-batches change nothing but speed: a GPU waits for the host less often.
    """
    if device.type == "cpu":
        return settings.batch_size
    config = model.config
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    token = config.num_hidden_layers * (WIDTH_BYTES * width + MLP_BYTES * (inner or 4 * width))
    if device.dtype == torch.float32:
        token *= 2
    free, _ = torch.cuda.mem_get_info()
    left = free - STATE * sum(p.numel() for p in model.parameters()) - HEAD_BYTES
    fitting = int(SHARE * max(left, 0) / token) // settings.max_length
    step = settings.batch_size * settings.gradient_accumulation_steps
    return max(settings.batch_size, min(step, fitting))


def plan_run(
    model: "PreTrainedModel",
    examples: Sequence[Example],
    settings: TrainingSection,
    device: Device,
) -> StepPlan:
    """Return `plan_steps` of all processes, with as few micro-batches as memory allows."""
    max_rows = rows_at_once(model, settings, device)
    return plan_steps(examples, settings, processes=world_size(), rows_at_once=max_rows)
