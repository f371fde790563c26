"""Attention for packed rows, document by document, without a mask.

A mask over a packed row is computed at every position and then thrown away, and it keeps CUDA off
its flash kernels. Here each document is attended to alone, causally: by varlen attention on CUDA in
half precision, by one small call per document elsewhere.
"""

from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "documents"


def documents(position_ids: torch.Tensor) -> torch.Tensor:
    """Return where the documents of packed rows begin, and the end: int32 [D + 1].

    position_ids: [B, T], restarting at 0 with each document; the rows are read one after another.
    """
    flat = position_ids.flatten()
    starts = (flat == 0).nonzero()[:, 0]
    return torch.cat([starts, starts.new_tensor([len(flat)])]).int()


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    starts: torch.Tensor,
    longest: int,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return [B, T, H, D]: every document attends to itself, causally.

    query, key, value: [B, H or fewer heads, T, D]. starts, longest: of `documents`.
    """
    assert attention_mask is None
    rows, size = query.shape[0], query.shape[2]
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # [B T, H, D]
    grouped = q.shape[1] != k.shape[1]
    if q.is_cuda and q.dtype != torch.float32:
        from torch.nn.attention.varlen import varlen_attn

        out: Any = varlen_attn(
            *(x.contiguous() for x in (q, k, v)),
            cu_seq_q=starts,
            cu_seq_k=starts,
            max_q=longest,
            max_k=longest,
            scale=scaling,
            window_size=(-1, 0),
            enable_gqa=grouped,
        )
    else:
        lengths = [end - start for start, end in pairwise(starts.tolist())]
        # split has one concatenation as its backward; slices would each fill a whole gradient.
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        out = torch.cat([_causal(*part, scaling, grouped) for part in parts])
    return out.view(rows, size, *out.shape[1:]), None


def _causal(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float | None, grouped: bool
) -> torch.Tensor:
    """Attend within one document: [L, H, D]."""
    one, two, three = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, L, D]
    found = scaled_dot_product_attention(
        one, two, three, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return found[0].transpose(0, 1)


AttentionInterface.register(NAME, document_attention)


@contextmanager
def by_document(model: "PreTrainedModel") -> Generator[bool]:
    """Let a model attend document by document; yields False where its architecture cannot.

    Meanwhile it has to be called with starts and longest, and cannot decode with a cache.
    """
    before = model.config._attn_implementation
    able = bool(getattr(model, "_supports_attention_backend", False))
    if able:
        model.set_attn_implementation(NAME)
    try:
        yield able
    finally:
        model.set_attn_implementation(before)
