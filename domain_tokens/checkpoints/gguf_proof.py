"""Prove a GGUF import: own reader of names, shapes, metadata and tokens, own forward pass.

Written from the format's definition (ggml's names, llama.cpp's layouts) and not from transformers,
which does the import: its loader drops what it does not know and draws at random what is missing.
"""

from pathlib import Path
from typing import Any

import torch

from domain_tokens.checkpoints.account import Account, Rows, fail, rows_of
from domain_tokens.checkpoints.base_proof import (
    FREE_KEYS,
    file_tensors,
    prove_rows,
    source_weight_files,
)
from domain_tokens.checkpoints.folder import load_model, load_tokenizer
from domain_tokens.checkpoints.gguf_forward import FORWARD, GgufFile, Shape, shape_of
from domain_tokens.checkpoints.gguf_tokens import (
    JOIN,
    PROBE,
    prove_gguf_tokenizer,
    prove_given_tokenizer,
)
from domain_tokens.checkpoints.tokenizer_proof import (
    check_ends,
    prove_folder_tokenizer,
    spellings_of,
)
from domain_tokens.errors import UserError
from domain_tokens.runs import read_json

TOLERANCE = 1e-4  # largest difference of logits in fp32, as a part of the largest logit

# Metadata below the architecture's name that the import and this proof read.
READ = {
    *("context_length", "block_count", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.layer_norm_epsilon", "attention.key_length", "attention.value_length"),
    *("rope.dimension_count", "rope.freq_base"),
}
# Metadata that says "none of this" with one of these values; with another one it is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1.0, 0.0),
    "rope.scale_linear": (1.0, 0.0),
    "logit_scale": (1.0,),
    "attention.clamp_kqv": (0.0,),
}

# GGUF name within a block -> Hugging Face name within a layer.
LLAMA_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
GPT2_PARTS = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


def account_for_gguf(file: GgufFile) -> None:
    """Account for every tensor and every key of the model.

    Raises UserError, by name, for a part of a split file, an architecture without a proof, a
    missing, unknown or oddly shaped tensor, a key that the import would lose, and NaN or infinity.
    """
    if file.architecture not in FORWARD:
        raise UserError(
            f"{file.path}: the import of the architecture {file.architecture} cannot be proved; "
            f"wanted {', '.join(FORWARD)}, or the model's Hugging Face folder"
        )
    block_count = file.get("block_count")
    shape = shape_of(file)
    required, optional = _names(file, shape)
    missing = [name for name in required if name not in file.raw]
    parts = file.metadata.get("split.count", 1)
    if parts > 1 or missing:
        gone = missing[0] if missing else "another part's tensors"
        block = ".".join(gone.split(".")[:2])
        if not any(name.startswith(f"{block}.") for name in file.raw) and gone.startswith("blk."):
            gone = f"{block}.*"
        if parts > 1:
            part = file.metadata.get("split.no", 0) + 1
            raise UserError(f"{file.path} is part {part} of {parts}, {gone} is not there; {JOIN}")
        raise UserError(
            f"{file.path}: {gone} is not there ({len(missing)} of {len(required)} tensors missing, "
            f"{block_count} blocks); copy it again"
        )
    unknown = [name for name in file.raw if name not in required and name not in optional]
    if unknown:
        raise UserError(
            f"{file.path}: {unknown[0]} would be lost by the import ({len(unknown)} such tensors); "
            "give the model's Hugging Face folder"
        )
    _refuse_unread_keys(file)
    for name, stored in file.raw.items():
        stored_shape = tuple(int(n) for n in reversed(stored.shape))
        size = required[name] if name in required else optional[name]
        if stored_shape != size:
            raise UserError(f"{file.path}: {name} is {stored_shape}, its metadata say {size}")
        if not file.tensor(name).isfinite().all():
            raise UserError(f"{file.path}: {name} is not finite; give another file")


def _refuse_unread_keys(file: GgufFile) -> None:
    start = f"{file.architecture}."
    for key, value in file.metadata.items():
        name = key.removeprefix(start)
        if key == name or name in READ:
            continue
        if name not in NEUTRAL or value not in NEUTRAL[name]:
            shown = str(value)[:40]
            raise UserError(
                f"{file.path}: {key} is {shown}, which the import would lose; give the model's "
                "Hugging Face folder"
            )


def _names(file: GgufFile, s: Shape) -> tuple[dict[str, tuple[int, ...]], dict]:
    """Return name -> size of the tensors that must be there, and of those that may be."""
    table = (s.rows, s.width)
    required = {"token_embd.weight": table, "output_norm.weight": (s.width,)}
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    if file.architecture == "gpt2":
        required |= {"position_embd.weight": (s.context, s.width), "output_norm.bias": (s.width,)}
        parts = {
            "attn_qkv": (3 * s.width, s.width),
            "attn_output": (s.width, s.width),
            "ffn_up": (s.hidden, s.width),
            "ffn_down": (s.width, s.hidden),
        }
        norms = dict.fromkeys(("attn_norm", "ffn_norm"), (s.width,))
        biases = {name: size[:1] for name, size in {**parts, **norms}.items()}
    else:
        parts = {
            "attn_q": (q, s.width),
            "attn_k": (kv, s.width),
            "attn_v": (kv, s.width),
            "attn_output": (s.width, q),
            "ffn_gate": (s.hidden, s.width),
            "ffn_up": (s.hidden, s.width),
            "ffn_down": (s.width, s.hidden),
        }
        norms = dict.fromkeys(("attn_norm", "ffn_norm"), (s.width,))
        biases = {}
        if file.architecture == "qwen2":
            biases = {name: parts[name][:1] for name in ("attn_q", "attn_k", "attn_v")}
        if file.architecture == "qwen3":
            norms |= dict.fromkeys(("attn_q_norm", "attn_k_norm"), (s.head_dim,))
    for block in range(s.layers):
        start = f"blk.{block}"
        required |= {f"{start}.{name}.weight": size for name, size in {**parts, **norms}.items()}
        required |= {f"{start}.{name}.bias": size for name, size in biases.items()}
    return required, {"output.weight": table}


def prove_logits(file: GgufFile, s: Shape, written: Path, *, seed: int = 0) -> float:
    """Return the largest difference of logits between the file and the folder reloaded from disk.

    Raises UserError where it exceeds TOLERANCE of the largest logit.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(s.context, PROBE[1])
    ids = torch.randint(s.rows, (PROBE[0], size), generator=generator)
    model = load_model(written, dtype=torch.float32).eval()
    with torch.no_grad():
        ours = model(input_ids=ids, use_cache=False).logits[..., : s.rows].float()
    expected = FORWARD[file.architecture](file, s, ids)
    difference = float((ours - expected).abs().max())
    limit = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= limit:
        fail(f"its logits differ by {difference:.3g}, wanted at most {limit:.3g}")
    return difference


def prove_tensors(
    file: GgufFile, s: Shape, written: Path, *, layout: Rows, seed: int, fact_init: str
) -> Account:
    """Compare every tensor of the file with the written one, by names and layouts of its own."""
    account = Account()
    saved = dict(file_tensors(source_weight_files(written)))
    unseen, extended = set(saved), {}
    for name in file.raw:
        target, tensor = _hugging_face(file, s, name)
        if target not in unseen:
            fail(f"{name} ({target}) is not in it")
        unseen.discard(target)
        account.tensors += 1
        values = saved[target]
        if name in ("token_embd.weight", "output.weight") and len(values) != len(tensor):
            extended[target] = len(tensor)
            values = values[: len(tensor)]
        if values.shape != tensor.shape or not values.equal(tensor):
            fail(f"{target} has other values than the file's {name}")
    if unseen:
        fail(f"{min(unseen)} comes from nowhere")
    prove_rows(
        saved,
        extended,
        layout=layout,
        spellings=spellings_of(written),
        seed=seed,
        fact_init=fact_init,
    )
    return account


def _hugging_face(file: GgufFile, s: Shape, name: str) -> tuple[str, torch.Tensor]:
    """Return a tensor's name and values as Hugging Face's layout has them."""
    tensor, gpt2 = file.tensor(name), file.architecture == "gpt2"
    root = "transformer" if gpt2 else "model"
    head, _, kind = name.rpartition(".")
    tops = {
        "token_embd": f"{root}.{'wte' if gpt2 else 'embed_tokens'}",
        "position_embd": f"{root}.wpe",
        "output_norm": f"{root}.{'ln_f' if gpt2 else 'norm'}",
        "output": "lm_head",
    }
    if head in tops:
        return f"{tops[head]}.{kind}", tensor
    _, block, part = head.split(".")
    parts, layers = (GPT2_PARTS, "h") if gpt2 else (LLAMA_PARTS, "layers")
    target = f"{root}.{layers}.{block}.{parts[part]}.{kind}"
    if gpt2 and tensor.dim() == 2:
        return target, tensor.T.contiguous()  # GPT-2's Conv1D keeps [in, out]
    if file.architecture == "llama" and part in ("attn_q", "attn_k"):
        # Row 2 i + j of a head here is row j D / 2 + i there: pairs apart instead of together.
        rows = torch.arange(s.head_dim).view(-1, 2).T.flatten()
        return target, tensor.unflatten(0, (-1, s.head_dim))[:, rows].flatten(0, 1)
    return target, tensor


def prove_gguf_config(file: GgufFile, s: Shape, written: Path, *, rows: int, eos: int) -> int:
    """Check every key of the written config.json: as the metadata say, or the library's default."""
    from transformers import AutoConfig

    config = read_json(written / "config.json")
    kinds = ("llama", "mistral") if file.architecture == "llama" else (file.architecture,)
    if config.get("model_type") not in kinds:
        fail(f"config.json says model_type {config.get('model_type')}")
    expected = _config(file, s, config["model_type"])
    defaults = AutoConfig.for_model(config["model_type"]).to_dict()
    free = FREE_KEYS | {"model_type", "initializer_range"}
    free |= {"bos_token_id", "pad_token_id", "unk_token_id"}
    compared = 0
    for key in sorted((config.keys() | expected.keys()) - free):
        value = expected[key] if key in expected else defaults.get(key)
        if key not in config or config[key] != value:
            fail(f"config.json says {key} {config.get(key)!r}, the file {value!r}")
        compared += 1
    check_ends(config, rows=rows, eos=eos)
    return compared


def _config(file: GgufFile, s: Shape, kind: str) -> dict[str, Any]:
    tied = {"tie_word_embeddings": "output.weight" not in file.raw}
    if kind == "gpt2":
        return tied | {
            "n_layer": s.layers,
            "n_embd": s.width,
            "n_head": s.heads,
            "n_positions": s.context,
            "n_inner": s.hidden,
            "layer_norm_epsilon": s.epsilon,
            "activation_function": "gelu_new",
        }
    expected: dict[str, Any] = tied | {
        "hidden_size": s.width,
        "intermediate_size": s.hidden,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "max_position_embeddings": s.context,
        "rms_norm_eps": s.epsilon,
        "hidden_act": "silu",
        "rope_parameters": {"rope_theta": s.rope_base, "rope_type": "default"},
    }
    if kind != "qwen2":
        expected["head_dim"] = s.head_dim
    if kind in ("mistral", "qwen2", "qwen3"):
        expected["sliding_window"] = None
    if kind in ("qwen2", "qwen3"):
        expected["layer_types"] = ["full_attention"] * s.layers
    return expected


def prove_gguf(
    file: GgufFile,
    written: Path,
    *,
    seed: int,
    splitter: str | None,
    given: Path | None,
    fact_init: str,
) -> dict[str, Any]:
    """Prove a written folder against its GGUF file; return what was compared, for the results.

    splitter: the kind of the file's own tokenizer; given: a folder whose tokenizer was used.
    """
    shape = shape_of(file)
    tokenizer = load_tokenizer(written)
    layout = rows_of(tokenizer)
    done = prove_tensors(file, shape, written, layout=layout, seed=seed, fact_init=fact_init)
    eos = int(tokenizer.eos_token_id or 0)
    done.config_keys = prove_gguf_config(file, shape, written, rows=layout.total, eos=eos)
    if given is not None:
        prove_given_tokenizer(file, tokenizer)
        prove_folder_tokenizer(given, written, tokenizer, done)
    else:
        assert splitter is not None
        prove_gguf_tokenizer(file, tokenizer, done, splitter=splitter, written=written)
    difference = prove_logits(file, shape, written)
    return {
        "against": "the GGUF's own tensors",
        **vars(done),
        "largest_logit_difference": difference,
    }
