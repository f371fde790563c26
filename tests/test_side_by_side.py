"""Lineages side by side: all run, a failing one is named, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from domain_tokens.experiment import side_by_side
from domain_tokens.experiment.stages import Lineage, Stage
from tests.conftest import ROOT

# Stands in for run_experiment.py: what it does depends on the name of the lineage.
CHILD = """
import os, sys, time
from pathlib import Path
from domain_tokens.experiment.side_by_side import end_with_parent
assert sys.argv[-1] == "--child"
root, name = Path(sys.argv[1]), sys.argv[sys.argv.index("--only") + 1]
end_with_parent()
(root / f"{name}.pid").write_text(str(os.getpid()))
if name.startswith("fails"):
    sys.exit("error: no such base")
if name.startswith("dies"):
    os.abort()
if name.startswith("large"):  # has no room next to another, "larger" not even alone
    started = root / f"{name}.began"
    started.write_text(started.read_text() + "." if started.exists() else ".")
    time.sleep(0.3)
    others = [p for p in root.glob("*.here") if p.stem != name]
    (root / f"{name}.here").write_text("")
    time.sleep(0.3)
    others += [p for p in root.glob("*.here") if p.stem != name]
    (root / f"{name}.here").unlink()
    if others or name.startswith("larger"):
        sys.exit("failed: not enough memory (CUDA out of memory); end other programs")
if name.startswith("hangs"):
    time.sleep(600)
for part in ("train", "eval"):
    time.sleep(0.2)
    (root / name).mkdir(exist_ok=True)
    (root / name / part).write_text(str(time.monotonic()))
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    monkeypatch.setattr(side_by_side, "SCRIPT", script)
    monkeypatch.setattr(side_by_side, "LOOK_EVERY", 0.02)
    return script


def lineages(root, *names):
    return [
        Lineage(name, *([Stage("", [], [], root / name / part)] for part in ("train", "eval")))
        for name in names
    ]


def run(root, *names, jobs=2):
    told = []
    failed = side_by_side.run_side_by_side(
        lineages(root, *names), [str(root)], jobs=jobs, logs=root / "logs", tell=told.append
    )
    return failed, told


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return open(f"/proc/{pid}/stat").read().split()[2] != "Z"


def within(seconds, what):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_lineage_that_fails_stops_no_other_and_is_named(child, tmp_path):
    failed, told = run(tmp_path, "a", "fails_1", "dies_1", "b", "c")
    assert failed == {
        "fails_1": f"exit status 1: error: no such base (see {tmp_path / 'logs' / 'fails_1.log'})",
        "dies_1": f"signal 6: it wrote nothing (see {tmp_path / 'logs' / 'dies_1.log'})",
    }
    for name in "abc":
        assert (tmp_path / name / "eval").is_file()
    assert max(map(len, told)) <= 2
    assert told[-1] == []


def test_what_had_no_memory_next_to_others_runs_again_with_fewer(child, tmp_path, capfd):
    """Eight lineages on one GPU: twelve of twenty failed for want of memory, one by one."""
    names = ("large_1", "large_2", "large_3", "larger_4", "a")
    failed, _ = run(tmp_path, *names, jobs=3)
    log = tmp_path / "logs" / "larger_4.log"
    how = "exit status 1: failed: not enough memory (CUDA out of memory); end other programs"
    assert failed == {"larger_4": f"{how} (see {log})"}
    for name in ("large_1", "large_2", "large_3", "a"):
        assert (tmp_path / name / "eval").is_file()
    assert "begun again later, 2 at a time" in capfd.readouterr().out
    assert len((tmp_path / "larger_4.began").read_text()) <= 4


def test_as_many_run_at_once_as_are_asked_for(child, tmp_path):
    start = time.monotonic()
    assert run(tmp_path, "a", "b", jobs=1)[0] == {}
    ends = [float((tmp_path / name / "eval").read_text()) for name in "ab"]
    assert start < ends[0] < float((tmp_path / "b" / "train").read_text()) < ends[1]


def test_a_parent_that_is_told_to_end_ends_its_children(child, tmp_path, monkeypatch):
    class Told(Exception):
        pass

    def tell(_):
        raise Told

    pids = [tmp_path / f"{name}.pid" for name in ("hangs", "a")]
    with pytest.raises(Told):
        side_by_side.run_side_by_side(
            lineages(tmp_path, "hangs", "a"), [str(tmp_path)], jobs=2, logs=tmp_path, tell=tell
        )
    assert not any(alive(int(pid.read_text())) for pid in pids if pid.exists())


def test_children_end_with_a_parent_that_is_killed(child, tmp_path):
    code = f"""
from pathlib import Path
from domain_tokens.experiment import side_by_side
from domain_tokens.experiment.stages import Lineage
side_by_side.SCRIPT = Path({str(child)!r})
side_by_side.run_side_by_side([Lineage("hangs_1", [], []), Lineage("hangs_2", [], [])],
    [{str(tmp_path)!r}], jobs=2, logs=Path({str(tmp_path)!r}), tell=print)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    files = [tmp_path / f"hangs_{n}.pid" for n in (1, 2)]
    within(60, lambda: all(file.is_file() and file.read_text() for file in files))
    pids = [int(file.read_text()) for file in files]
    assert all(map(alive, pids))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    within(20, lambda: not any(map(alive, pids)))


def test_threads_are_shared_out(child, tmp_path, monkeypatch):
    seen = []

    class Recorded(subprocess.Popen):
        def __init__(self, *words, env, **more):
            seen.append(env)
            super().__init__(*words, env=env, **more)

    monkeypatch.setattr(side_by_side.subprocess, "Popen", Recorded)
    monkeypatch.setattr("domain_tokens.runs.threads.usable_cpus", lambda: 8)
    # What the user gave, or the container's quota, is what all jobs have together.
    for given, jobs, expected in ((None, 2, "4"), (None, 9, "1"), ("6", 2, "3"), (None, 1, None)):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if given:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        run(tmp_path, "a", jobs=jobs)
        assert seen[-1].get("OMP_NUM_THREADS") == expected
