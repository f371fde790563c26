"""Output layer and cross-entropy in chunks: the logits of a whole micro-batch never exist at once.

N supervised positions, C of a chunk, W width, V vocabulary. Logits are laid out as [V, C]: rows of
an odd vocabulary (50,349) would begin at odd addresses, which halves the speed of a product.
"""

from collections.abc import Iterator
from typing import Any

import torch

from domain_tokens.modeling.output_layer import add_fp32_product_, factor_dtype, fp32_product

CHUNK_BYTES = {"cpu": 80_000_000, "cuda": 512_000_000}  # of fp32 logits
CHUNK_MULTIPLE = 64  # positions


def _chunks(hidden: torch.Tensor, vocabulary: int) -> Iterator[slice]:
    max_rows = CHUNK_BYTES.get(hidden.device.type, 80_000_000) // (4 * vocabulary)
    rows = max(CHUNK_MULTIPLE, max_rows // CHUNK_MULTIPLE * CHUNK_MULTIPLE)
    for start in range(0, len(hidden), rows):
        yield slice(start, start + rows)


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of a linear layer; gradients are made chunk by chunk on the way.

    As in Liger's fused linear cross-entropy (Hsu et al. 2024): the gradient of the logits is known
    as soon as they are, so nothing of size [N, V] is kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        loss_weights: torch.Tensor | None,
    ) -> Any:
        dtype = factor_dtype(hidden)
        narrow, factors = weight.to(dtype), hidden.to(dtype)
        grad_hidden = torch.empty_like(hidden)  # [N, W]
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)  # [V, W]
        total = hidden.new_zeros((), dtype=torch.float32)
        for part in _chunks(hidden, len(weight)):
            states, labels = factors[part], targets[None, part]
            scores = fp32_product(narrow, states.t())  # [V, C]
            highest, right = scores.amax(0), scores.gather(0, labels)[0]
            sums = scores.sub_(highest).exp_().sum(0)  # [C]; scores: softmax times sums, in place
            losses = sums.log() + highest - right  # [C]
            scale = sums.reciprocal()[:, None]
            if loss_weights is not None:
                losses *= loss_weights[part]
                scale *= loss_weights[part, None]
            total += losses.sum()
            slope = scores.scatter_add_(0, labels, -sums[None]).to(dtype)  # minus one-hot
            grad_hidden[part] = fp32_product(slope.t(), narrow) * scale
            add_fp32_product_(grad_weight, slope, (states * scale).to(dtype))
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        scaled = grad_hidden * grads[0].to(grad_hidden.dtype)
        return scaled, grad_weight.mul_(grads[0]), None, None


def summed_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    loss_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the summed loss in nats of hidden [N, W] through an output layer [V, W], fp32.

    loss_weights: what each position counts, [N]; by default 1. Within autocast the type of the
    products is that of the factors. One backward pass only.
    """
    loss: Any = _SummedCrossEntropy.apply(hidden, weight, targets, loss_weights)
    return loss


@torch.no_grad()
def token_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return the loss in nats of each position, fp32 [N]; nothing is kept for a gradient."""
    dtype = factor_dtype(hidden)
    narrow, factors = weight.to(dtype), hidden.to(dtype)
    parts = []
    for part in _chunks(hidden, len(weight)):
        scores = fp32_product(narrow, factors[part].t())  # [V, C]
        parts.append(scores.logsumexp(0) - scores.gather(0, targets[None, part])[0])
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
