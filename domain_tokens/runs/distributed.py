"""Several processes that share one evaluation: who does what, and how it comes together again."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    pass

T = TypeVar("T")


def init_distributed() -> None:
    """Meet the other processes that torchrun or accelerate started; alone, do nothing."""
    if world_size() == 1:
        return
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    assert distributed.get_world_size() == world_size()


def leave_distributed() -> None:
    """Part from the other processes, where there are any."""
    if "torch.distributed" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def share_of(items: Sequence[T]) -> list[T]:
    """Return this process's share of items that all processes hold alike."""
    return list(items[process_rank() :: world_size()])


def barrier() -> None:
    """Go on when all processes have come here."""
    if world_size() > 1:
        from torch import distributed

        distributed.barrier()


def gather_dict(part: dict[Any, T]) -> dict[Any, T]:
    """Return the union of what all processes hold."""
    if world_size() == 1:
        return part
    from torch import distributed

    parts: list[Any] = [None] * world_size()
    distributed.all_gather_object(parts, part)
    return {key: value for part in parts for key, value in part.items()}


def world_size() -> int:
    """Return the number of processes that torchrun or accelerate started (1 without them)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Return the number of this process among them, 0 for the first."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Return whether this process writes the files."""
    return process_rank() == 0
