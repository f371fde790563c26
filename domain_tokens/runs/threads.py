"""How many threads a run takes on a CPU, and what they do while they wait.

Linear algebra waits at a barrier after every operation. GNU's OpenMP, torch's and numba's, lets
waiting threads spin for some 3 ms by default, on a core that the thread they wait for may need:
next to one busy process a small model trained at a tenth of its speed. Threads that sleep at once
must be woken for the next operation, which costs a fifth of the demo where nothing else runs
(progress/17). So it depends on what else runs. OpenMP also starts a thread for each core of the
host, where a container may use two of 64. Both are read from the environment when the library is
loaded, so `settle_threads` is called before torch is. What a user has set wins.
"""

import os
import sys
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path

WAIT = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
COUNT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
OPENMP = ("torch", "numba", "scipy")  # modules that load it
# Rounds of waiting, 20 to 60 ns each: where all CPUs are idle, longer than nearly every gap between
# two operations; else so long that a thread seldom takes a core in vain.
SPINS_ALONE, SPINS_BESIDE_OTHERS = 20_000, 1_000
GLANCE = 0.06  # seconds in which CPUs are watched: six ticks of Linux's clock
AS_BEFORE = "DOMAIN_TOKENS_THREADS"  # "default" leaves all to the libraries, to compare with


def settle_threads(
    environment: MutableMapping[str, str] = os.environ, *, root: Path = Path("/")
) -> None:
    """Write to the environment how threads wait and, where a quota is tighter, how many there are.

    They sleep at once where not all of their CPUs are idle now, at the start of a run.
    Where no quota limits the process nothing is said of their number: it decides in which order
    sums are made. Does nothing where an OpenMP library is loaded already, or DOMAIN_TOKENS_THREADS
    is "default".
    """
    if environment.get(AS_BEFORE) == "default" or not sys.modules.keys().isdisjoint(OPENMP):
        return
    if not any(name in environment for name in COUNT):
        quota = cpu_quota(root)
        # Not more than there are anyway: MKL starts a thread per core, not per hardware thread.
        if quota is not None and max(1, int(quota)) < len(_cores(root)):
            environment["OMP_NUM_THREADS"] = str(max(1, int(quota)))
    count = environment.get("OMP_NUM_THREADS", "")
    told = count.isdecimal() and int(count) > 0
    if told:
        environment.setdefault("NUMBA_NUM_THREADS", count)  # or its pool has one for each core
    if not any(name in environment for name in WAIT):
        threads = int(count) if told else len(_cores(root))
        alone = threads == 1 or idle_cpus(root) > threads - 0.5
        environment["GOMP_SPINCOUNT"] = str(SPINS_ALONE if alone else SPINS_BESIDE_OTHERS)


def usable_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use: by its affinity and its cgroup's quota."""
    quota = cpu_quota(root)
    count = len(_affinity())
    return count if quota is None else max(1, min(count, int(quota)))


def job_cpus() -> int:
    """Return how many CPUs this job should take: fewer where OMP_NUM_THREADS gives it fewer.

    Jobs side by side are told so, and would else start a worker for each CPU in each of them.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable_cpus(), int(told)) if told.isdecimal() and int(told) else usable_cpus()


def describe_threads() -> str:
    """Return in words how many threads torch uses, and of what: `2 threads (of 64 CPUs, …)`."""
    import torch

    quota = cpu_quota()
    of = f"of {os.cpu_count()} CPUs" + (f", {len(_affinity())} of them ours" if _bound() else "")
    of += "" if quota is None else f", quota {quota:g}"
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''} ({of})"


def idle_cpus(root: Path = Path("/")) -> float:
    """Return how many of the CPUs that this process may use are idle while it sleeps for GLANCE.

    0 where the system does not tell.
    """
    before, start = _idle_ticks(root), time.perf_counter()
    if not before:
        return 0.0
    time.sleep(GLANCE)
    ticks = sum(_idle_ticks(root).values()) - sum(before.values())
    return ticks / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - start)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return how many CPUs the cgroups of this process allow (2.5: half of one is shared), or None.

    Read are version 2 (cpu.max) and 1 (cpu.cfs_quota_us), of the process's own group and all above
    it, of which the tightest holds. root: where /proc and /sys lie.
    """
    quotas = [
        quota for folder in cgroup_folders("cpu", root) if (quota := _quota_in(folder)) is not None
    ]
    return min(quotas, default=None)


def cgroup_folders(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Yield the folders of the process's groups and of all groups above them.

    In a container the root of the tree is its own group, whatever path /proc tells.
    """
    lines = _text(root / "proc/self/cgroup").splitlines()
    for _, kinds, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if kinds and controller not in kinds.split(","):
            continue
        tops = [root / "sys/fs/cgroup"]
        if kinds:
            tops = [tops[0] / kinds, tops[0] / controller]
        for top in tops:
            own = top / path.strip("/")
            yield from (own, *own.parents[: len(own.parts) - len(top.parts)])


def _idle_ticks(root: Path) -> dict[int, int]:
    """Return how long each CPU of this process has been idle since the system started."""
    lines = (line.split() for line in _text(root / "proc/stat").splitlines())
    ticks = {words[0]: int(words[4]) + int(words[5]) for words in lines if len(words) > 7}
    ours = _affinity()
    return {n: ticks[f"cpu{n}"] for n in ours if f"cpu{n}" in ticks}


def _quota_in(folder: Path) -> float | None:
    """Return the CPUs that one group allows, None where it sets no limit."""
    words = _text(folder / "cpu.max").split()
    if len(words) != 2:
        words = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    quota, period = (int(word) if word.isdecimal() else 0 for word in words)
    return quota / period if quota and period else None  # "max" and -1 are no limit


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _affinity() -> set[int]:
    """Return the CPUs that the scheduler may give to this process."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))  # macOS


def _bound() -> bool:
    return len(_affinity()) < (os.cpu_count() or 1)


def _cores(root: Path) -> set[str]:
    """Return the cores that this process may use, each by the list of its hardware threads."""
    folder = root / "sys/devices/system/cpu"
    lists = {n: _text(folder / f"cpu{n}/topology/thread_siblings_list") for n in _affinity()}
    return {siblings.strip() or str(number) for number, siblings in lists.items()}
