"""Noise for drawing tokens: a number in (0, 1) for every key and token, the same on every device.

It is a hash of what it is for, so that no generator is moved on from one draw to the next and no
host makes it row by row: SplitMix64's finalizer (Steele, Lea & Flood 2014) over a counter (Salmon
et al. 2011). N rows, V tokens of the vocabulary.
"""

from functools import cache
from typing import Any

import numpy as np
import torch

# What a seed draws; 1 was NumPy's PCG64 on a CPU and Philox on a GPU.
SAMPLER_VERSION = "2"

STEP, POSITION_STEP = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03  # odd; the golden ratio's digits first
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SMALLEST, LARGEST = 2.0**-52, 1 - 2.0**-24


def _signed(number: int) -> int:
    """Return the int64 with the bits of a number below 2^64."""
    return number - 2**64 if number >= 2**63 else number


def stream_of(key: tuple[int, ...]) -> int:
    """Return the stream of a row, as an int64, from the numbers that its noise begins from."""
    return _signed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def noise_keys(streams: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the keys [N] of draws: streams [N] of rows, and each one's position in its row."""
    return _mixed(streams + positions * _signed(POSITION_STEP))


def uniforms(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Return fp32 noise [N, V] for keys [N]: multiples of 2^-52 up to 1 - 2^-24, never 0.

    Near 0, where the first of many clocks is found, fp32 keeps all of them apart.
    """
    if keys.device.type == "cpu":
        out = torch.empty(len(keys), count)
        _loop()(keys.numpy().view(np.uint64), out.numpy())
        return out
    return _uniforms(keys, count)


def _uniforms(keys: torch.Tensor, count: int) -> torch.Tensor:
    """The same with operations that every device has."""
    counter = torch.arange(1, count + 1, device=keys.device).mul_(_signed(STEP))
    bits = _mixed(keys[:, None] + counter)
    odd = (bits >> 12).bitwise_and_(2**52 - 1).bitwise_or_(1)
    return odd.float().mul_(SMALLEST).clamp_(max=LARGEST)


def _mixed(z: torch.Tensor) -> torch.Tensor:
    """Mix int64 bits in place; products wrap around, and shifts bring in zeros."""
    z ^= (z >> 30).bitwise_and_(2**34 - 1)
    z *= _signed(FIRST)
    z ^= (z >> 27).bitwise_and_(2**37 - 1)
    z *= _signed(SECOND)
    z ^= (z >> 31).bitwise_and_(2**33 - 1)
    return z


@cache
def _loop() -> Any:
    """Return the same, compiled for a CPU, where sixteen operations would each go over memory."""
    import numba

    from domain_tokens.inference.cpu.kernels import CACHE

    step, first, second = np.uint64(STEP), np.uint64(FIRST), np.uint64(SECOND)
    lowest_bit, twelve = np.uint64(1), np.uint64(12)
    a, b, c = np.uint64(30), np.uint64(27), np.uint64(31)
    smallest, largest = np.float32(SMALLEST), np.float32(LARGEST)

    @numba.njit(parallel=True, cache=CACHE)
    def fill(keys: Any, out: Any) -> None:
        for row in numba.prange(out.shape[0]):
            z = keys[row]
            for token in range(out.shape[1]):
                z += step
                x = z
                x ^= x >> a
                x *= first
                x ^= x >> b
                x *= second
                x ^= x >> c
                value = np.float32((x >> twelve) | lowest_bit) * smallest
                out[row, token] = min(value, largest)

    return fill
