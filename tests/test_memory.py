"""What a process gives back of its memory, and that it works on without it."""

import platform
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from domain_tokens.inference.cpu.memory import trim_memory, untouched_mappings

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")


def _resident(kind: str) -> int:
    """Return the MB of this process in memory: "RssFile" or "RssAnon"."""
    match = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) // 1024


def test_libraries_leave_and_come_back():
    """A third of what a small model takes on a CPU are pages of libraries that were read once."""
    x = torch.arange(12.0).view(3, 4)
    expected = x @ x.T
    before = _resident("RssFile")
    trim_memory()
    assert _resident("RssFile") < before / 2
    assert torch.equal(x @ x.T, expected)


def test_what_a_library_wrote_stays():
    """A page that was written to could not be read again, nor one that may be at any moment."""
    maps = Path("/proc/self/maps").read_text().split("\n")
    writable = {int(line.split("-")[0], 16) for line in maps if " rw" in line and ".so" in line}
    assert writable
    assert not writable & {address for address, _ in untouched_mappings()}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give back at once")
def test_freed_memory_is_given_back():
    """One small array above hundreds that were freed kept all of them in memory."""
    arrays = [np.ones(12_000) for _ in range(2_000)]  # 96 kB each, below what is mapped alone
    last = arrays.pop()
    arrays.clear()
    trim_memory()
    after = _resident("RssAnon")
    arrays = [np.ones(12_000) for _ in range(2_000)]
    assert _resident("RssAnon") > after + 150
    last = arrays.pop()
    arrays.clear()
    trim_memory()
    assert _resident("RssAnon") < after + 50
    assert last.sum() == 12_000
