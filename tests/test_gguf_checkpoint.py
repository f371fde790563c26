"""GGUF imports: what transformers would lose or guess is refused by name; the rest is proved."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from domain_tokens.checkpoints.folder import load_model
from domain_tokens.checkpoints.gguf import load_gguf_tokenizer
from domain_tokens.checkpoints.gguf_forward import read_gguf, shape_of
from domain_tokens.checkpoints.gguf_proof import prove_logits
from domain_tokens.errors import UserError
from tests import small_models
from tests.small_models import write_gguf
from tests.test_make_base import make

ADDED = np.ones(small_models.HEADS * small_models.HEAD_DIM, dtype=np.float32)
BLOCK_1 = [name for name in small_models.gguf_tensors("llama") if name.startswith("blk.1.")]
REFUSED = {
    # A first part of two once gave random weights in every layer of the other part.
    "part": ({"drop": BLOCK_1, "keys": {"split.no": 0, "split.count": 2}}, "part 1 of 2, blk.1.*"),
    "missing": ({"drop": ["blk.1.ffn_up.weight"]}, "blk.1.ffn_up.weight is not there (1 of"),
    "bias": ({"add": {"blk.0.attn_q.bias": ADDED}}, "blk.0.attn_q.bias would be lost"),
    "rope": ({"add": {"rope_freqs.weight": ADDED[:4]}}, "rope_freqs.weight would be lost"),
    "scaling": ({"keys": {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type is yarn"),
    "window": ({"keys": {"llama.attention.sliding_window": 8}}, "attention.sliding_window is 8"),
    "experts": ({"keys": {"llama.expert_count": 8}}, "llama.expert_count is 8"),
    "part of a head": ({"keys": {"llama.rope.dimension_count": 4}}, "metadata say"),
    "shape": ({"keys": {"llama.feed_forward_length": 40}}, "its metadata say"),
    "not finite": (
        {"add": {"blk.0.attn_norm.weight": np.full(32, np.nan, dtype=np.float32)}},
        "blk.0.attn_norm.weight is not finite",
    ),
    "architecture": ({"architecture": "bloom"}, "bloom cannot be proved"),
    "pre": ({"pre": "viking"}, "tokenizer.ggml.pre is 'viking'"),
    "default pre": ({"pre": "default"}, "whose splitting of text is not known"),
    "sentencepiece": ({"keys": {"tokenizer.ggml.model": "llama"}}, "give the model's own with"),
    "no EOS": ({"keys": {"tokenizer.ggml.eos_token_id": None}}, "no EOS"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_import_would_lose_is_refused_by_name(tmp_path, capsys, case):
    options, words = REFUSED[case]
    architecture = options.get("architecture", "llama")
    if architecture == "bloom":
        path = tmp_path / "source.gguf"
        from gguf import GGUFWriter

        writer = GGUFWriter(path, architecture)
        writer.add_tensor("token_embd.weight", ADDED.reshape(4, 8))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    else:
        path = write_gguf(tmp_path / "source.gguf", **options)
    assert make(path, tmp_path / "base") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "base").exists()


def test_a_file_cut_short_is_one_line(tmp_path, capsys):
    path = write_gguf(tmp_path / "source.gguf")
    path.write_bytes(path.read_bytes()[:5000])
    assert make(path, tmp_path / "base") == 2
    assert "cannot be read as GGUF" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_the_logits_alone_see_every_changed_tensor(tmp_path, architecture):
    """The forward pass over the file's tensors is a proof of its own, not only their equality.

    Not Qwen 3: it normalises its keys, so that a scaled k_proj changes no logit at all.
    """
    pre = "qwen2" if architecture == "qwen2" else "gpt-2"
    path = write_gguf(tmp_path / "source.gguf", architecture, pre=pre)
    assert make(path, tmp_path / "base") == 0
    file, weights = read_gguf(path), tmp_path / "base" / "model.safetensors"
    shape, before, passed = shape_of(file), load_file(weights), []
    assert prove_logits(file, shape, tmp_path / "base") < 1e-3
    for what, changed in small_models.mutated_tensors(before):
        save_file(changed, weights, metadata={"format": "pt"})
        try:
            prove_logits(file, shape, tmp_path / "base")
            passed.append(what)
        except UserError:
            pass
    assert passed == []


TEXTS = ("\n\n1.", "12 1234", "x12\n\n34", " 1", "the thing's 12's")


@pytest.mark.parametrize("pre", ["smollm", "starcoder", "refact", "command-r", "exaone"])
def test_digits_are_split_one_by_one_where_the_model_does(tmp_path, pre):
    """transformers splits these like GPT-2: `12` became one token, and SmolLM2 never saw that."""
    file = read_gguf(write_gguf(tmp_path / "source.gguf", pre=pre))
    tokenizer = load_gguf_tokenizer(file)
    own, gpt2 = small_models.hf_tokenizer(), small_models.hf_tokenizer(digits=False)
    for text in TEXTS:
        assert tokenizer.encode(text) == own.encode(text), text
    assert tokenizer.encode("12 1234") != gpt2.encode("12 1234")
    assert "12" in tokenizer.get_vocab()  # so that a wrong splitter would have shown


def test_bos_is_put_before_a_text_as_the_file_says(tmp_path):
    for added, start in ((True, [0]), (False, []), (None, [])):
        keys = {"tokenizer.ggml.add_bos_token": added}
        file = read_gguf(write_gguf(tmp_path / f"{added}.gguf", keys=keys))
        assert load_gguf_tokenizer(file).encode("") == start


def test_a_tokenizer_of_another_model_is_refused(tmp_path, capsys):
    small_models.hf_tokenizer().save_pretrained(tmp_path / "own")
    path = write_gguf(tmp_path / "source.gguf", pre="viking")
    assert make(path, tmp_path / "base", "--tokenizer", tmp_path / "own") == 0
    tokens = small_models.vocabulary()
    tokens[5], tokens[6] = tokens[6], tokens[5]
    keys = {"tokenizer.ggml.tokens": tokens}
    path = write_gguf(tmp_path / "other.gguf", pre="viking", keys=keys)
    assert make(path, tmp_path / "other", "--tokenizer", tmp_path / "own") == 2
    assert "give the tokenizer of this very model" in capsys.readouterr().err


def test_an_output_layer_of_its_own_stays_one(tmp_path):
    path = write_gguf(tmp_path / "source.gguf", tied=False)
    assert make(path, tmp_path / "base") == 0
    model = load_model(tmp_path / "base", dtype=torch.float32)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert not model.config.tie_word_embeddings
