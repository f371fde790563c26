"""Prove a GGUF import: own reader of names, shapes, metadata and tokens, own forward pass.

Written from the format's definition (ggml's names, llama.cpp's layouts) and not from transformers,
which does the import: its loader drops what it does not know and draws at random what is missing.
"""

import itertools
import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from domain_tokens import base_proof, checkpoints
from domain_tokens.errors import UserError
from domain_tokens.run_card import read_json
from domain_tokens.vocabulary import layout_of

TOLERANCE = 1e-4  # largest difference of logits in fp32, as a part of the largest logit
PROBE = (2, 64)  # rows and tokens of the logits that are compared
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of GGUF tokens
JOIN = "join the parts first (llama-gguf-split --merge) and give the whole file"

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


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file: metadata by key, tensors by name (memory-mapped, as they are stored)."""

    path: Path
    metadata: dict[str, Any]
    raw: dict[str, Any]

    @property
    def architecture(self) -> str:
        """The name that all keys of the model begin with."""
        return str(self.metadata.get("general.architecture"))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the metadata of the architecture's own key."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor dequantized to fp32, [out, in] for a matrix."""
        from gguf.quants import dequantize

        stored = self.raw[name]
        values = dequantize(stored.data, stored.tensor_type)
        return torch.from_numpy(np.array(values, dtype=np.float32))


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's metadata say of its size; all lengths in numbers."""

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rows: int
    epsilon: float
    rope_base: float


def read(path: Path) -> GgufFile:
    """Read a file's metadata and tensor table. Raises UserError for a file that is no GGUF."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = {key: entry.contents() for key, entry in reader.fields.items()}
    except Exception as error:  # numpy's and struct's errors for a file that is cut short
        raise UserError(f"{path} cannot be read as GGUF: {checkpoints.short(error)}") from None
    return GgufFile(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


def account(file: GgufFile) -> None:
    """Account for every tensor and every key of the model.

    Raises UserError, by name, for a part of a split file, an architecture without a proof, a
    missing, unknown or oddly shaped tensor, a key that the import would lose, and NaN or infinity.
    """
    if file.architecture not in FORWARD:
        raise UserError(
            f"{file.path}: the import of the architecture {file.architecture} cannot be proved; "
            f"wanted {', '.join(FORWARD)}, or the model's Hugging Face folder"
        )
    wanted_count = file.get("block_count")
    shape = shape_of(file)
    wanted, optional = _names(file, shape)
    missing = [name for name in wanted if name not in file.raw]
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
            f"{file.path}: {gone} is not there ({len(missing)} of {len(wanted)} tensors missing, "
            f"{wanted_count} blocks); copy it again"
        )
    unknown = [name for name in file.raw if name not in wanted and name not in optional]
    if unknown:
        raise UserError(
            f"{file.path}: {unknown[0]} would be lost by the import ({len(unknown)} such tensors); "
            "give the model's Hugging Face folder"
        )
    _refuse_unread_keys(file)
    for name, stored in file.raw.items():
        found = tuple(int(n) for n in reversed(stored.shape))
        size = wanted[name] if name in wanted else optional[name]
        if found != size:
            raise UserError(f"{file.path}: {name} is {found}, its metadata say {size}")
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


def shape_of(file: GgufFile) -> Shape:
    """Return the model's shape. Raises UserError where the metadata do not tell it."""
    gpt2 = file.architecture == "gpt2"
    norm = "layer_norm_epsilon" if gpt2 else "layer_norm_rms_epsilon"
    needed = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
    for key in (*needed, "context_length", f"attention.{norm}"):
        if not isinstance(file.get(key), int | float):
            raise UserError(f"{file.path}: {file.architecture}.{key} is {file.get(key)!r}")
    heads, width = file.get("attention.head_count"), file.get("embedding_length")
    head_dim = file.get("attention.key_length", file.get("rope.dimension_count", width // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if file.get(key, head_dim) != head_dim:
            raise UserError(
                f"{file.path}: {file.architecture}.{key} is {file.get(key)}, a head has {head_dim};"
                " wanted them equal: give the model's Hugging Face folder"
            )
    table = file.raw.get("token_embd.weight")
    return Shape(
        layers=file.get("block_count"),
        width=width,
        hidden=file.get("feed_forward_length"),
        heads=heads,
        kv_heads=file.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        context=file.get("context_length"),
        rows=int(table.shape[1]) if table is not None else 0,
        epsilon=file.get(f"attention.{norm}"),
        rope_base=file.get("rope.freq_base", 10000.0),
    )


def _names(file: GgufFile, s: Shape) -> tuple[dict[str, tuple[int, ...]], dict]:
    """Return name -> size of the tensors that must be there, and of those that may be."""
    table = (s.rows, s.width)
    wanted = {"token_embd.weight": table, "output_norm.weight": (s.width,)}
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    if file.architecture == "gpt2":
        wanted |= {"position_embd.weight": (s.context, s.width), "output_norm.bias": (s.width,)}
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
        wanted |= {f"{start}.{name}.weight": size for name, size in {**parts, **norms}.items()}
        wanted |= {f"{start}.{name}.bias": size for name, size in biases.items()}
    return wanted, {"output.weight": table}


@torch.no_grad()
def llama_logits(file: GgufFile, s: Shape, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits [B, T, V] of Llama's and Qwen's layers for ids [B, T].

    ggml keeps Llama's q and k with a head's rotating pairs next to each other, Qwen's half a head
    apart: so each is rotated where it lies. B rows, T tokens, H heads, G heads per key head.
    """
    size = ids.shape[1]
    pairs = s.head_dim // 2
    turns = s.rope_base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    angles = torch.outer(torch.arange(size, dtype=torch.float64), turns)  # [T, D / 2]
    cos, sin = angles.cos().float(), angles.sin().float()
    future = torch.ones(size, size, dtype=torch.bool).triu(1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scale = (x.pow(2).mean(-1, keepdim=True) + s.epsilon).sqrt()
        return x / scale * file.tensor(f"{name}.weight")

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        y = x @ file.tensor(f"{name}.weight").T
        return y + file.tensor(f"{name}.bias") if f"{name}.bias" in file.raw else y

    def rotated(x: torch.Tensor) -> torch.Tensor:  # [B, T, H, D]
        if file.architecture == "llama":
            a, b = x[..., 0::2], x[..., 1::2]
        else:
            a, b = x[..., :pairs], x[..., pairs:]
        c, d = cos[:, None], sin[:, None]
        turned = a * c - b * d, a * d + b * c
        if file.architecture == "llama":
            return torch.stack(turned, dim=-1).flatten(-2)
        return torch.cat(turned, dim=-1)

    x = file.tensor("token_embd.weight")[ids]
    for block in range(s.layers):
        start = f"blk.{block}"
        h = norm(x, f"{start}.attn_norm")
        q, k, v = (
            linear(h, f"{start}.attn_{part}").unflatten(-1, (-1, s.head_dim)) for part in "qkv"
        )
        if file.architecture == "qwen3":
            q, k = norm(q, f"{start}.attn_q_norm"), norm(k, f"{start}.attn_k_norm")
        group = s.heads // s.kv_heads
        q = rotated(q).transpose(1, 2)  # [B, H, T, D]
        k = rotated(k).transpose(1, 2).repeat_interleave(group, dim=1)
        v = v.transpose(1, 2).repeat_interleave(group, dim=1)
        scores = (q @ k.transpose(-2, -1) / math.sqrt(s.head_dim)).masked_fill(future, -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(mixed, f"{start}.attn_output")
        h = norm(x, f"{start}.ffn_norm")
        gate = functional.silu(linear(h, f"{start}.ffn_gate"))
        x = x + linear(gate * linear(h, f"{start}.ffn_up"), f"{start}.ffn_down")
    head = "output.weight" if "output.weight" in file.raw else "token_embd.weight"
    return norm(x, "output_norm") @ file.tensor(head).T


@torch.no_grad()
def gpt2_logits(file: GgufFile, s: Shape, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits [B, T, V] of GPT-2's layers for ids [B, T]."""
    size = ids.shape[1]
    future = torch.ones(size, size, dtype=torch.bool).triu(1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, False, keepdim=True) + s.epsilon).sqrt()
        return y * file.tensor(f"{name}.weight") + file.tensor(f"{name}.bias")

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ file.tensor(f"{name}.weight").T + file.tensor(f"{name}.bias")

    x = file.tensor("token_embd.weight")[ids] + file.tensor("position_embd.weight")[:size]
    for block in range(s.layers):
        start = f"blk.{block}"
        q, k, v = (
            part.unflatten(-1, (s.heads, -1)).transpose(1, 2)
            for part in linear(norm(x, f"{start}.attn_norm"), f"{start}.attn_qkv").chunk(3, -1)
        )
        scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(future, -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(mixed, f"{start}.attn_output")
        h = linear(norm(x, f"{start}.ffn_norm"), f"{start}.ffn_up")
        h = h * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h.pow(3))))
        x = x + linear(h, f"{start}.ffn_down")
    head = "output.weight" if "output.weight" in file.raw else "token_embd.weight"
    return norm(x, "output_norm") @ file.tensor(head).T


FORWARD: dict[str, Callable[[GgufFile, Shape, torch.Tensor], torch.Tensor]] = {
    "llama": llama_logits,
    "qwen2": llama_logits,
    "qwen3": llama_logits,
    "gpt2": gpt2_logits,
}


def prove_logits(file: GgufFile, s: Shape, written: Path, *, seed: int = 0) -> float:
    """Return the largest difference of logits between the file and the folder reloaded from disk.

    Raises UserError where it exceeds TOLERANCE of the largest logit.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(s.context, PROBE[1])
    ids = torch.randint(s.rows, (PROBE[0], size), generator=generator)
    model = checkpoints.load_model(written, dtype=torch.float32).eval()
    with torch.no_grad():
        ours = model(input_ids=ids, use_cache=False).logits[..., : s.rows].float()
    wanted = FORWARD[file.architecture](file, s, ids)
    difference = float((ours - wanted).abs().max())
    limit = TOLERANCE * max(1.0, float(wanted.abs().max()))
    if not difference <= limit:
        base_proof.fail(f"its logits differ by {difference:.3g}, wanted at most {limit:.3g}")
    return difference


def prove_tensors(
    file: GgufFile, s: Shape, written: Path, *, layout: Any, seed: int
) -> base_proof.Account:
    """Compare every tensor of the file with the written one, by names and layouts of its own."""
    account = base_proof.Account()
    saved = dict(base_proof.file_tensors(base_proof.weight_files(written)))
    unseen, extended = set(saved), {}
    for name in file.raw:
        target, tensor = _hugging_face(file, s, name)
        if target not in unseen:
            base_proof.fail(f"{name} ({target}) is not in it")
        unseen.discard(target)
        account.tensors += 1
        found = saved[target]
        if name in ("token_embd.weight", "output.weight") and len(found) != len(tensor):
            extended[target] = len(tensor)
            found = found[: len(tensor)]
        if found.shape != tensor.shape or not found.equal(tensor):
            base_proof.fail(f"{target} has other values than the file's {name}")
    if unseen:
        base_proof.fail(f"{min(unseen)} comes from nowhere")
    base_proof.prove_rows(
        saved,
        extended,
        layout=layout,
        spellings=base_proof.spellings_of(written),
        seed=seed,
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


def prove_config(file: GgufFile, s: Shape, written: Path, *, rows: int, eos: int) -> int:
    """Check every key of the written config.json: as the metadata say, or the library's default."""
    from transformers import AutoConfig

    config = read_json(written / "config.json")
    kinds = ("llama", "mistral") if file.architecture == "llama" else (file.architecture,)
    if config.get("model_type") not in kinds:
        base_proof.fail(f"config.json says model_type {config.get('model_type')}")
    wanted = _config(file, s, config["model_type"])
    defaults = AutoConfig.for_model(config["model_type"]).to_dict()
    free = base_proof.FREE_KEYS | {"model_type", "initializer_range"}
    free |= {"bos_token_id", "pad_token_id", "unk_token_id"}
    compared = 0
    for key in sorted((config.keys() | wanted.keys()) - free):
        value = wanted[key] if key in wanted else defaults.get(key)
        if key not in config or config[key] != value:
            base_proof.fail(f"config.json says {key} {config.get(key)!r}, the file {value!r}")
        compared += 1
    base_proof.check_ends(config, rows=rows, eos=eos)
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
    wanted: dict[str, Any] = tied | {
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
        wanted["head_dim"] = s.head_dim
    if kind in ("mistral", "qwen2", "qwen3"):
        wanted["sliding_window"] = None
    if kind in ("qwen2", "qwen3"):
        wanted["layer_types"] = ["full_attention"] * s.layers
    return wanted


class BytePairs:
    """Byte-level BPE as llama.cpp does it: the oracle for a GGUF's tokenizer."""

    def __init__(self, file: GgufFile, splits: tuple[str, ...], *, nfc: bool, whole: bool):
        """Take tokens and merges from the file; whole: a piece that is a token is not split."""
        import regex

        meta = file.metadata
        self.tokens: list[str] = meta["tokenizer.ggml.tokens"]
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.merges = [tuple(m.split(" ", 1)) for m in meta["tokenizer.ggml.merges"]]
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.spelled = _byte_letters()
        kinds = meta.get("tokenizer.ggml.token_type") or [NORMAL] * len(self.tokens)
        self.atoms = {
            token: i
            for i, (token, kind) in enumerate(zip(self.tokens, kinds, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        }
        longest = sorted(self.atoms, key=len, reverse=True)
        self._atoms = regex.compile("|".join(map(regex.escape, longest)) or r"(?!)")
        self._splits = [regex.compile(split) for split in splits]
        self._nfc, self._whole = nfc, whole

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text in which control tokens count as such."""
        ids, at = [], 0
        for match in self._atoms.finditer(text):
            ids += [*self._plain(text[at : match.start()]), self.atoms[match[0]]]
            at = match.end()
        return ids + self._plain(text[at:])

    def _plain(self, text: str) -> list[int]:
        pieces = [unicodedata.normalize("NFC", text) if self._nfc else text]
        for split in self._splits:
            pieces = [part for piece in pieces for part in _parts(split, piece)]
        return [i for piece in pieces for i in self._merged(piece)]

    def _merged(self, piece: str) -> list[int]:
        letters = "".join(self.spelled[byte] for byte in piece.encode())
        if self._whole and letters in self.ids:
            return [self.ids[letters]]
        symbols = list(letters)
        while len(symbols) > 1:
            ranked = [
                (self.ranks[pair], at)
                for at, pair in enumerate(itertools.pairwise(symbols))
                if pair in self.ranks
            ]
            if not ranked:
                break
            _, at = min(ranked)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return [self.ids[symbol] for symbol in symbols]


def _parts(split: Any, text: str) -> list[str]:
    """Return a text's matches and what lies between them, in order."""
    found, at = [], 0
    for match in split.finditer(text):
        found += [text[at : match.start()], match[0]]
        at = match.end()
    return [part for part in (*found, text[at:]) if part]


def _byte_letters() -> list[str]:
    """Return GPT-2's letter for each byte: itself if it prints, else the next one above 255."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]


_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"


def _cased(digits: str) -> str:
    return (
        rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


# Kind of splitter -> the splits that follow each other, and the options of BytePairs.
ORACLES: dict[str, tuple[tuple[str, ...], dict[str, bool]]] = {
    "gpt2": ((_GPT2,), {"nfc": False, "whole": False}),
    "digits": ((r"\p{N}", _GPT2), {"nfc": False, "whole": False}),
    "llama3": ((_cased(r"\p{N}{1,3}"),), {"nfc": False, "whole": True}),
    "qwen2": ((_cased(r"\p{N}"),), {"nfc": True, "whole": False}),
}


def prove_tokenizer(
    file: GgufFile, tokenizer: Any, account: base_proof.Account, *, splitter: str, written: Path
) -> None:
    """Compare vocabulary, merges, special ids and the ids of probe texts with own byte pairs."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(written / "tokenizer.json"))
    splits, options = ORACLES[splitter]
    oracle = BytePairs(file, splits, **options)
    saved = read_json(written / "tokenizer.json")
    merges = [
        tuple(m) if isinstance(m, list) else tuple(m.split(" "))
        for m in saved["model"].get("merges", [])
    ]
    if merges != oracle.merges:
        base_proof.fail(f"tokenizer.json has {len(merges)} merges, the file {len(oracle.merges)}")
    for number, token in enumerate(oracle.tokens):
        spelled = "".join(oracle.spelled[byte] for byte in token.encode())
        if tokenizer.convert_ids_to_tokens(number) not in (token, spelled):
            base_proof.fail(f"token {number} is not the file's {token!r}")
    for key, wanted in (("eos", tokenizer.eos_token_id), ("bos", tokenizer.bos_token_id)):
        given = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if given != wanted:
            base_proof.fail(f"the tokenizer's {key} is {wanted}, the file's {given}")
    controls = [f"a {token} b" for token in list(oracle.atoms)[:40]]
    for text in [*base_proof.probe_texts(), *controls]:
        base_proof.refuse_other_ids(tokenizer, plain, text, oracle.encode(text))
        account.texts += 1
    account.tokens, account.merges = len(oracle.tokens), len(merges)
    start = [file.metadata["tokenizer.ggml.bos_token_id"]] if adds_bos(file, splitter) else []
    if tokenizer.encode("") != start:
        base_proof.fail(f"a text begins with {tokenizer.encode('')}, by the file with {start}")


def adds_bos(file: GgufFile, splitter: str) -> bool:
    """Tell whether a text begins with BOS: as the file says, else as llama.cpp does."""
    said = file.metadata.get("tokenizer.ggml.add_bos_token")
    bos = file.metadata.get("tokenizer.ggml.bos_token_id")
    return bos is not None and (splitter == "llama3" if said is None else bool(said))


def prove_given_tokenizer(file: GgufFile, tokenizer: Any) -> None:
    """Check a tokenizer from elsewhere: the file's normal tokens lie at the same ids."""
    tokens = file.metadata.get("tokenizer.ggml.tokens") or []
    kinds = file.metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        found = tokenizer.convert_ids_to_tokens(number) if number < len(tokenizer) else None
        if kind == NORMAL and found != token:
            raise UserError(
                f"--tokenizer has {found!r} at id {number}, {file.path} {token!r}; give the "
                "tokenizer of this very model"
            )


def prove(
    file: GgufFile, written: Path, *, seed: int, splitter: str | None, given: Path | None
) -> dict[str, Any]:
    """Prove a written folder against its GGUF file; return what was compared, for the results.

    splitter: the kind of the file's own tokenizer; given: a folder whose tokenizer was used.
    """
    shape = shape_of(file)
    tokenizer = checkpoints.load_tokenizer(written)
    layout = layout_of(tokenizer)
    done = prove_tensors(file, shape, written, layout=layout, seed=seed)
    eos = int(tokenizer.eos_token_id or 0)
    done.config_keys = prove_config(file, shape, written, rows=layout.total, eos=eos)
    if given is not None:
        prove_given_tokenizer(file, tokenizer)
        base_proof.prove_tokenizer(given, written, tokenizer, done)
    else:
        assert splitter is not None
        prove_tokenizer(file, tokenizer, done, splitter=splitter, written=written)
    difference = prove_logits(file, shape, written)
    return {
        "against": "the GGUF's own tensors",
        **vars(done),
        "largest_logit_difference": difference,
    }
