"""Decoding steps as CUDA graphs: launching the kernels of a step takes longer than running them.

A graph reads the newest token of each slot, chooses the next one and writes it down where its next
replay will read it, so that the host need not wait for every token: it replays a few steps, then
looks at what they wrote. What a row wrote after its end is thrown away. A slots of a step, S of the
cache, K steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from domain_tokens.inference.backends import SlotBackend, SlotState
from domain_tokens.inference.forward import PackedForward
from domain_tokens.inference.kv_cache import SlotCache, to_device
from domain_tokens.inference.noise import noise_keys
from domain_tokens.inference.sampling import Sampling, choose
from domain_tokens.modeling import GraphRecorder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_STEPS = 8  # between two looks; after its end a row writes half as many in vain
CAPACITY_MULTIPLE = 256  # positions of a slot, so that the next call finds room, too


@dataclass(frozen=True, slots=True)
class _Shape:
    """What has to be as it was for graphs to be used again."""

    weights: tuple[int, ...]  # where they lie
    context: int


class CudaGraphRunner:
    """Decoding steps, each recorded when its shape is first needed and then replayed.

    It lives as long as the model whose weights the graphs read, and does not keep it alive.
    """

    def __init__(self, model: "PreTrainedModel", shape: _Shape, *, slots: int, capacity: int):
        self.cache = SlotCache(model, slots, capacity)
        self.shape, self.slots, self.capacity = shape, slots, capacity
        self._device = model.device
        # A replay reads and writes ids, cached tokens, noise streams, positions in a response.
        self._state = torch.zeros(4, slots, dtype=torch.long, device=self._device)
        self._written = torch.zeros(MAX_STEPS, slots, dtype=torch.long, device=self._device)
        self._step = torch.zeros(1, dtype=torch.long, device=self._device)
        self._graphs: dict[tuple[int, Sampling], Callable[[], None]] = {}
        self._record = GraphRecorder()

    def __call__(
        self,
        forward: PackedForward,
        rows: Sequence[SlotState],
        sampling: Sampling,
        steps: int,
    ) -> list[list[int]]:
        """Return the next `steps` tokens of slots 0, 1, …, [A][K]; the host waits once.

        rows: of each slot its newest token, how many tokens it has in the cache, its noise stream
        and how many tokens its response has.
        """
        bits = (len(rows) - 1).bit_length()
        slots = min(self.slots, 1 << bits + bits % 2)
        alike = Sampling(sampling.temperature, sampling.top_k, sampling.top_p)
        if (slots, alike) not in self._graphs:
            self._begin(rows)  # whose newest tokens a first step reads, too
            self._graphs[slots, alike] = self._recorded(forward, slots, alike)
        self._begin(rows)
        for _ in range(steps):
            self._graphs[slots, alike]()
        return self._written[:steps, : len(rows)].t().tolist()

    def _begin(self, rows: Sequence[SlotState]) -> None:
        """Give slots 0, 1, … their rows and the others nothing; steps count from 0."""
        state = torch.zeros(4, self.slots, dtype=torch.long)
        state[:, : len(rows)] = torch.tensor(rows).t()
        self._state.copy_(to_device(state, self._device), non_blocking=True)
        self._step.zero_()

    def _recorded(
        self, forward: PackedForward, slots: int, sampling: Sampling
    ) -> Callable[[], None]:
        """Record a step of the first slots; all that it reads outlives it: ours, or weights."""
        ids, cached, streams, positions = self._state[:, :slots].unbind()
        plan = self.cache.fixed_plan(slots)

        def body() -> None:
            # After a row's end there may be neither room in the cache nor a position.
            position = cached.clamp(max=self.capacity - 1)
            self.cache.follow_plan(plan, position)
            known = cached.clamp(max=self.shape.context - 1)
            logits = forward.outputs(forward.hidden(ids, known, self.cache.attend))
            keys = None if sampling.greedy else noise_keys(streams, positions)
            chosen = choose(logits, keys, sampling)
            self._written[:, :slots].index_copy_(0, self._step, chosen[None])
            ids.copy_(chosen)
            for counter in (cached, positions, self._step):
                counter += 1

        return self._record(body, keep=plan)


# Of each model the runner of its last call: recording takes longer than many a response.
_KEPT: "WeakKeyDictionary[Any, CudaGraphRunner]" = WeakKeyDictionary()


def runner_of(
    model: "PreTrainedModel", *, slots: int, capacity: int, context: int
) -> CudaGraphRunner:
    """Return the model's runner with room for so many slots and tokens: the last one, or another.

    context: positions that the model knows.
    """
    shape = _Shape(tuple(p.data_ptr() for p in model.parameters()), context)
    kept = _KEPT.get(model)
    if kept and kept.shape == shape and kept.slots >= slots and kept.capacity >= capacity:
        return kept
    _KEPT.pop(model, None)
    del kept  # its memory is free before the next one takes more
    capacity = -(-(capacity + MAX_STEPS) // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
    runner = CudaGraphRunner(model, shape, slots=slots, capacity=capacity)
    _KEPT[model] = runner
    return runner


class CudaGraphBackend(SlotBackend):
    """Decoding steps are recorded once and replayed, several at a time; no draft tokens.

    A step takes so little that reading drafts would cost more than they save: the host would have
    to look at each step before it can begin the next.
    """

    reads_drafts = False
    writes_ahead = MAX_STEPS

    def __init__(self, forward: PackedForward, runner: CudaGraphRunner, sampling: Sampling):
        super().__init__(forward, runner.cache, greedy=sampling.greedy)
        self._runner, self._sampling = runner, sampling

    def write(self, rows: Sequence[SlotState], count: int) -> list[list[int]]:
        """Replay the graph of so many slots."""
        return self._runner(self._forward, rows, self._sampling, count)
