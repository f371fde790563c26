"""Ids, atomicity and initialisation of the 92 reserved tokens, on a real and on tiny tokenizers."""

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from domain_tokens.vocabulary import (
    _GPT2_FILES,
    FACT_PAIRS,
    FACTS,
    Layout,
    extend_model,
    extend_tokenizer,
    fact_token,
    gpt2_tokenizer,
    layout_of,
    redraw_fact_rows,
)

GPT2_FILES = Path(__file__).parents[1].parent / "shared" / "data" / "gpt2"


def tiny_tokenizer(size=70):
    """Return a tokenizer of single characters with `size` tokens."""
    characters = [*"0123456789*=", *(chr(0x4E00 + i) for i in range(size - 13)), "?"]
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")


def tiny_model(rows, *, tied=True):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=rows, n_layer=1, n_head=1, n_embd=16, n_positions=8, tie_word_embeddings=tied
    )
    return GPT2LMHeadModel(config)


@pytest.fixture(scope="module")
def gpt2():
    tokenizer = gpt2_tokenizer()
    return tokenizer, extend_tokenizer(tokenizer)


def test_facts_are_a_major():
    assert len(FACTS) == len(set(FACTS)) == 45
    assert list(FACT_PAIRS) == sorted(FACT_PAIRS)
    assert FACTS[:2] == ("<MUL_1_1_1>", "<MUL_1_2_2>")
    assert FACTS[-1] == "<MUL_9_9_81>"
    assert fact_token(9, 6) == fact_token(6, 9) == FACTS[38] == "<MUL_6_9_54>"


@pytest.mark.parametrize("pair", [(0, 3), (3, 10), (-1, 2), (2.5, 3)])
def test_no_token_outside_the_table(pair):
    with pytest.raises(ValueError, match="no fact token"):
        fact_token(*pair)


def test_gpt2_tokenizer_is_gpt2s():
    tokenizer = gpt2_tokenizer()
    assert len(tokenizer) == 50_257
    assert tokenizer.encode("Hello world 6*9=54") == [15496, 995, 718, 9, 24, 28, 4051]
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 50_256
    assert tokenizer.model_max_length == 1024


def test_changed_gpt2_file_is_refused(monkeypatch):
    monkeypatch.setitem(_GPT2_FILES, "vocab.bpe", "0" * 64)
    with pytest.raises(ValueError, match=r"vocab\.bpe is not the published file"):
        gpt2_tokenizer()


def test_gpt2_layout(gpt2):
    tokenizer, layout = gpt2
    assert layout == Layout(50_257, 50_304, 50_304, 50_349)
    ids = tokenizer.convert_tokens_to_ids(["<MUL_1_1_1>", "<MUL_6_9_54>", "<MUL_9_9_81>"])
    assert ids == [50_304, 50_342, 50_348]
    assert layout.fact_ids == range(50_304, 50_349)
    assert layout.padding_ids == range(50_257, 50_304)
    assert layout.reserved_ids == range(50_257, 50_349)
    assert layout.fact_of(50_342) == (6, 9, 54)
    with pytest.raises(ValueError, match="got id 50303"):
        layout.fact_of(50_303)
    with pytest.raises(FrozenInstanceError):
        layout.total = 1  # ty: ignore[invalid-assignment]


def test_gpt2_facts_are_atomic_and_survive_decoding(gpt2):
    tokenizer, layout = gpt2
    for fact, token_id in zip(FACTS, layout.fact_ids, strict=True):
        ids = tokenizer.encode(f"is{fact}.")
        assert ids.count(token_id) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == f"is{fact}."
    assert tokenizer.encode(" 6*9=54") == gpt2_tokenizer().encode(" 6*9=54")


def test_extending_twice_changes_nothing(gpt2):
    tokenizer, layout = gpt2
    assert extend_tokenizer(tokenizer) == extend_tokenizer(tokenizer, model_vocab_size=50_349)
    assert extend_tokenizer(tokenizer) == layout
    assert len(tokenizer) == layout.total


def test_layout_survives_a_folder(gpt2, tmp_path):
    tokenizer, layout = gpt2
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert layout_of(loaded) == layout
    assert loaded.encode("6*9 <MUL_6_9_54>") == tokenizer.encode("6*9 <MUL_6_9_54>")
    assert (loaded.eos_token_id, loaded.pad_token_id) == (50_256, 50_256)


@pytest.mark.parametrize(
    ("size", "model_vocab_size", "expected"),
    [
        (70, None, Layout(70, 128, 128, 173)),
        (64, None, Layout(64, 64, 64, 109)),  # nothing to pad
        (70, 130, Layout(70, 192, 192, 237)),  # the model has spare rows
        (70, 64, Layout(70, 128, 128, 173)),
    ],
)
def test_any_vocabulary_is_padded_to_64(size, model_vocab_size, expected):
    tokenizer = tiny_tokenizer(size)
    assert extend_tokenizer(tokenizer, model_vocab_size=model_vocab_size) == expected
    assert layout_of(tokenizer) == expected


def test_plain_tokenizer_has_no_layout():
    with pytest.raises(ValueError, match="got no <MUL_1_1_1>, wanted the 45 fact tokens; make"):
        layout_of(tiny_tokenizer())


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ([AddedToken(f, special=True, normalized=False) for f in FACTS], "special=False"),
        (list(FACTS), "normalized=False"),  # what plain strings become
        ([AddedToken(f, special=False, normalized=False) for f in FACTS[:9]], "wanted 109"),
        ([AddedToken(f, special=False, normalized=False) for f in FACTS[1:]], "no <MUL_1_1_1>"),
        ([AddedToken(f, special=False, normalized=False) for f in FACTS[::-1]], "multiple of 64"),
    ],
)
def test_faulty_extensions_are_named(added, fault):
    tokenizer = tiny_tokenizer(64)
    tokenizer.add_tokens(added)
    with pytest.raises(ValueError, match=fault):
        extend_tokenizer(tokenizer)


def test_facts_out_of_order_are_named():
    tokenizer = tiny_tokenizer(64)
    order = (FACTS[0], *FACTS[:0:-1])
    tokenizer.add_tokens([AddedToken(f, special=False, normalized=False) for f in order])
    with pytest.raises(ValueError, match="got <MUL_1_2_2> at id 108, wanted id 65"):
        layout_of(tokenizer)


def test_taken_padding_name_is_refused():
    tokenizer = tiny_tokenizer(70)
    tokenizer.add_tokens([AddedToken("<|padding_5|>", special=False, normalized=False)])
    with pytest.raises(ValueError, match=r"<\|padding_5\|> among the base tokens"):
        extend_tokenizer(tokenizer)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [70, 100, 128])
def test_new_rows_come_from_the_base_rows(tied, rows):
    """Every fact row is the mean of its spelling's rows plus bounded noise, in each matrix."""
    tokenizer, model = tiny_tokenizer(), tiny_model(rows, tied=tied)
    before = [m.weight.detach().clone() for m in (model.transformer.wte, model.lm_head)]
    layout = extend_tokenizer(tokenizer, model_vocab_size=rows)
    extend_model(model, layout, tokenizer, seed=3)
    assert model.config.vocab_size == layout.total == 173
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    for old, module in zip(before, (model.transformer.wte, model.lm_head), strict=True):
        new, base = module.weight.detach(), old[:70]
        assert new.shape == (173, 16)
        assert torch.equal(new[:rows], old)  # also the model's own spare rows
        torch.testing.assert_close(new[rows:128], base.mean(0).expand(128 - rows, 16))
        noise = []
        for row, (a, b) in zip(new[128:], FACT_PAIRS, strict=True):
            ids = tokenizer.encode(f"{a}*{b}={a * b}", add_special_tokens=False)
            assert len(ids) == 5 + (a * b > 9) - 0
            noise.append((row - base[ids].mean(0)) / base.std(0))
        assert torch.stack(noise).std().item() == pytest.approx(0.1, rel=0.15)
        assert torch.stack(noise).abs().max() < 0.6
        assert torch.cdist(new[128:], new[128:]).fill_diagonal_(1).min() > 1e-3


def test_rows_depend_on_the_seed_and_on_nothing_else():
    def rows(seed, state):
        tokenizer, model = tiny_tokenizer(), tiny_model(70)
        layout = extend_tokenizer(tokenizer)
        torch.manual_seed(state)
        extend_model(model, layout, tokenizer, seed=seed)
        assert torch.equal(torch.get_rng_state(), torch.manual_seed(state).get_state())
        return model.transformer.wte.weight.detach()

    assert torch.equal(rows(1, state=5), rows(1, state=6))
    assert not torch.equal(rows(1, state=5)[128:], rows(2, state=5)[128:])
    assert torch.equal(rows(1, state=5)[:128], rows(2, state=5)[:128])


def with_bias(rows, size=16):
    """An output layer of its own with a bias, as GPT-J and Phi have it."""
    model = tiny_model(rows, tied=False)
    bias = torch.nn.Parameter(torch.randn(rows, generator=torch.Generator().manual_seed(2)))
    model.lm_head.bias = bias
    return model


@pytest.mark.parametrize(("init", "scale"), [("mean", 0.1), ("random", 1.0)])
def test_rows_that_know_nothing_of_their_spelling(init, scale):
    """Two other beginnings: close to the mean of all base rows, or anywhere a base row might be."""
    tokenizer, model = tiny_tokenizer(), tiny_model(70)
    layout = extend_tokenizer(tokenizer)
    base = model.transformer.wte.weight.detach().clone()
    extend_model(model, layout, tokenizer, seed=3, init=init)
    new = model.transformer.wte.weight.detach().clone()
    assert torch.equal(new[:70], base)
    noise = (new[128:] - base.mean(0)) / base.std(0)
    assert noise.std().item() == pytest.approx(scale, rel=0.15)
    assert noise.mean(1).abs().max() < scale  # no row leans to anything, as its spelling would
    assert torch.cdist(new[128:], new[128:]).fill_diagonal_(1).min() > 1e-3
    redraw_fact_rows(model, layout, tokenizer, seed=3, init=init)
    assert torch.equal(model.transformer.wte.weight, new)
    redraw_fact_rows(model, layout, tokenizer, seed=3)
    assert not torch.equal(model.transformer.wte.weight[128:], new[128:])


@pytest.mark.parametrize("make", [tiny_model, lambda r: tiny_model(r, tied=False), with_bias])
def test_fact_rows_drawn_again_are_those_of_a_base_of_that_seed(make):
    """A stage draws a base's untrained fact rows again from its own seed: with the base's seed to
    the bit what was there, with another one what a base of that seed has, and nothing else."""
    tokenizer = tiny_tokenizer()
    layout = extend_tokenizer(tokenizer)
    models = {seed: make(70) for seed in (1, 2)}
    for seed, model in models.items():
        extend_model(model, layout, tokenizer, seed=seed)
    expected = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in models.items()}
    model = models[1]
    for seed in (1, 2, 1):
        redraw_fact_rows(model, layout, tokenizer, seed=seed)
        for key, value in model.state_dict().items():
            assert torch.equal(value, expected[seed][key]), (seed, key)
    parted = {k for k, v in expected[1].items() if not torch.equal(v, expected[2][k])}
    assert parted == {k for k in expected[1] if "wte" in k or "lm_head" in k}
    for key in parted:
        assert torch.equal(expected[1][key][:128], expected[2][key][:128])


def test_fact_rows_of_another_vocabulary_are_not_drawn():
    tokenizer = tiny_tokenizer()
    layout = extend_tokenizer(tokenizer)
    with pytest.raises(ValueError, match="wanted 173; make the base again"):
        redraw_fact_rows(tiny_model(70), layout, tokenizer, seed=1)


def test_extended_model_is_left_alone():
    tokenizer, model = tiny_tokenizer(), tiny_model(70)
    layout = extend_tokenizer(tokenizer)
    extend_model(model, layout, tokenizer, seed=1)
    rows = model.transformer.wte.weight.detach().clone()
    extend_model(model, layout, tokenizer, seed=2)
    assert torch.equal(model.transformer.wte.weight, rows)


@pytest.mark.parametrize("rows", [64, 129, 150, 174])
def test_model_of_another_vocabulary_is_refused(rows):
    tokenizer = tiny_tokenizer()
    layout = extend_tokenizer(tokenizer)
    with pytest.raises(ValueError, match=f"got {rows} embedding rows, wanted 70 to 128"):
        extend_model(tiny_model(rows), layout, tokenizer, seed=1)


def test_importing_the_names_loads_no_torch():
    code = (
        "import sys, domain_tokens.vocabulary, domain_tokens.injection, domain_tokens.answers;"
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.shared_data
def test_package_holds_the_published_vocabulary():
    if not GPT2_FILES.is_dir():
        pytest.skip("no shared/data/gpt2 next to the checkout")
    published = gpt2_tokenizer().__class__(
        vocab=str(GPT2_FILES / "vocab.json"), merges=str(GPT2_FILES / "merges.txt")
    )
    ours = gpt2_tokenizer()
    assert ours.get_vocab() == published.get_vocab()
    text = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72 naïve 中文"
    assert ours.encode(text) == published.encode(text)
