"""Which examples make each optimizer step, and how they share packed sequences."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from domain_tokens.data import epoch_order
from domain_tokens.prompts import Example
from domain_tokens.runs import TrainingSection


@dataclass(frozen=True, slots=True)
class StepPlan:
    """All optimizer steps of all epochs, laid out before training starts.

    steps[s] holds processes × accumulation micro-batches, each a list of rows of example indices;
    an empty micro-batch only keeps processes in step. order: example indices as they are trained.
    """

    steps: list[list[list[list[int]]]]
    order: list[int]
    accumulation: int
    tokens: list[int]  # per step, padding not counted
    supervised: list[int]  # per step


def plan_steps(
    examples: Sequence[Example],
    settings: TrainingSection,
    *,
    processes: int = 1,
    rows_at_once: int | None = None,
) -> StepPlan:
    """Plan a run: a step is batch_size × accumulation examples, an epoch's last may be less.

    The order depends on the examples' ids, the seed and the epoch alone. At most batch_size rows
    of max_length tokens are in memory at once, as in a run that pads; rows_at_once allows others.
    """
    step_size = settings.batch_size * settings.gradient_accumulation_steps
    ids = [example.id for example in examples]
    chunks: list[list[int]] = []
    for epoch in range(settings.num_epochs):
        permutation = epoch_order(ids, seed=settings.seed, epoch=epoch)
        chunks += [permutation[i : i + step_size] for i in range(0, len(ids), step_size)]
    steps = []
    for chunk in chunks:
        parts = split_step(
            [len(examples[i].input_ids) for i in chunk],
            max_length=settings.max_length,
            rows_at_once=rows_at_once or settings.batch_size,
            processes=processes,
            packing=settings.packing,
        )
        steps.append([[[chunk[i] for i in row] for row in rows] for rows in parts])
    accumulation = max(math.ceil(len(step) / processes) for step in steps)
    for step in steps:
        step += [[] for _ in range(processes * accumulation - len(step))]
    return StepPlan(
        steps=steps,
        order=[i for chunk in chunks for i in chunk],
        accumulation=accumulation,
        tokens=[sum(len(examples[i].input_ids) for i in chunk) for chunk in chunks],
        supervised=[sum(supervised_tokens(examples[i]) for i in chunk) for chunk in chunks],
    )


def supervised_tokens(example: Example) -> int:
    """Return how many tokens of an example carry loss; the first is never predicted."""
    return int(np.count_nonzero(example.token_roles[1:]))


IGNORED = -100  # PyTorch's cross_entropy ignore_index


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Packed rows. B rows, T tokens.

    input_ids, position_ids, targets: int64 [B, T]. Positions restart at 0 where a document starts,
    which is how transformers tells documents apart; targets are already shifted (targets[b, t] is
    the token to predict at t) and IGNORED where there is no loss.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    targets: np.ndarray

    @property
    def supervised(self) -> int:
        """Number of targets that carry loss."""
        return int((self.targets != IGNORED).sum())


def split_step(
    lengths: Sequence[int],
    *,
    max_length: int,
    rows_at_once: int,
    processes: int = 1,
    packing: bool = True,
) -> list[list[list[int]]]:
    """Split a step's examples into micro-batches of at most rows_at_once × max_length tokens.

    Returns micro-batches of rows of example indices. Packed, a micro-batch is one row without any
    padding, and there are as many for each process where there are examples enough; without
    packing every example has a row.
    """
    longest = max(lengths)
    if longest > max_length:
        raise ValueError(f"an example of {longest} tokens does not fit in {max_length}")
    max_tokens = rows_at_once * max_length
    if packing:
        return [[part] for part in _balanced(lengths, max_tokens=max_tokens, multiple=processes)]
    count = -(-len(lengths) // (max_tokens // longest))
    return [[[index] for index in range(part, len(lengths), count)] for part in range(count)]


def _balanced(lengths: Sequence[int], *, max_tokens: int, multiple: int) -> list[list[int]]:
    """Divide examples into few parts of like length, none above max_tokens (each alone fits).

    Follows Graham 1969 (longest first, to whichever part is shortest).
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    count = -(-sum(lengths) // max_tokens)
    while True:
        count = min(-(-count // multiple) * multiple, len(lengths))
        parts: list[list[int]] = [[] for _ in range(count)]
        sizes = [(0, part) for part in range(count)]  # a heap
        for index in longest_first:
            size, part = sizes[0]
            parts[part].append(index)
            heapq.heapreplace(sizes, (size + lengths[index], part))
        if max(sizes)[0] <= max_tokens:
            return parts
        count += 1


def build_micro_batch(rows: Sequence[Sequence[Example]], *, pad_id: int) -> MicroBatch:
    """Lay examples out in rows; a row's tail is padding, a document of its own without loss."""
    width = max(sum(len(e.input_ids) for e in row) for row in rows)
    shape = (len(rows), width)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    for b, row in enumerate(rows):
        at = 0
        for example in row:
            size = len(example.input_ids)
            input_ids[b, at : at + size] = example.input_ids
            position_ids[b, at : at + size] = np.arange(size)
            following = np.where(example.token_roles[1:] > 0, example.input_ids[1:], IGNORED)
            targets[b, at : at + size - 1] = following
            at += size
        position_ids[b, at:] = np.arange(width - at)
    return MicroBatch(input_ids, position_ids, targets)


def empty_micro_batch(*, pad_id: int) -> MicroBatch:
    """Return a micro-batch of one token without loss, which only keeps processes in step."""
    blank = np.zeros((1, 1), dtype=np.int64)
    return MicroBatch(blank + pad_id, blank, blank + IGNORED)
