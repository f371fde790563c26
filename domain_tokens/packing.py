"""How the examples of one optimizer step share rows; this changes no result, only speed."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from domain_tokens.prompts import Example

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
    most = rows_at_once * max_length
    if packing:
        return [[part] for part in _balanced(lengths, most=most, multiple=processes)]
    count = -(-len(lengths) // (most // longest))
    return [[[index] for index in range(part, len(lengths), count)] for part in range(count)]


def _balanced(lengths: Sequence[int], *, most: int, multiple: int) -> list[list[int]]:
    """Divide examples into few parts of nearly equal length, none above `most` (each alone fits).

    Follows Graham 1969 (longest first, to whichever part is shortest).
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    count = -(-sum(lengths) // most)
    while True:
        count = min(-(-count // multiple) * multiple, len(lengths))
        parts: list[list[int]] = [[] for _ in range(count)]
        sizes = [(0, part) for part in range(count)]  # a heap
        for index in longest_first:
            size, part = sizes[0]
            parts[part].append(index)
            heapq.heapreplace(sizes, (size + lengths[index], part))
        if max(sizes)[0] <= most:
            return parts
        count += 1


def build(rows: Sequence[Sequence[Example]], *, pad_id: int) -> MicroBatch:
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
            following = np.where(example.kinds[1:] > 0, example.input_ids[1:], IGNORED)
            targets[b, at : at + size - 1] = following
            at += size
        position_ids[b, at:] = np.arange(width - at)
    return MicroBatch(input_ids, position_ids, targets)


def empty(*, pad_id: int) -> MicroBatch:
    """Return a micro-batch of one token without loss, which only keeps processes in step."""
    one = np.zeros((1, 1), dtype=np.int64)
    return MicroBatch(one + pad_id, one, one + IGNORED)
