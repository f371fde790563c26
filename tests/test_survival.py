"""What goes wrong around a run: one clear line, nothing lost, and --resume ends in the same."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from domain_tokens.checkpoints.hashes import weights_hash
from domain_tokens.evaluation.responses import Answers
from domain_tokens.training.loss import summed_loss
from domain_tokens.training.trainer import last_checkpoint
from tests.conftest import call, plant, train, tree


def evaluate(demo, folder, *more):
    words = ["--model-path", demo / "sft_gsm8k_baseline", "--output-dir", demo / folder]
    words += ["--condition", "baseline", "--batch-size", 8, "--max-new-tokens", 6]
    return call("eval/run_arithmetic_probes.py", *words, *more)


def one_line(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def at_call(monkeypatch, number, act):
    """Let the loss function of training act at one of its calls."""
    honest, calls = summed_loss, []

    def patched(model, inputs, head):
        calls.append(1)
        loss = honest(model, inputs, head)
        return act(loss) if len(calls) == number else loss

    plant(monkeypatch, "domain_tokens.training.loss.summed_loss", patched)


@contextlib.contextmanager
def no_room(size):
    """No file can grow beyond this many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_preempted_run_saves_and_ends_in_the_same_weights(demo, monkeypatch, capsys):
    assert train(demo, "whole") == 0
    capsys.readouterr()

    def preempt(loss):
        os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with monkeypatch.context() as patch:
        at_call(patch, 3, preempt)
        assert train(demo, "told") == 1
    assert "terminated after step 3 of" in one_line(capsys)
    assert last_checkpoint(demo / "told").endswith("checkpoint-3")
    assert train(demo, "told", "--resume") == 0
    assert weights_hash(demo / "told") == weights_hash(demo / "whole")


def test_a_preempted_evaluation_keeps_its_answers(demo, monkeypatch, capsys):
    assert evaluate(demo, "whole") == 0
    capsys.readouterr()
    honest, kept = Answers.append, []

    def preempt(self, id, response):
        honest(self, id, response)
        kept.append(id)
        if len(kept) == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Answers, "append", preempt)
        assert evaluate(demo, "told") == 1
    assert "terminated (SIGTERM)" in one_line(capsys)
    assert evaluate(demo, "told", "--resume") == 0
    items = "arithmetic_items.jsonl"
    assert (demo / "told" / items).read_bytes() == (demo / "whole" / items).read_bytes()


def test_a_loss_that_is_no_number_stops_before_it_is_saved(demo, monkeypatch, capsys):
    """Trainer's default hides NaN in the log, and a later checkpoint replaces the last good one."""
    at_call(monkeypatch, 4, lambda loss: loss * torch.nan)
    assert train(demo, "nan", "--set", "training.logging_steps=100") == 1
    line = one_line(capsys)
    assert "loss is nan at step 4" in line
    assert "learning_rate" in line
    kept = last_checkpoint(demo / "nan")
    assert kept.endswith("checkpoint-2")
    assert all(t.isfinite().all() for t in load_file(f"{kept}/model.safetensors").values())
    assert not (demo / "nan" / "sft_results.json").exists()


def test_a_full_disk_ends_training_with_one_line(demo, capsys):
    assert train(demo, "whole") == 0
    before = tree(demo / "sft_tulu_baseline")
    capsys.readouterr()
    with no_room(200_000):
        assert train(demo, "full") == 1
    assert "make room, then --resume" in one_line(capsys)
    assert tree(demo / "sft_tulu_baseline") == before
    assert train(demo, "full", "--resume") == 0
    assert weights_hash(demo / "full") == weights_hash(demo / "whole")


def test_a_full_disk_ends_an_evaluation_with_one_line(demo, capsys):
    assert evaluate(demo, "whole") == 0
    capsys.readouterr()
    with no_room(4_000):
        assert evaluate(demo, "full") == 1
    assert "make room, then --resume" in one_line(capsys)
    assert evaluate(demo, "full", "--resume") == 0
    items = "arithmetic_items.jsonl"
    assert (demo / "full" / items).read_bytes() == (demo / "whole" / items).read_bytes()


def test_a_folder_that_cannot_be_made_is_bad_input(demo, capsys):
    for script in (train, evaluate):
        assert script(demo, "/proc/nowhere/run") == 2
        assert "cannot make /proc/nowhere" in one_line(capsys)


@pytest.mark.parametrize(
    ("name", "size"), [("model.safetensors", 5000), ("tokenizer.json", 300), ("config.json", 20)]
)
def test_a_parent_that_was_cut_off_is_refused(demo, capsys, name, size):
    path = demo / "sft_tulu_baseline" / name
    path.write_bytes(path.read_bytes()[:size])
    before = tree(demo)
    assert train(demo, "new") == 2
    assert "sft_tulu_baseline" in one_line(capsys)
    assert tree(demo) == before


def test_a_half_written_checkpoint_is_passed_over(demo, monkeypatch, capsys):
    """Trainer takes the highest number, whole or not, and fails on an empty checkpoint-99."""
    assert train(demo, "whole") == 0
    at_call(monkeypatch, 5, lambda loss: loss * torch.nan)
    assert train(demo, "half") == 1
    monkeypatch.undo()
    kept = last_checkpoint(demo / "half")
    later = demo / "half" / "checkpoints" / "checkpoint-99"
    shutil.copytree(kept, later)
    (later / "trainer_state.json").unlink()
    capsys.readouterr()
    assert train(demo, "half", "--resume") == 0
    assert weights_hash(demo / "half") == weights_hash(demo / "whole")


HOLDER = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_on_a_folder_is_refused_and_harmless(demo, capsys):
    shutil.copytree(demo / "sft_gsm8k_baseline", demo / "busy")
    (demo / "busy" / "sft_results.json").rename(demo / "kept.json")
    card = json.loads((demo / "busy" / "run_card.json").read_text())
    (demo / "busy" / "unfinished.json").write_text(json.dumps(card["identity"]))
    command = [sys.executable, "-c", HOLDER, str(demo / "busy" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        before = tree(demo / "busy")
        assert train(demo, "busy", "--overwrite") == 2
        assert "another process is writing" in one_line(capsys)
        assert tree(demo / "busy") == before
        holder.stdin.close()
