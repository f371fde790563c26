"""Offline corpora for the demo: everything is composed from the lists below and an explicit seed.

The demo shows that the machinery works, so its data is small enough to be learned on two cores and
honest about what it is: the held-out word problems are new questions, but they come from the same
templates, names and number ranges as the training problems. No text here contains a fact token;
injection is the business of the training stages.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from domain_tokens.errors import UserError
from domain_tokens.run_card import read_json, write_json, write_text

Split = Literal["pretraining", "train", "test"]
Row = dict[str, Any]

END_OF_TEXT = "<|endoftext|>"

# Share of all possible questions, in percent, that belongs to each split.
SPLIT_SHARES: dict[Split, int] = {"pretraining": 50, "train": 40, "test": 10}

NAMES = """
    Ada Amir Anna Ben Carla Chen David Dina Elif Emma Felix Finn Grace Hana Hugo Ida Ivan
    Jack Jana Karl Kofi Lena Liam Lucy Mara Mia Nina Noah Omar Oscar Paul Petra Rosa Sam
    Sara Tariq Tina Tom Vera Yuki
""".split()
CONTAINERS = "bag basket box bucket crate jar pack tray".split()
THINGS = """
    apple bead book button card coin cookie egg flower grape key lemon marble nut orange
    pear pen plum ribbon rose shell stamp sticker stone toy
""".split()
ANIMALS = "cat dog duck goat hen horse mouse owl rabbit sheep".split()
PLACES = "beach farm garden library market museum park river school shop".split()
COLOURS = "black blue brown green orange red white yellow".split()
IRREGULAR_PLURALS = {
    "box": "boxes",
    "mouse": "mice",
    "sheep": "sheep",
}


class Amount(int):
    """A number that writes itself with its noun: `{n:box}` gives `1 box` or `6 boxes`."""

    def __format__(self, noun: str) -> str:
        digits = int.__repr__(self)
        if not noun:
            return digits
        return f"{digits} {noun if self == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """The plural of one of this module's nouns."""
    return IRREGULAR_PLURALS.get(noun, noun + "s")


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
    name, other = rng.sample(NAMES, 2)
    box, thing, animal = rng.choice(CONTAINERS), rng.choice(THINGS), rng.choice(ANIMALS)
    return {
        "name": name,
        "other": other,
        "box": box,
        "boxes": plural(box),
        "thing": thing,
        "things": plural(thing),
        "animal": animal,
        "animals": plural(animal),
        "place": rng.choice(PLACES),
        "colour": rng.choice(COLOURS),
    }


# ---------------------------------------------------------------------------------------------
# Chat

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You answer briefly.",
    "You are a patient teacher of arithmetic.",
    "Answer in one or two short sentences.",
)
TALK = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hello, my name is {name}.", "Hello {name}! How can I help you?"),
    ("Thank you!", "You are welcome."),
    ("Who is {name}?", "{name} is a friend of {other}."),
    ("What does {name} like?", "{name} likes {things} and {animals}."),
    ("Where is {name}?", "{name} is at the {place} with {other}."),
    ("Name a colour.", "One colour is {colour}."),
    ("Name an animal.", "One animal is the {animal}."),
    ("Where can I see {animals}?", "You can see {animals} at the farm or at the {place}."),
    ("Tell me about the {place}.", "The {place} is a nice place. {name} goes there with {other}."),
)
TIMES_QUESTIONS = (
    "What is {a} times {b}?",
    "What is {a} times {b}?",
    "What is {a}*{b}?",
    "How much is {a} times {b}?",
    "Please multiply {a} by {b}.",
)
TIMES_ANSWERS = (
    "The answer is {result}.",
    "The answer is {result}.",
    "{a}*{b}={result}. The answer is {result}.",
    "{a}*{b} makes {result}.",
)
PLUS_QUESTIONS = (
    "What is {a} plus {b}?",
    "What is {a} plus {b}?",
    "What is {a}+{b}?",
    "Please add {a} and {b}.",
)
PLUS_ANSWERS = (
    "The answer is {result}.",
    "The answer is {result}.",
    "{a}+{b}={result}. The answer is {result}.",
)

Exchange = tuple[str, str]


def _table_exchange(rng: Random) -> Exchange:
    return _times_exchange(rng, rng.randint(1, 9), rng.randint(1, 9))


def _long_times_exchange(rng: Random) -> Exchange:
    return _times_exchange(rng, rng.randint(10, 99), rng.randint(2, 9))


def _times_exchange(rng: Random, first: int, second: int) -> Exchange:
    numbers = {"a": first, "b": second, "result": first * second}
    question, answer = rng.choice(TIMES_QUESTIONS), rng.choice(TIMES_ANSWERS)
    return question.format(**numbers), answer.format(**numbers)


def _plus_exchange(rng: Random) -> Exchange:
    first, second = rng.randint(1, 99), rng.randint(1, 99)
    numbers = {"a": first, "b": second, "result": first + second}
    question, answer = rng.choice(PLUS_QUESTIONS), rng.choice(PLUS_ANSWERS)
    return question.format(**numbers), answer.format(**numbers)


def _talk_exchange(rng: Random) -> Exchange:
    question, answer = rng.choice(TALK)
    words = _words(rng)
    return question.format(**words), answer.format(**words)


# What an exchange is about: its source label, its weight in the mixture, its maker.
EXCHANGES: tuple[tuple[str, int, Callable[[Random], Exchange]], ...] = (
    ("demo/times-table", 55, _table_exchange),
    ("demo/long-multiplication", 10, _long_times_exchange),
    ("demo/addition", 15, _plus_exchange),
    ("demo/talk", 20, _talk_exchange),
)


def chat_rows(count: int, seed: int) -> Iterator[Row]:
    """`count` conversations in the format of Tulu-3's mixture: `id`, `messages`, `source`.

    No two rows of a call hold the same messages. Row ids contain the seed, so that rows of
    different seeds can be put together.
    """
    rng = Random(f"chat/{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        source, messages = _conversation(rng)
        content = json.dumps(messages)
        if content not in seen:
            row_id = f"demo_chat_{seed}_{len(seen)}"
            seen.add(content)
            yield {"id": row_id, "messages": messages, "source": source}


def _topic(rng: Random) -> tuple[str, Callable[[Random], Exchange]]:
    source, _, make = rng.choices(EXCHANGES, [weight for _, weight, _ in EXCHANGES])[0]
    return source, make


def _conversation(rng: Random) -> tuple[str, list[dict[str, str]]]:
    """One to three exchanges of one kind, sometimes after a system prompt."""
    source, make = _topic(rng)
    messages = []
    if rng.random() < 0.15:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    for _ in range(rng.choice((1, 2, 2, 3))):
        question, answer = make(rng)
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return source, messages


# ---------------------------------------------------------------------------------------------
# Pretraining text

FACT_STATEMENTS = (
    "{a}*{b}={result}",
    "{a}*{b} = <<{a}*{b}={result}>>{result}",
    "{a} times {b} is {result}.",
    "{a} groups of {b} make {result}.",
)
SUM_STATEMENTS = (
    "{a}+{b}={result}",
    "{a}+{b} = <<{a}+{b}={result}>>{result}",
    "{a} plus {b} is {result}.",
)
DIFFERENCE_STATEMENTS = (
    "{a}-{b}={result}",
    "{a}-{b} = <<{a}-{b}={result}>>{result}",
    "{a} minus {b} is {result}.",
)
STORY_SENTENCES = (
    "{name} and {other} went to the {place}.",
    "They saw {n:{animal}} there.",
    "{name} found a {colour} {thing}.",
    "{other} put {n:{thing}} into a {box}.",
    "The {animal} of {name} is {colour}.",
    "Then {name} gave a {thing} to {other}.",
    "In the evening they went home.",
)


# What a document of pretraining text is about, and how often.
DOCUMENT_WEIGHTS = {
    "facts": 30,
    "sums": 15,
    "differences": 10,
    "story": 3,
    "talk": 10,
    "problem": 32,
}


def pretraining_texts(count: int, seed: int) -> Iterator[str]:
    """`count` documents of plain text: facts, sums, stories, talk, worked word problems.

    The word problems belong to their own split: none is a training or a test question.
    """
    rng = Random(f"pretraining/{seed}")
    problems = _distinct_problems(rng, "pretraining")
    for _ in range(count):
        yield _document(rng, problems)


def _document(rng: Random, problems: Iterator[Row]) -> str:
    kind = rng.choices(list(DOCUMENT_WEIGHTS), list(DOCUMENT_WEIGHTS.values()))[0]
    if kind == "facts":
        return _statements(rng, FACT_STATEMENTS, MULTIPLY, _factors)
    if kind == "sums":
        return _statements(rng, SUM_STATEMENTS, ADD, _sum_below_100)
    if kind == "differences":
        return _statements(rng, DIFFERENCE_STATEMENTS, SUBTRACT, _difference_below_100)
    if kind == "story":
        return _story(rng)
    if kind == "talk":
        return "\n".join(_topic(rng)[1](rng))
    problem = next(problems)
    return f"{problem['question']}\n{problem['answer']}"


def _statements(
    rng: Random,
    patterns: tuple[str, ...],
    operation: Operation,
    draw: Callable[[Random], tuple[int, ...]],
) -> str:
    """Several statements of one kind, one a line."""
    lines = []
    for _ in range(rng.randint(6, 10)):
        first, second = draw(rng)
        result = operation[1](first, second)
        lines.append(rng.choice(patterns).format(a=first, b=second, result=result))
    return "\n".join(lines)


def _story(rng: Random) -> str:
    words = _words(rng) | {"n": Amount(rng.randint(1, 9))}
    picked = sorted(rng.sample(range(len(STORY_SENTENCES)), rng.randint(3, 5)))
    return " ".join(STORY_SENTENCES[index].format(**words) for index in picked)


# ---------------------------------------------------------------------------------------------
# Files and tokenizer

SIZES = {"pretraining": 24_000, "chat": 4_000, "train": 5_000, "test": 500}
VOCABULARY = 512  # tokens; small, so that little of a tiny model's work goes to the output layer
MANIFEST = "manifest.json"


def write(folder: Path, *, seed: int) -> bool:
    """Write all corpora and the tokenizer to a folder; return False where they are there already.

    Files: `pretraining.jsonl`, `chat.jsonl`, `train.jsonl`, `test.jsonl`, `tokenizer/` and a
    manifest. The folder appears as a whole or not at all. Raises UserError where the folder holds
    other corpora.
    """
    generator = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    manifest = {"seed": seed, "sizes": SIZES, "vocabulary": VOCABULARY, "generator": generator}
    if folder.exists() and any(folder.iterdir()):
        if (folder / MANIFEST).exists() and read_json(folder / MANIFEST) == manifest:
            return False
        raise UserError(
            f"{folder} holds other demo corpora than this code makes; "
            "move it away with all that was trained on it, or give another --output-root"
        )
    work = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    texts = list(pretraining_texts(SIZES["pretraining"], seed))
    rows: dict[str, Iterable[Row]] = {
        "pretraining": ({"text": text} for text in texts),
        "chat": chat_rows(SIZES["chat"], seed),
        "train": problem_rows(SIZES["train"], seed, "train"),
        "test": problem_rows(SIZES["test"], seed, "test"),
    }
    for name, content in rows.items():
        lines = (json.dumps(row, ensure_ascii=False) for row in content)
        write_text(work / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
    train_tokenizer(texts, VOCABULARY).save_pretrained(work / "tokenizer")
    write_json(work / MANIFEST, manifest)
    work.rename(folder)
    return True


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every digit is a token of its own; EOS is also the padding.

    The result depends on the texts and the size alone. `vocab_size` counts EOS; a small corpus
    can yield fewer tokens.

    Raises:
        ValueError: the size cannot hold the 256 bytes and EOS.
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size is {vocab_size}; 256 bytes and EOS need at least 257")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
