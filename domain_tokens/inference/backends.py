"""How a decoder's tokens are read: backends, each a model with a cache of slots.

A backend knows nothing of rows, budgets and draft tokens: it reads what stands in a slot and says
what follows. Paged on a CPU in fp32, slots for any other model that reads tokens in one row, and a
fallback through transformers' own forward pass. The fourth, CUDA graphs, is in `cuda_graphs`.
A active slots, 0 to A - 1, N tokens of a call, P prompts, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from domain_tokens.inference.forward import PackedForward
from domain_tokens.inference.kv_cache import PagedCache, RowCache, SlotCache, to_device
from domain_tokens.modeling import attend_within_documents, fp32_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokens of prompts that are read together, or about so many. On a CPU products of 1,024 take a
# tenth longer; on a GPU launching the kernels of 512 takes longer than running those of thousands.
PREFILL_TOKENS = {"cpu": 512, "cuda": 16_384}
# Tokens of a prefill and of a decoding step are multiples of these on a CPU, where there is
# something to fill them with: for each number oneDNN compiles products of its own, and keeps them.
PREFILL_TOKEN_MULTIPLE, DECODE_TOKEN_MULTIPLE = 32, 8

Prompt = tuple[int, ...]
# Of a slot: its newest token, how many tokens it has in the cache, its stream of noise, and how
# many tokens its response has.
SlotState = tuple[int, int, int, int]


class Backend(ABC):
    """A model and the keys and values of its slots."""

    prefill_tokens = 0  # how many tokens prompts may have that are read together; 0: one prompt
    reads_drafts = False  # whether `decode` takes several tokens of a slot
    writes_ahead = 0  # how many tokens `write` may write; 0: there is only `decode`
    token_multiple = 1  # tokens of a decoding step had better be a multiple of it

    def __init__(self, cache: SlotCache | PagedCache, *, greedy: bool):
        self._cache, self._greedy = cache, greedy

    @abstractmethod
    def prefill(self, prompts: Sequence[Prompt], slots: Sequence[int]) -> torch.Tensor:
        """Read prompts into empty slots; return what follows each.

        Logits, fp32 [P, V], or the most likely tokens [P] of a greedy backend.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[Sequence[int]], cached: Sequence[int]) -> torch.Tensor:
        """Read tokens[i] into slot i after its cached[i] tokens; return what follows each token.

        Logits, fp32 [N, V], or the most likely tokens [N] of a greedy backend.
        """

    def write(self, rows: Sequence[SlotState], count: int) -> list[list[int]]:
        """Read the newest token of each slot and choose the next one, `count` times: [A][count].

        Only of a backend that writes ahead.
        """
        raise TypeError(f"{type(self).__name__} writes nothing ahead; call decode")

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a slot's tokens, so many, to another slot."""
        self._cache.copy(source, target, length)

    def free(self, slot: int, last: int, length: int) -> None:
        """Free a slot; the last active slot's tokens, so many, move there."""
        self._cache.free(slot, last, length)


class SlotBackend(Backend):
    """Tokens of all slots stand in one row, without padding."""

    reads_drafts = True

    def __init__(self, forward: PackedForward, cache: SlotCache | PagedCache, *, greedy: bool):
        super().__init__(cache, greedy=greedy)
        self._forward, self._device = forward, forward.device
        self.prefill_tokens = PREFILL_TOKENS.get(self._device.type, PREFILL_TOKENS["cpu"])
        if self._device.type == "cpu":
            self.token_multiple = DECODE_TOKEN_MULTIPLE

    def prefill(self, prompts: Sequence[Prompt], slots: Sequence[int]) -> torch.Tensor:
        """Read prompts one after the other, each seeing itself alone."""
        ends = torch.tensor([len(prompt) for prompt in prompts]).cumsum(0)
        prompts = [*prompts[:-1], self._filled(prompts[-1], int(ends[-1]))]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        number, positions = _packed_positions(lengths, torch.zeros_like(lengths))
        self._cache.begin(torch.tensor(slots)[number], positions)
        ids = torch.tensor([i for prompt in prompts for i in prompt])
        cu_seqlens = torch.cat([ends.new_zeros(1), lengths.cumsum(0)]).int()
        ids, positions, keep, cu_seqlens = (
            to_device(x, self._device) for x in (ids, positions, ends - 1, cu_seqlens)
        )
        max_seqlen = int(lengths.max())

        def attend(layer: int, q: Any, k: Any, v: Any, scaling: float | None) -> torch.Tensor:
            self._cache.write(layer, k, v)
            return attend_within_documents(q, k, v, cu_seqlens, max_seqlen, scaling)

        return self._forward(ids, positions, attend, keep=keep, greedy=self._greedy)

    def _filled(self, prompt: Prompt, total: int) -> Prompt:
        """Return the last prompt of a prefill of `total` tokens, lengthened where that pays."""
        return prompt

    def decode(self, tokens: Sequence[Sequence[int]], cached: Sequence[int]) -> torch.Tensor:
        """Read newest tokens and drafts of all slots, each seeing its slot."""
        counts = torch.tensor([len(read) for read in tokens])
        slot, positions = _packed_positions(counts, torch.tensor(cached))
        ids = torch.tensor([i for read in tokens for i in read])
        self._cache.plan_attention(slot, positions)
        ids, positions = (to_device(x, self._device) for x in (ids, positions))
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


class FallbackBackend(Backend):
    """A model that cannot read tokens in one row: prompts alone, then one token of each slot."""

    def __init__(self, model: "PreTrainedModel", cache: RowCache, *, greedy: bool):
        super().__init__(cache, greedy=greedy)
        self._model, self._slots = model, cache

    def prefill(self, prompts: Sequence[Prompt], slots: Sequence[int]) -> torch.Tensor:
        """Read one prompt."""
        (prompt,), (slot,) = prompts, slots
        positions = torch.arange(len(prompt))
        self._slots.begin(torch.full_like(positions, slot), positions)
        given = (torch.tensor(prompt), positions)
        ids, positions = (to_device(x, self._model.device) for x in given)
        return self._outputs(
            input_ids=ids[None], position_ids=positions[None], logits_to_keep=positions[-1:]
        )

    def decode(self, tokens: Sequence[Sequence[int]], cached: Sequence[int]) -> torch.Tensor:
        """Read the newest token of each slot, as a batch of rows over the cache's first W."""
        width = max(cached) + 1
        positions = torch.tensor(cached)
        self._slots.begin(torch.arange(len(tokens)), positions)
        self._slots.show(len(tokens), width)
        mask = torch.arange(width) <= positions[:, None]  # [A, W]
        given = (torch.tensor(tokens), mask, positions)
        ids, mask, positions = (to_device(x, self._model.device) for x in given)
        return self._outputs(
            input_ids=ids,  # [A, 1]
            attention_mask=mask[:, None, None],
            position_ids=positions[:, None],
        )

    def _outputs(self, **inputs: Any) -> torch.Tensor:
        """Return logits or the most likely tokens of the last position of each row."""
        logits, _ = fp32_logits(self._model, past_key_values=self._slots, use_cache=True, **inputs)
        return logits[:, -1].max(-1).indices if self._greedy else logits[:, -1]


def _packed_positions(
    counts: torch.Tensor, first: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which sequence each of N packed tokens is of, and its position there: [N] each.

    counts: tokens of each sequence; first: the position of each one's first token.
    """
    sequence = torch.arange(len(counts)).repeat_interleave(counts)
    offset = torch.arange(len(sequence)) - (counts.cumsum(0) - counts)[sequence]
    return sequence, first[sequence] + offset
