"""The demo's word problems: templates, families, and splits that share no question."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any, Literal, get_args

from domain_tokens.data.demo_words import (
    ANIMALS,
    COLOURS,
    CONTAINERS,
    NAMES,
    PLACES,
    THINGS,
    Amount,
    plural,
)

Split = Literal["pretraining", "train", "test"]
Row = dict[str, Any]

# Share of all possible questions, in percent, that belongs to each split.
SPLIT_SHARES: dict[Split, int] = {"pretraining": 50, "train": 40, "test": 10}


# ---------------------------------------------------------------------------------------------
# Word problems


@dataclass(frozen=True)
class Template:
    """A word problem: its question and, for each step, a sentence around the calculation.

    A sentence holds `{step}` where GSM8K writes its calculation, `6*9 = <<6*9=54>>54`, or
    `{result}` where it gives the number outright.
    """

    question: str
    sentences: tuple[str, ...]


# a * b. The first named amount is always `a`, so that the sentence can follow the question.
TIMES = (
    Template(
        "{name} has {a:{box}} with {b:{thing}} in each {box}. How many {things} does {name} have?",
        ("{name} has {step} {things}.",),
    ),
    Template(
        "There are {a:{box}} on a table. Each {box} holds {b:{thing}}. "
        "How many {things} are there?",
        ("There are {step} {things}.",),
    ),
    Template(
        "{name} buys {a:{thing}} for {b:dollar} each. How many dollars does {name} pay?",
        ("{name} pays {step} dollars.",),
    ),
    Template(
        "{name} reads for {a:day}, {b:page} a day. How many pages does {name} read?",
        ("{name} reads {step} pages.",),
    ),
    Template(
        "{name} gives {a:friend} {b:{thing}} each. How many {things} does {name} give away?",
        ("{name} gives away {step} {things}.",),
    ),
    Template(
        "A garden has {a:row} of {b:tree}. How many trees are in the garden of {name}?",
        ("The garden has {step} trees.",),
    ),
)
# a * b or a + b, asked and answered outright: keeps alive what the chat stage taught.
ASKED_TIMES = (
    Template("{name} asks {other}: What is {a} times {b}?", ("The answer is {result}.",)),
    Template("What is {a} times {b}? Please tell {name}.", ("The answer is {result}.",)),
)
ASKED_PLUS = (
    Template("{name} asks {other}: What is {a} plus {b}?", ("The answer is {result}.",)),
    Template("What is {a} plus {b}? Please tell {name}.", ("The answer is {result}.",)),
)
# a + b.
PLUS = (
    Template(
        "{name} has {a:{thing}}. {other} has {b:{thing}}. How many {things} do they have together?",
        ("Together they have {step} {things}.",),
    ),
    Template(
        "{name} has {a:{thing}} and finds {b} more. How many {things} does {name} have now?",
        ("Now {name} has {step} {things}.",),
    ),
    Template(
        "{name} reads {a:page} on Monday and {b:page} on Tuesday. How many pages is that?",
        ("{name} reads {step} pages.",),
    ),
)
# a - b.
MINUS = (
    Template(
        "{name} has {a:{thing}} and gives {b} to {other}. How many {things} does {name} have left?",
        ("{name} has {step} {things} left.",),
    ),
    Template(
        "There are {a:{thing}} in a {box}. {name} takes {b} of them. How many {things} are left?",
        ("There are {step} {things} left.",),
    ),
    Template(
        "{name} has {a:dollar} and pays {b:dollar} for a {thing}. "
        "How many dollars does {name} have left?",
        ("{name} has {step} dollars left.",),
    ),
)
# a * b, then + c.
TIMES_PLUS = (
    Template(
        "{name} has {a:{box}} with {b:{thing}} in each {box}, and {c} more. "
        "How many {things} does {name} have in all?",
        ("The {boxes} hold {step} {things}.", "In all {name} has {step} {things}."),
    ),
    Template(
        "{name} buys {a:{thing}} for {b:dollar} each and a bag for {c:dollar}. "
        "How many dollars does {name} pay in all?",
        ("The {things} cost {step} dollars.", "In all {name} pays {step} dollars."),
    ),
    Template(
        "{name} reads for {a:day}, {b:page} a day, and then {c:page} on Sunday. "
        "How many pages does {name} read in all?",
        ("First {name} reads {step} pages.", "In all {name} reads {step} pages."),
    ),
)
# a * b, then - c.
TIMES_MINUS = (
    Template(
        "{name} has {a:{box}} with {b:{thing}} in each {box} and gives {c} to {other}. "
        "How many {things} does {name} have left?",
        ("The {boxes} hold {step} {things}.", "{name} has {step} {things} left."),
    ),
    Template(
        "{name} works for {a:hour} at {b:dollar} an hour and pays {c:dollar} for lunch. "
        "How many dollars does {name} have left?",
        ("{name} earns {step} dollars.", "{name} has {step} dollars left."),
    ),
    Template(
        "{name} bakes {a:tray} of {b:cookie}. The {animals} eat {c} of them. "
        "How many cookies are left?",
        ("{name} bakes {step} cookies.", "There are {step} cookies left."),
    ),
)
# a + b, then * c.
PLUS_TIMES = (
    Template(
        "{name} has {a} red and {b} blue {boxes}. Each {box} holds {c:{thing}}. "
        "How many {things} does {name} have?",
        ("{name} has {step} {boxes}.", "The {boxes} hold {step} {things}."),
    ),
    Template(
        "{name} sells {a:{thing}} on Monday and {b} on Friday for {c:dollar} each. "
        "How many dollars does {name} earn?",
        ("{name} sells {step} {things}.", "{name} earns {step} dollars."),
    ),
)

Operation = tuple[str, Callable[[int, int], int]]
MULTIPLY: Operation = ("*", lambda left, right: left * right)
ADD: Operation = ("+", lambda left, right: left + right)
SUBTRACT: Operation = ("-", lambda left, right: left - right)


def _factors(rng: Random) -> tuple[int, int]:
    """Two factors: mostly a pair of the 9x9 table, sometimes one factor of 10 to 12."""
    first, second = rng.randint(1, 9), rng.randint(1, 9)
    if rng.random() < 0.12:
        first = rng.randint(10, 12)
    return (first, second) if rng.random() < 0.5 else (second, first)


def _addend(rng: Random, largest: int) -> int:
    """What is added or taken away: one digit in two of three draws."""
    if largest < 10 or rng.random() < 2 / 3:
        return rng.randint(1, min(9, largest))
    return rng.randint(10, largest)


def _factors_and_addend(rng: Random) -> tuple[int, int, int]:
    return *_factors(rng), _addend(rng, 20)


def _factors_and_subtrahend(rng: Random) -> tuple[int, int, int]:
    while True:
        first, second = _factors(rng)
        if first * second > 1:
            return first, second, _addend(rng, min(20, first * second - 1))


def _sum_below_100(rng: Random) -> tuple[int, int]:
    first = rng.randint(1, 89)
    return first, _addend(rng, min(40, 99 - first))


def _difference_below_100(rng: Random) -> tuple[int, int]:
    first = rng.randint(2, 99)
    return first, _addend(rng, min(40, first - 1))


def _small_sum_and_factor(rng: Random) -> tuple[int, int, int]:
    total = rng.randint(4, 9)
    first = rng.randint(2, total - 2)
    return first, total - first, rng.randint(1, 9)


@dataclass(frozen=True)
class Family:
    """Templates that share their operations; `weight` is how often the family is drawn."""

    weight: int
    templates: tuple[Template, ...]
    operations: tuple[Operation, ...]
    draw: Callable[[Random], tuple[int, ...]]


FAMILIES = (
    Family(14, ASKED_TIMES, (MULTIPLY,), _factors),
    Family(8, ASKED_PLUS, (ADD,), _sum_below_100),
    Family(18, TIMES, (MULTIPLY,), _factors),
    Family(10, PLUS, (ADD,), _sum_below_100),
    Family(10, MINUS, (SUBTRACT,), _difference_below_100),
    Family(16, TIMES_PLUS, (MULTIPLY, ADD), _factors_and_addend),
    Family(16, TIMES_MINUS, (MULTIPLY, SUBTRACT), _factors_and_subtrahend),
    Family(12, PLUS_TIMES, (ADD, MULTIPLY), _small_sum_and_factor),
)


def split_of(question: str) -> Split:
    """The split that a question belongs to, from a hash of its text alone."""
    draw = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 100
    for split, share in SPLIT_SHARES.items():
        if draw < share:
            return split
        draw -= share
    raise AssertionError(f"split shares must add up to 100, got {SPLIT_SHARES}")


def problem_rows(count: int, seed: int, split: Split) -> Iterator[Row]:
    """`count` different word problems of one split in GSM8K's format: `question`, `answer`.

    Which split a question belongs to is decided by its text, so two splits share no question
    whatever their seeds and sizes.

    Raises:
        ValueError: the split is unknown.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(get_args(Split))}")
    rng = Random(f"problems/{split}/{seed}")
    yield from islice(_distinct_problems(rng, split), count)


def _distinct_problems(rng: Random, split: Split) -> Iterator[Row]:
    seen: set[str] = set()
    while True:
        row = _problem(rng)
        question = row["question"]
        if question not in seen and split_of(question) == split:
            seen.add(question)
            yield row


def _problem(rng: Random) -> Row:
    """One word problem; every intermediate result is annotated as GSM8K does."""
    family = rng.choices(FAMILIES, [family.weight for family in FAMILIES])[0]
    template = rng.choice(family.templates)
    numbers = family.draw(rng)
    words = _words(rng) | {key: Amount(n) for key, n in zip("abc", numbers, strict=False)}
    result = numbers[0]
    lines = []
    for sentence, (sign, compute), right in zip(
        template.sentences, family.operations, numbers[1:], strict=True
    ):
        left, result = result, compute(result, right)
        step = f"{left}{sign}{right} = <<{left}{sign}{right}={result}>>{result}"
        lines.append(sentence.format(step=step, result=result, **words))
    lines.append(f"#### {result}")
    return {"question": template.question.format(**words), "answer": "\n".join(lines)}


def _words(rng: Random) -> dict[str, Any]:
    name, friend = rng.sample(NAMES, 2)
    box, thing, animal = rng.choice(CONTAINERS), rng.choice(THINGS), rng.choice(ANIMALS)
    return {
        "name": name,
        "other": friend,
        "box": box,
        "boxes": plural(box),
        "thing": thing,
        "things": plural(thing),
        "animal": animal,
        "animals": plural(animal),
        "place": rng.choice(PLACES),
        "colour": rng.choice(COLOURS),
    }
