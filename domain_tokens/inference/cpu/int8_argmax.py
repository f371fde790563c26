"""The most likely token of each row without all of its logits, on a CPU.

The output layer of a small model is a fifth to a third of its arithmetic, and greedy decoding wants
one number of its 50,000. A product of small integers takes less than half as long and says how far
off it can be; only tokens that may be the largest are multiplied exactly. Both factors are turned
by one random rotation first, so that no component is much larger than the others (QuaRot, Ashkboos
et al. 2024). N rows, V tokens, W width.
"""

import warnings
from typing import Any

import numpy as np
import torch

HIDDEN_MAX = 63  # FBGEMM adds two products in 16 bits on AVX2, so one factor has 7 bits
WEIGHT_MAX = 127
ROWS = 32  # at once: their approximate logits stay in the cache of the processor
BLOCK = 4096  # tokens that are rounded at once
ROUNDING = 1e-5  # of |hidden| |weight|: more than fp32 can be off, here and in the rotation


def int8_available() -> bool:
    """Return whether this build of torch can multiply small integers fast."""
    return "fbgemm" in torch.backends.quantized.supported_engines and hasattr(
        torch, "_make_per_channel_quantized_tensor"
    )


class Int8Argmax:
    """An output layer's weight as small integers, to find the largest logit of each row.

    What it finds is the token that the exact logits name: for hidden h, weight w and their
    integers h', w' a logit differs from its approximation by at most |h - h'| |w| + |h'| |w - w'|.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, weight: torch.Tensor):
        """weight: fp32 [V, W], on a CPU; used again, and not copied."""
        weight = weight.detach()
        self._weight = weight.numpy()
        noise = torch.randn(2 * weight.shape[1:], generator=torch.Generator().manual_seed(1))
        self._rotation = torch.linalg.qr(noise.double()).Q.float()
        whole = torch.empty(weight.shape, dtype=torch.int8)
        scale, length, error = (torch.empty(len(weight)) for _ in range(3))
        for start in range(0, len(weight), BLOCK):
            part = slice(start, start + BLOCK)
            turned = weight[part] @ self._rotation
            rounded, scale[part] = _rounded(turned, WEIGHT_MAX)
            whole[part] = rounded
            length[part] = turned.norm(dim=1)
            error[part] = (turned - rounded * scale[part, None]).norm(dim=1)
        self._length, self._error = length.numpy(), error.numpy()
        self._packed = _packed(whole, scale)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the first of the largest logits' tokens, int64 [N], of hidden fp32 [N, W]."""
        from domain_tokens.inference.cpu.kernels import largest_logits

        turned = hidden @ self._rotation
        rounded, scale = _rounded(turned, HIDDEN_MAX)
        off = (turned / scale[:, None] - rounded).norm(dim=1)
        off += turned.norm(dim=1) / scale * ROUNDING
        length = rounded.norm(dim=1)
        tokens = np.empty(len(hidden), np.int64)
        for start in range(0, len(hidden), ROWS):
            part = slice(start, start + ROWS)
            largest_logits(
                self._approximate_logits(rounded[part]).numpy(),
                (off[part].numpy(), length[part].numpy(), scale[part].numpy()),
                (self._length, self._error),
                (hidden[part].numpy(), self._weight),
                tokens[part],
            )
        return torch.from_numpy(tokens)

    def _approximate_logits(self, rounded: torch.Tensor) -> torch.Tensor:
        """Return nearly the logits [N, V], in units of the scale of each row of `_rounded`."""
        # This factor becomes quint8, with HIDDEN_MAX + 1 for zero.
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rounded, 1.0, HIDDEN_MAX + 1, self._packed
        )


def _rounded(x: torch.Tensor, max_value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x [N, W] in whole numbers of at most `max_value`, and a scale for each row [N]."""
    scale = (x.abs().amax(1) / max_value).clamp_(min=torch.finfo(torch.float32).tiny)
    return (x / scale[:, None]).round_(), scale


def _packed(whole: torch.Tensor, scale: torch.Tensor) -> Any:
    """Return FBGEMM's form of a weight, int8 [V, W], with a scale for each of its rows [V]."""
    engine = torch.backends.quantized.engine
    zeros = torch.zeros(len(whole), dtype=torch.long)
    with warnings.catch_warnings():
        # torch will drop the tensors of small integers, not their products; see `able`.
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
        weight = torch._make_per_channel_quantized_tensor(whole, scale.double(), zeros, 0)
    try:
        torch.backends.quantized.engine = "fbgemm"
        return torch.ops.quantized.linear_prepack(weight, None)
    finally:
        torch.backends.quantized.engine = engine
