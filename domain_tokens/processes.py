"""Several processes that share one evaluation: who does what, and how it comes together again."""

import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from domain_tokens import hardware

T = TypeVar("T")


def join() -> None:
    """Meet the other processes that torchrun or accelerate started; alone, do nothing."""
    if hardware.world_size() == 1:
        return
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    assert distributed.get_world_size() == hardware.world_size()


def leave() -> None:
    """Part from the other processes, where there are any."""
    if "torch.distributed" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def mine(items: Sequence[T]) -> list[T]:
    """Return this process's share of items that all processes hold alike."""
    return list(items[hardware.rank() :: hardware.world_size()])


def wait() -> None:
    """Go on when all processes have come here."""
    if hardware.world_size() > 1:
        from torch import distributed

        distributed.barrier()


def merged(part: dict[Any, T]) -> dict[Any, T]:
    """Return the union of what all processes hold."""
    if hardware.world_size() == 1:
        return part
    from torch import distributed

    parts: list[Any] = [None] * hardware.world_size()
    distributed.all_gather_object(parts, part)
    return {key: value for part in parts for key, value in part.items()}
