"""Small random checkpoints as others write them: GGUF files and Hugging Face folders."""

import json
from pathlib import Path

import numpy as np
import torch

EOS = "<|endoftext|>"
WIDTH, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, CONTEXT = 32, 48, 4, 2, 8, 2, 96
PAIRS = ["Ġ t", "Ġt h", "Ġth e", "1 2", "Ċ Ċ", "i n", "in g", "' s", "3 4", "12 3", "Ġ 1", "e r"]


def byte_letters():
    """GPT-2's 256 letters, one per byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def vocabulary():
    """EOS, the 256 bytes and what the merges make, in order of id."""
    return [EOS, *byte_letters(), *(pair.replace(" ", "") for pair in PAIRS)]


def gguf_tensors(architecture, *, tied=False, seed=0, layers=LAYERS):
    """Random tensors by their GGUF names, [out, in]; every norm and bias is random, too."""
    generator = np.random.default_rng(seed)

    def draw(*size):
        return generator.normal(0, 0.4, size).astype(np.float32)

    rows = len(vocabulary())
    tensors = {"token_embd.weight": draw(rows, WIDTH), "output_norm.weight": draw(WIDTH) + 1}
    if not tied:
        tensors["output.weight"] = draw(rows, WIDTH)
    if architecture == "gpt2":
        tensors |= {"position_embd.weight": draw(CONTEXT, WIDTH), "output_norm.bias": draw(WIDTH)}
        parts = {
            "attn_qkv": (3 * WIDTH, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_up": (HIDDEN, WIDTH),
            "ffn_down": (WIDTH, HIDDEN),
        }
        biased = [*parts, "attn_norm", "ffn_norm"]
    else:
        parts = {
            "attn_q": (HEADS * HEAD_DIM, WIDTH),
            "attn_k": (KV_HEADS * HEAD_DIM, WIDTH),
            "attn_v": (KV_HEADS * HEAD_DIM, WIDTH),
            "attn_output": (WIDTH, HEADS * HEAD_DIM),
            "ffn_gate": (HIDDEN, WIDTH),
            "ffn_up": (HIDDEN, WIDTH),
            "ffn_down": (WIDTH, HIDDEN),
        }
        biased = ["attn_q", "attn_k", "attn_v"] if architecture == "qwen2" else []
    norms = {"attn_norm": WIDTH, "ffn_norm": WIDTH}
    if architecture == "qwen3":
        norms |= {"attn_q_norm": HEAD_DIM, "attn_k_norm": HEAD_DIM}
    for block in range(layers):
        start = f"blk.{block}"
        tensors |= {f"{start}.{name}.weight": draw(*size) for name, size in parts.items()}
        tensors |= {f"{start}.{name}.weight": draw(size) + 1 for name, size in norms.items()}
        sizes = {**parts, **{name: (size,) for name, size in norms.items()}}
        tensors |= {f"{start}.{name}.bias": draw(sizes[name][0]) for name in biased}
    return tensors


def gguf_metadata(architecture):
    """The model's keys without the architecture's name."""
    metadata = {
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
    }
    if architecture == "gpt2":
        return metadata | {"attention.layer_norm_epsilon": 1e-3}
    metadata |= {
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-3,
        "rope.freq_base": 5000.0,
    }
    if architecture == "qwen3":
        return metadata | {"attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM}
    return metadata | ({"rope.dimension_count": HEAD_DIM} if architecture == "llama" else {})


def write_gguf(
    path, architecture="llama", *, tied=False, pre="smollm", keys=None, drop=(), add=None
):
    """Write a file; keys: metadata by full name (None takes one away); drop, add: tensors."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    tokens = vocabulary()
    values = {f"{architecture}.{k}": v for k, v in gguf_metadata(architecture).items()}
    values |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.merges": PAIRS,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 0,
        **(keys or {}),
    }
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, tensor in {**gguf_tensors(architecture, tied=tied), **(add or {})}.items():
        if name not in drop:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def hf_tokenizer(*, digits=True):
    """The same vocabulary as a Hugging Face tokenizer; digits: split one by one, as SmolLM's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(vocabulary())}
    backend = Tokenizer(models.BPE(vocab=ids, merges=[tuple(p.split(" ")) for p in PAIRS]))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_])
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS)


def hf_model(kind="gpt2", **changes):
    """A random GPT-2 or Llama in which no two tensors, rows or biases are alike."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    rows = len(vocabulary())
    if kind == "gpt2":
        shape = {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS, "n_positions": CONTEXT}
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        config = GPT2Config(**shape, **ends, vocab_size=rows, **changes)
        model = GPT2LMHeadModel(config)
    else:
        config = LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=CONTEXT,
            vocab_size=rows,
            eos_token_id=0,
            bos_token_id=0,
            **changes,
        )
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def write_folder(folder, kind="gpt2", *, tokenizer=True, **changes):
    """Save a random model, and its tokenizer, as a Hugging Face folder."""
    hf_model(kind, **changes).save_pretrained(folder)
    if tokenizer:
        hf_tokenizer().save_pretrained(folder)
    return Path(folder)


def edit_json(path, **changes):
    """Change keys of a JSON file; None takes a key away."""
    tree = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            tree.pop(key, None)
        else:
            tree[key] = value
    path.write_text(json.dumps(tree))


def mutated_tensors(tensors):
    """Yield (what was done, tensors) for every tensor and every way to spoil it."""
    for name, tensor in tensors.items():
        twin = next((n for n, t in tensors.items() if n > name and t.shape == tensor.shape), None)
        changes = {
            "dropped": None,
            "zeroed": torch.zeros_like(tensor),
            "permuted": tensor.roll(1, 0),
            "scaled": tensor * 1.01,
        }
        if tensor.dim() == 2:
            changes["transposed"] = tensor.T.reshape(tensor.shape).contiguous()
            changes["columns permuted"] = tensor.roll(1, 1)
        for what, changed in changes.items():
            others = {n: t for n, t in tensors.items() if n != name}
            yield f"{name} {what}", others if changed is None else {**others, name: changed}
        if twin is not None:
            yield (
                f"{name} swapped with {twin}",
                {**tensors, name: tensors[twin], twin: tensor},
            )


def mutated_leaves(tree, prefix=""):
    """Yield (path, changed tree) for every leaf of a JSON object, one changed at a time."""
    for key, value in tree.items():
        if isinstance(value, dict):
            for path, inner in mutated_leaves(value, f"{prefix}{key}."):
                yield path, {**tree, key: inner}
            continue
        if isinstance(value, bool):
            changed = not value
        elif isinstance(value, int | float):
            changed = value * 2 + 1
        elif isinstance(value, str):
            changed = "relu" if value != "relu" else "silu"
        else:
            changed = [7] if isinstance(value, list) else 7
        yield f"{prefix}{key}", {**tree, key: changed}
