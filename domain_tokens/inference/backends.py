"""How a decoder's tokens are read: four backends, each a model with a cache of slots.

A backend knows nothing of rows, budgets and draft tokens: it reads what stands in a slot and says
what follows. Paged on a CPU in fp32, recorded as CUDA graphs where the model allows that, slots for
any other model that reads tokens in one row, and a fallback through transformers' own forward pass.
A active slots, 0 to A - 1, N tokens of a call, P prompts, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from domain_tokens.inference.cuda_graphs import CudaGraphRunner, slot_capacity
from domain_tokens.inference.forward import PackedForward
from domain_tokens.inference.kv_cache import PagedCache, SlotCache
from domain_tokens.modeling import attend_within_documents

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFILL_TOKENS = 512  # read together, or about so many; products of 1,024 take a tenth longer
# Tokens of a prefill and of a decoding step are multiples of these on a CPU, where there is
# something to fill them with: for each number oneDNN compiles products of its own, and keeps them.
PREFILL_TOKEN_MULTIPLE, DECODE_TOKEN_MULTIPLE = 32, 8

Prompt = tuple[int, ...]


def choose_backend(
    model: "PreTrainedModel",
    forward: PackedForward | None,
    *,
    slots: int,
    capacity: int,
    context: int,
    greedy: bool,
) -> "Backend":
    """Return the fastest backend that the model can be read with.

    forward: None where the model cannot read tokens in one row. capacity: tokens that a slot may
    come to hold; context: positions that the model knows.
    """
    if forward is None:
        return FallbackBackend(model, SlotCache(model, slots, capacity), greedy=greedy)
    if forward.capturable:
        cache = SlotCache(model, slots, slot_capacity(capacity))
        runner = CudaGraphRunner(model, forward.hidden, cache, slots=slots, positions=context)
        return CudaGraphBackend(forward, cache, runner, greedy=greedy)
    if (model.device.type, model.dtype) == ("cpu", torch.float32):
        pages = PagedCache(slots, capacity, model.config.num_hidden_layers)
        return PagedBackend(forward, pages, capacity=capacity, greedy=greedy)
    return SlotBackend(forward, SlotCache(model, slots, capacity), greedy=greedy)


class Backend(ABC):
    """A model and the keys and values of its slots."""

    prefill_tokens = 0  # how many tokens prompts may have that are read together; 0: one prompt
    reads_drafts = False  # whether `decode` takes several tokens of a slot
    token_multiple = 1  # tokens of a decoding step had better be a multiple of it

    def __init__(self, cache: SlotCache | PagedCache, *, greedy: bool):
        self._cache, self._greedy = cache, greedy

    @abstractmethod
    def prefill(self, prompts: Sequence[Prompt], slots: Sequence[int]) -> torch.Tensor:
        """Read prompts into empty slots; return what follows each.

        Logits [P, V], or the most likely tokens [P] of a greedy backend.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[Sequence[int]], cached: Sequence[int]) -> torch.Tensor:
        """Read tokens[i] into slot i after its cached[i] tokens; return what follows each token.

        Logits [N, V], or the most likely tokens [N] of a greedy backend.
        """

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a slot's tokens, so many, to another slot."""
        self._cache.copy(source, target, length)

    def free(self, slot: int, last: int, length: int) -> None:
        """Free a slot; the last active slot's tokens, so many, move there."""
        self._cache.free(slot, last, length)


class SlotBackend(Backend):
    """Tokens of all slots stand in one row, without padding."""

    prefill_tokens = PREFILL_TOKENS
    reads_drafts = True

    def __init__(self, forward: PackedForward, cache: SlotCache | PagedCache, *, greedy: bool):
        super().__init__(cache, greedy=greedy)
        self._forward, self._device = forward, forward.device
        if self._device.type == "cpu":
            self.token_multiple = DECODE_TOKEN_MULTIPLE

    def prefill(self, prompts: Sequence[Prompt], slots: Sequence[int]) -> torch.Tensor:
        """Read prompts one after the other, each seeing itself alone."""
        ends = torch.tensor([len(prompt) for prompt in prompts]).cumsum(0)
        prompts = [*prompts[:-1], self._filled(prompts[-1], int(ends[-1]))]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        number, positions = _packed_positions(lengths, torch.zeros_like(lengths))
        self._cache.begin(torch.tensor(slots)[number], positions)
        ids = torch.tensor([i for prompt in prompts for i in prompt], device=self._device)
        keep = (ends - 1).to(self._device)
        cu_seqlens = torch.cat([ends.new_zeros(1), lengths.cumsum(0)]).int().to(self._device)
        max_seqlen = int(lengths.max())

        def attend(layer: int, q: Any, k: Any, v: Any, scaling: float | None) -> torch.Tensor:
            self._cache.write(layer, k, v)
            return attend_within_documents(q, k, v, cu_seqlens, max_seqlen, scaling)

        positions = positions.to(self._device)
        return self._forward(ids, positions, attend, keep=keep, greedy=self._greedy)

    def _filled(self, prompt: Prompt, total: int) -> Prompt:
        """Return the last prompt of a prefill of `total` tokens, lengthened where that pays."""
        return prompt

    def decode(self, tokens: Sequence[Sequence[int]], cached: Sequence[int]) -> torch.Tensor:
        """Read newest tokens and drafts of all slots, each seeing its slot."""
        counts = torch.tensor([len(read) for read in tokens])
        slot, positions = _packed_positions(counts, torch.tensor(cached))
        ids = torch.tensor([i for read in tokens for i in read], device=self._device)
        self._cache.plan_attention(slot, positions)
        positions = positions.to(self._device)
        return self._forward(ids, positions, self._cache.attend, greedy=self._greedy)


class PagedBackend(SlotBackend):
    """Pages of a few positions, on a CPU in fp32."""

    def __init__(self, forward: PackedForward, cache: PagedCache, *, capacity: int, greedy: bool):
        super().__init__(forward, cache, greedy=greedy)
        self._capacity = capacity

    def _filled(self, prompt: Prompt, total: int) -> Prompt:
        """Lengthen the prompt, if its slot has room, so that the prefill's tokens are rounded.

        What is added is overwritten like wrong draft tokens.
        """
        missing = min(-total % PREFILL_TOKEN_MULTIPLE, self._capacity - len(prompt))
        return prompt + prompt[-1:] * missing


class CudaGraphBackend(SlotBackend):
    """Slots whose decoding steps are recorded once and replayed; prompts are read as they come."""

    def __init__(
        self, forward: PackedForward, cache: SlotCache, runner: CudaGraphRunner, *, greedy: bool
    ):
        super().__init__(forward, cache, greedy=greedy)
        self._runner = runner

    def decode(self, tokens: Sequence[Sequence[int]], cached: Sequence[int]) -> torch.Tensor:
        """Replay the graph of these shapes."""
        return self._forward.outputs(self._runner(tokens, cached), greedy=self._greedy)


class FallbackBackend(Backend):
    """A model that cannot read tokens in one row: prompts alone, then one token of each slot."""

    def __init__(self, model: "PreTrainedModel", cache: SlotCache, *, greedy: bool):
        super().__init__(cache, greedy=greedy)
        self._model, self._slots = model, cache

    def prefill(self, prompts: Sequence[Prompt], slots: Sequence[int]) -> torch.Tensor:
        """Read one prompt."""
        (prompt,), (slot,) = prompts, slots
        positions = torch.arange(len(prompt))
        self._slots.begin(torch.full_like(positions, slot), positions)
        device = self._model.device
        logits = self._model(
            input_ids=torch.tensor(prompt, device=device)[None],
            position_ids=positions.to(device)[None],
            past_key_values=self._slots,
            use_cache=True,
            logits_to_keep=positions[-1:].to(device),
        ).logits[0]
        return logits.max(-1).indices if self._greedy else logits

    def decode(self, tokens: Sequence[Sequence[int]], cached: Sequence[int]) -> torch.Tensor:
        """Read the newest token of each slot, as a batch of rows over the cache's first W."""
        device = self._model.device
        width = max(cached) + 1
        positions = torch.tensor(cached)
        self._slots.begin(torch.arange(len(tokens)), positions)
        self._slots.show(len(tokens), width)
        positions = positions.to(device)
        mask = torch.arange(width, device=device) <= positions[:, None]  # [A, W]
        logits = self._model(
            input_ids=torch.tensor(tokens, device=device),  # [A, 1]
            attention_mask=mask[:, None, None],
            position_ids=positions[:, None],
            past_key_values=self._slots,
            use_cache=True,
        ).logits[:, -1]
        return logits.max(-1).indices if self._greedy else logits


def _packed_positions(
    counts: torch.Tensor, first: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which sequence each of N packed tokens is of, and its position there: [N] each.

    counts: tokens of each sequence; first: the position of each one's first token.
    """
    sequence = torch.arange(len(counts)).repeat_interleave(counts)
    offset = torch.arange(len(sequence)) - (counts.cumsum(0) - counts)[sequence]
    return sequence, first[sequence] + offset
