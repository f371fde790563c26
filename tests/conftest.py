"""Small models, tokenizers and finished runs that tests share; nothing here needs a network."""

import hashlib
import importlib
import importlib.util
import json
import os
import pkgutil
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

# Prepared data and whatever else is cached must come from these tests alone; read at import.
_caches = tempfile.TemporaryDirectory()
os.environ["HF_HOME"] = _caches.name

import domain_tokens  # noqa: E402
from domain_tokens.runs.cli import run_script  # noqa: E402
from domain_tokens.vocabulary import extend_model, extend_tokenizer, gpt2_tokenizer  # noqa: E402

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser):
    """Add the flag that writes the golden files again."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden again")


def load_script(path):
    """Import a script by its path below the repository's root."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def call(path, *arguments):
    """Run a script in this process as the shell would; return its exit status."""
    return run_script(load_script(path).main, [str(a) for a in arguments])


def train(demo, folder, *more):
    """Run the GSM8K stage of the small demo, saving every second step; return its status."""
    words = ["--model-path", demo / "sft_tulu_baseline", "--output-dir", demo / folder]
    words += ["--condition", "baseline", "--config", "sft/configs/demo/gsm8k.yaml"]
    for key, name in (("source", "train"), ("validation_source", "test")):
        words += ["--set", f"data.{key}={demo / 'data' / name}.jsonl"]
    words += ["--set", "training.save_steps=2", "--set", "training.logging_steps=1"]
    return call("sft/sft_gsm8k.py", *words, *more)


def tree(folder):
    """Every file below a folder with a hash of its content, to see that nothing was touched."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def rewrite_items(folder, change, *, name="gsm8k"):
    """Let an evaluation have other answers, and everything that follows from them, consistently.

    change: gets each item's number and item, and returns what to put into it.
    """
    from domain_tokens.evaluation.metrics import (
        SHOWN,
        arithmetic_metrics,
        decoding_speed,
        derived_keys,
        gsm8k_metrics,
    )
    from domain_tokens.runs.config import as_written_today
    from domain_tokens.runs.files import file_digest, read_json, read_lines, write_json

    path, results = folder / f"{name}_items.jsonl", folder / f"{name}_results.json"
    items = read_lines(path)
    for number, item in enumerate(items):
        item |= change(number, item)
        item |= derived_keys(name, item)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    tree = read_json(results)
    decode = as_written_today(tree["card"]["decode"])
    scores = read_lines(folder / "arithmetic_scores.jsonl")
    again = gsm8k_metrics(items, decode) if name == "gsm8k" else arithmetic_metrics(items, scores)
    tree["metrics"] |= {**again, **decoding_speed(items, tree["metrics"]["seconds"])}
    if "examples" in tree:
        tree["examples"] = items[:SHOWN]
    tree["items"] |= {"sha256": file_digest(path), "count": len(items)}
    write_json(results, tree)
    return len(items)


def edit(path, key, value):
    """Set a dotted key of a JSON file and seal it, and what is sealed within it, again."""
    from domain_tokens.runs.files import SEAL, read_json, sealed, write_json

    content = read_json(path)
    *parents, last = key.split(".")
    node = content
    for part in parents:
        node = node[part]
    node[last] = value
    training = (content.get("card") or {}).get("training")
    if training and SEAL in training:
        content["card"]["training"] = sealed(training)
    write_json(path, content)


def plant(patch, target, value):
    """Put something else in the place of a name of the package, wherever it was imported to.

    patch: a MonkeyPatch; target: the dotted name where it is defined.
    """
    # What is loaded while a fault stands would keep it.
    for module_info in pkgutil.walk_packages(domain_tokens.__path__, "domain_tokens."):
        importlib.import_module(module_info.name)
    home, _, name = target.rpartition(".")
    module = importlib.import_module(home)
    honest = getattr(module, name)
    patch.setattr(module, name, value)
    for loaded in [m for n, m in sys.modules.items() if n.startswith("domain_tokens.")]:
        if vars(loaded).get(name) is honest:
            patch.setattr(loaded, name, value)


@pytest.fixture(scope="session")
def experiment(tmp_path_factory):
    """The whole demo at a fiftieth of its size: the folder that holds `demo/`. Do not write there.

    The model learns nothing; what the stages write and pass on is what counts.
    """
    root = tmp_path_factory.mktemp("experiment")
    patch = pytest.MonkeyPatch()
    sizes = {"pretraining": 200, "chat": 110, "train": 80, "test": 24}
    patch.setattr("domain_tokens.data.demo_corpora.SIZES", sizes)
    patch.chdir(ROOT)
    try:
        assert call("scripts/run_experiment.py", "--output-root", root) == 0
    finally:
        patch.undo()
    return root


@pytest.fixture
def demo(experiment, tmp_path):
    """A copy of the small demo that a test may change: the folder of its stages."""
    return Path(shutil.copytree(experiment / "demo", tmp_path / "demo"))


@pytest.fixture(scope="session")
def tokenizer():
    """GPT-2's tokenizer with padding and fact tokens (50,349 entries)."""
    extended = gpt2_tokenizer()
    extend_tokenizer(extended)
    return extended


@pytest.fixture
def tiny_model():
    """A random GPT-2 of two layers over the whole extended vocabulary, dropout off."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    plain = gpt2_tokenizer()
    base_size = len(plain)
    layout = extend_tokenizer(plain)
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=4,
        n_positions=256,
        vocab_size=base_size,
        bos_token_id=50256,
        eos_token_id=50256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
    )
    model = GPT2LMHeadModel(config)
    extend_model(model, layout, plain, seed=0)
    return model


def tiny_llama():
    """A random Llama with grouped key and value heads and an output layer of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50_349,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            tie_word_embeddings=False,
        )
    )
