"""Word sequences as frequent and as long as the facts, for the treatment `matched_merges`."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from domain_tokens.injection import Mode, expand, find_facts
from domain_tokens.vocabulary import FACTS

WORD_ENDS = r"(?![\w'’-])"
_WORDS = re.compile(rf"(?: [A-Za-z]+{WORD_ENDS})+")
MERGE_LENGTHS = range(2, 7)  # words
MERGE_WORDS = 1_000_000  # read for the choice, which bounds its memory at about 1 GB


def choose_merges(
    texts: Iterable[str],
    facts: Iterable[str],
    *,
    length: Callable[[str], int],
    mode: Mode = "products",
) -> tuple[tuple[str, str], ...]:
    """Return a row and a word sequence for each fact that occurs: as frequent, as many tokens.

    Only sequences of whole words are taken, the space before them included, and none that could
    overlap another one, so that each is written as often as it was counted. The difference to a
    fact is |log of the ratio of the counts| + |difference in tokens| / tokens; facts choose in the
    order of their frequency, and what is equal goes by the alphabet. length: tokens of a text. Of
    very long data the first million words are read. Facts for which nothing is left have no row.
    """
    counts, fact_counts = _count_sequences(texts, mode)
    by_count: dict[int, list[str]] = defaultdict(list)
    for sequence, count in counts.items():
        by_count[count].append(sequence)
    chosen: dict[str, str] = {}
    treated = set(facts)
    for fact in sorted(
        treated & fact_counts.keys(), key=lambda f: (-fact_counts[f], FACTS.index(f))
    ):
        merge = _most_alike(fact, fact_counts[fact], by_count, list(chosen.values()), length)
        if merge is not None:
            chosen[fact] = merge
    return tuple((fact, chosen[fact]) for fact in FACTS if fact in chosen)


def _count_sequences(texts: Iterable[str], mode: Mode) -> tuple[Counter[str], Counter[str]]:
    """Count word sequences, and facts, in the first million words."""
    counts: Counter[str] = Counter()
    fact_counts: Counter[str] = Counter()
    words_read = 0
    for text in texts:
        if words_read > MERGE_WORDS:
            break
        fact_counts.update(match.token for match in find_facts(text, mode=mode))
        for run in _WORDS.finditer(text):
            words = run[0].split(" ")[1:]
            words_read += len(words)
            for size in MERGE_LENGTHS:
                ends = range(size, len(words) + 1)
                counts.update(" " + " ".join(words[end - size : end]) for end in ends)
    return counts, fact_counts


def _most_alike(
    fact: str,
    count: int,
    by_count: dict[int, list[str]],
    chosen: Sequence[str],
    length: Callable[[str], int],
) -> str | None:
    """Return the sequence that is most like a fact and overlaps none that is chosen."""
    tokens = length(expand(fact))
    best, least = None, math.inf
    for near_count in sorted(by_count, key=lambda c: (abs(math.log(c / count)), c)):
        ratio = abs(math.log(near_count / count))
        if ratio >= least:
            break
        by_count[near_count].sort()
        for sequence in by_count[near_count]:
            cost = ratio + abs(length(sequence) - tokens) / tokens
            taken = sequence in chosen or cost >= least
            if not taken and not any(_may_overlap(sequence, c) for c in (*chosen, sequence)):
                best, least = sequence, cost
            if least == ratio:
                break
    return best


def _may_overlap(first: str, second: str) -> bool:
    """Tell whether two word sequences (or two copies of one) can share words in a text."""
    a, b = first.split(" ")[1:], second.split(" ")[1:]
    ends = any(
        a[-size:] == b[:size] or b[-size:] == a[:size] for size in range(1, min(len(a), len(b)))
    )
    return ends or (a != b and (f"{first} " in f"{second} " or f"{second} " in f"{first} "))
