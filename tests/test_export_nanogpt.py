"""The export of nanoGPT checkpoints, of all public shapes, and what it must refuse."""

import json
import os
import pickle
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from domain_tokens.checkpoints.folder import load_model
from domain_tokens.checkpoints.nanogpt import WRAPPERS, _named_tensors, load_nanogpt
from domain_tokens.checkpoints.nanogpt_proof import compare_logits, read_original
from domain_tokens.errors import UserError
from tests.conftest import call, tree

WIDTH, LAYERS, HEADS, BLOCK = 16, 2, 4, 24
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


FSDP = "_fsdp_wrapped_module._checkpoint_wrapped_module"


def wrap(name, wrapper):
    """The key that a wrapped block has: transformer.h.0.ln_1 -> transformer.h.0.WRAPPER.ln_1."""
    return re.sub(r"(h\.\d+\.)", rf"\g<1>{wrapper}.", name)


def export(checkpoint, folder, *more):
    arguments = ("--checkpoint", checkpoint, "--condition", "baseline", "--output-dir", folder)
    return call("scripts/export_nanogpt.py", *arguments, *more)


def nanogpt_file(state, **more):
    biased = any(name.endswith("ln_f.bias") for name in state)
    stated = {**SHAPE, "bias": biased, "vocab_size": None, "dropout": 0.1}
    return {"model": state, "model_args": stated, "config": {"lr": 1}, "iter_num": 5, **more}


def test_every_public_shape_passes_its_proof(save, tmp_path, capsys):
    plain = raw_state()
    files = {
        "nanogpt": nanogpt_file(plain),
        "compiled in DDP": nanogpt_file({f"_orig_mod.module.{n}": t for n, t in plain.items()}),
        "DDP": nanogpt_file({f"module.{n}": t for n, t in plain.items()}),
        "compiled by block": nanogpt_file({wrap(n, "_orig_mod"): t for n, t in plain.items()}),
        "FSDP by block": nanogpt_file(
            {f"_fsdp_wrapped_module.{wrap(n, FSDP)}": t for n, t in plain.items()}
        ),
        "no head": nanogpt_file({n: t for n, t in plain.items() if n != "lm_head.weight"}),
        "no masks": nanogpt_file({n: t for n, t in plain.items() if not n.endswith(".attn.bias")}),
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
        assert report["largest_logit_difference"] <= report["tolerance"] < 1e-6
        assert report["vocabulary"] == 50_349
        if name in ("nanogpt", "no biases"):  # it decodes, too: slow, and the rest are like these
            assert call("scripts/check_checkpoint.py", folder) == 0, capsys.readouterr().out
        tanh = "config" in name
        assert report["activation"] == ("gelu_pytorch_tanh" if tanh else "gelu")
    kept = load_model(tmp_path / "50349", dtype=torch.float32)
    rows = files["50349"]["model"]["transformer.wte.weight"]
    assert kept.get_input_embeddings().weight.equal(rows)


def test_the_wrong_activation_is_refused_by_nobody_but_told(save, tmp_path, capsys):
    """It is in no file: the proof uses the one that was chosen, so it has to be said aloud."""
    folder = tmp_path / "out"
    path = save(nanogpt_file(raw_state()))
    assert export(path, folder, "--activation", "gelu_pytorch_tanh") == 0
    assert "activation gelu_pytorch_tanh (as given)" in capsys.readouterr().out
    card = json.loads((folder / "run_card.json").read_text())
    assert card["activation"] == "gelu_pytorch_tanh"


def test_the_two_activations_differ_by_more_than_the_tolerance(save, tmp_path):
    path = save(nanogpt_file(raw_state()))
    assert export(path, tmp_path / "out") == 0
    original = read_original(path)
    compare_logits(original, tmp_path / "out", activation="gelu")
    with pytest.raises(UserError, match="logits differ by"):
        compare_logits(original, tmp_path / "out", activation="gelu_pytorch_tanh")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_number_types_become_fp32_exactly(save, tmp_path, dtype):
    """float64 that fp32 cannot hold is refused, see REFUSED."""
    state = {name: t.to(dtype) for name, t in raw_state().items()}
    assert export(save(nanogpt_file(state)), tmp_path / "out") == 0
    model = load_model(tmp_path / "out", dtype=torch.float32)
    attention = model.get_parameter("transformer.h.1.attn.c_attn.weight").data
    assert attention.dtype == torch.float32
    assert attention.t().double().equal(state["transformer.h.1.attn.c_attn.weight"].double())


def test_an_untied_head_is_exported_as_one(save, tmp_path, capsys):
    state = raw_state()
    state["lm_head.weight"] = state["lm_head.weight"].flip(0)
    assert export(save(nanogpt_file(state)), tmp_path / "out") == 0
    assert "lm_head differs from wte" in capsys.readouterr().out
    model = load_model(tmp_path / "out", dtype=torch.float32)
    head = model.get_output_embeddings().weight
    assert head is not model.get_input_embeddings().weight
    assert head[:50_304].equal(state["lm_head.weight"])


def test_rows_far_from_zero_are_no_other_model(save, tmp_path):
    """GPT-2's own embeddings have columns whose mean is far larger than their deviation: the mean
    of 50,257 such rows in fp32 rounds by more than a fraction of the deviation."""
    state = raw_state()
    state["transformer.wte.weight"] += 5
    assert export(save(nanogpt_file(state)), tmp_path / "out") == 0


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


LN = "transformer.h.1.ln_2"
MASK, MASKED = "transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"


def state_is(name, value):
    return lambda c: c["model"].update({name: value})


def args_are(**values):
    return lambda c: c["model_args"].update(values)


def as_type(name, change):
    return lambda c: c["model"].update({name: change(c["model"][name])})


def vocabulary_of(rows):
    return lambda c: c["model"].update(raw_state(rows))


def config_instead(**values):
    def change(content):
        content.pop("model_args")
        content["config"] = {**SHAPE, **values}

    return change


REFUSED = {
    # tensors by name
    "missing": (lambda c: c["model"].pop(f"{LN}.weight"), f"lacks {LN}.weight"),
    "bias missing": (lambda c: c["model"].pop(f"{LN}.bias"), f"lacks {LN}.bias (1 of 13 biases)"),
    "biases not stated": (args_are(bias=False), "wanted no biases, as model_args says bias False"),
    "biases stated": (
        lambda c: c.update(model=raw_state(bias=False)),
        "(13 of 13 biases); wanted all, as model_args says bias True",
    ),
    "unknown": (state_is("extra", torch.ones(1)), "holds extra, which no nanoGPT has"),
    "head bias": (state_is("lm_head.bias", torch.ones(1)), "holds lm_head.bias"),
    "layer too many": (args_are(n_layer=1), "of layer 1; wanted layers 0 to 0"),
    "mask of a layer too many": (
        state_is("transformer.h.2.attn.bias", torch.ones(BLOCK, BLOCK).tril()[None, None]),
        "transformer.h.2.attn.bias, of layer 2",
    ),
    "layer too few": (args_are(n_layer=3), "lacks transformer.h.2.attn.c_attn.weight"),
    "layers without end": (args_are(n_layer=10**12), "lacks transformer.h."),
    "two of one name": (
        state_is("_orig_mod.transformer.wpe.weight", torch.ones(BLOCK, WIDTH)),
        "two tensors of one name (transformer.wpe.weight)",
    ),
    "two of one name within": (
        state_is("transformer.h.0._orig_mod.ln_1.weight", torch.ones(WIDTH)),
        "two tensors of one name (transformer.h.0.ln_1.weight)",
    ),
    "no tensor": (state_is("transformer.h.0.extra", 5), "'transformer.h.0.extra', a int"),
    "nested": (state_is("transformer", {"a": torch.ones(1)}), "'transformer', a dict"),
    "number for a name": (state_is(3, torch.ones(1)), "holds 3, a Tensor"),
    # causal masks
    "mask of another size": (
        state_is(MASK, torch.ones(1, 1, 9, 9).tril()),
        f"{MASK} is (1, 1, 9, 9); wanted a causal mask (1, 1, {BLOCK}, {BLOCK})",
    ),
    "mask of a window": (as_type(MASK, lambda t: t.triu(-3)), f"{MASK} is not the causal mask"),
    "no causal mask": (as_type(MASK, torch.ones_like), f"{MASK} is not the causal mask"),
    "a vector for a mask": (state_is(MASK, torch.ones(WIDTH)), f"{MASK} is ({WIDTH},)"),
    "masked_bias too weak": (state_is(MASKED, torch.tensor(-1.0)), f"{MASKED} is not what GPT-2"),
    "masked_bias nan": (state_is(MASKED, torch.tensor(torch.nan)), f"{MASKED} is not what GPT-2"),
    "masked_bias a vector": (state_is(MASKED, torch.ones(3) * -1e4), f"{MASKED} is not what GPT-2"),
    # values
    "nan": (as_type(f"{LN}.weight", lambda t: t * torch.nan), f"{LN}.weight is not finite"),
    "whole numbers": (as_type(f"{LN}.weight", lambda t: t.int()), "is torch.strided int32"),
    "sparse": (
        as_type("transformer.wpe.weight", lambda t: t.to_sparse()),
        "transformer.wpe.weight is torch.sparse_coo",
    ),
    "no values": (as_type(f"{LN}.weight", lambda t: t.to("meta")), "is without values"),
    "float64": (
        as_type(f"{LN}.weight", lambda t: t.double() + 1e-12),
        f"{LN}.weight is float64 and fp32 cannot hold",
    ),
    "float64 too large": (
        as_type(f"{LN}.weight", lambda t: t.double() * 1e300),
        f"{LN}.weight is not finite",
    ),
    # stated sizes
    "no n_head": (lambda c: c["model_args"].pop("n_head"), "no n_head; wanted a whole number"),
    "n_head text": (args_are(n_head="4"), "n_head '4'; wanted a whole number"),
    "n_layer true": (args_are(n_layer=True), "n_layer True; wanted a whole number"),
    "n_layer zero": (args_are(n_layer=0), "n_layer 0; wanted a whole number from 1"),
    "n_head does not divide": (args_are(n_head=3), "n_embd 16 and n_head 3; wanted an n_head that"),
    "n_embd": (args_are(n_embd=32), "wanted (50304, 32), as model_args says n_embd 32"),
    "block_size": (args_are(block_size=8), f"block_size 8, wpe has {BLOCK} rows"),
    "vocab_size": (args_are(vocab_size=50_257), "vocab_size 50257, wte has 50304 rows"),
    "vocab_size text": (args_are(vocab_size="50304"), "vocab_size '50304'; wanted a whole number"),
    "bias number": (args_are(bias=1), "bias 1; wanted True or False"),
    # another tokenizer
    "characters": (vocabulary_of(65), "trained with another tokenizer (65 tokens); only GPT-2's"),
    "llama": (vocabulary_of(32_000), "trained with another tokenizer (32,000 tokens)"),
    "odd": (vocabulary_of(50_310), "trained with another tokenizer (50,310 tokens)"),
    "cl100k": (vocabulary_of(100_352), "trained with another tokenizer (100,352 tokens)"),
    # the file
    "no model": (lambda c: c.pop("model"), "wanted model with model_args"),
    "no sizes": (lambda c: (c.pop("model_args"), c.pop("config")), "holds ['iter_num', 'model']"),
    "model a list": (lambda c: c.update(model=[1]), "wanted model with model_args"),
    "sizes a list": (lambda c: c.update(model_args=[1]), "model_args is a list; wanted names"),
}
# What public forks of nanoGPT add, with the tensors of a GPT-2.
EXTENSIONS = {
    "use_relu": True, "use_squared_relu": True, "window_size": 128, "use_softermax": True,
    "activation": "relu", "activation_variant": "squared_relu", "softmax_variant_attn": "softmax",
    "use_rmsnorm": True, "use_post_ln": True, "rope": True, "use_rotary_embeddings": True,
    "rotary_base": 10_000, "n_kv_group": 4, "n_kv_head": 2, "qk_norm": True, "softcap": 30.0,
    "logit_scale": 0.5, "norm_eps": 1e-6, "layer_norm_epsilon": 1e-6, "loop_counts": [2],
    "use_pos_embeddings": False, "causal": False, "is_causal": None, "use_layernorm": False,
    "use_mlp": False, "weight_tying": False, "tie_weights": None, "scale_attn_weights": False,
    "residual": False, "window": 0, "temperature": 0.0, "note": "", "groups": [],
}  # fmt: skip
REFUSED |= {
    f"{key}={value!r}": (args_are(**{key: value}), f"says {key} {value!r}, which no GPT-2 has")
    for key, value in EXTENSIONS.items()
}
REFUSED |= {
    "in config": (config_instead(use_relu=True), "config says use_relu True, which no GPT-2 has"),
    "training settings": (config_instead(learning_rate=1e-3), "config says learning_rate 0.001"),
    "no text for a key": (lambda c: c["model_args"].update({7: True}), "says 7 True"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_gpt2_is_refused_by_name(save, tmp_path, capsys, case):
    """One line, status 2, nothing written. Each of these ended in a traceback, in words about
    something else, or, worst, in a finished folder with "logits equal" to another model's."""
    change, words = REFUSED[case]
    content = nanogpt_file(raw_state())
    change(content)
    path = save(content)
    before = tree(tmp_path)
    assert export(path, tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_what_changes_nothing_is_accepted_and_said(save, tmp_path, capsys):
    content = nanogpt_file(raw_state())
    harmless = {"flash": True, "use_flash_attn": False, "attn_dropout": 0.1}
    off = {"use_rmsnorm": False, "window_size": None, "use_post_ln": False, "rope_scaling": None}
    content["model_args"] |= harmless | off
    assert export(save(content), tmp_path / "out") == 0
    shown = capsys.readouterr().out
    for key, value in off.items():
        assert f"model_args has {key} {value}: taken for an extension that is off" in shown
    assert not any(key in shown for key in harmless)


@pytest.mark.parametrize("rows", [50_257, 50_258, 50_304, 50_349, 50_432, 51_200])
def test_padded_vocabularies_of_gpt2_are_accepted(save, rows):
    content = nanogpt_file(raw_state(rows))
    content["model_args"]["vocab_size"] = rows
    assert load_nanogpt(save(content)).vocab_size == rows


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_wrappers_anywhere_leave_the_same_names(data):
    """Of the conversion and of the proof, which each strip them in a way of their own."""
    state, wrapped = raw_state(64), {}
    for name, tensor in state.items():
        parts = name.split(".")
        for place in range(len(parts) - 1, -1, -1):
            parts[place:place] = data.draw(st.lists(st.sampled_from(WRAPPERS), max_size=2))
        wrapped[".".join(parts)] = tensor
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ckpt.pt"
        torch.save(nanogpt_file(wrapped), path)
        tensors, masks = _named_tensors(path, wrapped)
        original = read_original(path)
    assert tensors.keys() | masks.keys() == state.keys() == original.tensors.keys()
    assert masks.keys() == {name for name in state if name.endswith(".attn.bias")}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_tensor_of_another_shape_is_named_with_both_shapes(data):
    state = raw_state(64)
    name = data.draw(st.sampled_from(sorted(state)))
    shape = tuple(data.draw(st.lists(st.integers(1, 70), min_size=0, max_size=3)))
    rows = name == "transformer.wte.weight" and len(shape) == 2 and shape[1] == WIDTH
    assume(shape != tuple(state[name].shape) and not rows)  # these are another vocabulary
    state[name] = torch.ones(shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ckpt.pt"
        torch.save(nanogpt_file(state), path)
        with pytest.raises(UserError) as error:
            load_nanogpt(path)
    shown = str(error.value)
    if name == "transformer.wte.weight":  # or the head, whose rows should be as many
        assert "wte.weight is (" in shown or "lm_head.weight is (" in shown
    elif name == MASK or name == MASK.replace("0", "1"):  # looked at once all others fit
        assert "another tokenizer (64 tokens)" in shown
    elif name == "transformer.wpe.weight" and len(shape) == 2 and shape[0] != BLOCK:
        assert f"block_size {BLOCK}, wpe has {shape[0]} rows" in shown
    else:
        assert (
            f"{name} is {shape}; wanted ({', '.join(map(str, raw_state(64)[name].shape))}" in shown
        )
