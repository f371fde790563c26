"""Folders: what is refused when it is loaded, and how files are written."""

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from domain_tokens.checkpoints.folder import (
    load_model,
    load_tokenizer,
    prove_savable,
    require_extended,
    save_checkpoint,
)
from domain_tokens.errors import UserError
from tests import small_models
from tests.small_models import edit_json, write_folder
from tests.test_make_base import make


def spoil_weights(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


LAST = "model.layers.1.mlp.up_proj.weight"
REFUSED = {
    "missing": (lambda f: spoil_weights(f, lambda t: t.pop(LAST)), f"disagree at {LAST}"),
    "unexpected": (
        lambda f: spoil_weights(f, lambda t: t.update({"model.extra": t[LAST].clone()})),
        "disagree at model.extra",
    ),
    "not finite": (
        lambda f: spoil_weights(f, lambda t: t[LAST].__setitem__((0, 0), torch.nan)),
        f"1 of 1536 numbers of {LAST} are not finite",
    ),
    "another head": (
        lambda f: spoil_weights(
            f, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2})
        ),
        "disagree at the output layer",
    ),
    "code": (
        lambda f: edit_json(f / "config.json", auto_map={"AutoModelForCausalLM": "x.Y"}),
        "asks for code",
    ),
    "tokenizer code": (
        lambda f: edit_json(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
        "asks for code",
    ),
    "encoder and decoder": (
        lambda f: edit_json(f / "config.json", model_type="t5"),
        "t5 is no causal LM",
    ),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter"),
    "quantized": (
        lambda f: edit_json(f / "config.json", quantization_config={"quant_method": "awq"}),
        "are quantized",
    ),
    "no tokenizer": (
        lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
        "no tokenizer in the folder; give --tokenizer",
    ),
    "no EOS": (
        lambda f: edit_json(f / "tokenizer_config.json", eos_token=None),
        "no EOS token",
    ),
    "empty tokenizer": (
        lambda f: edit_json(
            f / "tokenizer.json", model={"type": "BPE", "vocab": {"a": 0}, "merges": []}
        ),
        "wanted one that can spell it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_source_that_is_not_whole_is_refused_in_one_line(tmp_path, capsys, case):
    change, words = REFUSED[case]
    change(write_folder(tmp_path / "source", "llama", tie_word_embeddings=True))
    assert make(tmp_path / "source", tmp_path / "base") == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error) < 400, error
    assert not (tmp_path / "base").exists()


def as_hub(folder, place, name):
    """Lay a folder out as the hub's cache has it."""
    root = place / f"models--lab--{name}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    (root / "snapshots").mkdir()
    folder.rename(root / "snapshots" / ("0" * 40))


def test_a_hub_id_is_checked_like_a_folder(tmp_path, capsys, monkeypatch):
    """The tensors that a hub's file lacked were drawn at random: two arms, two bases."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("whole", "missing"):
        as_hub(write_folder(tmp_path / name, "llama"), tmp_path / "hub", name)
    snapshot = tmp_path / "hub" / "models--lab--missing" / "snapshots" / ("0" * 40)
    spoil_weights(snapshot, lambda t: t.pop(LAST))
    assert make("lab/missing", tmp_path / "refused") == 2
    assert f"disagree at {LAST}" in capsys.readouterr().err
    assert make("lab/whole", tmp_path / "base") == 0
    card = json.loads((tmp_path / "base" / "run_card.json").read_text())
    assert (card["hub_revision"], card["proof"]["tensors"]) == ("0" * 40, 21)
    assert make("lab/nowhere", tmp_path / "other") == 2
    assert "not on a hub that can be reached" in capsys.readouterr().err


def test_weights_in_a_bin_file_make_the_same_base(tmp_path):
    source = write_folder(tmp_path / "source", "gpt2")
    assert make(source, tmp_path / "one") == 0
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    assert make(source, tmp_path / "two") == 0
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert all(one[name].equal(two[name]) for name in one | two)


class Trap:
    """Touches a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_bin_file_with_code_is_not_unpickled(tmp_path, capsys):
    source = write_folder(tmp_path / "source", "gpt2")
    (source / "model.safetensors").unlink()
    torch.save({"wte.weight": Trap(tmp_path / "ran")}, source / "pytorch_model.bin")
    assert make(source, tmp_path / "base") == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_all_files_have_the_permissions_that_the_umask_gives(tmp_path, mask):
    """safetensors writes 0600 whatever the umask: a group could not evaluate a checkpoint."""
    source = write_folder(tmp_path / "source", "gpt2")
    before = os.umask(mask)
    try:
        assert make(source, tmp_path / "base") == 0
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "base").iterdir() if path.is_file()]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {0o666 & ~mask}, modes


SAMPLING = {"temperature": 0.6, "top_p": 0.9, "do_sample": False, "eos_token_id": 0}


def test_sampling_flags_neither_crash_a_save_nor_stay(tmp_path, capsys):
    """A temperature without do_sample was refused by the save after training: the run was lost."""
    source = write_folder(tmp_path / "source", "gpt2")
    (source / "generation_config.json").write_text(json.dumps(SAMPLING))
    assert make(source, tmp_path / "base") == 0
    assert "do_sample, temperature, top_p dropped" in capsys.readouterr().out
    saved = json.loads((tmp_path / "base" / "generation_config.json").read_text())
    assert saved.keys() - {"transformers_version"} == {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    }
    # A parent from elsewhere: loaded, it can be saved, by Trainer's checkpoints as well.
    model = load_model(source, dtype=torch.float32)
    tokenizer = load_tokenizer(source)
    prove_savable(model, tokenizer, tmp_path / "new")
    model.save_pretrained(tmp_path / "trainer")
    save_checkpoint(model, tokenizer, tmp_path / "trainer")


def test_what_cannot_be_saved_is_said_before_training(tmp_path):
    source = write_folder(tmp_path / "source", "gpt2")
    model = load_model(source, dtype=torch.float32)
    model.config.use_cache = False
    tokenizer = load_tokenizer(source)
    prove_savable(model, tokenizer, tmp_path / "new")
    assert model.config.use_cache is False  # a trial changes nothing
    model.config.odd = object()
    with pytest.raises(UserError, match="cannot be saved"):
        prove_savable(model, tokenizer, tmp_path / "new")


def test_a_parent_without_fact_tokens_is_refused(tmp_path):
    """The baseline arm trained to its end on one; only the evaluation refused it."""
    source = write_folder(tmp_path / "source", "gpt2")
    with pytest.raises(UserError, match=r"make_base\.py"):
        require_extended(load_tokenizer(source), source)
    assert make(source, tmp_path / "base") == 0
    tokenizer = load_tokenizer(tmp_path / "base")
    require_extended(tokenizer, tmp_path / "base")
    edit_json(tmp_path / "base" / "config.json", vocab_size=len(small_models.vocabulary()))
    with pytest.raises(UserError, match="rows"):
        require_extended(tokenizer, tmp_path / "base")
