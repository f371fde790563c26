"""Keys and values of the rows that decode together, and attention to them.

The tokens of a decoding step, one or several per slot, are laid out by slot for this one operation
only. On CUDA in half precision each slot is read as far as it goes; elsewhere slots are read up to
the longest of their group, with a bias where there is nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from domain_tokens.modeling import flash_takes, flash_varlen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU_GROUP = 16  # slots; on a GPU one large call beats several that read less
WIDTH_MULTIPLE = 32  # tokens; slots read their cache up to the longest of them, rounded up


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU tensor on a device; the host does not wait for the copy."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class SlotGroup:
    """Neighbouring slots that attend together: R slots, n tokens, ≤ Q of one slot, W positions.

    row, offset: [n], where each token stands in [R, Q]; bias: [R, 1, S Q, W] for S query heads to
    a head of the cache, 0 where a token may look and -inf elsewhere.
    """

    slots: slice
    tokens: slice
    row: torch.Tensor
    offset: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, slots=True)
class SlotLengths:
    """Slots 0 to A - 1 and how far each is read: int32 tensors on the device.

    cu_seqlens_q: [A + 1], where the tokens of each slot begin; cu_seqlens_k: [A + 1], where slots
    begin in the cache; known: [A], positions that hold something, new ones included; max_seqlen_q:
    tokens of one slot at most.
    """

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    known: torch.Tensor
    max_seqlen_q: int


@dataclass(frozen=True, slots=True)
class FixedPlan:
    """What decoding steps of one token of each of A slots need besides positions.

    first: [A], where slots begin in the cache; offset: [A], zeros; seen: [C], all positions; the
    others as in SlotLengths.
    """

    first: torch.Tensor
    offset: torch.Tensor
    seen: torch.Tensor
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor


def slot_bias(hidden: torch.Tensor, dtype: torch.dtype, shared: int) -> torch.Tensor:
    """Return a group's bias from which positions [R, 1, Q, W] each of its tokens may not see.

    shared: query heads to a head of the cache. Made once a forward pass: a mask of truths is made
    into this again in each layer.
    """
    bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return bias.masked_fill_(hidden, -torch.inf).repeat(1, 1, shared, 1)


def slot_groups(
    known: torch.Tensor,
    slot: torch.Tensor,
    offset: torch.Tensor,
    *,
    capacity: int,
    shared: int,
    like: tuple[torch.device, torch.dtype],
) -> list[SlotGroup]:
    """Group slots 0, 1, … by what each has in the cache: known [A], all of these on the CPU.

    slot, offset: [N], each new token's slot and its number among that slot's new tokens (≥ 1 of
    them), in the order of the slots. capacity: positions of a slot; shared: as in `slot_bias`;
    like: device and type of the bias.
    """
    (device, dtype), counts = like, slot.bincount()
    size = CPU_GROUP if device.type == "cpu" else len(known)
    groups, token = [], 0
    for start in range(0, len(known), size):
        old, new = known[start : start + size], counts[start : start + size]
        longest = int((old + new).max())
        width = min(-(-longest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, capacity)
        last = old[:, None] + torch.arange(int(new.max()))  # [R, Q]
        hidden = torch.arange(width) > last[:, None, :, None]
        slots, tokens = slice(start, start + len(new)), slice(token, token + int(new.sum()))
        tensors = (slot[tokens] - start, offset[tokens], hidden)
        row, at, hidden = (to_device(x, device) for x in tensors)
        bias = slot_bias(hidden, dtype, shared)
        groups.append(SlotGroup(slots, tokens, row, at, bias))
        token = tokens.stop
    return groups


def attend_to_groups(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    groups: Sequence[SlotGroup],
    scaling: float | None,
) -> torch.Tensor:
    """Attend to a cache: query [N, H, D], keys and values [S, C, K heads, D] -> [N, H, D]."""
    heads, size = query.shape[1:]
    shared = heads // keys.shape[2]  # query heads for one head of the cache, which is read once
    parts = []
    for group in groups:
        rows, _, max_tokens, width = group.bias.shape
        max_tokens //= shared
        if max_tokens == 1:  # one token of each slot, in their order
            laid_out = query[group.tokens]
        else:
            laid_out = query.new_zeros(rows, heads, max_tokens, size)
            laid_out[group.row, :, group.offset] = query[group.tokens]
        attended = scaled_dot_product_attention(
            laid_out.reshape(rows, heads // shared, shared * max_tokens, size),
            keys[group.slots, :width].transpose(1, 2),
            values[group.slots, :width].transpose(1, 2),
            attn_mask=group.bias,
            scale=scaling,
        ).reshape(rows, heads, max_tokens, size)
        parts.append(attended[:, :, 0] if max_tokens == 1 else attended[group.row, :, group.offset])
    return torch.cat(parts)


class SlotCache:
    """Keys and values of all slots, preallocated.

    Per layer one tensor [2, S, C capacity, K, D]; a slot's tokens lie from 0 on.
    """

    def __init__(self, model: "PreTrainedModel", slots: int, capacity: int):
        heads = model.config.num_attention_heads
        self._shared = heads // (getattr(model.config, "num_key_value_heads", None) or heads)
        self._count = model.config.num_hidden_layers
        self._device, self._dtype = model.device, model.dtype
        self._slots, self._capacity = slots, capacity
        self._blocks: list[torch.Tensor] = []  # of layers of one shape: [layers, 2, S, C, K, D]
        self._layers: list[torch.Tensor] = []
        self._rows = torch.empty(0)  # where the next step writes, counted over all slots
        self._plan: list[SlotGroup] | SlotLengths = []

    def begin(self, slot: torch.Tensor, position: torch.Tensor) -> None:
        """Say where the next step writes: its token i is slot[i]'s position[i], both on the CPU."""
        self._rows = to_device(slot * self._capacity + position, self._device)

    def plan_attention(self, slot: torch.Tensor, position: torch.Tensor) -> None:
        """Begin a step of every active slot, 0 to A - 1 in order, whose tokens see their slot."""
        self.begin(slot, position)
        counts = slot.bincount()
        first = counts.cumsum(0) - counts
        known = position[first]
        if self._by_length:
            ends = torch.stack([(first + counts), torch.arange(1, len(counts) + 1)])
            ends[1] *= self._capacity
            table = to_device(torch.cat([ends, (known + counts)[None]]).int(), self._device)
            begins = torch.nn.functional.pad(table[:2], (1, 0))
            self._plan = SlotLengths(*begins, table[2], int(counts.max()))
        else:
            self._plan = slot_groups(
                known,
                slot,
                torch.arange(len(slot)) - first[slot],
                capacity=self._capacity,
                shared=self._shared,
                like=(self._device, self._dtype),
            )

    @property
    def _by_length(self) -> bool:
        """Whether slots can be read as far as each goes, judged by the layers that were written."""
        return bool(self._layers) and all(flash_takes(layer) for layer in self._layers)

    def fixed_plan(self, slots: int) -> FixedPlan:
        """Return what steps of one token of each of so many slots need; prompts were written."""
        number = torch.arange(slots + 1, device=self._device)
        first = number * self._capacity
        return FixedPlan(
            first=first[:-1],
            offset=torch.zeros_like(number[:-1]),
            seen=torch.arange(self._capacity, device=self._device),
            cu_seqlens_q=number.int(),
            cu_seqlens_k=first.int(),
        )

    def follow_plan(self, plan: FixedPlan, position: torch.Tensor) -> None:
        """Begin such a step with slot i's token at position[i], all on the device."""
        self._rows, slots = plan.first + position, len(plan.first)
        if self._by_length:
            known = (position + 1).int()
            self._plan = SlotLengths(plan.cu_seqlens_q, plan.cu_seqlens_k, known, 1)
        else:
            bias = slot_bias(plan.seen > position[:, None, None, None], self._dtype, self._shared)
            whole = slice(0, slots)
            self._plan = [SlotGroup(whole, whole, plan.first, plan.offset, bias)]

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store a step's keys and values, [N, K, D]."""
        if layer == len(self._layers):
            self._have_layer(key)
        for store, new in zip(self._layers[layer], (key, value), strict=True):
            store.view(-1, *key.shape[1:]).index_copy_(0, self._rows, new)

    def _have_layer(self, key: torch.Tensor) -> None:
        """Take memory for the next layer and all after it, which most often are of its shape."""
        left = self._count - len(self._layers)
        shape = (2, self._slots, self._capacity, *key.shape[1:])
        if not self._blocks or self._blocks[-1].shape[1:] != shape:
            self._blocks.append(_zeros((left, *shape), key))
        self._layers.append(self._blocks[-1][-left])

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
    ) -> torch.Tensor:
        """Store keys and values and attend to them, as the plan says: [N, H, D]."""
        self.write(layer, key, value)
        keys, values = self._layers[layer]
        plan = self._plan
        if isinstance(plan, SlotLengths):
            return flash_varlen(
                query,
                *(x.view(-1, *x.shape[2:]) for x in (keys, values)),
                cu_seqlens_q=plan.cu_seqlens_q,
                cu_seqlens_k=plan.cu_seqlens_k,
                max_seqlen_q=plan.max_seqlen_q,
                max_seqlen_k=self._capacity,
                used=plan.known,
                scaling=scaling,
            )
        return attend_to_groups(query, keys, values, plan, scaling)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a slot's tokens to another slot."""
        for block in self._blocks:
            block[:, :, target, :length] = block[:, :, source, :length]

    def free(self, slot: int, last: int, length: int) -> None:
        """Free a slot; the last slot's tokens, so many, move there."""
        if slot != last:
            self.copy(last, slot, length)


class RowCache(SlotCache):
    """The same as transformers' own cache, for a model that reads rows of its own."""

    _shown: tuple[int, int] | None = None

    def begin(self, slot: torch.Tensor, position: torch.Tensor) -> None:
        """Say where the next step writes; its queries look at themselves alone."""
        super().begin(slot, position)
        self._shown = None

    def show(self, slots: int, positions: int) -> None:
        """Let the queries of the next step look at so many slots and positions."""
        self._shown = slots, positions

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values [B, K, T, D]; return those that the queries may attend to."""
        self.write(layer, *(x.transpose(1, 2).flatten(0, 1) for x in (key, value)))
        if self._shown is None:
            return key, value
        slots, positions = self._shown
        keys, values = (x[:slots, :positions].transpose(1, 2) for x in self._layers[layer])
        return keys, values

    def get_seq_length(self, *args: Any) -> int:
        """Return what transformers asks for when it reads prompts: nothing was seen before."""
        return 0

    def get_query_offset(self, *args: Any) -> int:
        """Return the position of the first query of a prompt."""
        return 0

    def get_mask_sizes(self, query_length: int, *args: Any) -> tuple[int, int]:
        """Return key length and offset for the causal mask of prompts."""
        return query_length, 0


class PagedCache:
    """Keys and values in pages of a few positions, for a CPU in fp32: memory for what is read.

    One tensor, [P pages, layers, keys and values, K, PAGE, D]; a page that was freed is the next
    to be taken (Kwon et al. 2023, PagedAttention).
    """

    def __init__(self, slots: int, capacity: int, layers: int):
        from domain_tokens.inference.cpu.kernels import PAGE, attend_pages

        self._attend, self._page = attend_pages, PAGE
        self._table = np.zeros((slots, -(-capacity // self._page)), np.int32)
        self._counts = [0] * slots  # pages of each slot
        self._free = list(range(self._table.size))[::-1]
        self._layers = layers
        self._pool = self._pages = self._offsets = torch.empty(0)
        self._first = self._known = np.zeros(0, np.int32)

    def begin(self, slot: torch.Tensor, position: torch.Tensor) -> None:
        """Say where the next step writes: its token i is slot[i]'s position[i]."""
        needed = np.zeros(len(self._counts), np.int64)
        slots, pages = slot.numpy(), position.numpy() // self._page
        np.maximum.at(needed, slots, pages + 1)
        for which in needed.nonzero()[0]:
            self._reserve(int(which), int(needed[which]))
        self._pages = torch.from_numpy(self._table[slots, pages]).long()
        self._offsets = position % self._page

    def _reserve(self, slot: int, count: int) -> None:
        for number in range(self._counts[slot], count):
            self._table[slot, number] = self._free.pop()
        self._counts[slot] = max(self._counts[slot], count)

    def plan_attention(self, slot: torch.Tensor, position: torch.Tensor) -> None:
        """Begin a step of every active slot, 0 to A - 1 in order, whose tokens see their slot."""
        self.begin(slot, position)
        self._first = np.concatenate([[0], slot.bincount().cumsum(0).numpy()]).astype(np.int32)
        self._known = position.numpy()[self._first[:-1]].astype(np.int32)

    def _have_pool(self, key: torch.Tensor) -> None:
        if not self._pool.numel():
            heads, size = key.shape[1:]
            shape = (self._table.size, self._layers, 2, heads, self._page, size)
            self._pool = _zeros(shape, key)

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store a step's keys and values, [N, K, D]."""
        self._have_pool(key)
        self._pool[self._pages, layer, 0, :, self._offsets] = key
        self._pool[self._pages, layer, 1, :, self._offsets] = value

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
    ) -> torch.Tensor:
        """Store keys and values and attend to them, as `plan_attention` said: [N, H, D]."""
        scale = np.float32(query.shape[-1] ** -0.5 if scaling is None else scaling)
        self._have_pool(key)
        q, k, v = (x.contiguous().numpy() for x in (query, key, value))
        out = torch.empty(query.shape)
        where = self._table, self._first, self._known
        self._attend(q, (k, v), self._pool.numpy(), layer, where, scale, out.numpy())
        return out

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a slot's tokens to another slot."""
        count = -(-length // self._page)
        self._reserve(target, count)
        theirs, ours = (torch.from_numpy(self._table[s, :count]).long() for s in (source, target))
        self._pool[ours] = self._pool[theirs]

    def free(self, slot: int, last: int, length: int) -> None:
        """Free a slot; the last slot's pages become its own."""
        self._free += self._table[slot, : self._counts[slot]].tolist()[::-1]
        self._table[slot], self._counts[slot] = self._table[last], self._counts[last]
        self._counts[last] = 0


def _zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Return zeros; on a CPU, memory that is taken only where something is written."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    size = math.prod(shape) * like.element_size()
    return torch.from_numpy(np.zeros(size, np.uint8)).view(like.dtype).view(shape)
