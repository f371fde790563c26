"""To a hub and back: the same bytes, the run card as model card, and no secret."""

import os
import subprocess
import sys

import pytest

from domain_tokens.checkpoints.hashes import weights_hash
from domain_tokens.checkpoints.hub import files_of
from domain_tokens.errors import UserError
from tests.conftest import ROOT, call, tree
from tests.fake_hub import serving

TOKEN = "hf_averysecrettokenofatest"


def hub_script(url, *words):
    """Run scripts/hub.py in a process of its own: the library reads HF_ENDPOINT when imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    return subprocess.run(
        [sys.executable, "scripts/hub.py", *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def hub():
    with serving() as server:
        yield server


def test_push_and_pull_give_the_same_checkpoint(demo, hub, tmp_path, capsys):
    folder = demo / "sft_gsm8k_mul_tokens"
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events.out").write_bytes(b"curves")
    before = tree(folder)
    sent = hub_script(
        hub.url, "push", folder, "me/facts", "--eval-dir", demo / "eval_mul_tokens", "--private"
    )
    assert sent.returncode == 0, sent.stderr
    assert f"{hub.url}/me/facts/commit/" in sent.stdout
    assert tree(folder) == before
    files = hub.repositories["me/facts"]
    assert not [name for name in files if "optimizer" in name or "tensorboard" in name]
    page = files["README.md"].decode()
    assert page.startswith("---\nlanguage: en\n")
    for part in ("mul_tokens, sft, seed 42", "GSM8K test, strict", " to ", weights_hash(folder)):
        assert part in page
    got = hub_script(hub.url, "pull", "me/facts", tmp_path / "pulled")
    assert got.returncode == 0, got.stderr
    assert weights_hash(tmp_path / "pulled") == weights_hash(folder)
    assert call("scripts/check_checkpoint.py", tmp_path / "pulled") == 0
    said = sent.stdout + sent.stderr + got.stdout + got.stderr + "".join(map(str, files.values()))
    assert TOKEN not in said
    assert any(TOKEN in (credentials or "") for _, _, credentials in hub.seen)


def test_a_damaged_download_leaves_nothing(demo, hub, tmp_path):
    folder = demo / "sft_gsm8k_baseline"
    assert hub_script(hub.url, "push", folder, "me/facts").returncode == 0
    files = hub.repositories["me/facts"]
    weights = bytearray(files["model.safetensors"])
    weights[-1] ^= 1
    files["model.safetensors"] = bytes(weights)
    got = hub_script(hub.url, "pull", "me/facts", tmp_path / "pulled")
    assert got.returncode == 2
    assert "model.safetensors is not that of its run card" in got.stderr
    assert list(tmp_path.glob("*pull*")) == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("pull", "me/nothing", "{new}"), "me/nothing is not at"),
        (("pull", "me/facts", "{used}"), "is in use; give a new folder"),
        (("push", "{new}", "me/facts"), "no such checkpoint|not found|not a complete checkpoint"),
        (("push", "{model}", "no such name"), "is no repository name"),
        (("push", "{model}", "me/x", "--eval-dir", "{other}"), "is of another checkpoint"),
    ],
)
def test_bad_input_is_one_line(demo, hub, tmp_path, words, complaint):
    places = {
        "new": tmp_path / "new",
        "used": demo,
        "model": demo / "sft_gsm8k_baseline",
        "other": demo / "eval_mul_tokens",
    }
    done = hub_script(hub.url, *(word.format(**places) for word in words))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert any(part in done.stderr for part in complaint.split("|")), done.stderr


def test_a_hub_that_cannot_be_reached_is_named(demo, tmp_path):
    for words in (
        ("push", demo / "sft_gsm8k_baseline", "me/facts"),
        ("pull", "me/facts", tmp_path / "new"),
    ):
        done = hub_script("http://127.0.0.1:9", *words)
        assert done.returncode == 2, done.stderr
        assert "http://127.0.0.1:9 cannot be reached" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_an_unfinished_checkpoint_is_not_published(demo):
    folder = demo / "sft_gsm8k_baseline"
    (folder / "sft_results.json").unlink()
    with pytest.raises(UserError, match=r"sft_results\.json not found"):
        files_of(folder)
