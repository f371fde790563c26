"""The one batched decoder: left-padded prompts, a growing cache, rows leave when they finish."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from domain_tokens.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

StopReason = Literal["eos", "length", "context"]


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

    def generator(self, index: int) -> torch.Generator:
        """Return the random generator of the prompt at this place."""
        place = self.seed * 1_000_003 + index
        seed = place if self.row_seeds is None else self.row_seeds[index]
        return torch.Generator().manual_seed(seed % 2**63)


@dataclass(frozen=True, slots=True)
class Response:
    """token_ids: what was written, without EOS; stop: eos, length (budget) or context (full)."""

    token_ids: list[int]
    stop: StopReason


GREEDY = Sampling()


@torch.inference_mode()
def generate(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    max_new_tokens: int,
    batch_size: int,
    sampling: Sampling = GREEDY,
    on_finished: Callable[[int, Response], None] = lambda index, response: None,
) -> list[Response]:
    """Return a response per prompt, in the order of prompts.

    In fp32 greedy responses equal those of batch size 1, token for token; a sampled response
    depends on the seed and the prompt's place alone. on_finished hears of each as it ends.
    Raises UserError for an empty prompt or one that leaves no room in the model's context.
    """
    context = getattr(model.config, "max_position_embeddings", 10**9)
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            raise UserError(
                f"prompt {index} has {len(prompt)} tokens; wanted 1 to {context - 1}, "
                "which is what the model can read"
            )
    model.eval()
    responses: dict[int, Response] = {}
    longest_first = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    for start in range(0, len(prompts), batch_size):
        chosen = longest_first[start : start + batch_size]
        batch = _Batch(model, [prompts[i] for i in chosen], chosen, sampling)
        for index, response in batch.run(eos_id, max_new_tokens, context):
            responses[index] = response
            on_finished(index, response)
    return [responses[i] for i in range(len(prompts))]


class _Batch:
    """Rows that decode together. B rows still going, T positions so far (left-padded)."""

    def __init__(
        self,
        model: "PreTrainedModel",
        prompts: list[Sequence[int]],
        indices: list[int],
        sampling: Sampling,
    ):
        width = max(len(prompt) for prompt in prompts)
        device = model.device
        rows = [[0] * (width - len(p)) + list(p) for p in prompts]
        seen = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        self._model = model
        self._input = torch.tensor(rows, device=device)  # [B, T], later [B, 1]
        self._mask = torch.tensor(seen, device=device)  # [B, T]
        self._cache: Any = None
        self._alive = list(indices)
        self._lengths = {i: len(p) for i, p in zip(indices, prompts, strict=True)}
        self._written: dict[int, list[int]] = {i: [] for i in indices}
        self._sampling = sampling
        self._generators = {i: sampling.generator(i) for i in indices}

    def run(self, eos_id: int, max_new_tokens: int, context: int) -> list[tuple[int, Response]]:
        """Decode until every row has ended; return (index, response) in the order of ending."""
        ended: list[tuple[int, Response]] = []
        while self._alive:
            tokens = self._next_tokens()
            going = []
            for row, (index, token) in enumerate(zip(self._alive, tokens, strict=True)):
                written = self._written[index]
                stop: StopReason | None = "eos" if token == eos_id else None
                if stop is None:
                    written.append(token)
                    if len(written) == max_new_tokens:
                        stop = "length"
                    elif self._lengths[index] + len(written) >= context:
                        stop = "context"
                if stop is None:
                    going.append(row)
                else:
                    ended.append((index, Response(written, stop)))
            self._keep(going, tokens)
        return ended

    def _next_tokens(self) -> list[int]:
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -self._input.shape[1] :]
        output = self._model(
            input_ids=self._input,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        logits = output.logits[:, -1]  # [B, V]
        if self._sampling.temperature == 0:
            return logits.argmax(-1).tolist()
        draws = torch.stack([torch.rand((), generator=self._generators[i]) for i in self._alive])
        return _sample(logits.float(), draws.to(logits.device), self._sampling).tolist()

    def _keep(self, going: list[int], tokens: list[int]) -> None:
        """Let ended rows leave, so that nothing is computed for them any more."""
        if len(going) < len(self._alive) and going:
            rows = torch.tensor(going, device=self._mask.device)
            self._cache.batch_select_indices(rows)
            self._mask = self._mask[rows]
        self._alive = [self._alive[row] for row in going]
        if going:
            device = self._mask.device
            self._input = torch.tensor([[tokens[row]] for row in going], device=device)
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(going), 1)], dim=1)


def _sample(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Draw one token per row by inverse CDF: logits [B, V], draws uniform [B] -> ids [B]."""
    values, ids = (logits / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    probabilities = values.softmax(-1)
    if sampling.top_k is not None:
        probabilities[:, sampling.top_k :] = 0
    if sampling.top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        probabilities[before >= sampling.top_p] = 0
    cumulative = probabilities.cumsum(-1)
    picked = (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(-1)
    return ids.gather(-1, picked.clamp(max=ids.shape[-1] - 1)[:, None])[:, 0]
