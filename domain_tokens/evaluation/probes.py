"""The arithmetic questions: the table, in all its wordings, and what lies beyond it."""

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from domain_tokens.runs import ProbeSection

TABLE = tuple((a, b) for a in range(1, 10) for b in range(1, 10))
# The wordings in which a cell of the table is asked; the first is the lab note's.
TEMPLATES = (
    "What is {a} times {b}?",
    "What is {a} multiplied by {b}?",
    "How much is {a} times {b}?",
    "Calculate {a} times {b}.",
    "Multiply {a} by {b}.",
)


def probes(settings: "ProbeSection") -> Iterator[tuple[str, str, int]]:
    """Yield (category, question, answer): the table's cells, then the two other categories.

    Suite "standard": each cell once, the others sampled without replacement, two-digit × one-digit
    from the 810 with factors 10–99 and 1–9, additions from pairs of 1–99. Suite "full": each cell
    in all wordings, all 810 products, and all 4,950 additions a + b with 1 <= a <= b <= 99. Suite
    "stories": each cell in ten stories and nothing else, in the category "story".
    """
    if settings.suite == "stories":
        from domain_tokens.evaluation.stories import STORIES, worded

        for a, b in TABLE:
            for template in STORIES:
                yield "story", worded(template, a, b), a * b
        return
    full = settings.suite == "full"
    for a, b in TABLE:
        for template in TEMPLATES if full else TEMPLATES[:1]:
            yield "mul_table", template.format(a=a, b=b), a * b
    chooser = random.Random(settings.seed)
    products = [(a, b) for a in range(10, 100) for b in range(1, 10)]
    for a, b in products if full else chooser.sample(products, settings.multidigit):
        yield "mul_multidigit", f"What is {a} times {b}?", a * b
    sums = [(a, b) for a in range(1, 100) for b in range(a if full else 1, 100)]
    for a, b in sums if full else chooser.sample(sums, settings.additions):
        yield "addition", f"What is {a} plus {b}?", a + b
