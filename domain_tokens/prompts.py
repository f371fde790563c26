"""Messages to token ids and loss mask: only here does a conversation become tokens."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from domain_tokens.errors import UserError
from domain_tokens.injection import Fact, Mode, find_facts
from domain_tokens.treatments import FACT_TOKENS, PlacedToken, Treatment, Written
from domain_tokens.vocabulary import FACTS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

PROMPT_VERSION = "1"

Message = tuple[str, str]  # (role, content), role is system, user or assistant

# What a token is to the loss; everything above PROMPT is supervised.
PROMPT, TEXT, FACT, END = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Example:
    """One rendered conversation.

    input_ids: int32 [T]; token_roles: uint8 [T], one of PROMPT (no loss), TEXT, FACT (text that the
    injector matches, with whatever shares a token with it, and what a treatment writes there) and
    END (a supervised EOS); facts: matches (or merges) that were treated; untreated: those that were
    left as text so that the example fits; text_bytes, match_bytes: UTF-8 bytes of the text that
    TEXT and FACT tokens stand for, the same in all arms; truncated: exchanges were cut off.
    """

    id: str
    input_ids: np.ndarray
    token_roles: np.ndarray
    facts: int
    text_bytes: int
    match_bytes: int
    truncated: bool
    untreated: int = 0

    @property
    def supervised(self) -> int:
        """Number of tokens that carry loss."""
        return int(np.count_nonzero(self.token_roles))


def plain_encoder(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer":
    """Return a copy of the tokenizer to which no text is special: nothing typed becomes a token.

    Drops added tokens, templates and the word-initial space that SentencePiece tokenizers put
    before every text, so that pieces can be encoded apart. Raises UserError where a tokenizer
    cannot give back a text from its pieces.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; save it as one first")
    tree = json.loads(backend.to_str())
    tree.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    normalizer = tree.get("normalizer")
    if normalizer and normalizer["type"] == "Sequence":
        steps = [step for step in normalizer["normalizers"] if step["type"] != "Prepend"]
        tree["normalizer"] = {"type": "Sequence", "normalizers": steps}
    splitter = tree.get("pre_tokenizer")
    if splitter and splitter["type"] == "Metaspace":
        splitter["prepend_scheme"] = "never"
    plain = Tokenizer.from_str(json.dumps(tree))
    probe = ["User: 6 × 9?\nAssistant:", " It is 54 – good.", "\nUser: é"]
    ids = [i for piece in probe for i in plain.encode(piece, add_special_tokens=False).ids]
    if plain.decode(ids, skip_special_tokens=False) != "".join(probe):
        raise UserError(
            "this tokenizer does not give back a text from the ids of its pieces; "
            "wanted a byte-level BPE (GPT-2, Llama 3, SmolLM2) or a byte-fallback SentencePiece"
        )
    return plain


class Renderer:
    """Turns conversations into training examples and evaluation prompts with one set of rules.

    Turns are stripped and read `System: …`, `User: …`, `Assistant: …`, joined by newlines; EOS
    stands directly after every assistant turn and is supervised. treatment: what becomes of the
    facts in assistant turns (None: nothing; the one difference between the arms). loss_on "all"
    supervises every token.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        treatment: Treatment | None = None,
        injection_mode: Mode = "products",
        loss_on: Literal["assistant", "all"] = "assistant",
    ):
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no EOS token; a model trained with it never stops")
        self.eos: int = tokenizer.eos_token_id
        self._plain = plain_encoder(tokenizer)
        self._start = [i for i in tokenizer.encode("") if i != self.eos]  # BOS, where one is used
        fact_ids: dict[str, Any] = {f: tokenizer.convert_tokens_to_ids(f) for f in FACTS}
        unknown = tokenizer.unk_token_id
        if treatment and any(i is None or i == unknown for i in fact_ids.values()):
            raise UserError(
                f"the tokenizer has no fact tokens, so that {treatment.name} cannot be written; "
                "run scripts/make_base.py"
            )
        self._responses = _ResponseEncoder(self._plain, fact_ids, treatment, injection_mode)
        self._prompt_role = TEXT if loss_on == "all" else PROMPT

    def with_all_loss(self) -> "Renderer":
        """Return this renderer without spans that carry no loss, to measure what was learned."""
        renderer = copy.copy(self)
        renderer._responses = replace(self._responses, masks=False)
        return renderer

    def prompt(self, messages: Sequence[Message], *, response_prefix: str = "") -> list[int]:
        """Return the ids that end at `Assistant:`, followed by response_prefix where one is given.

        messages: an optional system turn, then user and assistant turns, ending with a user turn.
        """
        system, exchanges = _exchanges([*messages, ("assistant", "-")])
        ids = list(self._start)
        for index, (user, assistant) in enumerate(exchanges):
            ids += self.encode(_user_text(system if index == 0 else "", user, index))
            if index < len(exchanges) - 1:
                ids += [*self.encode(f" {assistant}"), self.eos]
        return ids + (self.encode(response_prefix) if response_prefix else [])

    def next_prompt(self, ids: Sequence[int], user: str) -> list[int]:
        """Return the prompt of a further user turn; ids: all before it, without the last EOS."""
        return [*ids, self.eos, *self.encode(_user_text("", user.strip(), 1))]

    def raw_prompt(self, text: str) -> list[int]:
        """Return the ids of a text that is no conversation."""
        return [*self._start, *self.encode(text)]

    def example(self, id: str, messages: Sequence[Message], *, max_length: int) -> Example | str:
        """Render a conversation for training, or return the reason why it is dropped.

        A trailing user turn is cut. A conversation of more than max_length tokens keeps its whole
        leading exchanges; whether one fits is decided on the longer of its plain form and that with
        every fact a token, so that all arms decide alike. A treatment whose form is longer than
        both leaves its last matches as text where there is no room.
        """
        try:
            system, exchanges = _exchanges(_without_trailing_user(messages))
        except _IrregularError as reason:
            return str(reason)
        kept: list[tuple[str, list[int], _Response]] = []
        room = max_length - len(self._start)
        for index, (user, assistant) in enumerate(exchanges):
            user_text = _user_text(system if index == 0 else "", user, index)
            prompt = self.encode(user_text)
            response = self._responses.encode(f" {assistant}", key=f"{id}\n{index}")
            size = len(prompt) + response.length + 1
            if size > room:
                break
            room -= size
            kept.append((user_text, prompt, response))
        if not kept:
            return "first_exchange_too_long"
        ids, roles = list(self._start), [self._prompt_role] * len(self._start)
        treated = 0
        for _, prompt, response in kept:
            chosen, count = self._responses.treated(response, room)
            room -= max(0, len(chosen.ids) - response.length)
            treated += count
            ids += [*prompt, *chosen.ids, self.eos]
            roles += [*[self._prompt_role] * len(prompt), *chosen.roles, END]
        scored = (self._scored_bytes(text, first=not i) for i, (text, _, _) in enumerate(kept))
        responses = [response for _, _, response in kept]
        return Example(
            id=id,
            input_ids=np.array(ids, dtype=np.int32),
            token_roles=np.array(roles, dtype=np.uint8),
            facts=treated,
            text_bytes=sum(response.text_bytes for response in responses) + sum(scored),
            match_bytes=sum(response.match_bytes for response in responses),
            truncated=len(kept) < len(exchanges),
            untreated=sum(response.treatable for response in responses) - treated,
        )

    def _scored_bytes(self, user_text: str, *, first: bool) -> int:
        """Return the bytes of a prompt that carry loss; nothing predicts a text's first token."""
        if self._prompt_role == PROMPT:
            return 0
        size = len(user_text.encode())
        if first and not self._start:
            start, end = self._plain.encode(user_text, add_special_tokens=False).offsets[0]
            size -= len(user_text[start:end].encode())
        return size

    def encode(self, text: str) -> list[int]:
        """Return the ids of ordinary text; nothing typed becomes a token."""
        return self._plain.encode(text, add_special_tokens=False).ids


@dataclass(frozen=True, slots=True)
class _Tokens:
    """A response in one form; spans: the characters start to end that each token stands for."""

    ids: list[int]
    spans: list[tuple[int, int]]
    roles: list[int]


@dataclass(frozen=True, slots=True)
class _Response:
    """A response as it is and with every fact a token, and what a treatment makes of it.

    segments: (start, end, TEXT or FACT), whose bytes are counted alike in all arms.
    """

    text: str
    plain: _Tokens
    facts: _Tokens
    segments: list[tuple[int, int, int]]
    match_bytes: int
    written: Written

    @property
    def length(self) -> int:
        """Tokens on which is decided whether it fits."""
        return max(len(self.plain.ids), len(self.facts.ids))

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes outside the segments of facts."""
        return len(self.text.encode()) - self.match_bytes

    @property
    def treatable(self) -> int:
        """How many rows and masked spans the treatment would give it."""
        return len(self.written.rows) + len(self.written.masked)


@dataclass(frozen=True, slots=True)
class _ResponseEncoder:
    """Encodes responses as a treatment writes them; masks: whether its masked spans have no loss.

    plain: the tokenizer to which no text is special; fact_ids: the id of each fact's row.
    """

    plain: "Tokenizer"
    fact_ids: dict[str, Any]
    treatment: Treatment | None
    mode: Mode
    masks: bool = True

    def encode(self, text: str, *, key: str) -> _Response:
        """Encode a response; one and the same in both forms without matches."""
        matches = find_facts(text, mode=self.mode)
        plain = facts = self._tokens(text, ())
        segments, match_bytes = [(0, len(text), TEXT)], 0
        if matches:
            facts = self._tokens(text, FACT_TOKENS.write(text, matches).rows)
            segments = _segments(len(text), matches, plain.spans, facts.spans)
            match_bytes = sum(len(text[i:j].encode()) for i, j, role in segments if role == FACT)
            plain, facts = (_with_roles(tokens, segments) for tokens in (plain, facts))
        treatment = self.treatment
        written = treatment.write(text, matches, key=key) if treatment else Written()
        return _Response(text, plain, facts, segments, match_bytes, written)

    def treated(self, response: _Response, room: int) -> tuple[_Tokens, int]:
        """Return a response as it is trained on, and how many rows and masked spans it has.

        room: tokens that it may have beyond its length.
        """
        rows, masked = response.written.rows, response.written.masked
        tokens = self._with_rows(response, rows)
        while len(tokens.ids) - response.length > room:
            rows = rows[:-1]
            tokens = self._with_rows(response, rows)
        if masked and self.masks:
            tokens = self._masked(tokens, masked)
        return tokens, len(rows) + len(masked)

    def _with_rows(self, response: _Response, rows: Sequence[PlacedToken]) -> _Tokens:
        if not rows:
            return response.plain
        if self.treatment == FACT_TOKENS and len(rows) == len(response.written.rows):
            return response.facts
        return _with_roles(self._tokens(response.text, rows), response.segments, rows)

    def _masked(self, tokens: _Tokens, masked: Sequence[tuple[int, int]]) -> _Tokens:
        """Take the loss from every token that has a part in a masked span.

        A row that is only added, at either end of a span, has none.
        """
        roles, nearest = list(tokens.roles), 0
        for at, (start, end) in enumerate(tokens.spans):
            while nearest < len(masked) and masked[nearest][1] <= start:
                nearest += 1
            if nearest < len(masked) and masked[nearest][0] < end:
                roles[at] = PROMPT
        return _Tokens(tokens.ids, tokens.spans, roles)

    def _tokens(self, text: str, rows: Sequence[PlacedToken]) -> _Tokens:
        """Encode a text with rows where they stand, what lies between them each by itself."""
        if not rows:
            encoded = self.plain.encode(text, add_special_tokens=False)
            return _Tokens(encoded.ids, encoded.offsets, [TEXT] * len(encoded.ids))
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        cursor = 0
        for row in [*rows, None]:
            between = text[cursor : row.start if row else len(text)]
            if between:
                piece = self.plain.encode(between, add_special_tokens=False)
                ids += piece.ids
                spans += [(cursor + start, cursor + end) for start, end in piece.offsets]
            if row:
                ids.append(self.fact_ids[row.token])
                spans.append((row.start, row.end))
                cursor = row.end
        return _Tokens(ids, spans, [TEXT] * len(ids))


def _segments(
    length: int, matches: Sequence[Fact], *forms: Sequence[tuple[int, int]]
) -> list[tuple[int, int, int]]:
    """Cut a text where a token ends in every form; return (start, end, TEXT or FACT) in order.

    A segment with any part of a match is FACT as a whole: in ` 6*9` one arm has the token ` 6`,
    so the space counts with the match in the other arm, too. Takes linear time.
    """
    inside = np.zeros(length + 1, dtype=bool)  # positions between characters that a token spans
    for spans in forms:
        for start, end in spans:
            inside[start + 1 : end] = True
    cuts = np.flatnonzero(~inside).tolist()
    segments, nearest = [], 0
    for start, end in pairwise(cuts):
        while nearest < len(matches) and matches[nearest].end <= start:
            nearest += 1
        hit = nearest < len(matches) and matches[nearest].start < end
        segments.append((start, end, FACT if hit else TEXT))
    return segments


def _with_roles(
    tokens: _Tokens, segments: Sequence[tuple[int, int, int]], rows: Sequence[PlacedToken] = ()
) -> _Tokens:
    """Give each token the role of the segment in which it begins; rows in matches are FACT."""
    segment_starts = [start for start, _, _ in segments]
    at = np.searchsorted(segment_starts, [start for start, _ in tokens.spans], side="right") - 1
    roles = np.array([role for _, _, role in segments])[at]
    in_match = {(row.start, row.end) for row in rows if row.in_match and row.start == row.end}
    roles[[i for i, span in enumerate(tokens.spans) if span in in_match]] = FACT
    return _Tokens(tokens.ids, tokens.spans, roles.tolist())


class _IrregularError(Exception):
    """Names why a conversation cannot be rendered."""


def _without_trailing_user(messages: Sequence[Message]) -> list[Message]:
    turns = list(messages)
    while turns and turns[-1][0] == "user":
        turns.pop()
    return turns


def _exchanges(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str]]]:
    """Split turns into the system text ("" for none) and (user, assistant) pairs, all stripped.

    An empty system turn is none.
    """
    turns = [(role, content.strip()) for role, content in messages]
    turns = [(role, content) for role, content in turns if content or role != "system"]
    if any(not content for _, content in turns):
        raise _IrregularError("empty_turn")
    system = ""
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
    users, assistants = turns[::2], turns[1::2]
    regular = all(r == "user" for r, _ in users) and all(r == "assistant" for r, _ in assistants)
    if not turns or len(users) != len(assistants) or not regular:
        raise _IrregularError("no_assistant_turn" if not assistants else "irregular_turns")
    return system, [(u, a) for (_, u), (_, a) in zip(users, assistants, strict=True)]


def _user_text(system: str, user: str, index: int) -> str:
    before = f"System: {system}\n" if system else ""
    return f"{before}{chr(10) if index else ''}User: {user}\nAssistant:"
