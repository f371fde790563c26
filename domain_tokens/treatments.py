"""Which facts are treated: a random half of the 45, drawn from the seed (design §5)."""

import hashlib
from collections.abc import Mapping

from domain_tokens.vocabulary import FACTS


def draw_half(occurrences: Mapping[str, int], seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """Return half A and half B of the 45 facts, from the seed alone (22 and 23 of them).

    Facts are ranked by how often they occur (one that is not there: never) and, where that is
    equal, by id. Of two that follow each other a fair coin sends one to each half; the last one,
    which has no partner, goes where its own coin says. Raises ValueError for a name that is no fact
    token.
    """
    unknown = sorted(occurrences.keys() - set(FACTS))
    if unknown:
        raise ValueError(f"got occurrences of {unknown[0]}, wanted fact tokens (vocabulary.FACTS)")
    ranked = sorted(FACTS, key=lambda fact: -occurrences.get(fact, 0))
    coins = int.from_bytes(hashlib.blake2b(f"half tables\n{seed}".encode()).digest())
    halves: tuple[set[str], set[str]] = (set(), set())
    for number, fact in enumerate(ranked):
        halves[(coins >> number // 2 & 1) ^ (number % 2)].add(fact)
    return frozenset(halves[0]), frozenset(halves[1])
