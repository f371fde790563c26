"""Messages to token ids and loss mask: the only place where a conversation becomes tokens."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from domain_tokens.errors import UserError
from domain_tokens.injection import Fact, find_facts
from domain_tokens.vocabulary import FACTS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

PROMPT_VERSION = "1"

Message = tuple[str, str]  # (role, content), role is system, user or assistant

# What a token is to the loss; everything above PROMPT is supervised.
PROMPT, TEXT, MATCH, END = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Example:
    """One rendered conversation.

    input_ids: int32 [T]; kinds: uint8 [T], one of PROMPT, TEXT, MATCH (a fact token, or text that
    the injector would replace, with whatever shares a token with it) and END (a supervised EOS);
    facts: fact tokens among the ids; text_bytes, match_bytes: UTF-8 bytes of the text that the
    supervised TEXT and MATCH tokens stand for, the same in both arms; truncated: exchanges were
    cut off.
    """

    id: str
    input_ids: np.ndarray
    kinds: np.ndarray
    facts: int
    text_bytes: int
    match_bytes: int
    truncated: bool

    @property
    def supervised(self) -> int:
        """Number of tokens that carry loss."""
        return int(np.count_nonzero(self.kinds))


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
    stands directly after every assistant turn and is supervised. inject: whether assistant turns
    get fact tokens (the one difference between the arms). loss_on "all" supervises every token.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        inject: bool = False,
        injection_mode: Literal["weak", "strict"] = "weak",
        loss_on: Literal["assistant", "all"] = "assistant",
    ):
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no EOS token; a model trained with it never stops")
        self.eos: int = tokenizer.eos_token_id
        self._plain = plain_encoder(tokenizer)
        self._start = [i for i in tokenizer.encode("") if i != self.eos]  # BOS, where one is used
        self._fact_ids: dict[str, Any] = {f: tokenizer.convert_tokens_to_ids(f) for f in FACTS}
        unknown = tokenizer.unk_token_id
        if inject and any(i is None or i == unknown for i in self._fact_ids.values()):
            raise UserError("the tokenizer has no fact tokens; run scripts/make_base.py")
        self._inject = inject
        self._mode: Literal["weak", "strict"] = injection_mode
        self._prompt_kind = TEXT if loss_on == "all" else PROMPT

    def prompt(self, messages: Sequence[Message], *, forced_start: str = "") -> list[int]:
        """Return the ids that end at `Assistant:`, followed by forced_start where one is given.

        messages: an optional system turn, then user and assistant turns, ending with a user turn.
        """
        system, exchanges = _exchanges([*messages, ("assistant", "-")])
        ids = list(self._start)
        for index, (user, assistant) in enumerate(exchanges):
            ids += self.encode(_user_text(system if index == 0 else "", user, index))
            if index < len(exchanges) - 1:
                ids += [*self.encode(f" {assistant}"), self.eos]
        return ids + (self.encode(forced_start) if forced_start else [])

    def next_prompt(self, ids: Sequence[int], user: str) -> list[int]:
        """Return the prompt of a further user turn; ids: all before it, without the last EOS."""
        return [*ids, self.eos, *self.encode(_user_text("", user.strip(), 1))]

    def raw_prompt(self, text: str) -> list[int]:
        """Return the ids of a text that is no conversation."""
        return [*self._start, *self.encode(text)]

    def example(self, id: str, messages: Sequence[Message], *, max_length: int) -> Example | str:
        """Render a conversation for training, or return the reason why it is dropped.

        A trailing user turn is cut. A conversation of more than max_length tokens keeps its whole
        leading exchanges; whether one fits is decided on the longer of its plain and its injected
        form, so that both arms decide alike.
        """
        try:
            system, exchanges = _exchanges(_without_trailing_user(messages))
        except _IrregularError as reason:
            return str(reason)
        ids, kinds = list(self._start), [self._prompt_kind] * len(self._start)
        facts = text_bytes = match_bytes = kept = 0
        length = len(ids)
        for index, (user, assistant) in enumerate(exchanges):
            user_text = _user_text(system if index == 0 else "", user, index)
            prompt = self.encode(user_text)
            response = self._response(f" {assistant}")
            plain, injected = response.plain, response.injected
            length += len(prompt) + max(len(plain.ids), len(injected.ids)) + 1
            if length > max_length:
                break
            chosen = injected if self._inject else plain
            ids += [*prompt, *chosen.ids, self.eos]
            kinds += [*[self._prompt_kind] * len(prompt), *chosen.kinds, END]
            facts += len(response.matches) if self._inject else 0
            text_bytes += response.text_bytes + self._scored_bytes(user_text, first=not index)
            match_bytes += response.match_bytes
            kept += 1
        if kept == 0:
            return "first_exchange_too_long"
        return Example(
            id=id,
            input_ids=np.array(ids, dtype=np.int32),
            kinds=np.array(kinds, dtype=np.uint8),
            facts=facts,
            text_bytes=text_bytes,
            match_bytes=match_bytes,
            truncated=kept < len(exchanges),
        )

    def _scored_bytes(self, user_text: str, *, first: bool) -> int:
        """Return the bytes of a prompt that carry loss; nothing predicts a text's first token."""
        if self._prompt_kind == PROMPT:
            return 0
        size = len(user_text.encode())
        if first and not self._start:
            start, end = self._plain.encode(user_text, add_special_tokens=False).offsets[0]
            size -= len(user_text[start:end].encode())
        return size

    def encode(self, text: str) -> list[int]:
        """Return the ids of ordinary text; nothing typed becomes a token."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def _response(self, text: str) -> "_Response":
        """Encode a response as it is and with fact tokens; one and the same without matches."""
        matches = find_facts(text, mode=self._mode)
        encoded = self._plain.encode(text, add_special_tokens=False)
        plain = injected = _Tokens(encoded.ids, encoded.offsets, [TEXT] * len(encoded.ids))
        match_bytes = 0
        if matches:
            injected = self._injected(text, matches)
            segments = _segments(len(text), matches, plain.spans, injected.spans)
            plain, injected = (_with_kinds(tokens, segments) for tokens in (plain, injected))
            match_bytes = sum(len(text[i:j].encode()) for i, j, kind in segments if kind == MATCH)
        return _Response(matches, plain, injected, len(text.encode()) - match_bytes, match_bytes)

    def _injected(self, text: str, matches: list[Fact]) -> "_Tokens":
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        cursor = 0
        for match in [*matches, None]:
            between = text[cursor : match.start if match else len(text)]
            if between:
                piece = self._plain.encode(between, add_special_tokens=False)
                ids += piece.ids
                spans += [(cursor + start, cursor + end) for start, end in piece.offsets]
            if match:
                ids.append(self._fact_ids[match.token])
                spans.append((match.start, match.end))
                cursor = match.end
        return _Tokens(ids, spans, [TEXT] * len(ids))


@dataclass(frozen=True, slots=True)
class _Tokens:
    """A response in one of the two arms; spans: the characters start to end of each token."""

    ids: list[int]
    spans: list[tuple[int, int]]
    kinds: list[int]


@dataclass(frozen=True, slots=True)
class _Response:
    """A response in both arms, whose TEXT and MATCH tokens stand for the same bytes in both."""

    matches: list[Fact]
    plain: _Tokens
    injected: _Tokens
    text_bytes: int
    match_bytes: int


def _segments(
    length: int, matches: Sequence[Fact], *arms: Sequence[tuple[int, int]]
) -> list[tuple[int, int, int]]:
    """Cut a text where a token ends in every arm; return (start, end, TEXT or MATCH) in order.

    A segment with any part of a match is MATCH as a whole: in ` 6*9` one arm has the token ` 6`,
    so the space counts with the match in the other arm, too. Takes linear time.
    """
    inside = np.zeros(length + 1, dtype=bool)  # positions between characters that a token spans
    for spans in arms:
        for start, end in spans:
            inside[start + 1 : end] = True
    cuts = np.flatnonzero(~inside).tolist()
    segments, nearest = [], 0
    for start, end in pairwise(cuts):
        while nearest < len(matches) and matches[nearest].end <= start:
            nearest += 1
        hit = nearest < len(matches) and matches[nearest].start < end
        segments.append((start, end, MATCH if hit else TEXT))
    return segments


def _with_kinds(tokens: _Tokens, segments: Sequence[tuple[int, int, int]]) -> _Tokens:
    """Give each token the kind of the segment in which it begins."""
    starts = [start for start, _, _ in segments]
    at = np.searchsorted(starts, [start for start, _ in tokens.spans], side="right") - 1
    kinds = np.array([kind for _, _, kind in segments])[at].tolist()
    return _Tokens(tokens.ids, tokens.spans, kinds)


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
