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
    """Assign examples to rows of one length, at most max_length, by first-fit decreasing.

    Returns the example indices of each row. Of the row lengths, multiples of ROW_MULTIPLE, the one
    is taken that leaves the least padding; of equals the longest, which makes the fewest rows.
    Follows Johnson 1973 (first-fit decreasing).
    """
    longest = max(lengths)
    if longest > max_length:
        raise ValueError(f"an example of {longest} tokens does not fit in {max_length}")
    sizes = range(-(-longest // ROW_MULTIPLE) * ROW_MULTIPLE, max_length, ROW_MULTIPLE)
    found = [_first_fit(lengths, size) for size in (*sizes, max_length)]
    return min(reversed(found), key=lambda rows: len(rows) * _width(lengths, rows))


def _width(lengths: Sequence[int], rows: list[list[int]]) -> int:
    return max(sum(lengths[i] for i in row) for row in rows)


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
    """Split a step's examples into micro-batches of at most rows_at_once × max_length tokens.

    Returns micro-batches of rows of example indices; without packing every example has a row.
    """
    rows = (
        assign_rows(lengths, max_length=max_length)
        if packing
        else [[index] for index in range(len(lengths))]
    )
    count = -(-len(rows) // (rows_at_once * max_length // _width(lengths, rows)))
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
