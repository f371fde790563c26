"""How a token is drawn from logits, with noise that depends on a row's seed alone."""

from dataclasses import dataclass

import torch

from domain_tokens.inference.noise import stream_of, uniforms


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn; temperature 0 takes the most likely one.

    row_seeds: a seed for each prompt; without them a prompt's position among the prompts decides.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 42
    row_seeds: tuple[int, ...] | None = None

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    def stream(self, index: int) -> int:
        """Return the stream of the noise of the prompt at this position."""
        key = (self.seed, index) if self.row_seeds is None else (self.row_seeds[index],)
        return stream_of(tuple(number % 2**63 for number in key))


GREEDY = Sampling()


def choose(logits: torch.Tensor, keys: torch.Tensor | None, sampling: Sampling) -> torch.Tensor:
    """Choose one token per row: logits fp32 [N, V] -> ids [N]; nothing waits for the device.

    keys: of `noise_keys`, [N]; a row's noise depends on its key alone; None where nothing is drawn.
    The token of the first arrival among exponential clocks is taken (the Gumbel-max trick): a
    rounding error in the logits, which the rest of the batch may cause, changes a draw only where
    two clocks go off almost together, while on a cumulative distribution it would move the edges of
    all tokens.
    """
    if sampling.greedy or keys is None:
        return logits.max(-1).indices  # three times as fast as argmax on a CPU
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
    rates = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    clocks = uniforms(keys, scores.shape[-1]).neg_().log1p_().neg_()
    return rates.div_(clocks).max(-1).indices
