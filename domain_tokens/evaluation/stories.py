"""The story probe: each cell of the table as a one-step story, in ten wordings.

They are written for this probe and for nothing else: no stage trains on them. A story says nothing
but its two numbers, in digits, and never what to do with them.
"""

from collections import Counter
from math import fsum, log

from domain_tokens.evaluation.probes import TABLE

# {a:one/many}: the number with its noun. Sums over groups, the group's size first in half of them.
STORIES = (
    "A baker fills {a:tin/tins} and puts {b:muffin/muffins} into every tin. "
    "How many muffins does the baker need?",
    "Every bench has room for {b:child/children}. How many children can sit on {a:bench/benches}?",
    "A choir stands in {a:line/lines}, with {b:singer/singers} to a line. "
    "How many singers does the choir have?",
    "A kitten drinks {b:spoon/spoons} of milk. "
    "How many spoons of milk are needed for {a:kitten/kittens}?",
    "A train pulls {a:wagon/wagons}, and each wagon has {b:window/windows}. "
    "How many windows does the train have?",
    "A spider weaves {b:web/webs} every night. How many webs does it weave in {a:night/nights}?",
    "A street has {a:pole/poles}, and each pole carries {b:lamp/lamps}. "
    "How many lamps does the street have?",
    "To knit a scarf takes {b:ball/balls} of wool. "
    "How many balls of wool are needed for {a:scarf/scarves}?",
    "A tower has {a:floor/floors}, with room for {b:family/families} on every floor. "
    "How many families fit into the tower?",
    "A printer makes {b:poster/posters} in a minute. "
    "How many posters does it make in {a:minute/minutes}?",
)


class Counted(int):
    """A number that writes itself with its noun: `{n:tin/tins}` gives `1 tin` or `6 tins`."""

    def __format__(self, nouns: str) -> str:
        digits = int.__repr__(self)
        singular, _, plural = nouns.partition("/")
        return f"{digits} {singular if self == 1 else plural}" if nouns else digits


def worded(template: str, a: int, b: int) -> str:
    """Return a wording with its two numbers."""
    return template.format(a=Counted(a), b=Counted(b))


def story_floors() -> dict[str, float]:
    """Return what the table alone gives to whoever does not multiply.

    a2_chance: A2 with the same probability for all 36 products; a2_floor: with each product's share
    of the 81 cells, the best that ignores the numbers (nats). larger_number_accuracy: the share of
    cells that repeating the larger number gets right.
    """
    counts = Counter(a * b for a, b in TABLE)
    shares = [counts[a * b] / len(TABLE) for a, b in TABLE]
    return {
        "a2_chance": -log(len(counts)),
        "a2_floor": fsum(map(log, shares)) / len(TABLE),
        "larger_number_accuracy": sum(max(a, b) == a * b for a, b in TABLE) / len(TABLE),
    }
