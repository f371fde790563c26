"""The proof of a base folder, tested by mutation: whatever is changed in it, it is refused.

The import once had a "proof" that read the same filtered tensors as the conversion, and agreed
while every bias was gone. This one reads the files itself; here it is shown what it catches.
"""

import json

import pytest
from safetensors.torch import load_file, save_file

from domain_tokens.checkpoints.base import prove_base, resolve_source
from domain_tokens.checkpoints.base_proof import is_mask
from domain_tokens.checkpoints.folder import load_model
from domain_tokens.errors import UserError
from tests import small_models
from tests.conftest import plant
from tests.small_models import write_folder, write_gguf
from tests.test_make_base import make

SOURCES = {
    "gpt2 folder": lambda root: write_folder(root / "source", "gpt2"),
    "llama folder": lambda root: write_folder(
        root / "source", "llama", tie_word_embeddings=False, attention_bias=True
    ),
    "llama gguf": lambda root: write_gguf(root / "source.gguf", "llama"),
    "gpt2 gguf": lambda root: write_gguf(root / "source.gguf", "gpt2", tied=True, pre="gpt-2"),
    "qwen2 gguf": lambda root: write_gguf(root / "source.gguf", "qwen2", pre="qwen2"),
    "qwen3 gguf": lambda root: write_gguf(root / "source.gguf", "qwen3", tied=True, pre="qwen2"),
}
# Leaves of config.json that decide no logits, or only what the architecture's class is called.
UNSEEN = {"transformers_version", "dtype", "use_cache"}


@pytest.fixture(scope="module", params=SOURCES)
def made(request, tmp_path_factory):
    """A finished base with its source: (name, source, folder)."""
    folder = tmp_path_factory.mktemp("proof")
    path = SOURCES[request.param](folder)
    assert make(path, folder / "base") == 0
    return request.param, resolve_source(str(path), None), folder / "base"


def prove(source, folder):
    return prove_base(source, folder, seed=42)


def test_the_proof_accounts_for_everything(made):
    name, source, folder = made
    proof = json.loads((folder / "make_base_results.json").read_text())["proof"]
    saved = load_file(folder / "model.safetensors")
    assert proof["tensors"] == len(saved)
    assert proof["tokens"] == len(small_models.vocabulary())
    assert proof["merges"] == len(small_models.PAIRS)
    assert proof["texts"] > 200
    assert proof["config_keys"] > 10
    if "gguf" in name:
        assert proof["tensors"] == len(source.gguf.raw)
        assert 0 <= proof["largest_logit_difference"] < 1e-3


def test_every_change_of_a_tensor_is_refused(made):
    name, source, folder = made
    file = folder / "model.safetensors"
    before, content = load_file(file), file.read_bytes()
    refused, passed = [], []
    try:
        for what, changed in small_models.mutated_tensors(before):
            save_file(changed, file, metadata={"format": "pt"})
            try:
                prove(source, folder)
                passed.append(what)
            except UserError:
                refused.append(what)
    finally:
        file.write_bytes(content)
    print(f"{name}: {len(refused)} changes of {len(before)} tensors refused")
    assert passed == []
    assert len(refused) >= 4 * len(before)
    assert prove(source, folder)["tensors"] == len(before)  # the untouched folder still passes


def test_every_change_of_the_config_is_refused(made):
    name, source, folder = made
    file = folder / "config.json"
    content = file.read_text()
    refused, passed = [], []
    try:
        for path, changed in small_models.mutated_leaves(json.loads(content)):
            file.write_text(json.dumps(changed))
            try:
                prove(source, folder)
                passed.append(path)
            except UserError:
                refused.append(path)
    finally:
        file.write_text(content)
    print(f"{name}: {len(refused)} keys refused, {passed} not seen")
    unseen = UNSEEN | ({"bos_token_id", "pad_token_id", "initializer_range"} & set(passed))
    assert set(passed) <= unseen
    decisive = {"gpt2": ("n_head", "activation_function", "layer_norm_epsilon", "n_positions")}
    decisive["other"] = ("num_key_value_heads", "rms_norm_eps", "rope_parameters.rope_theta")
    kind = "gpt2" if "gpt2" in name else "other"
    assert set(decisive[kind]) <= set(refused)


def test_every_change_of_the_tokenizer_is_refused(made):
    _, source, folder = made
    file = folder / "tokenizer.json"
    content = file.read_text()

    def changes():
        def tree():
            return json.loads(content)

        for number in range(len(small_models.PAIRS)):
            changed = tree()
            del changed["model"]["merges"][number]
            yield f"merge {number} dropped", changed
        changed = tree()
        merges = changed["model"]["merges"]
        merges[0], merges[3] = merges[3], merges[0]
        yield "merges swapped", changed
        changed = tree()
        ids = changed["model"]["vocab"]
        ids["a"], ids["b"] = ids["b"], ids["a"]
        yield "ids swapped", changed
        changed = tree()
        changed["pre_tokenizer"] = {"type": "Whitespace"}
        yield "another splitter", changed
        changed = tree()
        changed["normalizer"] = {"type": "Lowercase"}
        yield "a normalizer", changed

    passed = []
    try:
        for what, changed in changes():
            file.write_text(json.dumps(changed))
            try:
                prove(source, folder)
                passed.append(what)
            except UserError:
                pass
    finally:
        file.write_text(content)
    assert passed == []


@pytest.mark.parametrize("row", [0, -1, -50])
def test_one_number_of_one_row_is_enough(made, row):
    """Old rows, padding and facts: one value off by a hundredth."""
    _, source, folder = made
    file = folder / "model.safetensors"
    content = file.read_bytes()
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith(("wte.weight", "embed_tokens.weight")))
    tensors[name][row, 3] += 0.01
    try:
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match="is not its source"):
            prove(source, folder)
    finally:
        file.write_bytes(content)


def test_a_folder_that_fails_its_proof_is_not_left(tmp_path, monkeypatch, capsys):
    """What the import gets wrong is refused by make_base, and no folder remains to be used."""
    source = write_folder(tmp_path / "source", "llama")
    load = load_model

    def wrong(folder, **options):
        model = load(folder, **options)
        if folder == source:
            model.model.layers[1].self_attn.q_proj.weight.data.mul_(1.001)
        return model

    plant(monkeypatch, "domain_tokens.checkpoints.folder.load_model", wrong)
    assert make(source, tmp_path / "base") == 2
    assert "self_attn.q_proj.weight has other values" in capsys.readouterr().err
    assert not (tmp_path / "base").exists()


def test_masks_and_tied_heads_are_left_out_by_name(tmp_path):
    """GPT-2's published file holds its causal masks and no prefixes; both are accounted for."""
    import torch

    source = write_folder(tmp_path / "source", "gpt2")
    file = source / "model.safetensors"
    tensors = {n.removeprefix("transformer."): t for n, t in load_file(file).items()}
    mask = torch.ones(1, 1, small_models.CONTEXT, small_models.CONTEXT).tril()
    tensors["h.0.attn.bias"] = mask
    save_file(tensors, file, metadata={"format": "pt"})
    assert make(source, tmp_path / "base") == 0
    proof = json.loads((tmp_path / "base" / "make_base_results.json").read_text())["proof"]
    assert proof["left_out"] == {"h.0.attn.bias": "a causal mask"}
    assert not is_mask("h.0.attn.bias", mask.flip(-1))
    assert not is_mask("h.0.attn.c_attn.bias", torch.ones(3))
