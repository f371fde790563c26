"""Which training rows repeat a test question."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from domain_tokens.data.examples import Conversation

WORD = re.compile(r"\w+")


class Decontaminator:
    """Finds texts that repeat more than half of a test question, by shared runs of words.

    Words are casefolded runs of letters and digits: layout and punctuation do not hide a copy.
    A question shorter than `ngram` words is compared whole; one without any word never matches.
    """

    def __init__(self, questions: Sequence[str], *, ngram: int = 8) -> None:
        assert ngram > 0, f"ngram is {ngram}"
        self._words = [0] * len(questions)
        # words per run -> run -> where it stands: (question, first word)
        self._runs: dict[int, dict[tuple[str, ...], list[tuple[int, int]]]] = {}
        for question, text in enumerate(questions):
            words = _words(text)
            self._words[question] = len(words)
            if not words:
                continue
            width = min(ngram, len(words))
            positions = self._runs.setdefault(width, {})
            for first, run in enumerate(_word_runs(words, width)):
                positions.setdefault(run, []).append((question, first))

    def match(self, text: str) -> tuple[int, float] | None:
        """Name the question that `text` covers best, if it covers more than half of its words.

        Returns (question index, covered share in (0.5, 1]), the lower index at a tie, or None.
        """
        words = _words(text)
        covered: dict[int, set[int]] = {}
        for width, positions in self._runs.items():
            # zip and filter stay in C: almost no run of an innocent text is in the index.
            for run in set(filter(positions.__contains__, _word_runs(words, width))):
                for question, first in positions[run]:
                    covered.setdefault(question, set()).update(range(first, first + width))
        shares = [
            (len(hit) / self._words[question], -question) for question, hit in covered.items()
        ]
        share, question = max(shares, default=(0.0, 0))
        return (-question, share) if share > 0.5 else None


def find_repeat(finder: Decontaminator, conversation: Conversation) -> dict[str, Any] | None:
    """Return what is to be listed of a conversation of which a turn repeats a question, or None.

    That is {id, row, source, question_index, coverage, role, text}, with the first 200 characters
    of the turn that covers most; every turn is compared, whoever speaks.
    """
    matches = [
        (match, role, turn) for role, turn in conversation.messages if (match := finder.match(turn))
    ]
    if not matches:
        return None
    (question, share), role, turn = max(matches, key=lambda match: match[0][1])
    return {
        "id": conversation.id,
        "row": conversation.row,
        "source": conversation.source,
        "question_index": question,
        "coverage": share,
        "role": role,
        "text": turn[:200],
    }


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _word_runs(words: list[str], width: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[first:] for first in range(width)), strict=False)
