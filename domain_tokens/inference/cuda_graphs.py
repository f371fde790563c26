"""Decoding passes as CUDA graphs: launching the kernels of a pass takes longer than running them.

A graph has fixed shapes: a power of four of slots, each with one token or with as many as a row may
guess, and the cache up to a rounded width. What a row lacks is filled with tokens that nobody asks
for; their keys and values lie where the row's next tokens will overwrite them, like those of wrong
guesses. A slots of a pass, Q tokens of each, N tokens that were asked for, W width of the model.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from domain_tokens.inference.kv_cache import SlotCache, SlotGroup, slot_bias
from domain_tokens.inference.prompt_lookup import MAX_DRAFT_TOKENS
from domain_tokens.modeling import Attend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WIDTH = 256  # places; each multiple is a graph of its own, and recording takes longer than reading

# ids [A Q], their positions [A Q], what they attend to -> hidden states [A Q, W]
Read = Callable[[torch.Tensor, torch.Tensor, Attend], torch.Tensor]
# A body's recording: how to run it again, and where its result then lies.
Recording = tuple[Callable[[], None], torch.Tensor]


def slot_capacity(capacity: int) -> int:
    """Return how many places a slot of the cache needs for `capacity` tokens and the filling."""
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

        The cache has `places` for each of so many slots, and prompts were read into it.
        """
        self._model, self._read, self._cache = model, read, cache
        self._slots, self._positions = slots, positions
        self._record = _Graphs()
        self._passes: dict[tuple[int, int, int], tuple[torch.Tensor, Recording]] = {}

    def __call__(self, tokens: Sequence[Sequence[int]], lengths: Sequence[int]) -> torch.Tensor:
        """Return the hidden states [N, W] of tokens, 1 to MOST + 1 of each slot 0, 1, …

        lengths: how many tokens each of these slots has in the cache.
        """
        most = 1 if max(map(len, tokens)) == 1 else 1 + MAX_DRAFT_TOKENS
        bits = (len(tokens) - 1).bit_length()
        slots = min(self._slots, 1 << bits + bits % 2)
        width = -(-(max(lengths) + most) // WIDTH) * WIDTH
        inputs = torch.zeros(2, slots, most, dtype=torch.long)
        inputs[1] = torch.arange(most)
        inputs[1, : len(lengths)] += torch.tensor(lengths)[:, None]
        filled = [[*read, *[0] * (most - len(read))] for read in tokens]
        inputs[0, : len(tokens)] = torch.tensor(filled)
        key = slots, most, width
        if key not in self._passes:
            self._passes[key] = self._recorded(inputs, width)
        given, (replay, hidden) = self._passes[key]
        given.copy_(inputs)
        replay()
        asked = [slot * most + i for slot, read in enumerate(tokens) for i in range(len(read))]
        return hidden[torch.tensor(asked, device=hidden.device)]

    def _recorded(self, inputs: torch.Tensor, width: int) -> tuple[torch.Tensor, Recording]:
        """Record a pass of inputs [2, A, Q], ids and places; return where these lie, too."""
        cache, device = self._cache, self._model.device
        given = inputs.to(device)
        _, slots, most = given.shape
        slot = torch.arange(slots, device=device).repeat_interleave(most)
        offset = torch.arange(most, device=device).repeat(slots)
        seen = torch.arange(width, device=device)

        def body() -> torch.Tensor:
            ids, place = given
            bias = slot_bias(seen > place[:, None, :, None], self._model)
            group = SlotGroup(slice(0, slots), slice(0, slots * most), slot, offset, bias)
            cache.lay_out(slot, place.flatten(), [group])
            # Filling may lie behind the last position that the model knows.
            return self._read(
                ids.flatten(), place.flatten().clamp(max=self._positions - 1), cache.attend
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
