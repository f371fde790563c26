"""The one batched decoder: slots with a preallocated cache, refilled as their rows end.

Each pass reads the newest token of every slot and the guesses of `guesses.Lookup` behind it, all in
one packed row. A guess is kept where it is what the row would have written without it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from domain_tokens.errors import UserError
from domain_tokens.inference.cuda_graphs import CudaGraphRunner, slot_capacity
from domain_tokens.inference.forward import PackedForward, packed_forward
from domain_tokens.inference.kv_cache import PagedCache, SlotCache
from domain_tokens.inference.prompt_lookup import MAX_DRAFT_TOKENS, PromptLookup
from domain_tokens.inference.sampling import GREEDY, Sampling, _sample
from domain_tokens.modeling import attend_within_documents

if TYPE_CHECKING:
    from transformers import PreTrainedModel

StopReason = Literal["eos", "length", "context"]

PROMPT_TOKENS = 512  # read together, or about so many; products of 1,024 take a tenth longer
# Tokens of a prompts' and of another pass are multiples of these on a CPU, where there is something
# to fill them with: for each number oneDNN compiles products of its own, and keeps them.
PROMPT_ROUND, ROUND = 32, 8
FEW = 40  # rows that leave a CPU idle: up to here, as on a GPU, guessed tokens pay


@dataclass(frozen=True, slots=True)
class Response:
    """token_ids: what was written, without EOS; stop: eos, length (budget) or context (full)."""

    token_ids: list[int]
    stop: StopReason


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
    with packed_forward(model) as reader:
        for index, response in _Decoder(model, reader, work, sampling).run():
            responses[index] = response
            on_finished(index, response)
    return [responses[i] for i in range(len(prompts))]


class _Row:
    """A prompt in a slot: what it wrote and may still write, and its guesses."""

    def __init__(self, index: int, prompt: Sequence[int], *, most: int):
        """index: its place among the prompts; most: tokens that it may write, at least one."""
        self.index = index
        self.written: list[int] = []
        self.guessed: list[int] = []  # read behind the newest token in this pass
        self._prompt_length, self._most = len(prompt), most
        self._lookup = PromptLookup(prompt)

    @property
    def cached(self) -> int:
        """How many tokens it has in the cache: all but the newest."""
        return self._prompt_length + max(len(self.written) - 1, 0)

    def guess(self) -> None:
        """Guess what comes behind the newest token, not further than the row may go."""
        self.guessed = self._lookup.guess(self._most - len(self.written) - 1)

    def accept(self, chosen: Sequence[int], eos_id: int) -> bool:
        """Write what was chosen behind the newest token and right guesses; return whether to stop.

        chosen: one token more than was guessed.
        """
        right = 0
        for guess, token in zip([*self.guessed, None], chosen, strict=True):
            if token == eos_id:
                return True
            self.written.append(token)
            self._lookup.add(token)
            if len(self.written) == self._most:
                return True
            if token != guess:
                break
            right += 1
        self._lookup.learn(len(self.guessed), right)
        return False


class _Decoder:
    """Rows that decode together; as one ends the next prompt takes its slot.

    A active slots, 0 to A - 1 (the last one fills a hole), N tokens of a pass, V vocabulary.
    Without a reader prompts are read alone and nothing is guessed.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        reader: PackedForward | None,
        prompts: _Prompts,
        sampling: Sampling,
    ):
        self._model, self._reader = model, reader
        self._prompts, self._sampling = prompts, sampling
        self._greedy = sampling.temperature == 0
        # Longest first: slots that are active together are of like length, and little is padded.
        self._waiting = sorted(range(len(prompts.ids)), key=lambda i: (len(prompts.ids[i]), -i))
        longest = max(map(len, prompts.ids))
        self._slots = min(prompts.slots, len(prompts.ids))
        self._capacity = capacity = min(prompts.context, longest + prompts.max_new_tokens)
        self._passes = None
        if reader and reader.capturable:
            slots, positions = self._slots, prompts.context
            self._cache = SlotCache(model, slots, slot_capacity(capacity))
            self._passes = CudaGraphRunner(
                model, reader.hidden, self._cache, slots=slots, positions=positions
            )
        elif reader and (model.device.type, model.dtype) == ("cpu", torch.float32):
            self._cache = PagedCache(self._slots, capacity, model.config.num_hidden_layers)
        else:
            self._cache = SlotCache(model, self._slots, capacity)
        self._rows: list[_Row] = []

    def run(self) -> Iterator[tuple[int, Response]]:
        """Yield (index, response) as rows end."""
        while self._waiting or self._rows:
            free = self._slots - len(self._rows)
            # Prompts are read a few at a time: one by one they would keep the others waiting.
            if self._waiting and free >= max(1, self._slots // 8):
                yield from self._admit(min(free, len(self._waiting)))
            if self._rows:
                if self._reader:
                    for row in self._rows:
                        row.guess()
                    if self._model.device.type == "cpu":
                        self._limit_guesses()
                yield from self._advance(self._step(), range(len(self._rows)))

    def _limit_guesses(self) -> None:
        """Drop guesses so that the tokens of a pass are a multiple of ROUND.

        While few rows decode most guesses stay; else the likeliest, of rows whose last were right,
        fill up what is missing.
        """
        rows = len(self._rows)
        total = rows + sum(len(row.guessed) for row in self._rows)
        if rows > FEW:
            most = rows + -rows % ROUND
        elif total > 2 * ROUND:
            most = max(total - total % ROUND, rows)
        else:
            return
        left = most - rows
        trusted = sorted(self._rows, key=lambda row: -len(row.guessed))
        for place in range(
            MAX_DRAFT_TOKENS
        ):  # what rows may write next before what they may write after it
            for row in trusted:
                if len(row.guessed) > place:
                    left -= 1
                    if left < 0:
                        del row.guessed[place:]

    def _admit(self, count: int) -> Iterator[tuple[int, Response]]:
        """Read the next prompts into free slots; equal ones are read once and copied."""
        first = len(self._rows)
        readers: dict[tuple[int, ...], int] = {}  # prompt -> the slot that reads it
        prompts = []
        for slot in range(first, first + count):
            index = self._waiting.pop()
            prompt = tuple(self._prompts.ids[index])
            readers.setdefault(prompt, slot)
            prompts.append(prompt)
            most = min(self._prompts.max_new_tokens, self._prompts.context - len(prompt))
            self._rows.append(_Row(index, prompt, most=most))
        groups = list(_groups(readers, most=PROMPT_TOKENS if self._reader else 0))
        read = torch.cat([self._read(group, readers) for group in groups])
        order = {prompt: number for number, prompt in enumerate(p for g in groups for p in g)}
        for slot, prompt in enumerate(prompts, start=first):
            if readers[prompt] != slot:
                self._cache.copy(readers[prompt], slot, len(prompt))
        owners = [order[prompt] for prompt in prompts]
        yield from self._advance(read[owners], range(first, first + count))

    def _read(
        self, group: list[tuple[int, ...]], readers: dict[tuple[int, ...], int]
    ) -> torch.Tensor:
        """Read prompts one behind the other, without padding; return what follows, as `_step`."""
        device = self._model.device
        ends = torch.tensor([len(prompt) for prompt in group]).cumsum(0)
        slots = torch.tensor([readers[prompt] for prompt in group])
        group = [*group[:-1], self._filled(group[-1], int(ends[-1]))]
        lengths = torch.tensor([len(prompt) for prompt in group])
        place = torch.cat([torch.arange(size) for size in lengths.tolist()])
        self._cache.begin(slots.repeat_interleave(lengths), place)
        place = place.to(device)
        ids = torch.tensor([i for prompt in group for i in prompt], device=device)
        keep = (ends - 1).to(device)
        if self._reader is None:
            logits = self._model(
                input_ids=ids[None],
                position_ids=place[None],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=keep,
            ).logits[0]
            return logits.max(-1).indices if self._greedy else logits
        starts = torch.cat([ends.new_zeros(1), lengths.cumsum(0)]).int().to(device)
        longest = int(lengths.max())

        def attend(layer: int, q: Any, k: Any, v: Any, scaling: float | None) -> torch.Tensor:
            self._cache.put(layer, k, v)
            return attend_within_documents(q, k, v, starts, longest, scaling)

        return self._reader(ids, place, attend, keep=keep, greedy=self._greedy)

    def _filled(self, prompt: tuple[int, ...], total: int) -> tuple[int, ...]:
        """Lengthen the last of `total` tokens' prompts, if it may, so that they are rounded.

        What is added is overwritten like wrong guesses.
        """
        if not isinstance(self._cache, PagedCache):
            return prompt
        return prompt + prompt[-1:] * min(-total % PROMPT_ROUND, self._capacity - len(prompt))

    def _step(self) -> torch.Tensor:
        """Read newest tokens and guesses; return what follows each.

        Logits [N, V], or the most likely tokens [N] where nothing is sampled.
        """
        if self._passes and self._reader:
            tokens = [(row.written[-1], *row.guessed) for row in self._rows]
            hidden = self._passes(tokens, [row.cached for row in self._rows])
            return self._reader.outputs(hidden, greedy=self._greedy)
        device = self._model.device
        lengths = torch.tensor([row.cached for row in self._rows])
        counts = torch.tensor([1 + len(row.guessed) for row in self._rows])
        ids = [i for row in self._rows for i in (row.written[-1], *row.guessed)]
        slot = torch.arange(len(self._rows)).repeat_interleave(counts)
        offset = torch.arange(len(ids)) - (counts.cumsum(0) - counts)[slot]
        place = lengths[slot] + offset
        on_device = torch.tensor(ids, device=device), place.to(device)
        if self._reader:
            self._cache.look_back(slot, place)
            return self._reader(*on_device, self._cache.attend, greedy=self._greedy)
        assert isinstance(self._cache, SlotCache)
        width = int(lengths.max()) + 1
        self._cache.begin(slot, place)
        self._cache.show(len(lengths), width)
        ids, place = on_device
        mask = torch.arange(width, device=device) <= place[:, None]  # [A, W]
        logits = self._model(
            input_ids=ids[:, None],
            attention_mask=mask[:, None, None],
            position_ids=place[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        return logits.max(-1).indices if self._greedy else logits

    def _advance(self, found: torch.Tensor, slots: range) -> Iterator[tuple[int, Response]]:
        """Give each slot what it wrote; yield the rows that end and close the holes they leave.

        found: as `_step` returns it.
        """
        chosen = iter((found if self._greedy else self._draw(found, slots)).tolist())
        ended = []
        for slot in slots:
            row = self._rows[slot]
            written = [next(chosen) for _ in range(1 + len(row.guessed))]
            if row.accept(written, self._prompts.eos_id):
                ended.append(slot)
                yield row.index, Response(row.written, self._reason(row))
        for slot in reversed(ended):
            last = self._rows.pop()
            self._cache.close(slot, len(self._rows), last.cached)
            if slot < len(self._rows):
                self._rows[slot] = last

    def _reason(self, row: _Row) -> StopReason:
        """Say why a row ended."""
        if len(row.written) == self._prompts.max_new_tokens:
            return "length"
        full = len(self._prompts.ids[row.index]) + len(row.written) == self._prompts.context
        return "context" if full else "eos"

    def _draw(self, logits: torch.Tensor, slots: range) -> torch.Tensor:
        """Sample the next token behind each token that was read: logits [N, V] -> ids [N]."""
        keys = [
            (*self._sampling.stream(row.index), len(row.written) + i)
            for row in (self._rows[slot] for slot in slots)
            for i in range(1 + len(row.guessed))
        ]
        return _sample(logits.float(), keys, self._sampling)


def _groups(prompts: Collection[tuple[int, ...]], *, most: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield runs of prompts of about equally many tokens, as few runs as `most` tokens allow.

    A run ends with the prompt that brings it to its share. most: 0 for each prompt alone.
    """
    total = sum(map(len, prompts))
    runs = -(-total // most) if most else len(prompts)
    group: list[tuple[int, ...]] = []
    read = done = 0
    for prompt in prompts:
        group.append(prompt)
        read += len(prompt)
        if not most or read * runs >= total * (done + 1):
            yield group
            group, done = [], done + 1
