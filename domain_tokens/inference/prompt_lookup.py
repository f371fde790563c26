"""Guesses of what a row will write next, from what it has read and written: prompt lookup.

Arithmetic in words repeats itself (`<<6*9=54>>54`), and a model that rambles does so even more. The
decoder reads guessed tokens together with the newest one and keeps those that it would have
written anyway (Saxena 2023, prompt lookup decoding; Leviathan et al. 2023), so that responses are
the same and need fewer passes.
"""

from collections.abc import Iterable

SHORTEST, LONGEST = 2, 6  # tokens that have to have stood there before
MAX_DRAFT_TOKENS = 4  # guessed tokens at once


class PromptLookup:
    """The n-grams of one row, each with the newest place where it was followed by something."""

    def __init__(self, tokens: Iterable[int]):
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._count = 1
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Take note of the row's next token."""
        place = len(self._tokens)
        for size in range(SHORTEST, min(LONGEST, place) + 1):
            self._after[tuple(self._tokens[place - size :])] = place
        self._tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """Return what followed the longest n-gram that the row now ends in; at most so many."""
        for size in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            place = self._after.get(tuple(self._tokens[-size:]))
            if place is not None:
                return self._tokens[place : place + min(self._count, most)]
        return []

    def learn(self, guessed: int, right: int) -> None:
        """Guess more after guesses that were all right, and no more than were right after others.

        guessed, right: tokens.
        """
        if guessed:
            self._count = min(right + 1, MAX_DRAFT_TOKENS) if right == guessed else max(right, 1)
