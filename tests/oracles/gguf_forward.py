"""A forward pass in numpy over the tensors of a GGUF file of the Llama family; shared by oracles.

Written from the format: blocks of 32 weights for Q8_0 and Q4_1, and rotary embeddings of
neighbouring pairs, which is how ggml lays out q and k (transformers takes halves). The `gguf`
package only finds where the bytes lie.
"""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader


def _halves(raw: np.ndarray) -> np.ndarray:
    return raw.copy().view(np.float16).astype(np.float32)


def _values(kind: str, raw: np.ndarray, shape: list[int]) -> np.ndarray:
    """Return a tensor's values fp32 in numpy's order of axes (GGUF writes the fastest first)."""
    if kind in ("F32", "F16"):
        flat = np.frombuffer(raw.tobytes(), np.float32 if kind == "F32" else np.float16)
    elif kind == "Q8_0":
        blocks = np.frombuffer(raw.tobytes(), np.uint8).reshape(-1, 34)
        flat = _halves(blocks[:, :2]) * blocks[:, 2:].copy().view(np.int8)
    elif kind == "Q4_1":
        blocks = np.frombuffer(raw.tobytes(), np.uint8).reshape(-1, 20)
        nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
        flat = _halves(blocks[:, :2]) * nibbles + _halves(blocks[:, 2:4])
    else:
        raise ValueError(f"tensors of type {kind}; wanted F32, F16, Q8_0 or Q4_1")
    return flat.astype(np.float32).reshape(shape[::-1])


class LlamaFile:
    """The metadata and tensors of a file; logits of token ids."""

    def __init__(self, path: Path | str):
        reader = GGUFReader(str(path))
        self.meta: dict[str, Any] = {n: f.contents() for n, f in reader.fields.items()}
        self._tensors = {t.name: t for t in reader.tensors}
        self.read: set[str] = set()

    @property
    def names(self) -> set[str]:
        """Names of all tensors in the file."""
        return set(self._tensors)

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor's values, and note that it was read."""
        self.read.add(name)
        stored = self._tensors[name]
        return _values(stored.tensor_type.name, stored.data, [int(n) for n in stored.shape])

    def logits(self, ids: list[int]) -> np.ndarray:
        """Return logits fp64 [T, V] of token ids [T]."""
        said = {k.removeprefix("llama."): v for k, v in self.meta.items()}
        heads, groups = said["attention.head_count"], said["attention.head_count_kv"]
        epsilon = said["attention.layer_norm_rms_epsilon"]
        base, length = said["rope.freq_base"], len(ids)
        size = said["embedding_length"] // heads
        angles = np.arange(length)[:, None] * base ** (-np.arange(0, size, 2) / size)  # [T, D/2]
        turn = np.exp(1j * angles)[:, None]
        future = np.triu(np.full((length, length), -np.inf), 1)

        def norm(x: np.ndarray, name: str) -> np.ndarray:
            root = np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
            return x / root * self.tensor(f"{name}.weight")

        def linear(x: np.ndarray, name: str) -> np.ndarray:
            return x @ self.tensor(f"{name}.weight").T.astype(np.float64)

        def rotated(x: np.ndarray) -> np.ndarray:
            pairs = (x[..., ::2] + 1j * x[..., 1::2]) * turn
            return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)

        x = self.tensor("token_embd.weight")[ids].astype(np.float64)  # [T, W]
        for layer in range(said["block_count"]):
            at = f"blk.{layer}."
            h = norm(x, at + "attn_norm")
            q = rotated(linear(h, at + "attn_q").reshape(length, heads, size))
            k = rotated(linear(h, at + "attn_k").reshape(length, groups, size))
            v = linear(h, at + "attn_v").reshape(length, groups, size)
            k, v = (np.repeat(part, heads // groups, axis=1) for part in (k, v))
            scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(size) + future
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            mixed = np.einsum("hts,shd->thd", shares, v).reshape(length, -1)
            x = x + linear(mixed, at + "attn_output")
            h = norm(x, at + "ffn_norm")
            gate = linear(h, at + "ffn_gate")
            x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, at + "ffn_up"), at + "ffn_down")
        head = "output" if "output.weight" in self.names else "token_embd"
        return linear(norm(x, "output_norm"), head)
