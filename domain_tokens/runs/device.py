"""The device, its number type, its peak rate and what memory a run took."""

import resource
import time
from typing import TYPE_CHECKING, NamedTuple

from domain_tokens.errors import UserError

if TYPE_CHECKING:
    import torch

# Dense bf16 tensor-core rates in FLOP/s, from the vendor's data sheets.
PEAK_BF16 = {
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
}


class Device(NamedTuple):
    """Where a run computes and in which number type: chosen once, at its start, and passed on."""

    type: str  # "cuda" or "cpu"
    dtype: "torch.dtype"


def choose_device(precision: str) -> Device:
    """Return the device and number type for "auto", "fp32" or "bf16" (auto: bf16 on CUDA only)."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("precision bf16 was asked for and this GPU has none; set precision to fp32")
    bf16 = precision == "bf16" or (precision == "auto" and device == "cuda")
    return Device(device, torch.bfloat16 if bf16 else torch.float32)


def peak_flops(device: str, dtype: "torch.dtype") -> float | None:
    """Return the peak rate in FLOP/s: a data sheet's on CUDA (None if unknown), measured on CPU.

    On a CPU it is the best fp32 matrix product seen within half a second; on a shared machine,
    measure before and after a run and take the larger.
    """
    import torch

    if device == "cuda":
        name = torch.cuda.get_device_name(0)
        known = [rate for model, rate in PEAK_BF16.items() if model in name]
        return known[0] if known and dtype == torch.bfloat16 else None
    size = 1024
    a, b = torch.ones(size, size), torch.ones(size, size)
    best = float("inf")
    end = time.perf_counter() + 0.5
    while (start := time.perf_counter()) < end:
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_memory_bytes(device: str) -> int:
    """Return the largest memory so far: allocated on the GPU, or resident on the CPU."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
