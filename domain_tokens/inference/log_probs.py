"""Log-probabilities of given continuations, whose prompt is read only once."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch

from domain_tokens.inference.cpu.packed_weights import prepacked
from domain_tokens.inference.forward import PackedForward, packed_forward
from domain_tokens.inference.kv_cache import to_device
from domain_tokens.modeling import attend_within_documents, fp32_logits
from domain_tokens.runs import gather_dict, share_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 16_384  # of prompts that are in memory at once, each as often as it is continued
# Of texts that are read one after the other; fewer would leave a GPU waiting for the host.
PACKED_TOKENS = {"cpu": 1024, "cuda": 16_384}
LOGIT_ROWS = 2048  # of which logits are in memory at once


@torch.inference_mode()
def continuation_log_probs(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Return log p(continuation | prompt) in nats for every continuation of every prompt.

    prompts: N lists of ids, none empty; continuations: N lists of lists of ids, none empty. A
    prompt with several continuations is read once; fp32 results do not depend on what else is in
    the batch. Several processes share the batches.
    """
    model.eval()
    scores: dict[int, list[float]] = {}
    alone = all(len(group) == 1 for group in continuations)
    with packed_forward(model) if alone else prepacked(model) as forward:
        if forward:
            texts = [[*p, *c[:-1]] for p, (c,) in zip(prompts, continuations, strict=True)]
            max_tokens = PACKED_TOKENS.get(model.device.type, PACKED_TOKENS["cpu"])
            groups = _groups(texts, [1] * len(texts), max_tokens=max_tokens)
        else:
            groups = _groups(prompts, [len(group) for group in continuations], max_tokens=TOKENS)
        for group in share_of(groups):
            chosen = [prompts[i] for i in group], [continuations[i] for i in group]
            scored = _score_packed(forward, *chosen) if forward else _score(model, *chosen)
            scores.update(zip(group, scored, strict=True))
    scores = gather_dict(scores)
    return [scores[i] for i in range(len(prompts))]


def _groups(
    prompts: Sequence[Sequence[int]], copies: Sequence[int], *, max_tokens: int
) -> list[list[int]]:
    """Return indices of prompts to read together, longest first: of like length, little padding.

    most: tokens in a group, padding included; a prompt with more is alone.
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


def _score(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Score one group. P prompts, C continuations in all, T and L tokens of each."""
    device = model.device
    first, cache, mask = _read(model, prompts, use_cache=True)
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
    first = first.log_softmax(-1)  # [P, V]
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


def _score_packed(
    forward: PackedForward,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Score one continuation of each prompt, one text after the other: no padding, no mask."""
    device = forward.device
    answers = [continuation for (continuation,) in continuations]
    texts = [[*p, *c[:-1]] for p, c in zip(prompts, answers, strict=True)]
    ends = list(accumulate(len(text) for text in texts))
    positions = [position for text in texts for position in range(len(text))]
    # What is wanted follows the last token of a prompt, and then each token but the last.
    keep = [at for end, c in zip(ends, answers, strict=True) for at in range(end - len(c), end)]
    chosen = [i for c in answers for i in c]
    cu_seqlens = to_device(torch.tensor([0, *ends], dtype=torch.int32), device)
    max_seqlen = max(map(len, texts))

    def attend(layer: int, q: Any, k: Any, v: Any, scaling: float | None) -> torch.Tensor:
        return attend_within_documents(q, k, v, cu_seqlens, max_seqlen, scaling)

    lists = ([i for text in texts for i in text], positions, keep, chosen)
    ids, at, kept, targets = (to_device(torch.tensor(x), device) for x in lists)
    # Logits of all tokens of continuations [N, V], a few rows at a time.
    values = torch.cat(
        [
            logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].double()
            for logits, tokens in zip(
                forward.logits(ids, at, attend, keep=kept, rows=LOGIT_ROWS),
                targets.split(LOGIT_ROWS),
                strict=True,
            )
        ]
    )
    return [[float(part.sum())] for part in values.cpu().split([len(c) for c in answers])]


def _read(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], *, use_cache: bool
) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """Read prompts, left-padded; return the logits that follow [P, V], the cache, and the mask."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    ids, mask = (to_device(x, model.device) for x in (ids, mask))
    logits, output = fp32_logits(
        model,
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        use_cache=use_cache,
        logits_to_keep=1,
    )
    return logits[:, -1], output.past_key_values if use_cache else None, mask


@torch.inference_mode()
def next_token_mass(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], ids: Sequence[int]
) -> list[float]:
    """Return, for each prompt, the probability that the next token is one of ids (0–1)."""
    chosen = torch.tensor(list(ids), device=model.device)
    masses: dict[int, float] = {}
    with prepacked(model):
        for group in _groups(prompts, [1] * len(prompts), max_tokens=TOKENS):
            logits, _, _ = _read(model, [prompts[i] for i in group], use_cache=False)
            shares = logits.double().softmax(-1)[:, chosen].sum(-1)
            masses.update(zip(group, shares.tolist(), strict=True))
    return [masses[i] for i in range(len(prompts))]
