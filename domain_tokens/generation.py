"""The one batched decoder: slots with a preallocated cache, refilled as their rows end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from domain_tokens import attention
from domain_tokens.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

StopReason = Literal["eos", "length", "context"]

PROMPT_TOKENS = 2048  # prompts are read together up to so many
WIDTH_MULTIPLE = 32  # tokens; attention reads the cache up to the longest row, rounded up


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn; temperature 0 takes the most likely one.

    row_seeds: a seed for each prompt; without them a prompt's place among the prompts decides.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 42
    row_seeds: tuple[int, ...] | None = None

    def draws(self, index: int, count: int) -> np.ndarray:
        """Return the uniform draws of the prompt at this place; more of them begin alike."""
        if self.temperature == 0:
            return np.empty(0)
        place = self.seed * 1_000_003 + index
        seed = place if self.row_seeds is None else self.row_seeds[index]
        return np.random.default_rng(seed % 2**63).random(count)


@dataclass(frozen=True, slots=True)
class Response:
    """token_ids: what was written, without EOS; stop: eos, length (budget) or context (full)."""

    token_ids: list[int]
    stop: StopReason


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What is to be continued, and how far."""

    ids: Sequence[Sequence[int]]
    eos_id: int
    max_new_tokens: int
    slots: int
    context: int


@torch.inference_mode()
def generate(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    max_new_tokens: int,
    batch_size: int,
    sampling: Sampling = GREEDY,
    on_finished: Callable[[int, Response], None] = lambda index, response: None,
) -> list[Response]:
    """Return a response per prompt, in the order of prompts.

    batch_size: rows that decode together. In fp32 greedy responses equal those of batch size 1,
    token for token; a sampled response depends on its seed alone. on_finished hears of each as it
    ends.
    Raises UserError for an empty prompt or one that leaves no room in the model's context.
    """
    context = getattr(model.config, "max_position_embeddings", 10**9)
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            raise UserError(
                f"prompt {index} has {len(prompt)} tokens; wanted 1 to {context - 1}, "
                "which is what the model can read"
            )
    if not prompts:
        return []
    model.eval()
    responses: dict[int, Response] = {}
    work = _Prompts(prompts, eos_id, max_new_tokens, batch_size, context)
    for index, response in _Decoder(model, work, sampling).run():
        responses[index] = response
        on_finished(index, response)
    return [responses[i] for i in range(len(prompts))]


class _SlotCache:
    """Keys and values of all slots, preallocated; what a forward pass sees as its cache.

    Per layer one tensor [2, S slots, H heads, C capacity, D]; a slot's tokens lie from 0 on.
    `begin_prompts` and `begin_step` say where the next forward pass writes.
    """

    def __init__(self, slots: int, capacity: int):
        self._slots, self._capacity = slots, capacity
        self._layers: list[torch.Tensor] = []
        self._slot: torch.Tensor | None = None  # of each prompt token that is being read
        self._place: torch.Tensor | None = None  # and its position in the prompt
        self._lengths: torch.Tensor | None = None
        self._width = 0

    def begin_prompts(self, slot: torch.Tensor, place: torch.Tensor) -> None:
        """Let the next pass read prompts, one behind the other: token i is slot[i]'s place[i]."""
        self._slot, self._place = slot, place

    def begin_step(self, lengths: torch.Tensor, width: int) -> None:
        """Let the next pass write one token per slot, behind lengths [A], and see width tokens."""
        self._slot, self._lengths, self._width = None, lengths, width

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values [B, H, T, D]; return those that the queries may attend to."""
        if layer == len(self._layers):
            shape = (2, self._slots, key.shape[1], self._capacity, key.shape[3])
            self._layers.append(key.new_zeros(shape))
        keys, values = self._layers[layer]
        if self._slot is not None:
            keys[self._slot, :, self._place] = key[0].transpose(0, 1)
            values[self._slot, :, self._place] = value[0].transpose(0, 1)
            return key, value
        assert self._lengths is not None
        active = len(self._lengths)
        slots = torch.arange(active, device=key.device)
        keys[slots, :, self._lengths] = key[:, :, 0]
        values[slots, :, self._lengths] = value[:, :, 0]
        return keys[:active, :, : self._width], values[:active, :, : self._width]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot's tokens to another slot."""
        for layer in self._layers:
            layer[:, target, :, :length] = layer[:, source, :, :length]

    def get_seq_length(self, *args: Any) -> int:
        """Return what transformers asks for when it reads prompts: nothing was seen before."""
        return 0

    def get_query_offset(self, *args: Any) -> int:
        """Return the position of the first query of a prompt."""
        return 0

    def get_mask_sizes(self, query_length: int, *args: Any) -> tuple[int, int]:
        """Return key length and offset for the causal mask of prompts."""
        return query_length, 0


@dataclass
class _Row:
    """A prompt in a slot: its place among the prompts, its length, what it wrote, its draws."""

    index: int
    prompt_length: int
    written: list[int]
    draws: np.ndarray


class _Decoder:
    """Rows that decode together; as one ends the next prompt takes its slot.

    A active slots, 0 to A - 1 (the last one fills a hole), T tokens of a prompt, V vocabulary.
    """

    def __init__(self, model: "PreTrainedModel", prompts: _Prompts, sampling: Sampling):
        self._model, self._prompts, self._sampling = model, prompts, sampling
        # Longest first: slots that are active together are of like length, and little is padded.
        self._waiting = sorted(range(len(prompts.ids)), key=lambda i: (len(prompts.ids[i]), -i))
        longest = max(map(len, prompts.ids))
        self._capacity = min(prompts.context, longest + prompts.max_new_tokens)
        self._cache = _SlotCache(min(prompts.slots, len(prompts.ids)), self._capacity)
        self._rows: list[_Row] = []
        self._tokens: list[int] = []  # the newest token of each active slot, not yet in the cache

    def run(self) -> Iterator[tuple[int, Response]]:
        """Yield (index, response) as rows end."""
        slots = min(self._prompts.slots, len(self._prompts.ids))
        while self._waiting or self._rows:
            free = slots - len(self._rows)
            # Prompts are read a few at a time: one by one they would keep the others waiting.
            if self._waiting and free >= max(1, slots // 8):
                yield from self._admit(min(free, len(self._waiting)))
            if self._rows:
                yield from self._advance(self._step(), range(len(self._rows)))

    def _admit(self, count: int) -> Iterator[tuple[int, Response]]:
        """Read the next prompts into free slots; equal ones are read once and copied."""
        first = len(self._rows)
        readers: dict[tuple[int, ...], int] = {}  # prompt -> the slot that reads it
        for _ in range(count):
            index = self._waiting.pop()
            prompt = tuple(self._prompts.ids[index])
            readers.setdefault(prompt, len(self._rows))
            draws = self._sampling.draws(index, self._prompts.max_new_tokens)
            self._rows.append(_Row(index, len(prompt), [], draws))
            self._tokens.append(0)
        with attention.by_document(self._model) as able:
            groups = list(_groups(readers, most=PROMPT_TOKENS if able else 0))
            read = torch.cat([self._read(group, readers, able) for group in groups])
        order = {prompt: number for number, prompt in enumerate(p for g in groups for p in g)}
        owners = []
        for slot in range(first, first + count):
            prompt = tuple(self._prompts.ids[self._rows[slot].index])
            if readers[prompt] != slot:
                self._cache.move(readers[prompt], slot, len(prompt))
            owners.append(order[prompt])
        yield from self._advance(read[owners], range(first, first + count))

    def _read(
        self, group: list[tuple[int, ...]], readers: dict[tuple[int, ...], int], able: bool
    ) -> torch.Tensor:
        """Read prompts one behind the other, without padding; return their last logits [P, V]."""
        device = self._model.device
        lengths = torch.tensor([len(prompt) for prompt in group])
        ends = lengths.cumsum(0)
        place = torch.cat([torch.arange(size) for size in lengths.tolist()])
        slots = torch.tensor([readers[prompt] for prompt in group])
        self._cache.begin_prompts(slots.repeat_interleave(lengths).to(device), place.to(device))
        starts = torch.cat([ends.new_zeros(1), ends]).int().to(device)
        packed = {"starts": starts, "longest": int(lengths.max())} if able else {}
        return self._model(
            input_ids=torch.tensor([[i for prompt in group for i in prompt]], device=device),
            position_ids=place.to(device)[None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=(ends - 1).to(device),
            **packed,
        ).logits[0]

    def _step(self) -> torch.Tensor:
        """Write the newest tokens and return the logits [A, V] of the next ones."""
        device = self._model.device
        lengths = [row.prompt_length + len(row.written) - 1 for row in self._rows]
        width = min(-(-(max(lengths) + 1) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, self._capacity)
        places = torch.tensor(lengths, device=device)
        mask = torch.arange(width, device=device) <= places[:, None]  # [A, W]
        self._cache.begin_step(places, width)
        return self._model(
            input_ids=torch.tensor(self._tokens, device=device)[:, None],
            attention_mask=mask[:, None, None],
            position_ids=places[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]

    def _advance(self, logits: torch.Tensor, slots: range) -> Iterator[tuple[int, Response]]:
        """Give each slot its next token; yield the rows that end and close the holes they leave."""
        ended = []
        for slot, token in zip(slots, self._choose(logits, slots), strict=True):
            row, stop = self._rows[slot], None
            if token == self._prompts.eos_id:
                stop = "eos"
            else:
                row.written.append(token)
                self._tokens[slot] = token
                if len(row.written) == self._prompts.max_new_tokens:
                    stop = "length"
                elif row.prompt_length + len(row.written) >= self._prompts.context:
                    stop = "context"
            if stop is not None:
                ended.append(slot)
                yield row.index, Response(row.written, stop)
        for slot in reversed(ended):
            last, token = self._rows.pop(), self._tokens.pop()
            if slot < len(self._rows):
                self._cache.move(len(self._rows), slot, last.prompt_length + len(last.written))
                self._rows[slot], self._tokens[slot] = last, token

    def _choose(self, logits: torch.Tensor, slots: range) -> list[int]:
        if self._sampling.temperature == 0:
            return logits.argmax(-1).tolist()
        rows = [self._rows[slot] for slot in slots]
        draws = torch.tensor([row.draws[len(row.written)] for row in rows])
        return _sample(logits.float(), draws.to(logits.device), self._sampling).tolist()


def _groups(prompts: Iterable[tuple[int, ...]], *, most: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield runs of prompts of at most `most` tokens together; a longer one is alone."""
    group: list[tuple[int, ...]] = []
    for prompt in prompts:
        if group and sum(map(len, group)) + len(prompt) > most:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


def _sample(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Draw one token per row by inverse CDF: logits [B, V], draws uniform [B] -> ids [B]."""
    values, ids = (logits / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    probabilities = values.softmax(-1)
    if sampling.top_k is not None:
        probabilities[:, sampling.top_k :] = 0
    if sampling.top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        probabilities[before >= sampling.top_p] = 0
    cumulative = probabilities.cumsum(-1)
    picked = (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(-1)
    return ids.gather(-1, picked.clamp(max=ids.shape[-1] - 1)[:, None])[:, 0]
