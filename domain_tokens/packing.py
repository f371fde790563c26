"""How the examples of one optimizer step share rows; this changes no result, only speed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from domain_tokens.prompts import Example

IGNORED = -100  # PyTorch's cross_entropy ignore_index
ROW_MULTIPLE = 64  # tokens; row lengths are rounded up to it


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


def assign_rows(lengths: Sequence[int], *, max_length: int) -> list[list[int]]:
    """Assign examples to as few rows of at most max_length as first-fit decreasing finds, balanced.

    Returns the example indices of each row. The row length is shrunk in steps of ROW_MULTIPLE as
    long as the number of rows stays the same. Follows Johnson 1973 (first-fit decreasing).
    """
    if max(lengths) > max_length:
        raise ValueError(f"an example of {max(lengths)} tokens does not fit in {max_length}")
    rows = _first_fit(lengths, max_length)
    smallest = max(max(lengths), -(-sum(lengths) // len(rows)))
    for capacity in range(-(-smallest // ROW_MULTIPLE) * ROW_MULTIPLE, max_length, ROW_MULTIPLE):
        tighter = _first_fit(lengths, capacity)
        if len(tighter) == len(rows):
            return tighter
    return rows


def _first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row, free in enumerate(room):
            if lengths[index] <= free:
                rows[row].append(index)
                room[row] -= lengths[index]
                break
        else:
            rows.append([index])
            room.append(capacity - lengths[index])
    return rows


def split_step(
    lengths: Sequence[int], *, max_length: int, rows_at_once: int, packing: bool = True
) -> list[list[list[int]]]:
    """Split a step's examples into micro-batches of at most rows_at_once rows.

    Returns micro-batches of rows of example indices; without packing every example has a row.
    """
    rows = (
        assign_rows(lengths, max_length=max_length)
        if packing
        else [[index] for index in range(len(lengths))]
    )
    count = -(-len(rows) // rows_at_once)
    return [rows[part::count] for part in range(count)]


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
