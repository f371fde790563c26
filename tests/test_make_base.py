"""Bases: any causal LM gets the same 45 tokens; both arms get the same weights."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from domain_tokens.checkpoints.folder import load_tokenizer
from domain_tokens.vocabulary import FACTS, layout_of
from tests.conftest import call, tree

SCRIPT = "scripts/make_base.py"


def make(source, folder, *more, condition="baseline"):
    words = ("--from", source, "--condition", condition, "--output-dir", folder, *more)
    return call(SCRIPT, *words)


def card(folder):
    return json.loads((folder / "run_card.json").read_text())


@pytest.mark.slow
def test_gpt2s_vocabulary_is_laid_out_as_designed(tmp_path):
    assert make("tiny", tmp_path / "base") == 0
    tokenizer = load_tokenizer(tmp_path / "base")
    layout = layout_of(tokenizer)
    assert (layout.base_size, layout.first_fact_id, layout.total) == (50_257, 50_304, 50_349)
    assert tokenizer.convert_tokens_to_ids("<MUL_6_9_54>") == 50_342
    assert make("tiny", tmp_path / "other", condition="mul_tokens") == 0
    assert card(tmp_path / "base")["weights"] == card(tmp_path / "other")["weights"]
    assert card(tmp_path / "other")["condition"] == "mul_tokens"
    assert make("tiny", tmp_path / "seeded", "--seed", 1) == 0
    assert card(tmp_path / "base")["weights"] != card(tmp_path / "seeded")["weights"]


def test_the_second_arm_is_a_copy_of_the_first(experiment):
    baseline, mul_tokens = (experiment / "demo" / f"hf_{c}" for c in ("baseline", "mul_tokens"))
    assert card(baseline)["weights"] == card(mul_tokens)["weights"]
    assert card(baseline)["tokenizer"] == card(mul_tokens)["tokenizer"]
    assert card(mul_tokens)["parent"]["weights"] == card(baseline)["weights"]
    assert card(baseline)["pretraining"]["optimizer_steps"] > 0


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_family_checkpoint_is_extended_likewise(experiment, tmp_path, tied):
    """A byte-level BPE with Llama's layers, its output layer tied (SmolLM2) or its own (Llama)."""
    data = experiment / "demo" / "data"
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer) + 30,  # more rows than tokens, as Qwen has
        max_position_embeddings=256,
        tie_word_embeddings=tied,
    )
    source = LlamaForCausalLM(config)
    source.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    assert make(tmp_path / "source", tmp_path / "base") == 0
    layout = layout_of(load_tokenizer(tmp_path / "base"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert layout.first_fact_id % 64 == 0
    assert model.get_input_embeddings().weight.shape[0] == layout.total
    ids = torch.arange(40)[None]
    before = source(ids).logits[..., : layout.base_size]
    assert torch.equal(model(ids).logits[..., : layout.base_size], before)
    assert call("scripts/check_checkpoint.py", tmp_path / "base") == 0
    words = ["--model-path", tmp_path / "base", "--output-dir", tmp_path / "sft"]
    words += ["--condition", "baseline", "--config", "sft/configs/demo/gsm8k.yaml"]
    for key, name in (("source", "train"), ("validation_source", "test")):
        words += ["--set", f"data.{key}={data / name}.jsonl"]
    assert call("sft/sft_gsm8k.py", *words, "--set", "training.max_train_samples=32") == 0
    evaluate = ["--model-path", tmp_path / "sft", "--output-dir", tmp_path / "eval"]
    evaluate += ["--condition", "baseline", "--max-samples", 3, "--max-new-tokens", 8]
    assert call("eval/run_gsm8k.py", *evaluate, "--set", f"data.source={data}/test.jsonl") == 0


@pytest.mark.parametrize("source", ["outputs/nowhere", "./nowhere", "a/b/c"])
def test_a_source_that_is_not_there_is_no_hub_id(tmp_path, capsys, source):
    before = tree(tmp_path)
    assert make(source, tmp_path / "base") == 2
    assert "not found" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_pretraining_text_without_text_is_named(experiment, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"text": "6*9=54"}\n{"txt": "6*9=54"}\n')
    words = ["--tokenizer", experiment / "demo" / "data" / "tokenizer"]
    words += ["--set", f"data.source={tmp_path / 'bad.jsonl'}"]
    before = tree(tmp_path)
    assert make("sft/configs/demo/base.yaml", tmp_path / "base", *words) == 2
    assert "row 2 has no text" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_overrides_belong_to_a_yaml(tmp_path, capsys):
    assert make("tiny", tmp_path / "base", "--set", "training.seed=1") == 2
    assert "only a YAML file" in capsys.readouterr().err


def test_the_facts_are_atomic_in_the_saved_tokenizer(experiment):
    tokenizer = load_tokenizer(experiment / "demo" / "hf_baseline")
    for fact in FACTS:
        assert len(tokenizer.encode(fact, add_special_tokens=False)) == 1
