"""Oracle of the GGUF import: `scripts/make_base.py` against numpy and a BPE of our own.

A small random Llama with grouped heads is written with `gguf.GGUFWriter`. The logits of the folder
that the script makes must be those of a forward pass over the file's own tensors
(`gguf_forward.py`), and its tokenizer must split as the file's `tokenizer.ggml.pre` says. The real
SmolLM2 is compared the same way by `benchmarks/gguf_oracle.py`.
"""

import copy

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import call

from .bpe import BPE, gpt2_files, gpt2_pieces, letters, smollm_pieces
from .gguf_forward import LlamaFile

WIDTH, HEADS, GROUPS, INNER, LAYERS, MERGES = 32, 4, 2, 64, 2, 400
KINDS = ["F32", "F16", "Q8_0", "Q4_1"]


def vocabulary():
    """Bytes, the first of GPT-2's merges, and EOS: (tokens to ids, merges)."""
    merges = gpt2_files()[1][:MERGES]
    tokens = [*letters().values(), *(a + b for a, b in merges)]
    return {token: i for i, token in enumerate(tokens)}, merges


def write_tokenizer(writer, pre):
    ids, merges = vocabulary()
    kinds = [TokenType.NORMAL] * len(ids) + [TokenType.CONTROL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*ids, "<|endoftext|>"])
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(len(ids))
    writer.add_eos_token_id(len(ids))
    writer.add_add_bos_token(False)


def shapes(rows, tied):
    """Names and shapes of all tensors, in numpy's order of axes."""
    key = WIDTH // HEADS * GROUPS
    sizes = {"token_embd": (rows, WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        block = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH)}
        block |= {"attn_k": (key, WIDTH), "attn_v": (key, WIDTH), "attn_output": (WIDTH, WIDTH)}
        block |= {"ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH)}
        block |= {"ffn_down": (WIDTH, INNER)}
        sizes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return sizes if tied else sizes | {"output": (rows, WIDTH)}


def write(path, *, kind="F32", tied=False, pre="gpt-2"):
    """Write a random model; matrices in the given type, norms in F32."""
    draw, rows = np.random.default_rng(7), len(vocabulary()[0]) + 1
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-4)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(rows)
    write_tokenizer(writer, pre)
    for name, shape in shapes(rows, tied).items():
        values = draw.normal(0, 0.3, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values + 1)
            continue
        stored = GGMLQuantizationType[kind]
        data = quants.quantize(values, stored)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def imported(folder, **words):
    """Write a file and import it; return the script's status, the file and the folder made."""
    file, base = write(folder / "model.gguf", **words), folder / "base"
    status = call(
        "scripts/make_base.py",
        *("--from", file, "--condition", "baseline", "--output-dir", base),
    )
    return status, file, base


def check_logits(model, file):
    """Logits of random sequences, for the rows that the file has, to 1e-4."""
    source, draw = LlamaFile(file), np.random.default_rng(0)
    rows = source.tensor("token_embd.weight").shape[0]
    for length in (1, 2, 9, 40):
        ids = draw.integers(0, rows, size=length).tolist()
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :, :rows].double().numpy()
        expected = source.logits(ids)
        assert np.abs(expected).max() > 1
        assert np.abs(logits - expected).max() < 1e-4
    assert source.read == source.names  # every tensor of the file was used


@pytest.mark.parametrize(("kind", "tied"), [(k, False) for k in KINDS] + [("F32", True)])
def test_logits_are_those_of_the_file(tmp_path, kind, tied):
    status, file, base = imported(tmp_path, kind=kind, tied=tied)
    assert status == 0
    check_logits(AutoModelForCausalLM.from_pretrained(base), file)


# Tokens

TEXTS = ["\n\n1.", "12 + 345 = 357", "It's 6*9 = 54, isn't it?", " a  b\t\n c ", "é漢字😀½", ""]
TEXTS += ["x1y22z333", "2024-11-26 10:00", "\n", "   ", "#### 1,204", "…—’s", "can’t don't I'LL"]


def check_tokens(encode, pieces):
    ids, merges = vocabulary()
    own = BPE(ids, merges, pieces)
    for text in TEXTS:
        assert encode(text) == own.encode(text), text


def encoder(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    status, _, base = imported(tmp_path_factory.mktemp("plain"))
    assert status == 0
    return encoder(base)


def test_tokens_are_those_of_gpt2s_splitter(plain):
    check_tokens(plain, gpt2_pieces)


OWN = BPE(*vocabulary())


@settings(deadline=None, max_examples=200)
@given(st.text("ab eErRtT0129\n\t.,'’é漢😀½-#=*", max_size=30))
def test_tokens_of_made_texts_are_those_of_a_bpe_of_our_own(plain, text):
    assert plain(text) == OWN.encode(text)


def test_the_oracle_splits_digits_as_the_tokenizers_library_does():
    """SmolLM2's own tokenizer is written as Digits and ByteLevel in its tokenizer.json."""
    ids, merges = vocabulary()
    library = Tokenizer(models.BPE(vocab=ids, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    check_tokens(lambda text: library.encode(text).ids, smollm_pieces)


def test_tokens_of_smollm_have_single_digits(tmp_path):
    status, _, base = imported(tmp_path, pre="smollm")
    assert status == 0
    check_tokens(encoder(base), smollm_pieces)


@pytest.mark.parametrize("pre", ["starcoder", "refact", "command-r", "exaone", "no-such-splitter"])
def test_another_splitter_is_right_or_refused(tmp_path, pre):
    """The first four split as SmolLM2 does."""
    status, _, base = imported(tmp_path, pre=pre)
    if pre == "no-such-splitter" or status:
        assert status == 2
    else:
        check_tokens(encoder(base), smollm_pieces)


# Planted faults

TOKENS = {
    "smollm as GPT-2": (gpt2_pieces, smollm_pieces),
    "GPT-2 as smollm": (smollm_pieces, gpt2_pieces),
    "split at spaces": (str.split, gpt2_pieces),
    "no split": (lambda text: [text] if text else [], gpt2_pieces),
}


@pytest.mark.parametrize("fault", TOKENS)
def test_a_wrong_splitter_is_refused(fault):
    ids, merges = vocabulary()
    wrong, right = TOKENS[fault]
    with pytest.raises(AssertionError):
        check_tokens(BPE(ids, merges, wrong).encode, right)


def test_merges_in_another_order_are_refused():
    ids, merges = vocabulary()
    with pytest.raises(AssertionError):
        check_tokens(BPE(ids, merges[::-1]).encode, gpt2_pieces)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    status, file, base = imported(tmp_path_factory.mktemp("good"))
    assert status == 0
    model = AutoModelForCausalLM.from_pretrained(base)
    check_logits(model, file)
    return model, file


def halves_as_pairs(weight):
    """Leave q or k in the other order of rotary pairs."""
    pairs = weight.reshape(-1, WIDTH // HEADS // 2, 2, WIDTH)
    weight.copy_(pairs.transpose(1, 2).reshape(weight.shape).clone())


MATRICES = [
    *(f"layers.1.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    *("layers.0.input_layernorm.weight", "layers.1.post_attention_layernorm.weight"),
    *("norm.weight", "embed_tokens.weight"),
]
CHANGES = {
    "dropped": lambda w: w.copy_(torch.randn_like(w) * 0.02),
    "zeroed": lambda w: w.zero_(),
    "scaled": lambda w: w.mul_(1.01),
    "rows permuted": lambda w: w.copy_(w.flip(0).clone()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MATRICES)
@torch.no_grad()
def test_a_changed_tensor_is_refused(good, name, change):
    model, file = copy.deepcopy(good[0]), good[1]
    CHANGES[change](model.model.get_parameter(name))
    with pytest.raises(AssertionError):
        check_logits(model, file)


def swapped(model):
    first, second = model.model.layers
    first.self_attn.q_proj, second.self_attn.q_proj = (
        second.self_attn.q_proj,
        first.self_attn.q_proj,
    )


def gate_for_up(model):
    mlp = model.model.layers[0].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


def transposed(model):
    weight = model.model.layers[0].self_attn.o_proj.weight
    weight.copy_(weight.T.clone())


def other_epsilon(model):
    for layer in model.model.layers:
        layer.input_layernorm.variance_epsilon = 1e-6


def other_theta(model):
    model.model.rotary_emb.inv_freq.mul_(0.9)


def other_groups(model):
    for layer in model.model.layers:
        for part in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            part.weight.copy_(part.weight.roll(WIDTH // HEADS, 0).clone())


FAULTS = {
    "q of two layers swapped": swapped,
    "gate for up": gate_for_up,
    "o transposed": transposed,
    "another epsilon": other_epsilon,
    "another base of rope": other_theta,
    "heads of k and v in another order": other_groups,
    "q not permuted": lambda m: halves_as_pairs(m.model.layers[0].self_attn.q_proj.weight),
    "k not permuted": lambda m: halves_as_pairs(m.model.layers[1].self_attn.k_proj.weight),
    "head tied": lambda m: m.lm_head.weight.copy_(m.model.embed_tokens.weight),
}


@pytest.mark.parametrize("fault", FAULTS)
@torch.no_grad()
def test_a_wrong_import_is_refused(good, fault):
    model, file = copy.deepcopy(good[0]), good[1]
    FAULTS[fault](model)
    with pytest.raises(AssertionError):
        check_logits(model, file)
