"""Decoding passes as CUDA graphs: launching the kernels of a pass takes longer than running them.

A graph has fixed shapes: a power of four of slots, each with one token or with as many as a step
may read of a row, and the cache up to a rounded width. What a row lacks is filled with tokens that
nobody asks for; their keys and values lie where the row's next tokens will overwrite them, like
those of wrong draft tokens. A slots of a pass, Q tokens of each, N tokens that were asked for, W
width of the model.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from domain_tokens.inference.kv_cache import SlotCache, SlotGroup, slot_bias
from domain_tokens.inference.prompt_lookup import MAX_DRAFT_TOKENS
from domain_tokens.modeling import Attend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WIDTH = 256  # positions; each multiple is a graph of its own: recording takes longer than reading

# ids [A Q], their positions [A Q], what they attend to -> hidden states [A Q, W]
Read = Callable[[torch.Tensor, torch.Tensor, Attend], torch.Tensor]
# A body's recording: how to run it again, and where its result then lies.
Recording = tuple[Callable[[], None], torch.Tensor]


def slot_capacity(capacity: int) -> int:
    """Return how many positions a slot of the cache needs for `capacity` tokens and the filling."""
    return -(-(capacity + MAX_DRAFT_TOKENS) // WIDTH) * WIDTH


class CudaGraphRunner:
    """Passes of a decoder, each recorded when its shapes are first needed and then replayed."""

    def __init__(
        self,
        model: "PreTrainedModel",
        read: Read,
        cache: SlotCache,
        *,
        slots: int,
        positions: int,
    ):
        """positions: that the model knows.

        The cache has room for so many slots, and prompts were read into it.
        """
        self._model, self._read, self._cache = model, read, cache
        self._slots, self._positions = slots, positions
        self._record = _Graphs()
        self._passes: dict[tuple[int, int, int], tuple[torch.Tensor, Recording]] = {}
        self._kept: list[torch.Tensor] = []  # a replay reads the memory of these

    def __call__(self, tokens: Sequence[Sequence[int]], lengths: Sequence[int]) -> torch.Tensor:
        """Return the hidden states [N, W] of tokens, 1 to MAX_DRAFT_TOKENS + 1 of each slot 0, 1, …

        lengths: how many tokens each of these slots has in the cache.
        """
        max_tokens = 1 if max(map(len, tokens)) == 1 else 1 + MAX_DRAFT_TOKENS
        bits = (len(tokens) - 1).bit_length()
        slots = min(self._slots, 1 << bits + bits % 2)
        width = -(-(max(lengths) + max_tokens) // WIDTH) * WIDTH
        inputs = torch.zeros(2, slots, max_tokens, dtype=torch.long)
        inputs[1] = torch.arange(max_tokens)
        inputs[1, : len(lengths)] += torch.tensor(lengths)[:, None]
        filled = [[*read, *[0] * (max_tokens - len(read))] for read in tokens]
        inputs[0, : len(tokens)] = torch.tensor(filled)
        key = slots, max_tokens, width
        if key not in self._passes:
            self._passes[key] = self._recorded(inputs, width)
        given, (replay, hidden) = self._passes[key]
        given.copy_(inputs)
        replay()
        asked = [
            slot * max_tokens + i for slot, read in enumerate(tokens) for i in range(len(read))
        ]
        return hidden[torch.tensor(asked, device=hidden.device)]

    def _recorded(self, inputs: torch.Tensor, width: int) -> tuple[torch.Tensor, Recording]:
        """Record a pass of inputs [2, A, Q], ids and positions; return where these lie, too."""
        cache, device = self._cache, self._model.device
        given = inputs.to(device)
        _, slots, max_tokens = given.shape
        slot = torch.arange(slots, device=device).repeat_interleave(max_tokens)
        offset = torch.arange(max_tokens, device=device).repeat(slots)
        seen = torch.arange(width, device=device)
        self._kept += [slot, offset, seen]

        def body() -> torch.Tensor:
            ids, positions = given
            bias = slot_bias(seen > positions[:, None, :, None], self._model)
            group = SlotGroup(slice(0, slots), slice(0, slots * max_tokens), slot, offset, bias)
            cache.set_plan(slot, positions.flatten(), [group])
            # Filling may lie behind the last position that the model knows.
            return self._read(
                ids.flatten(), positions.flatten().clamp(max=self._positions - 1), cache.attend
            )

        return given, self._record(body)


class _Graphs:
    """Records on CUDA; all graphs share their memory, as one is replayed after another."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, body: Callable[[], torch.Tensor]) -> Recording:
        """Run the body on another stream, where libraries prepare themselves, then record it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                body()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            hidden = body()
        return graph.replay, hidden
