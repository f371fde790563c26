"""Log-probabilities of given continuations, whose prompt is read only once."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch

from domain_tokens.inference.cpu.packed_weights import prepacked
from domain_tokens.inference.forward import PackedForward, packed_forward
from domain_tokens.modeling import attend_within_documents
from domain_tokens.runs import gather_dict, share_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 16_384  # of prompts that are in memory at once, each as often as it is continued
PACKED_TOKENS = 1024  # of texts that are read one behind the other


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
    with packed_forward(model) if alone else prepacked(model) as reader:
        if reader:
            texts = [[*p, *c[:-1]] for p, (c,) in zip(prompts, continuations, strict=True)]
            groups = _groups(texts, [1] * len(texts), most=PACKED_TOKENS)
        else:
            groups = _groups(prompts, [len(group) for group in continuations], most=TOKENS)
        for group in share_of(groups):
            chosen = [prompts[i] for i in group], [continuations[i] for i in group]
            found = _score_packed(reader, *chosen) if reader else _score(model, *chosen)
            scores.update(zip(group, found, strict=True))
    scores = gather_dict(scores)
    return [scores[i] for i in range(len(prompts))]


def _groups(
    prompts: Sequence[Sequence[int]], copies: Sequence[int], *, most: int
) -> list[list[int]]:
    """Return indices of prompts to read together, longest first: of like length, little padding.

    most: tokens in a group, padding included; a prompt with more is alone.
    """
    groups: list[list[int]] = []
    width = room = 0
    for index in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)):
        if not groups or copies[index] * width > room:
            groups.append([])
            width, room = len(prompts[index]), most
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
    output, mask = _read(model, prompts, use_cache=True)
    flat = [list(c) for group in continuations for c in group]
    counts = torch.tensor([len(group) for group in continuations], device=device)
    owner = torch.repeat_interleave(torch.arange(len(prompts), device=device), counts)  # [C]
    longest = max(len(c) for c in flat)
    padded = torch.tensor([c + [0] * (longest - len(c)) for c in flat], device=device)  # [C, L]
    known = torch.tensor([[1] * len(c) + [0] * (longest - len(c)) for c in flat], device=device)
    first = output.logits[:, -1].float().log_softmax(-1)  # [P, V]
    total = first[owner, padded[:, 0]].double()  # [C]
    if longest > 1:
        cache = output.past_key_values
        cache.batch_select_indices(owner)
        positions = mask.sum(-1)[owner, None] + torch.arange(longest - 1, device=device)
        logits = model(
            input_ids=padded[:, :-1],
            attention_mask=torch.cat([mask[owner], known[:, :-1]], dim=1),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits  # [C, L - 1, V]
        later = logits.float().log_softmax(-1).gather(-1, padded[:, 1:, None])[..., 0]
        total += (later.double() * known[:, 1:]).sum(-1)
    values = total.tolist()
    starts = [0, *counts.cumsum(0).tolist()]
    return [values[a:b] for a, b in pairwise(starts)]


def _score_packed(
    reader: PackedForward,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Score one continuation of each prompt, one text behind the other: no padding, no mask."""
    device = reader.device
    wanted = [continuation for (continuation,) in continuations]
    texts = [[*p, *c[:-1]] for p, c in zip(prompts, wanted, strict=True)]
    ends = list(accumulate(len(text) for text in texts))
    places = [place for text in texts for place in range(len(text))]
    # What is wanted follows the last token of a prompt, and then each token but the last.
    keep = [at for end, c in zip(ends, wanted, strict=True) for at in range(end - len(c), end)]
    starts = torch.tensor([0, *ends], dtype=torch.int32, device=device)
    longest = max(map(len, texts))

    def attend(layer: int, q: Any, k: Any, v: Any, scaling: float | None) -> torch.Tensor:
        return attend_within_documents(q, k, v, starts, longest, scaling)

    logits = reader(
        torch.tensor([i for text in texts for i in text], device=device),
        torch.tensor(places, device=device),
        attend,
        keep=torch.tensor(keep, device=device),
    )  # [all tokens of continuations, V]
    chosen = torch.tensor([i for c in wanted for i in c], device=device)
    values = logits.float().log_softmax(-1).gather(-1, chosen[:, None])[:, 0].double()
    return [[float(part.sum())] for part in values.cpu().split([len(c) for c in wanted])]


def _read(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], *, use_cache: bool
) -> tuple[Any, torch.Tensor]:
    """Read prompts, left-padded; return the model's output and the mask [P, T]."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    known = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    mask = torch.tensor(known, device=model.device)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        use_cache=use_cache,
        logits_to_keep=1,
    )
    return output, mask


@torch.inference_mode()
def next_token_mass(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], ids: Sequence[int]
) -> list[float]:
    """Return, for each prompt, the probability that the next token is one of ids (0–1)."""
    chosen = torch.tensor(list(ids), device=model.device)
    masses: dict[int, float] = {}
    with prepacked(model):
        for group in _groups(prompts, [1] * len(prompts), most=TOKENS):
            output, _ = _read(model, [prompts[i] for i in group], use_cache=False)
            shares = output.logits[:, -1].double().softmax(-1)[:, chosen].sum(-1)
            masses.update(zip(group, shares.tolist(), strict=True))
    return [masses[i] for i in range(len(prompts))]
