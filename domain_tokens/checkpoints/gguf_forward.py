"""A GGUF file's tensors read by themselves, and a forward pass over them in plain torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from domain_tokens.checkpoints.folder import short_error
from domain_tokens.errors import UserError


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


def read_gguf(path: Path) -> GgufFile:
    """Read a file's metadata and tensor table. Raises UserError for a file that is no GGUF."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = {key: entry.contents() for key, entry in reader.fields.items()}
    except Exception as error:  # numpy's and struct's errors for a file that is cut short
        raise UserError(f"{path} cannot be read as GGUF: {short_error(error)}") from None
    return GgufFile(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


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
