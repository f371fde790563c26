"""What a process can do without: pages that it could read from a file again, and freed memory.

Both count as memory of the process until it gives them back.
"""

import ctypes
import mmap
import re
from pathlib import Path

# Header lines of /proc/self/smaps after the addresses: permissions, ..., file.
WEIGHTS = r"\S+ [^\n]*\.safetensors"
LIBRARIES = r"r-\S+ [^\n]*\.so[.\d]*"  # only what nobody may write to

Mapping = tuple[int, int]  # address and size


def untouched_mappings(files: str = f"{WEIGHTS}|{LIBRARIES}") -> list[Mapping]:
    """Return the mapped files' windows that nothing was written to; empty where Linux is not.

    transformers leaves weights in the file that they came from, mapped; a page of it that was
    trained is a copy ("Anonymous") and could not be read again.
    """
    try:
        text = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    window = rf"^([0-9a-f]+)-([0-9a-f]+) (?:{files})\n(?:[A-Z][^\n]*\n)*?Anonymous: +0 kB$"
    return [(int(a, 16), int(b, 16) - int(a, 16)) for a, b in re.findall(window, text, re.M)]


def drop_pages(mappings: list[Mapping]) -> None:
    """Take windows of files out of memory; what is used again is read again."""
    for address, size in mappings:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.MADV_DONTNEED
        )


def trim_memory() -> None:
    """Let go of files and of what was freed; takes some hundredths of a second."""
    drop_pages(untouched_mappings())
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of GNU's C library
    if trim:
        trim(0)
