"""The contention benchmark: its arms differ as they say, and its ratios are what it says."""

import os
from pathlib import Path

import pytest

from domain_tokens.runs.files import read_json
from tests.conftest import call, load_script

SCRIPT = "benchmarks/contention.py"


def test_ratios_are_of_medians():
    contention = load_script(SCRIPT)
    times = {
        ("training", "before", "alone"): [10.0, 10.0, 99.0],
        ("training", "before", "busy"): [80.0, 1.0, 70.0],
        ("training", "before", "two"): [50.0],
        ("training", "after", "alone"): [10.2],
        ("training", "after", "busy"): [20.4],
        ("training", "after", "two"): [20.4],
    }
    before, after = contention.table(times).splitlines()[2:]
    assert before == "| training | before | 10.0 | 7.00 × | 2.50 × | 1.000 |"
    assert after == "| training | after | 10.2 | 2.00 × | 1.00 × | 1.020 |"


def test_each_arm_is_told_what_it_is(tmp_path, monkeypatch):
    """A setting of the caller's own would reach both arms and make them the same."""
    contention = load_script(SCRIPT)
    show = tmp_path / "show.py"
    show.write_text(
        "import os; print({k: v for k, v in os.environ.items() if 'MP_' in k or 'THREADS' in k})"
    )
    monkeypatch.setattr(contention, "command", lambda *a: [str(show)])
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    for arm, expected in ({}, "{}"), (contention.ARMS["before"], "{'DOMAIN_TOKENS_THREADS': 'def"):
        contention.run_once(contention.Bench(tmp_path, tmp_path), "demo", arm, count=2)
        for number in range(2):
            assert (tmp_path / f"demo_{number}.log").read_text().startswith(expected)


def test_the_busy_process_is_busy_and_ends():
    contention = load_script(SCRIPT)
    with contention.busy_process() as process:
        assert process.poll() is None
    assert process.returncode is not None


@pytest.mark.slow
@pytest.mark.skipif("CI" in os.environ, reason="busy loops: twelve minutes become fifteen")
def test_the_whole_of_it_in_its_smallest_form(demo, tmp_path):
    words = ["--demo-dir", demo, "--work-dir", tmp_path / "work", "--limit", 8, "--rounds", 1]
    words += ["--workloads", "decoding", "--output-path", tmp_path / "times.json"]
    assert call(SCRIPT, *words) == 0
    seconds = read_json(Path(tmp_path / "times.json"))["seconds"]
    assert set(seconds) == {
        f"decoding / {arm} / {situation}"
        for arm in ("before", "after")
        for situation in ("alone", "busy", "two")
    }
    assert all(len(taken) == 1 and taken[0] > 0 for taken in seconds.values())
    assert "DOMAIN_TOKENS_THREADS" not in os.environ
