"""Lineages side by side: a process and a log file each; one that fails stops no other.

Several on one GPU share its memory, and nobody knows before how much each takes: what ran out of it
next to others is begun again with fewer at a time.
"""

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from domain_tokens.experiment.stages import Lineage
from domain_tokens.runs import NO_MEMORY, ROOT, job_cpus, make_folder

SCRIPT = ROOT / "scripts" / "run_experiment.py"
LOOK_EVERY = 0.5  # seconds
PATIENCE = 30.0  # seconds that a child which is told to end has for it


def run_side_by_side(
    lineages: Sequence[Lineage],
    argv: Sequence[str],
    *,
    jobs: int,
    logs: Path,
    tell: Callable[[list[str]], None],
) -> dict[str, str]:
    """Run each lineage in a process of its own, `jobs` at a time; return what failed, and how.

    argv: the arguments of run_experiment.py, to which the name of the lineage is added. tell:
    called with the names of the running lineages whenever a stage has finished or a lineage ended.
    Every process ends with this one, even where this one is killed: see `end_with_parent`.
    """
    make_folder(logs)
    waiting, running = deque(line.name for line in lineages), dict[str, subprocess.Popen]()
    failed: dict[str, str] = {}
    crowded = set[str]()  # what runs, or ran, next to others
    at_once, before = jobs, _finished(lineages)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.popleft()
                running[name] = _start(name, argv, jobs=jobs, log=_log(logs, name))
                crowded = crowded | set(running) if len(running) > 1 else crowded - {name}
            time.sleep(LOOK_EVERY)
            ended = {
                name: process for name, process in running.items() if process.poll() is not None
            }
            for name, process in ended.items():
                del running[name]
                if not process.returncode:
                    continue
                how = _how(process.returncode, _log(logs, name))
                if name in crowded and NO_MEMORY in how:
                    at_once = max(1, at_once - 1)
                    waiting.append(name)
                    print(f"{name}: {how}; begun again later, {at_once} at a time", flush=True)
                else:
                    failed[name] = how
            now = _finished(lineages)
            if ended or now != before:
                before = now
                tell(list(running))
    finally:
        _end(list(running.values()))
    return failed


def end_with_parent() -> None:
    """End this process at once when the one that started it is gone, however that ended.

    The parent holds the other end of the standard input, and says nothing on it.
    """

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)  # what is unfinished can be resumed, as after any kill

    threading.Thread(target=watch, daemon=True).start()


def _start(name: str, argv: Sequence[str], *, jobs: int, log: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if jobs > 1:
        # Threads of several processes that wait for each other at barriers take each other's cores.
        environment["OMP_NUM_THREADS"] = str(max(1, job_cpus() // jobs))
        environment.pop("NUMBA_NUM_THREADS", None)  # it follows
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *argv, "--only", name, "--child"],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _log(logs: Path, name: str) -> Path:
    return logs / f"{name}.log"


def _finished(lineages: Sequence[Lineage]) -> int:
    return sum(stage.finished.is_file() for line in lineages for stage in line.stages)


def _how(status: int, log: Path) -> str:
    """Return how a process ended: its last line, where it wrote one."""
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
    return f"{how}: {last[:300]} (see {log})"


def _end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
