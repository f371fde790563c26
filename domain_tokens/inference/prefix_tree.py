"""A prompt and all its continuations as one text, in which every common beginning stands once.

The 36 products of the table begin with nine digits; 45 fact tokens follow one space. Read one by
one, most of their tokens are read again and again, each time with a copy of the prompt's keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """A prompt, then every token that some continuation goes on from: T tokens.

    ids, positions, parents: [T]; parents: which token each follows, -1 for the first. paths: for
    each continuation, what its score is the sum of: (token of the text, id after it).
    """

    ids: list[int]
    positions: list[int]
    parents: list[int]
    paths: list[list[tuple[int, int]]]

    @property
    def is_chain(self) -> bool:
        """Whether each token follows the one before it, so that a causal mask is enough."""
        return self.parents == list(range(-1, len(self.ids) - 1))

    def visible(self) -> torch.Tensor:
        """Return what each token sees, bool [T, T]: itself and all that it follows."""
        seen = torch.eye(len(self.ids), dtype=torch.bool)
        for token, parent in enumerate(self.parents):
            if parent >= 0:
                seen[token] |= seen[parent]
        return seen


def prefix_tree(
    prompt: Sequence[int], continuations: Sequence[Sequence[int]], given: Sequence[int]
) -> PrefixTree:
    """Lay a prompt and its continuations out; given: how many of each one's ids have no score."""
    ids, positions = list(prompt), list(range(len(prompt)))
    parents = [position - 1 for position in positions]
    known: dict[tuple[int, int], int] = {}  # (parent, id) -> token
    paths = []
    for continuation, unscored in zip(continuations, given, strict=True):
        at, path = len(prompt) - 1, []
        for number, token in enumerate(continuation, 1):
            if number > unscored:
                path.append((at, token))
            if number == len(continuation):  # nothing follows it
                break
            if (at, token) not in known:
                known[at, token] = len(ids)
                ids.append(token)
                positions.append(positions[at] + 1)
                parents.append(at)
            at = known[at, token]
        paths.append(path)
    return PrefixTree(ids, positions, parents, paths)


def padded_visibility(
    trees: Sequence[PrefixTree],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return how D texts, one after the other, are laid out in rows as long as the longest, L.

    laid_out: int64 [D, L], which token stands where (0 where none does); rows: int64 [N], where
    each token stands in the rows, read one after another; visible: bool [D, 1, L, L].
    """
    longest = max(len(tree.ids) for tree in trees)
    laid_out = torch.zeros(len(trees), longest, dtype=torch.int64)
    # What only fills a row sees itself: a softmax over nothing is no number.
    visible = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1, 1)
    rows, first = [], 0
    for number, tree in enumerate(trees):
        size = len(tree.ids)
        laid_out[number, :size] = torch.arange(first, first + size)
        visible[number, 0, :size, :size] = tree.visible()
        rows.append(number * longest + torch.arange(size))
        first += size
    return laid_out, torch.cat(rows), visible
