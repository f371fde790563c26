"""Machines that give little: no home, no TMPDIR, a read-only install, no memory.

/proc/none cannot be made, by root either.
"""

import os
import subprocess
import sys
import tempfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domain_tokens.errors import UserError
from domain_tokens.runs.cli import run_script
from domain_tokens.runs.device import Device
from domain_tokens.runs.memory import available_memory, is_out_of_memory, refuse_without_memory
from domain_tokens.training.preflight import refuse_without_memory_to_train
from tests.conftest import ROOT, plant, train, tree
from tests.small_models import write_folder
from tests.test_make_base import make
from tests.test_survival import at_call, evaluate, no_room, one_line
from tests.test_threads import machine, write

NOWHERE = "/proc/none"


@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """Neither a home nor a folder for temporary files, but pytest's own, which is there already."""
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", NOWHERE)
    monkeypatch.setattr(tempfile, "tempdir", NOWHERE)


def test_a_base_needs_no_folder_for_temporary_files(homeless, tmp_path):
    """Its configs were tried in TMPDIR, and a full one said that they could not be saved."""
    source = write_folder(tmp_path / "source", "gpt2")
    assert make(source, tmp_path / "base") == 0
    assert not list(tmp_path.glob(".preflight*"))


def test_a_full_disk_is_no_fault_of_the_configs(tmp_path, capsys):
    source = write_folder(tmp_path / "source", "gpt2")
    before = tree(tmp_path)
    with no_room(100):
        assert make(source, tmp_path / "base") == 1
    assert "make room, then" in one_line(capsys)
    assert tree(tmp_path) == before


def test_stages_need_neither(demo, homeless, capsys):
    assert train(demo, "new") == 0
    assert evaluate(demo, "eval") == 0
    assert capsys.readouterr().err == ""


def test_without_a_folder_for_prepared_data_one_line_says_what_to_set(demo, monkeypatch, capsys):
    before = tree(demo)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", f"{NOWHERE}/huggingface")
    assert train(demo, "new") == 2
    line = one_line(capsys)
    assert f"{NOWHERE}/huggingface" in line
    assert "set HF_HOME" in line
    assert tree(demo) == before


FIGURE = """
import sys, tempfile
tempfile.tempdir = "/proc/none"
from domain_tokens.runs import run_script
def main(argv):
    from domain_tokens.comparison.figures import _figure
    _figure(1, size=(1, 1))
    return 0
sys.exit(run_script(main))
"""


def test_figures_without_a_folder_for_matplotlib_say_so_in_one_line():
    environment = {k: v for k, v in os.environ.items() if k != "XDG_CONFIG_HOME"}
    words = [sys.executable, "-c", FIGURE]
    environment |= {"HOME": NOWHERE, "MPLCONFIGDIR": f"{NOWHERE}/matplotlib"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: the figures cannot be drawn")
    assert "set MPLCONFIGDIR" in line


READ_ONLY = """
mount --bind {root} {root} && mount -o remount,ro,bind {root} || exit 99
touch {root}/x 2>/dev/null && exit 98
cd {root} && exec {command}
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts the checkout again")
def test_a_checkout_that_is_read_only_evaluates_and_is_left_as_it_is(demo):
    words = ["eval/run_arithmetic_probes.py", "--model-path", demo / "sft_gsm8k_baseline"]
    words += ["--output-dir", demo / "read_only", "--condition", "baseline", "--max-new-tokens", 4]
    command = " ".join(str(word) for word in (sys.executable, *words))
    script = READ_ONLY.format(root=ROOT, command=command)
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode in (1, 99) and "unshare" in done.stderr + str(done.returncode == 99):
        pytest.skip("no mount of one's own is allowed here")
    assert done.returncode == 0, done.stderr
    assert (demo / "read_only" / "arithmetic_results.json").is_file()


def test_training_that_runs_out_of_memory_says_so_and_goes_on(demo, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        at_call(patch, 4, lambda loss: loss + torch.empty(10**14).sum())
        assert train(demo, "short") == 1
    line = one_line(capsys)
    assert "not enough memory" in line
    assert "then --resume" in line
    assert train(demo, "short", "--resume") == 0


def libraries_say():
    """What this machine's own libraries raise where memory is short."""
    for take in (lambda: torch.empty(10**14), lambda: bytearray(10**15)):
        try:
            take()
        except (RuntimeError, MemoryError) as error:
            yield error


def test_what_libraries_say_of_short_memory_is_known():
    errors = [*libraries_say(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2")]
    errors.append(ImportError("libtorch_cpu.so: failed to map segment from shared object"))
    assert len(errors) == 4
    assert all(is_out_of_memory(error) for error in errors)
    for error in (RuntimeError("shape mismatch"), ValueError("out of memory lane"), KeyError("x")):
        assert not is_out_of_memory(error)


def test_too_little_memory_to_load_the_libraries_is_one_line(capsys):
    """`ulimit -v` below what torch maps: its loader's traceback said nothing of memory."""

    def main(argv):
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    assert run_script(main) == 1
    assert "not enough memory" in one_line(capsys)


GIB = 2**30
INFO = "MemTotal:       67108864 kB\nMemAvailable:    8388608 kB\nSwapFree:        1048576 kB\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 9 * GIB),
        ("0::/\n", {"memory.max": "max", "memory.current": "5"}, 9 * GIB),
        ("0::/\n", {"memory.max": str(2 * GIB), "memory.current": str(GIB)}, GIB),
        (  # what a group only keeps of files can be had
            "0::/a\n",
            {
                "a/memory.max": str(2 * GIB),
                "a/memory.current": str(2 * GIB),
                "a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            },
            GIB,
        ),
        ("0::/a\n", {"memory.max": "1000", "memory.current": "400"}, 600),
        (
            "7:memory:/docker/x\n",
            {
                "memory/memory.limit_in_bytes": str(3 * GIB),
                "memory/memory.usage_in_bytes": str(GIB),
            },
            2 * GIB,
        ),
        ("7:cpu:/\n", {"cpu/memory.max": "10", "cpu/memory.current": "9"}, 9 * GIB),
    ],
)
def test_the_memory_that_is_left(tmp_path, groups, files, expected):
    root = machine(tmp_path, groups=groups, files=files)
    write(root / "proc/meminfo", INFO)
    assert available_memory(root) == expected


@given(st.integers(0, 20), st.integers(0, 20))
def test_a_run_that_cannot_fit_is_refused(tmp_path_factory, needed, left):
    root = machine(
        tmp_path_factory.mktemp("machine"),
        groups="0::/\n",
        files={"memory.max": str(left), "memory.current": "0"},
    )
    write(root / "proc/meminfo", INFO)
    if needed > left:
        with pytest.raises(UserError, match="can be had"):
            refuse_without_memory(needed, "its numbers", root=root)
    else:
        refuse_without_memory(needed, "its numbers", root=root)


def test_training_is_refused_where_the_kernel_would_kill_it(tiny_model, monkeypatch):
    """Gradients and two moments of each weight, in fp32."""
    needed = 12 * sum(p.numel() for p in tiny_model.parameters())
    for left, device, refused in (
        (needed - 1, "cpu", True),
        (needed, "cpu", False),
        (0, "cuda", False),
        (None, "cpu", False),  # a system that does not tell
    ):
        plant(monkeypatch, "domain_tokens.runs.memory.available_memory", lambda *a, x=left: x)
        if refused:
            with pytest.raises(UserError, match="the gradients and AdamW's state need"):
                refuse_without_memory_to_train(tiny_model, Device(device, torch.float32))
        else:
            refuse_without_memory_to_train(tiny_model, Device(device, torch.float32))


def test_this_machine_tells_what_it_has():
    assert (available_memory() or 0) > 2**20
