"""How much memory a process may still take, and what it says when there was not enough."""

import re
from pathlib import Path

from domain_tokens.errors import UserError
from domain_tokens.runs.threads import cgroup_folders

# What torch, numpy and the dynamic loader say where memory is short, whatever the error's class.
SHORT = re.compile(
    r"can't allocate memory|out of memory|failed to map segment|cannot allocate memory", re.I
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the machine's memory or the GPU's was not enough."""
    kinds = isinstance(error, MemoryError | RuntimeError | OSError | ImportError)
    return isinstance(error, MemoryError) or (kinds and bool(SHORT.search(str(error))))


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take, None where the system does not tell.

    What is free or can be freed, and swap; at most what its cgroups (memory.max, or
    memory.limit_in_bytes of version 1) leave. root: where /proc and /sys lie.
    """
    text = _text(root / "proc/meminfo")
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text, re.M))
    if "MemAvailable" not in kilobytes:
        return None
    free = 1024 * (int(kilobytes["MemAvailable"]) + int(kilobytes.get("SwapFree", 0)))
    return min([free, *(left for f in cgroup_folders("memory", root) for left in _left_in(f))])


def refuse_without_memory(needed: int, what: str, *, root: Path = Path("/")) -> None:
    """Raise UserError where a run needs more bytes than there are: the kernel would kill it.

    A run that is killed for memory cannot say so.
    """
    free = available_memory(root)
    if free is not None and needed > free:
        raise UserError(
            f"{what} need {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB can be had; "
            "end other programs, or use a machine with more"
        )


def _left_in(folder: Path) -> list[int]:
    """Return what a group leaves, in bytes, as a list of one or, where it sets no limit, none."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        max_bytes, used_bytes = (_text(folder / name).strip() for name in (limit, used))
        if max_bytes.isdecimal() and used_bytes.isdecimal():
            cache = re.search(
                r"^(?:total_)?inactive_file (\d+)$", _text(folder / "memory.stat"), re.M
            )
            return [max(0, int(max_bytes) - int(used_bytes) + (int(cache[1]) if cache else 0))]
    return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
