"""Drafts of what a row will write next, from what it has read and written: prompt lookup.

Arithmetic in words repeats itself (`<<6*9=54>>54`), and a model that rambles does so even more. The
decoder reads draft tokens together with the newest one and keeps those that it would have
written anyway (Saxena 2023, prompt lookup decoding; Leviathan et al. 2023), so that responses are
the same and need fewer decoding steps.
"""

from collections.abc import Iterable

MIN_NGRAM, MAX_NGRAM = 2, 6  # tokens that have to have stood there before
MAX_DRAFT_TOKENS = 4  # at once


class PromptLookup:
    """The n-grams of one row, each with the newest position where it was followed by something."""

    def __init__(self, tokens: Iterable[int]):
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._count = 1
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Take note of the row's next token."""
        position = len(self._tokens)
        for size in range(MIN_NGRAM, min(MAX_NGRAM, position) + 1):
            self._after[tuple(self._tokens[position - size :])] = position
        self._tokens.append(token)

    def draft(self, max_tokens: int) -> list[int]:
        """Return what followed the longest n-gram that the row now ends in; at most so many."""
        for size in range(min(MAX_NGRAM, len(self._tokens)), MIN_NGRAM - 1, -1):
            position = self._after.get(tuple(self._tokens[-size:]))
            if position is not None:
                return self._tokens[position : position + min(self._count, max_tokens)]
        return []

    def adapt(self, drafted: int, accepted: int) -> None:
        """Draft more after drafts that were all right, and no more than were right after others.

        drafted, accepted: tokens.
        """
        if drafted:
            whole = accepted == drafted
            self._count = min(accepted + 1, MAX_DRAFT_TOKENS) if whole else max(accepted, 1)
