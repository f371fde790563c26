"""The export of nanoGPT checkpoints, of all public shapes, and what it must refuse."""

import json
import os
import pickle
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

from domain_tokens import checkpoints, nanogpt
from tests.conftest import call, tree

WIDTH, LAYERS, HEADS, BLOCK = 32, 2, 4, 48
SHAPE = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": BLOCK}


def raw_state(vocabulary=50_304, *, bias=True, seed=0):
    """Tensors as nn.Linear and nn.Embedding hold them, with the stored causal masks."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    state = {
        "transformer.wte.weight": random(vocabulary, WIDTH),
        "transformer.wpe.weight": random(BLOCK, WIDTH),
        "transformer.ln_f.weight": 1 + random(WIDTH),
    }
    for i in range(LAYERS):
        block = f"transformer.h.{i}"
        state[f"{block}.ln_1.weight"] = 1 + random(WIDTH)
        state[f"{block}.ln_2.weight"] = 1 + random(WIDTH)
        state[f"{block}.attn.c_attn.weight"] = random(3 * WIDTH, WIDTH)
        state[f"{block}.attn.c_proj.weight"] = random(WIDTH, WIDTH)
        state[f"{block}.mlp.c_fc.weight"] = random(4 * WIDTH, WIDTH)
        state[f"{block}.mlp.c_proj.weight"] = random(WIDTH, 4 * WIDTH)
    if bias:
        for name in [n for n in state if ".h." in n or "ln_f" in n]:
            state[name.removesuffix("weight") + "bias"] = random(state[name].shape[0])
    for i in range(LAYERS):
        mask = torch.ones(BLOCK, BLOCK).tril()[None, None]
        state[f"transformer.h.{i}.attn.bias"] = mask
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def pickled_config(**values):
    """A dataclass of a module that the reader does not have, as build-nanogpt leaves it."""
    module = ModuleType("train_gpt2")
    GPTConfig = dataclass(type("GPTConfig", (), {"__annotations__": dict.fromkeys(values, int)}))
    GPTConfig.__module__, GPTConfig.__qualname__ = "train_gpt2", "GPTConfig"
    module.GPTConfig = GPTConfig
    sys.modules["train_gpt2"] = module
    return GPTConfig(**values)


@pytest.fixture
def save(tmp_path):
    """Write a checkpoint; the module of a pickled config is gone afterwards."""

    def write(content, name="ckpt.pt"):
        path = tmp_path / name
        torch.save(content, path)
        sys.modules.pop("train_gpt2", None)
        return path

    return write


def export(checkpoint, folder, *more):
    arguments = ("--checkpoint", checkpoint, "--condition", "baseline", "--output-dir", folder)
    return call("scripts/export_nanogpt.py", *arguments, *more)


def nanogpt_file(state, **more):
    return {"model": state, "model_args": {**SHAPE, "bias": True}, "config": {"lr": 1}, **more}


def test_every_public_shape_passes_its_proof(save, tmp_path, capsys):
    plain = raw_state()
    files = {
        "nanogpt": nanogpt_file(plain),
        "compiled in DDP": nanogpt_file({f"_orig_mod.module.{n}": t for n, t in plain.items()}),
        "DDP": nanogpt_file({f"module.{n}": t for n, t in plain.items()}),
        "no biases": nanogpt_file(raw_state(bias=False)),
        "50257": nanogpt_file(raw_state(50_257)),
        "50349": nanogpt_file(raw_state(50_349)),
        "config dict": {"model": plain, "config": SHAPE, "step": 5},
        "config class": {"model": plain, "config": None, "step": 5},
    }
    for name, content in files.items():
        folder = tmp_path / name.replace(" ", "_")
        if name == "config class":
            content["config"] = pickled_config(**SHAPE)
        assert export(save(content, f"{name}.pt"), folder) == 0, name
        report = json.loads((folder / "export_report.json").read_text())
        assert report["largest_logit_difference"] <= 1e-4
        assert report["vocabulary"] == 50_349
        assert call("scripts/check_checkpoint.py", folder) == 0, capsys.readouterr().out
        tanh = "config" in name
        assert report["activation"] == ("gelu_pytorch_tanh" if tanh else "gelu")
    kept = checkpoints.load_model(tmp_path / "50349", dtype=torch.float32)
    rows = files["50349"]["model"]["transformer.wte.weight"]
    assert kept.get_input_embeddings().weight.equal(rows)


@pytest.mark.parametrize("forgotten", nanogpt.TRANSPOSED[1:2])
def test_the_historic_bug_is_refused(save, tmp_path, monkeypatch, capsys, forgotten):
    """The exporter of the study forgot to transpose attn.c_proj: it is square, so every shape fit,
    the model loaded, and its numbers were wrong for days."""
    left = tuple(name for name in nanogpt.TRANSPOSED if name != forgotten)
    monkeypatch.setattr(nanogpt, "TRANSPOSED", left)
    monkeypatch.setattr(nanogpt, "_wanted", lambda layers: set())
    monkeypatch.setattr(nanogpt, "_optional", lambda layers: set(raw_state()))
    assert export(save(nanogpt_file(raw_state())), tmp_path / "out") == 2
    assert "logits differ" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_wrong_activation_is_refused_by_nobody_but_told(save, tmp_path, capsys):
    """It is in no file: the proof uses the one that was chosen, so it has to be said aloud."""
    folder = tmp_path / "out"
    path = save(nanogpt_file(raw_state()))
    assert export(path, folder, "--activation", "gelu_pytorch_tanh") == 0
    assert "activation gelu_pytorch_tanh (as given)" in capsys.readouterr().out
    card = json.loads((folder / "run_card.json").read_text())
    assert card["activation"] == "gelu_pytorch_tanh"


def test_the_two_activations_differ_by_more_than_the_tolerance():
    state = {name: t for name, t in raw_state(64).items() if not name.endswith(nanogpt.MASKS)}
    checkpoint = nanogpt.Checkpoint(state, LAYERS, HEADS, WIDTH, BLOCK, 64, "config")
    model = nanogpt.to_gpt2(checkpoint, activation="gelu")
    assert nanogpt.largest_difference(checkpoint, model, activation="gelu") <= 1e-4
    assert nanogpt.largest_difference(checkpoint, model, activation="gelu_pytorch_tanh") > 1e-4


class Code:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_a_pickle_with_code_is_refused_without_running_it(save, tmp_path, capsys):
    ran = tmp_path / "ran"
    path = save(nanogpt_file(raw_state(), extra=Code(ran)))
    assert export(path, tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "system to be run or made" in shown
    assert "save it again" in shown
    assert not ran.exists()
    assert not (tmp_path / "out").exists()
    asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    assert [name.rpartition(".")[2] for name in asked] == ["system"]  # the file does ask for it


def test_a_class_that_calls_itself_a_config_stays_inert(save, tmp_path, capsys):
    class EvilConfig(Code):
        pass

    EvilConfig.__module__, EvilConfig.__qualname__ = "train_gpt2", "EvilConfig"
    ran = tmp_path / "ran"
    content = {"model": raw_state(), "config": EvilConfig(ran)}
    assert export(save(content), tmp_path / "out") == 2
    assert not ran.exists()
    capsys.readouterr()


DAMAGE = {
    "not a checkpoint": (lambda path: path.write_text("hello"), "is not a readable checkpoint"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "not a readable"),
    "a plain pickle": (lambda path: path.write_bytes(pickle.dumps({"model": {}})), "not a read"),
    "absent": (lambda path: path.unlink(), "not found"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_file_ends_with_one_line(save, tmp_path, capsys, damage):
    break_it, words = DAMAGE[damage]
    path = save(nanogpt_file(raw_state(64)))
    break_it(path)
    before = tree(tmp_path)
    assert export(path, tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["model"].pop("transformer.h.1.ln_2.weight"), "lacks transformer.h.1.ln_2"),
        (lambda c: c["model"].update(extra=torch.ones(1)), "holds extra"),
        (lambda c: c["model_args"].pop("n_head"), "no whole number n_head"),
        (lambda c: c.pop("model"), "wanted model with model_args"),
        (lambda c: c["model"]["transformer.wpe.weight"].fill_(torch.nan), "is not finite"),
    ],
)
def test_what_is_missing_is_named(save, tmp_path, capsys, change, words):
    content = nanogpt_file(raw_state(64))
    content.pop("config")
    change(content)
    assert export(save(content), tmp_path / "out") == 2
    assert words in capsys.readouterr().err
