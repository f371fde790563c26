"""Log-probabilities of given continuations, whose prompt is read only once."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import fsum
from typing import TYPE_CHECKING, Any

import torch

from domain_tokens.inference.forward import PackedForward, packed_forward
from domain_tokens.inference.kv_cache import to_device
from domain_tokens.inference.prefix_tree import PrefixTree, padded_visibility, prefix_tree
from domain_tokens.modeling import (
    Attend,
    attend_where_visible,
    attend_within_documents,
    fp32_logits,
)
from domain_tokens.runs import gather_dict, share_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of texts that are read one after the other; fewer would leave a GPU waiting for the host.
PACKED_TOKENS = {"cpu": 1024, "cuda": 16_384}
LOGIT_ROWS = 2048  # of which logits are in memory at once
# Where an architecture cannot read so: of prompts, padded, each as often as it is continued.
PADDED_TOKENS = 16_384


@torch.inference_mode()
def continuation_log_probs(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    given: Sequence[Sequence[int]] | None = None,
) -> list[list[float]]:
    """Return log p(continuation | prompt) in nats for every continuation of every prompt.

    prompts: N lists of ids, none empty; continuations: N lists of lists of ids, none empty; given:
    how many ids of each continuation belong to the condition, so that only the rest is scored; by
    default none. A prompt is read once, and so is what its continuations have in common; fp32
    results do not depend on what else is in the batch. Several processes share the batches.
    """
    model.eval()
    if given is None:
        given = [[0] * len(group) for group in continuations]
    scores: dict[int, list[float]] = {}
    with packed_forward(model) as forward:
        if forward:
            parts = zip(prompts, continuations, given, strict=True)
            trees = [prefix_tree(*part) for part in parts]
            max_tokens = PACKED_TOKENS.get(model.device.type, PACKED_TOKENS["cpu"])
            groups = _groups([t.ids for t in trees], [1] * len(trees), max_tokens=max_tokens)
            for group in share_of(groups):
                scored = _score_trees(forward, [trees[i] for i in group])
                scores.update(zip(group, scored, strict=True))
        elif any(map(any, given)):
            return _one_by_one(model, prompts, continuations, given)
        else:
            copies = [len(group) for group in continuations]
            for group in share_of(_groups(prompts, copies, max_tokens=PADDED_TOKENS)):
                chosen = [prompts[i] for i in group], [continuations[i] for i in group]
                scores.update(zip(group, _score_padded(model, *chosen), strict=True))
    scores = gather_dict(scores)
    return [scores[i] for i in range(len(prompts))]


def _one_by_one(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    given: Sequence[Sequence[int]],
) -> list[list[float]]:
    """Score every continuation after a prompt of its own, which ends with what of it is given."""
    parts = zip(prompts, continuations, given, strict=True)
    texts = [
        ([*prompt, *continuation[:unscored]], [continuation[unscored:]])
        for prompt, group, counts in parts
        for continuation, unscored in zip(group, counts, strict=True)
    ]
    scores = iter(continuation_log_probs(model, [p for p, _ in texts], [c for _, c in texts]))
    return [[next(scores)[0] for _ in group] for group in continuations]


def _groups(
    prompts: Sequence[Sequence[int]], copies: Sequence[int], *, max_tokens: int
) -> list[list[int]]:
    """Return indices of prompts to read together, longest first: of like length, little padding.

    max_tokens: of a group, padding included; a prompt with more is alone.
    """
    groups: list[list[int]] = []
    width = room = 0
    for index in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)):
        if not groups or copies[index] * width > room:
            groups.append([])
            width, room = len(prompts[index]), max_tokens
        groups[-1].append(index)
        room -= copies[index] * width
    return groups


def _score_trees(forward: PackedForward, trees: Sequence[PrefixTree]) -> list[list[float]]:
    """Score one group, one text after the other: no padding but in attention."""
    device = forward.device
    firsts = list(accumulate((len(tree.ids) for tree in trees[:-1]), initial=0))
    texts = list(zip(firsts, trees, strict=True))
    # (token, id after it): once each, tokens in order, however many continuations pass there.
    steps = sorted(
        {(first + at, i) for first, tree in texts for path in tree.paths for at, i in path}
    )
    keep = sorted({token for token, _ in steps})
    row_of = {token: row for row, token in enumerate(keep)}
    rows = [row_of[token] for token, _ in steps]
    lists = (
        [i for tree in trees for i in tree.ids],
        [position for tree in trees for position in tree.positions],
        keep,
        [row % LOGIT_ROWS for row in rows],
        [i for _, i in steps],
    )
    ids, positions, kept, row, chosen = (to_device(torch.tensor(x), device) for x in lists)
    parts = forward.logits(ids, positions, _attention(trees, device), keep=kept, rows=LOGIT_ROWS)
    values, done = [], 0
    for number, logits in enumerate(parts, 1):  # fp32 [LOGIT_ROWS or fewer, V]
        part = slice(done, bisect_left(rows, number * LOGIT_ROWS))
        values.append(logits.log_softmax(-1)[row[part], chosen[part]].double())
        done = part.stop
    known = dict(zip(steps, torch.cat(values).cpu().tolist(), strict=True))
    return [
        [fsum(known[first + at, i] for at, i in path) for path in tree.paths]
        for first, tree in texts
    ]


def _attention(trees: Sequence[PrefixTree], device: torch.device) -> Attend:
    """Return the attention of a group of texts: causal where none of them branches."""
    sizes = [len(tree.ids) for tree in trees]
    if all(tree.is_chain for tree in trees):
        cu_seqlens = to_device(torch.tensor([0, *accumulate(sizes)], dtype=torch.int32), device)

        def attend(layer: int, q: Any, k: Any, v: Any, scaling: float | None) -> torch.Tensor:
            return attend_within_documents(q, k, v, cu_seqlens, max(sizes), scaling)
    else:
        layout = [to_device(x, device) for x in padded_visibility(trees)]

        def attend(layer: int, q: Any, k: Any, v: Any, scaling: float | None) -> torch.Tensor:
            return attend_where_visible(q, k, v, *layout, scaling)

    return attend


def _score_padded(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Score one group; read by `model` as it is, with masks and a cache of its own.

    P prompts, C continuations in all, T and L tokens of each.
    """
    device = model.device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    ids, mask = (to_device(x, device) for x in (ids, mask))
    logits, output = fp32_logits(
        model,
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = output.past_key_values
    flat = [list(c) for group in continuations for c in group]
    counts = torch.tensor([len(group) for group in continuations])
    longest = max(len(c) for c in flat)
    owner, padded, known = (
        to_device(x, device)
        for x in (
            torch.arange(len(prompts)).repeat_interleave(counts),  # [C]
            torch.tensor([c + [0] * (longest - len(c)) for c in flat]),  # [C, L]
            torch.tensor([[1] * len(c) + [0] * (longest - len(c)) for c in flat]),
        )
    )
    first = logits[:, -1].log_softmax(-1)  # [P, V]
    total = first[owner, padded[:, 0]].double()  # [C]
    if longest > 1:
        cache.batch_select_indices(owner)
        positions = mask.sum(-1)[owner, None] + torch.arange(longest - 1, device=device)
        logits, _ = fp32_logits(
            model,
            input_ids=padded[:, :-1],
            attention_mask=torch.cat([mask[owner], known[:, :-1]], dim=1),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )  # [C, L - 1, V]
        later = logits.log_softmax(-1).gather(-1, padded[:, 1:, None])[..., 0]
        total += (later.double() * known[:, 1:]).sum(-1)
    values = total.tolist()
    bounds = [0, *counts.cumsum(0).tolist()]
    return [values[a:b] for a, b in pairwise(bounds)]
