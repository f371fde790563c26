"""Which facts are treated: a random half of the 45, drawn from the seed (design §5)."""

from collections.abc import Mapping

import numpy as np

from domain_tokens.vocabulary import FACTS

BLOCK = 4  # facts of similar occurrence, of which one half is treated


def draw_half(occurrences: Mapping[str, int], seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """Return a random half of the facts and its complement, stratified by occurrence.

    Facts in order of occurrence make blocks of four; two of each are drawn.
    """
    rng = np.random.default_rng([seed, 45])
    order = sorted(FACTS, key=lambda fact: (-occurrences.get(fact, 0), FACTS.index(fact)))
    half: set[str] = set()
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        extra = int(rng.integers(2)) if len(block) % 2 else 0
        chosen = rng.permutation(len(block))[: len(block) // 2 + extra]
        half |= {block[i] for i in chosen}
    return frozenset(half), frozenset(FACTS) - half
