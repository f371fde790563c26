"""The one batched decoder: slots with a preallocated cache, refilled as their rows end.

Each step reads the newest token of every slot and, where the backend takes them, draft tokens of
`prompt_lookup` after it. A draft token is kept where it is what the row would have written without
it. Which rows stand in which slots is decided here; how their tokens are read, in `backends`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from domain_tokens.errors import UserError
from domain_tokens.inference.backends import (
    Backend,
    FallbackBackend,
    PagedBackend,
    Prompt,
    SlotBackend,
)
from domain_tokens.inference.cuda_graphs import CudaGraphBackend, runner_of
from domain_tokens.inference.forced_tokens import Constraints
from domain_tokens.inference.forward import PackedForward, packed_forward
from domain_tokens.inference.kv_cache import PagedCache, RowCache, SlotCache, to_device
from domain_tokens.inference.noise import noise_keys
from domain_tokens.inference.prompt_lookup import MAX_DRAFT_TOKENS, PromptLookup
from domain_tokens.inference.sampling import GREEDY, Sampling, choose

if TYPE_CHECKING:
    from transformers import PreTrainedModel

StopReason = Literal["eos", "length", "context"]

MAX_DRAFTING_ROWS = 40  # they leave a CPU idle: up to here, as on a GPU, draft tokens pay


@dataclass(frozen=True, slots=True)
class Response:
    """What was written, without EOS; stop_reason: eos, length (budget) or context (full)."""

    token_ids: list[int]
    stop_reason: StopReason


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What is to be continued, and how far."""

    ids: Sequence[Sequence[int]]
    eos_id: int
    max_new_tokens: int
    slots: int
    context: int

    @property
    def capacity(self) -> int:
        """How many tokens a slot may come to hold."""
        return min(self.context, max(map(len, self.ids)) + self.max_new_tokens)


@torch.inference_mode()
def generate(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    max_new_tokens: int,
    batch_size: int,
    sampling: Sampling = GREEDY,
    constraints: Constraints | None = None,
    on_finished: Callable[[int, Response], None] = lambda index, response: None,
) -> list[Response]:
    """Return a response per prompt, in the order of prompts.

    batch_size: rows that decode together. In fp32 greedy responses equal those of batch size 1,
    token for token; a sampled response depends on its seed alone. constraints: tokens that are
    forced or forbidden, in every batch alike. on_finished hears of each as it ends.
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
    slots = min(batch_size, len(prompts))
    work = _Prompts(prompts, eos_id, max_new_tokens, slots, context)
    with packed_forward(model) as forward:
        backend = _fastest_backend(
            model,
            forward,
            slots=slots,
            capacity=work.capacity,
            context=context,
            sampling=sampling,
            constrained=constraints is not None,
        )
        scheduler = _Scheduler(work, sampling, backend, constraints=constraints)
        for index, response in scheduler.run():
            responses[index] = response
            on_finished(index, response)
    return [responses[i] for i in range(len(prompts))]


def _fastest_backend(
    model: "PreTrainedModel",
    forward: PackedForward | None,
    *,
    slots: int,
    capacity: int,
    context: int,
    sampling: Sampling,
    constrained: bool,
) -> Backend:
    """Return the fastest backend that the model can be read with.

    forward: None where the model cannot read tokens in one row. capacity: tokens that a slot may
    come to hold; context: positions that the model knows. constrained: what follows is not the
    model's choice alone, so that logits are wanted, and the host has to see each token.
    """
    greedy = sampling.greedy and not constrained
    if forward is None:
        return FallbackBackend(model, RowCache(model, slots, capacity), greedy=greedy)
    if forward.supports_cuda_graphs and not constrained:
        runner = runner_of(model, slots=slots, capacity=capacity, context=context)
        return CudaGraphBackend(forward, runner, sampling)
    if (model.device.type, model.dtype) == ("cpu", torch.float32):
        pages = PagedCache(slots, capacity, model.config.num_hidden_layers)
        return PagedBackend(forward, pages, capacity=capacity, greedy=greedy)
    return SlotBackend(forward, SlotCache(model, slots, capacity), greedy=greedy)


class _Row:
    """A prompt in a slot: what it wrote and may still write, and its draft tokens."""

    def __init__(self, index: int, prompt: Sequence[int], *, stream: int, room: int, drafts: bool):
        """index: its number among the prompts; room: for so many new tokens, at least one.

        stream: of its noise; drafts: whether draft tokens are looked up in it.
        """
        self.index, self.stream = index, stream
        self.written: list[int] = []
        self.draft_tokens: list[int] = []  # read after the newest token in this step
        self._prompt_length, self._room = len(prompt), room
        self._lookup = PromptLookup(prompt) if drafts else None

    @property
    def cached(self) -> int:
        """How many tokens it has in the cache: all but the newest."""
        return self._prompt_length + max(len(self.written) - 1, 0)

    @property
    def left(self) -> int:
        """How many tokens it may still write."""
        return self._room - len(self.written)

    @property
    def step_tokens(self) -> tuple[int, ...]:
        """What the next step reads of it."""
        return self.written[-1], *self.draft_tokens

    def draft(self) -> None:
        """Draft what comes after the newest token, not further than the row may go."""
        if self._lookup:
            self.draft_tokens = self._lookup.draft(self.left - 1)

    def accept(self, chosen: Sequence[int], eos_id: int) -> bool:
        """Write what was chosen after the newest token and right drafts; return whether to stop.

        chosen: one token more than was drafted.
        """
        accepted = 0
        for draft, token in zip([*self.draft_tokens, None], chosen, strict=True):
            if token == eos_id:
                return True
            self.written.append(token)
            if self._lookup:
                self._lookup.add(token)
            if not self.left:
                return True
            if token != draft:
                break
            accepted += 1
        if self._lookup:
            self._lookup.adapt(len(self.draft_tokens), accepted)
        return False


class _Choice:
    """Which token follows each token that was read: the most likely one or a draw, as constrained.

    N tokens of a step, V vocabulary.
    """

    def __init__(self, sampling: Sampling, constraints: Constraints | None):
        self._sampling, self._constraints = sampling, constraints

    def __call__(self, outputs: torch.Tensor, rows: Sequence[_Row]) -> list[list[int]]:
        """Return the tokens of each row that follow what was read of it.

        outputs: logits [N, V], or the most likely tokens [N] where nothing is sampled or
        constrained.
        """
        chosen = iter(self._all(outputs, rows))
        return [[next(chosen) for _ in range(1 + len(row.draft_tokens))] for row in rows]

    def _all(self, outputs: torch.Tensor, rows: Sequence[_Row]) -> list[int]:
        if self._constraints is None:
            return self._free(outputs, rows).tolist()
        written = [
            [*row.written, *row.draft_tokens[:count]]
            for row in rows
            for count in range(1 + len(row.draft_tokens))
        ]
        return self._constraints.choose(outputs, written, lambda logits: self._free(logits, rows))

    def _free(self, outputs: torch.Tensor, rows: Sequence[_Row]) -> torch.Tensor:
        """Return what the model itself would write: outputs [N, V] or [N] -> [N]."""
        if self._sampling.greedy:
            return outputs if outputs.ndim == 1 else outputs.max(-1).indices
        streams = torch.tensor([r.stream for r in rows for _ in range(1 + len(r.draft_tokens))])
        positions = [len(r.written) + i for r in rows for i in range(1 + len(r.draft_tokens))]
        keys = noise_keys(streams, torch.tensor(positions))
        return choose(outputs, to_device(keys, outputs.device), self._sampling)


class _Scheduler:
    """Rows that decode together; as one ends the next prompt takes its slot.

    Row i stands in slot i; the last one fills a hole.
    """

    def __init__(
        self,
        prompts: _Prompts,
        sampling: Sampling,
        backend: Backend,
        *,
        constraints: Constraints | None = None,
    ):
        self._prompts, self._sampling, self._backend = prompts, sampling, backend
        self._choice = _Choice(sampling, constraints)
        # Longest first: slots that are active together are of like length, and little is padded.
        self._waiting = sorted(range(len(prompts.ids)), key=lambda i: (len(prompts.ids[i]), -i))
        self._rows: list[_Row] = []

    def run(self) -> Iterator[tuple[int, Response]]:
        """Yield (index, response) as rows end."""
        slots = self._prompts.slots
        while self._waiting or self._rows:
            free = slots - len(self._rows)
            # Prompts are read a few at a time: one by one they would keep the others waiting.
            if self._waiting and free >= max(1, slots // 8):
                yield from self._admit(min(free, len(self._waiting)))
            if self._rows:
                if self._backend.reads_drafts:
                    for row in self._rows:
                        row.draft()
                    _limit_drafts(self._rows, self._backend.token_multiple)
                chosen = self._write_ahead() if self._backend.writes_ahead else self._decode()
                yield from self._advance(chosen, range(len(self._rows)))

    def _admit(self, count: int) -> Iterator[tuple[int, Response]]:
        """Read the next prompts into free slots; equal ones are read once and copied."""
        first = len(self._rows)
        slot_of: dict[Prompt, int] = {}  # the slot that a prompt is read into
        prompts = []
        for slot in range(first, first + count):
            index = self._waiting.pop()
            prompt = tuple(self._prompts.ids[index])
            slot_of.setdefault(prompt, slot)
            prompts.append(prompt)
            room = min(self._prompts.max_new_tokens, self._prompts.context - len(prompt))
            stream = 0 if self._sampling.greedy else self._sampling.stream(index)
            drafts = self._backend.reads_drafts
            self._rows.append(_Row(index, prompt, stream=stream, room=room, drafts=drafts))
        groups = list(_groups(slot_of, max_tokens=self._backend.prefill_tokens))
        read = [self._backend.prefill(group, [slot_of[p] for p in group]) for group in groups]
        outputs = torch.cat(read)
        number_of = {prompt: number for number, prompt in enumerate(slot_of)}
        for slot, prompt in enumerate(prompts, start=first):
            if slot_of[prompt] != slot:
                self._backend.copy(slot_of[prompt], slot, len(prompt))
        numbers = torch.tensor([number_of[prompt] for prompt in prompts])
        outputs = outputs[to_device(numbers, outputs.device)]
        slots = range(first, first + count)
        yield from self._advance(self._choice(outputs, self._rows[first:]), slots)

    def _decode(self) -> list[list[int]]:
        """Read newest and draft tokens of all rows; return what follows each token."""
        tokens = [row.step_tokens for row in self._rows]
        outputs = self._backend.decode(tokens, [row.cached for row in self._rows])
        return self._choice(outputs, self._rows)

    def _write_ahead(self) -> list[list[int]]:
        """Let rows write a few tokens before anybody looks; what follows a row's end is dropped.

        All but the last are then as right as draft tokens can be.
        """
        count = min(self._backend.writes_ahead, max(row.left for row in self._rows))
        state = [(r.written[-1], r.cached, r.stream, len(r.written)) for r in self._rows]
        chosen = self._backend.write(state, count)
        for row, tokens in zip(self._rows, chosen, strict=True):
            row.draft_tokens = tokens[:-1]
        return chosen

    def _advance(
        self, chosen: Sequence[Sequence[int]], slots: range
    ) -> Iterator[tuple[int, Response]]:
        """Give each slot what it wrote; yield the rows that end and fill the holes they leave."""
        ended = []
        for slot, written in zip(slots, chosen, strict=True):
            row = self._rows[slot]
            if row.accept(written, self._prompts.eos_id):
                ended.append(slot)
                yield row.index, Response(row.written, self._reason(row))
        for slot in reversed(ended):
            last = self._rows.pop()
            self._backend.free(slot, len(self._rows), last.cached)
            if slot < len(self._rows):
                self._rows[slot] = last

    def _reason(self, row: _Row) -> StopReason:
        """Say why a row ended."""
        if len(row.written) == self._prompts.max_new_tokens:
            return "length"
        full = len(self._prompts.ids[row.index]) + len(row.written) == self._prompts.context
        return "context" if full else "eos"


def _limit_drafts(rows: Sequence[_Row], multiple: int) -> None:
    """Drop draft tokens so that the tokens of a step are a multiple of `multiple`; 1: drop none.

    While few rows decode most drafts stay; else the likeliest, of rows whose last were right, fill
    up what is missing.
    """
    if multiple == 1:
        return
    count = len(rows)
    total = count + sum(len(row.draft_tokens) for row in rows)
    if count > MAX_DRAFTING_ROWS:
        max_tokens = count + -count % multiple
    elif total > 2 * multiple:
        max_tokens = max(total - total % multiple, count)
    else:
        return
    left = max_tokens - count
    trusted = sorted(rows, key=lambda row: -len(row.draft_tokens))
    # What rows may write next before what they may write after it.
    for depth in range(MAX_DRAFT_TOKENS):
        for row in trusted:
            if len(row.draft_tokens) > depth:
                left -= 1
                if left < 0:
                    del row.draft_tokens[depth:]


def _groups(prompts: Collection[Prompt], *, max_tokens: int) -> Iterator[list[Prompt]]:
    """Yield runs of prompts of about equally many tokens, as few runs as `max_tokens` allow.

    A run ends with the prompt that brings it to its share. max_tokens: 0 for each prompt alone.
    """
    total = sum(map(len, prompts))
    runs = -(-total // max_tokens) if max_tokens else len(prompts)
    group: list[Prompt] = []
    read = done = 0
    for prompt in prompts:
        group.append(prompt)
        read += len(prompt)
        if not max_tokens or read * runs >= total * (done + 1):
            yield group
            group, done = [], done + 1
