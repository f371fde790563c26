"""Threads: as many as the process may use, and waiting ones give their core away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain_tokens.runs import threads
from domain_tokens.runs.threads import (
    SPINS_ALONE,
    SPINS_BESIDE_OTHERS,
    cpu_quota,
    idle_cpus,
    job_cpus,
    settle_threads,
    usable_cpus,
)
from tests.conftest import ROOT

SCRIPTS = sorted(p for f in ("sft", "eval", "sample", "scripts") for p in (ROOT / f).glob("*.py"))
NAMES = (*threads.WAIT, *threads.COUNT, threads.AS_BEFORE, "NUMBA_NUM_THREADS")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machine(root, *, groups, files, cores=0):
    """A tree with /proc and /sys as a machine has them; cores: each of two hardware threads."""
    write(root / "proc/self/cgroup", groups)
    for name, text in files.items():
        write(root / "sys/fs/cgroup" / name, text)
    for core in range(cores):
        for number in (core, core + cores):
            folder = root / f"sys/devices/system/cpu/cpu{number}/topology"
            write(folder / "thread_siblings_list", f"{core},{core + cores}\n")
    return root


MACHINES = {
    "version 2, in a container": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
    "version 2, no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    "version 2, of the host": (
        "0::/user.slice/a.scope\n",
        {"user.slice/a.scope/cpu.max": "250000 100000", "cpu.max": "max 100000"},
        2.5,
    ),
    "version 2, the one above is tighter": (
        "0::/a/b/c\n",
        {"a/cpu.max": "150000 100000", "a/b/c/cpu.max": "400000 100000"},
        1.5,
    ),
    "version 2, the path is not in the container": (
        "0::/../../kubepods/pod7\n",
        {"cpu.max": "50000 100000"},
        0.5,
    ),
    "version 1, in a container": (
        "4:cpu,cpuacct:/docker/abc\n1:memory:/docker/abc\n",
        {"cpu,cpuacct/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
        3.0,
    ),
    "version 1, of the host": (
        "4:cpuacct,cpu:/job\n",
        {"cpu/job/cpu.cfs_quota_us": "20000", "cpu/job/cpu.cfs_period_us": "10000"},
        2.0,
    ),
    "version 1, no limit": (
        "4:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        None,
    ),
    "another controller has no say": ("4:cpuset:/\n", {"cpuset/cpu.max": "1 1"}, None),
    "none at all": ("", {}, None),
    "nothing that can be read": ("0::/\nnonsense\n", {"cpu.max": "many\n"}, None),
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_quota_of_a_container(tmp_path, name):
    groups, files, expected = MACHINES[name]
    assert cpu_quota(machine(tmp_path, groups=groups, files=files)) == expected


@given(st.lists(st.none() | st.integers(1, 64), min_size=1, max_size=5))
def test_the_tightest_quota_on_the_way_up_holds(tmp_path_factory, quotas):
    root, path, files = tmp_path_factory.mktemp("machine"), "", {}
    for depth, quota in enumerate(quotas):
        path += f"g{depth}/" if depth else ""
        files[f"{path}cpu.max"] = "max 1000" if quota is None else f"{quota * 1000} 1000"
    files["other/cpu.max"] = "1 1000"  # of other processes
    limits = [quota for quota in quotas if quota is not None]
    tightest = cpu_quota(machine(root, groups=f"0::/{path}\n", files=files))
    assert tightest == min(limits, default=None)


@pytest.fixture
def fresh(monkeypatch):
    """An environment in which nothing is set, before any OpenMP library is loaded."""
    monkeypatch.setattr(threads, "OPENMP", ())
    return {}


def on_64(monkeypatch, root, quota):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    return machine(root, groups="0::/\n", files={"cpu.max": f"{quota} 100000"}, cores=32)


@pytest.mark.parametrize(
    ("quota", "count"),
    [("200000", "2"), ("250000", "2"), ("50000", "1"), ("3100000", "31"), ("max", None)],
)
def test_a_container_starts_no_more_threads_than_it_may_use(
    tmp_path, monkeypatch, fresh, quota, count
):
    root = on_64(monkeypatch, tmp_path, quota)
    settle_threads(fresh, root=root)
    assert fresh.get("OMP_NUM_THREADS") == fresh.get("NUMBA_NUM_THREADS") == count
    assert usable_cpus(root) == int(count or 64)


@pytest.mark.parametrize("quota", ["3200000", "4000000", "9900000"])
def test_a_quota_never_raises_the_number_of_threads(tmp_path, monkeypatch, fresh, quota):
    """MKL starts 32 threads on 32 cores of two hardware threads each; 40 would change all sums."""
    settle_threads(fresh, root=on_64(monkeypatch, tmp_path, quota))
    # This machine tells of no idle CPU.
    assert fresh == {"GOMP_SPINCOUNT": str(SPINS_BESIDE_OTHERS)}


def ticking(monkeypatch, root, idle):
    """A machine whose CPUs are idle for so many of six ticks each, the first two ours.

    Half of that they wait for a disk.
    """
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    ticks, now = [100] * len(idle), [0.0]
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def show():
        lines = [f"cpu{n} 1 0 1 {t - t // 2} {t // 2} 0 0 0 0 0\n" for n, t in enumerate(ticks)]
        write(root / "proc/stat", "cpu  9 0 9 999 9 0 0 0 0 0\n" + "".join(lines))

    def sleep(seconds):
        now[0] += seconds
        ticks[:] = [t + more for t, more in zip(ticks, idle, strict=True)]
        show()

    monkeypatch.setattr("time.sleep", sleep)
    show()
    write(root / "proc/self/cgroup", "0::/\n")
    return root


@pytest.mark.parametrize(
    ("idle", "spins"),
    [
        ([6, 6], SPINS_ALONE),
        ([6, 5], SPINS_ALONE),  # a browser that does little
        ([6, 0], SPINS_BESIDE_OTHERS),
        ([0, 0], SPINS_BESIDE_OTHERS),
        ([6, 6, 0, 0], SPINS_ALONE),  # of others' CPUs nothing is asked
        ([6, 0, 6, 6], SPINS_BESIDE_OTHERS),
    ],
)
def test_threads_wait_as_the_machine_is_idle(tmp_path, monkeypatch, fresh, idle, spins):
    """Always 1,000 rounds cost a fifth of the demo on a quiet machine: each operation woke a
    thread. Always 20,000 cost more than twice the time next to a busy process."""
    root = ticking(monkeypatch, tmp_path, idle)
    settle_threads(fresh, root=root)
    assert fresh == {"GOMP_SPINCOUNT": str(spins)}
    assert idle_cpus(root) == pytest.approx(sum(idle[:2]) / 6)


def test_one_thread_waits_for_nobody(tmp_path, monkeypatch, fresh):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("nothing to look at"))
    fresh["OMP_NUM_THREADS"] = "1"
    settle_threads(fresh, root=tmp_path)
    assert fresh["GOMP_SPINCOUNT"] == str(SPINS_ALONE)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_busy_process_is_seen(monkeypatch):
    """Bound to one CPU, this process and a busy one share it: it has next to no idle time."""
    before, cpu = os.sched_getaffinity(0), min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    try:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
            try:
                monkeypatch.setattr(threads, "GLANCE", 1.0)
                assert idle_cpus() < 0.5
            finally:
                busy.kill()
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("name", threads.WAIT)
def test_what_a_user_says_of_waiting_wins(fresh, name):
    fresh[name] = "7"
    settle_threads(fresh)
    assert {key for key in fresh if key in threads.WAIT} == {name}


@pytest.mark.parametrize("name", threads.COUNT)
def test_what_a_user_says_of_their_number_wins(tmp_path, monkeypatch, fresh, name):
    """Snakemake says it, too: it exports OMP_NUM_THREADS and MKL_NUM_THREADS of each rule."""
    fresh[name] = "5"
    settle_threads(fresh, root=on_64(monkeypatch, tmp_path, "200000"))
    assert {key: fresh[key] for key in threads.COUNT if key in fresh} == {name: "5"}
    assert fresh.get("NUMBA_NUM_THREADS") == ("5" if name == "OMP_NUM_THREADS" else None)


def test_the_old_behaviour_can_be_had(fresh):
    fresh[threads.AS_BEFORE] = "default"
    settle_threads(fresh)
    assert list(fresh) == [threads.AS_BEFORE]


def test_nothing_is_said_that_comes_too_late(monkeypatch):
    monkeypatch.setattr(threads, "OPENMP", ("os",))
    late = {}
    settle_threads(late)
    assert late == {}


def run(code, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split(), done.stderr


LOADS = """
import os, sys
from domain_tokens.runs import run_script, usable_cpus
def main(argv):
    import torch
    from domain_tokens.inference.cpu import kernels
    kernels.use_threads(torch.get_num_threads())
    import numba
    print(torch.get_num_threads(), numba.get_num_threads(), usable_cpus())
    return 0
{before}
sys.exit(run_script(main))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP")
def test_the_library_has_read_it():
    """What is set after the library was loaded is not; OMP_DISPLAY_ENV shows what it has read."""
    _, shown = run(LOADS.format(before=""), OMP_DISPLAY_ENV="verbose")
    assert shown.count("OPENMP DISPLAY ENVIRONMENT BEGIN") >= 1
    ours = [f"GOMP_SPINCOUNT = '{spins}'" for spins in (SPINS_ALONE, SPINS_BESIDE_OTHERS)]
    assert sum(map(shown.count, ours)) == shown.count("GOMP_SPINCOUNT")
    _, shown = run(LOADS.format(before=""), OMP_DISPLAY_ENV="verbose", OMP_WAIT_POLICY="active")
    assert not any(own in shown for own in ours)


@pytest.mark.skipif(sys.platform != "linux", reason="binds a process to one CPU")
def test_a_process_bound_to_one_cpu_has_one_thread():
    one = min(os.sched_getaffinity(0))
    words, _ = run(LOADS.format(before=f"os.sched_setaffinity(0, {{{one}}})"))
    assert words == ["1", "1", "1"]


def test_without_a_quota_there_are_as_many_threads_as_before():
    """Another number of threads makes sums in another order."""
    (count, *_), _ = run(LOADS.format(before=""))
    (before, *_), _ = run(LOADS.format(before=""), **{threads.AS_BEFORE: "default"})
    plain, _ = run("import torch; print(torch.get_num_threads())")
    assert [count] == [before] == plain


def test_no_script_loads_openmp_before_it_is_settled():
    """What a script's own imports bring would have read the environment already."""
    code = f"""
import sys
from pathlib import Path
from tests.conftest import load_script
for path in {[str(path.relative_to(ROOT)) for path in SCRIPTS]!r}:
    load_script(path)
    print(*[f"{{path}}:{{name}}" for name in {threads.OPENMP!r} if name in sys.modules])
"""
    assert len(SCRIPTS) > 8
    loaded, _ = run(code.replace("from tests.conftest import load_script", LOADER))
    assert loaded == []


LOADER = f"""
import importlib.util
def load_script(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path({str(ROOT)!r}) / path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
"""


def test_threads_are_described_for_people(monkeypatch):
    words = threads.describe_threads()
    assert words.split()[0].isdecimal()
    assert f"of {os.cpu_count()} CPUs" in words
    monkeypatch.setattr(threads, "cpu_quota", lambda: 2.5)
    assert "quota 2.5" in threads.describe_threads()
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert "of 64 CPUs, 1 of them ours" in threads.describe_threads()


def test_the_fake_machine_is_not_this_one(tmp_path):
    """Or the tests above would read the real /sys."""
    assert Path("/proc/self/cgroup").exists()
    assert cpu_quota(tmp_path) is None


def test_a_job_among_others_starts_as_many_workers_as_it_has_threads(monkeypatch):
    """Ten lineages side by side on sixteen cores would each have started sixteen renderers."""
    monkeypatch.setattr("domain_tokens.runs.threads.usable_cpus", lambda: 16)
    for told, count in (("1", 1), ("4", 4), ("64", 16), ("", 16), ("0", 16), ("many", 16)):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert job_cpus() == count
