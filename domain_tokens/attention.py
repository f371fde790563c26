"""Attention for packed tokens: document by document, or slot by slot against a cache.

A mask over a packed row is computed at every position and then thrown away, and it keeps CUDA off
its flash kernels. Here each document is attended to alone, causally: by varlen attention on CUDA in
half precision, by one small call per document elsewhere. The tokens of a decoding step, one or
several per slot, are laid out by slot for this one operation only.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "packed"
CPU_GROUP = 16  # slots; on a GPU one large call beats several that read less
WIDTH_MULTIPLE = 32  # tokens; slots read their cache up to the longest of them, rounded up


def documents(position_ids: torch.Tensor) -> torch.Tensor:
    """Return where the documents of packed rows begin, and the end: int32 [D + 1].

    position_ids: [B, T], restarting at 0 with each document; the rows are read one after another.
    """
    flat = position_ids.flatten()
    starts = (flat == 0).nonzero()[:, 0]
    return torch.cat([starts, starts.new_tensor([len(flat)])]).int()


@dataclass(frozen=True, slots=True)
class SlotGroup:
    """Neighbouring slots that attend together: R slots, n tokens, at most Q of one slot, W places.

    row, offset: [n], where each token stands in [R, Q]; bias: [R, 1, S Q, W] for S query heads to
    a head of the cache, 0 where a token may look and -inf elsewhere.
    """

    slots: slice
    tokens: slice
    row: torch.Tensor
    offset: torch.Tensor
    bias: torch.Tensor


def slot_groups(
    lengths: torch.Tensor,
    slot: torch.Tensor,
    offset: torch.Tensor,
    *,
    capacity: int,
    model: "PreTrainedModel",
) -> list[SlotGroup]:
    """Group slots 0, 1, … by what each has in the cache: lengths [A], on the CPU as all of these.

    slot, offset: [N], each new token's slot and its place among that slot's new tokens (≥ 1 of
    them), in the order of the slots. capacity: places of a slot.
    """
    device = model.device
    counts = slot.bincount()
    size = CPU_GROUP if device.type == "cpu" else len(lengths)
    groups, token = [], 0
    for first in range(0, len(lengths), size):
        known, new = lengths[first : first + size], counts[first : first + size]
        longest = int((known + new).max())
        width = min(-(-longest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, capacity)
        last = known[:, None] + torch.arange(int(new.max()))  # [R, Q]
        hidden = torch.arange(width) > last[:, None, :, None]
        bias = slot_bias(hidden, model)
        slots, tokens = slice(first, first + len(new)), slice(token, token + int(new.sum()))
        places = (slot[tokens] - first, offset[tokens], bias)
        on_device = (x.to(device, non_blocking=True) for x in places)
        groups.append(SlotGroup(slots, tokens, *on_device))
        token = tokens.stop
    return groups


def slot_bias(hidden: torch.Tensor, model: "PreTrainedModel") -> torch.Tensor:
    """Return a group's bias from which places [R, 1, Q, W] each of its tokens may not see.

    Made once a pass: a mask of truths is made into this again in each layer.
    """
    heads = model.config.num_attention_heads
    shared = heads // (getattr(model.config, "num_key_value_heads", None) or heads)
    bias = torch.zeros(hidden.shape, dtype=model.dtype, device=hidden.device)
    return bias.masked_fill_(hidden, -torch.inf).repeat(1, 1, shared, 1)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    attend: "Attend | None" = None,
    starts: torch.Tensor | None = None,
    longest: int = 0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return [B, T, H, D]: every token attends within its document, or as `attend` says.

    query: [B, H, T, D], key and value: [B, H or fewer, T, D]; starts and longest as `documents`
    gives them. With attend, B is 1.
    """
    assert attention_mask is None
    if attend is not None:
        one, two, three = (x[0].transpose(0, 1) for x in (query, key, value))
        number: Any = module.layer_idx
        return attend(number, one, two, three, scaling)[None], None
    assert starts is not None
    rows, size = query.shape[0], query.shape[2]
    flat = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # [B T, heads, D]
    found = by_document(*flat, starts, longest, scaling)
    return found.view(rows, size, *found.shape[1:]), None


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


def by_slot(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    groups: Sequence[SlotGroup],
    scaling: float | None,
) -> torch.Tensor:
    """Attend to a cache: query [N, H, D], keys and values [S, K heads, C, D] -> [N, H, D]."""
    heads, size = query.shape[1:]
    shared = heads // keys.shape[1]  # query heads for one head of the cache, which is read once
    parts = []
    for group in groups:
        rows, _, most, width = group.bias.shape
        most //= shared
        if most == 1:  # one token of each slot, in their order
            laid_out = query[group.tokens]
        else:
            laid_out = query.new_zeros(rows, heads, most, size)
            laid_out[group.row, :, group.offset] = query[group.tokens]
        found = scaled_dot_product_attention(
            laid_out.reshape(rows, heads // shared, shared * most, size),
            keys[group.slots, :, :width],
            values[group.slots, :, :width],
            attn_mask=group.bias,
            scale=scaling,
        ).view(rows, heads, most, size)
        parts.append(found[:, :, 0] if most == 1 else found[group.row, :, group.offset])
    return torch.cat(parts)


def by_document(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scaling: float | None,
) -> torch.Tensor:
    """Attend within documents, causally: q [N, H, D], k and v [N, H or fewer, D] -> [N, H, D]."""
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
        return out
    lengths = [end - start for start, end in pairwise(starts.tolist())]
    # split has one concatenation as its backward; slices would each fill a whole gradient.
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    return torch.cat([_causal(*part, scaling, grouped) for part in parts])


def _causal(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float | None, grouped: bool
) -> torch.Tensor:
    """Attend within one document: [L, H, D]."""
    one, two, three = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, L, D]
    found = scaled_dot_product_attention(
        one, two, three, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return found[0].transpose(0, 1)


AttentionInterface.register(NAME, packed_attention)


@contextmanager
def packed(model: "PreTrainedModel") -> Generator[bool]:
    """Let a model read packed tokens; yields False where its architecture cannot.

    Meanwhile it has to be called with what `packed_attention` wants.
    """
    before = model.config._attn_implementation
    able = bool(getattr(model, "_supports_attention_backend", False))
    if able:
        model.set_attn_implementation(NAME)
    try:
        yield able
    finally:
        model.set_attn_implementation(before)
