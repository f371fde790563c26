"""Attention for packed tokens: document by document, or slot by slot against a cache.

A mask over a packed row is computed at every position and then thrown away, and it keeps CUDA off
its flash kernels. Here each document is attended to alone, causally: by varlen attention on CUDA in
half precision, by one small call per document elsewhere. The tokens of a decoding step, one or
several per slot, are laid out by slot for this one operation only.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED_ATTENTION = "packed"


def cu_seqlens_of(position_ids: torch.Tensor) -> torch.Tensor:
    """Return where the documents of packed rows begin, and the end: int32 [D + 1].

    position_ids: [B, T], restarting at 0 with each document; the rows are read one after another.
    """
    flat = position_ids.flatten()
    document_starts = (flat == 0).nonzero()[:, 0]
    return torch.cat([document_starts, document_starts.new_tensor([len(flat)])]).int()


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    attend: "Attend | None" = None,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int = 0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return [B, T, H, D]: every token attends within its document, or as `attend` says.

    query: [B, H, T, D], key and value: [B, H or fewer, T, D]; cu_seqlens as `cu_seqlens_of` gives
    them, max_seqlen the longest document. With attend, B is 1.
    """
    assert attention_mask is None
    if attend is not None:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        number: Any = module.layer_idx
        return attend(number, q, k, v, scaling)[None], None
    assert cu_seqlens is not None
    rows, size = query.shape[0], query.shape[2]
    flat = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # [B T, heads, D]
    attended = attend_within_documents(*flat, cu_seqlens, max_seqlen, scaling)
    return attended.view(rows, size, *attended.shape[1:]), None


class Attend(Protocol):
    """What a layer's queries see: layer, query [N, H, D], key and value [N, K, D] -> [N, H, D]."""

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        /,
    ) -> torch.Tensor: ...


def attend_within_documents(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scaling: float | None,
) -> torch.Tensor:
    """Attend within documents, causally: q [N, H, D], k and v [N, H or fewer, D] -> [N, H, D]."""
    grouped = q.shape[1] != k.shape[1]
    if q.dtype != v.dtype:  # under autocast a rotation is done in fp32, a projection is not
        q, k = q.to(v.dtype), k.to(v.dtype)
    if flash_takes(v):
        from torch.nn.attention.varlen import varlen_attn

        options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0)}
        if grouped and _varlen_takes_groups():
            options["enable_gqa"] = True
        elif grouped:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        q, k, v = (x.contiguous() for x in (q, k, v))
        out: Any = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **options)
        return out
    lengths = [end - start for start, end in pairwise(cu_seqlens.tolist()) if end > start]
    # split has one concatenation as its backward; slices would each fill a whole gradient.
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    return torch.cat([_causal(*part, scaling, grouped) for part in parts])


def attend_where_visible(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    laid_out: torch.Tensor,
    rows: torch.Tensor,
    visible: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Attend to what each token may see: q [N, H, D], k and v [N, H or fewer, D] -> [N, H, D].

    laid_out: [B, L], which token stands where in B rows; rows: [N], where each token stands in the
    rows, read one after another; visible: bool [B, 1, L, L].
    """
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.is_cuda:  # its kernels that take a mask take no groups
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        grouped = False
    q, k, v = (x[laid_out].transpose(1, 2) for x in (q, k, v))  # [B, heads, L, D]
    attended = scaled_dot_product_attention(
        q, k, v, attn_mask=visible, scale=scaling, enable_gqa=grouped
    )
    return attended.transpose(1, 2).flatten(0, 1)[rows]


def flash_takes(x: torch.Tensor) -> bool:
    """Return whether flash attention takes heads like x [..., D]: on CUDA in half precision."""
    return x.is_cuda and x.dtype != torch.float32 and flash_takes_heads(x.shape[-1])


def flash_takes_heads(width: int) -> bool:
    """Return whether flash attention takes heads of this width."""
    return width % 8 == 0 and width <= 256


@cache
def _varlen_takes_groups() -> bool:
    """Return whether varlen attention takes fewer heads of keys than of queries: torch ≥ 2.12."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in signature(varlen_attn).parameters


def flash_varlen(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    used: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Attend to the first keys of sequences, causally up to the last of them: [N, H, D].

    query: [N, H, D]; keys, values: [P, H or fewer, D]; cu_seqlens_q, cu_seqlens_k: where each
    sequence's queries and its keys begin, int32 [A + 1]; max_seqlen_q, max_seqlen_k: queries and
    keys of one at most; used: how many of its keys there are, int32 [A]. The operation under
    `varlen_attn`, which before torch 2.12 could not be told of them.
    """
    attended: Any = torch.ops.aten._flash_attention_forward(
        query.contiguous(),
        keys,
        values,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        0.0,  # dropout
        max_seqlen_q > 1,  # causal; the newest token alone sees everything
        False,
        scale=scaling,
        seqused_k=used,
    )
    return attended[0]


def _causal(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float | None, grouped: bool
) -> torch.Tensor:
    """Attend within one document: [L, H, D]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, L, D]
    attended = scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return attended[0].transpose(0, 1)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)


@contextmanager
def packed_tokens(model: "PreTrainedModel") -> Generator[bool]:
    """Let a model read packed tokens; yields False where its architecture cannot.

    Meanwhile it has to be called with what `packed_attention` wants.
    """
    before = model.config._attn_implementation
    able = bool(getattr(model, "_supports_attention_backend", False))
    if able:
        model.set_attn_implementation(PACKED_ATTENTION)
    try:
        yield able
    finally:
        model.set_attn_implementation(before)
