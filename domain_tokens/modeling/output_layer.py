"""Products of the output layer: fp32 sums and results, whatever type the factors have.

A logit of 40 has neighbours at a distance of 0.25 in bf16: greedy choice and scores would hang on
rounding. So factors may be bf16, which is what tensor cores multiply, and the result never is.
"""

from typing import Any

import torch

from domain_tokens.modeling.patches import without_head


def factor_dtype(hidden: torch.Tensor) -> torch.dtype:
    """Return the type that hidden states are multiplied in: autocast's, or their own."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def fp32_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a @ b in fp32, [M, K] and [K, N] of one type, also within autocast."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def add_fp32_product_(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add a @ b to a total in fp32, [M, N], in place."""
    if a.dtype == torch.float32:
        with torch.autocast(a.device.type, enabled=False):
            total.addmm_(a, b)
    else:
        total += fp32_product(a, b)


def logits_of(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """Return the fp32 logits [N, V] of hidden states [N, W] through a plain output layer."""
    if hidden.dtype == torch.float32:
        return head(hidden)
    return fp32_product(hidden, head.weight.t())


def fp32_logits(model: Any, **inputs: Any) -> tuple[torch.Tensor, Any]:
    """Call a model; return its logits in fp32 [B, T, V], and what else it gave.

    Where the architecture does more after its output layer than `plain_head` allows, logits have
    the model's own precision.
    """
    if model.dtype == torch.float32:
        output = model(**inputs)
        return output.logits, output
    with without_head(model) as head:
        output = model(**inputs)
    logits = output.logits
    if head is not None:
        logits = logits_of(head, logits.flatten(0, -2)).unflatten(0, logits.shape[:-1])
    return logits.float(), output
