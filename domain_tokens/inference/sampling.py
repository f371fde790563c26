"""How a token is drawn from logits, with noise that depends on a row's seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn; temperature 0 takes the most likely one.

    row_seeds: a seed for each prompt; without them a prompt's place among the prompts decides.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 42
    row_seeds: tuple[int, ...] | None = None

    def stream(self, index: int) -> tuple[int, ...]:
        """Return what the noise of the prompt at this place begins from."""
        key = (self.seed, index) if self.row_seeds is None else (self.row_seeds[index],)
        return tuple(number % 2**63 for number in key)


GREEDY = Sampling()


def _sample(
    logits: torch.Tensor, keys: Sequence[tuple[int, ...]], sampling: Sampling
) -> torch.Tensor:
    """Draw one token per row: logits fp32 [N, V] -> ids [N].

    keys: N; a row's noise depends on its key alone. The token of the first arrival among
    exponential clocks is taken (the Gumbel-max trick): a rounding error in the logits, which the
    rest of the batch may cause, changes a draw only where two clocks go off almost together, while
    on a cumulative distribution it would move the edges of all tokens.
    """
    scores = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p is not None:
        values = scores.sort(descending=True).values
        before = values.softmax(-1).cumsum(-1).roll(1, -1)
        before[:, 0] = 0
        least = values.masked_fill(before >= sampling.top_p, torch.inf).amin(-1, keepdim=True)
        scores = scores.masked_fill(scores < least, -torch.inf)
    return (scores - _log_clocks(scores, keys)).max(-1).indices


def _log_clocks(scores: torch.Tensor, keys: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Return logs of exponential noise, fp32 [N, V], each row from its key and the device's kind.

    In double precision: in single, one clock in 2^24 would show zero and its token always win.
    """
    seeds = [np.random.SeedSequence(key).generate_state(1, np.uint64) for key in keys]
    if scores.is_cuda:
        clocks = torch.empty(scores.shape, device=scores.device, dtype=torch.float64)
        generator = torch.Generator(scores.device)
        for row, seed in zip(clocks, seeds, strict=True):
            row.exponential_(generator=generator.manual_seed(int(seed[0])))
    else:  # where numpy is five times as fast
        drawn = np.empty(scores.shape)
        for row, seed in zip(drawn, seeds, strict=True):
            np.random.default_rng(seed).standard_exponential(out=row)
        clocks = torch.from_numpy(drawn)
    return clocks.clamp_(min=torch.finfo(torch.float64).tiny).log_().float()
