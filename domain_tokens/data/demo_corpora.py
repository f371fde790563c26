"""Offline corpora for the demo: everything is composed from the lists below and an explicit seed.

The demo shows that the machinery works, so its data is small enough to be learned on two cores and
honest about what it is: the held-out word problems are new questions, but they come from the same
templates, names and number ranges as the training problems. No text here contains a fact token;
injection is the business of the training stages.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from domain_tokens.data.demo_problems import (
    ADD,
    MULTIPLY,
    SUBTRACT,
    Operation,
    Row,
    _difference_below_100,
    _distinct_problems,
    _factors,
    _sum_below_100,
    _words,
    problem_rows,
)
from domain_tokens.data.demo_words import Amount
from domain_tokens.errors import UserError
from domain_tokens.runs import Manifest, read_json, write_record, write_text

END_OF_TEXT = "<|endoftext|>"


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
VERSION = "1"  # of what is generated: raise it with any change of a text
# What folders of this version are called that were written when it was the hash of one source file.
EARLIER_NAMES = ("5d1407c1b6f95dbe1567ae80caaabb319d5f81bf2f28ff817dd214333063fbef",)


def write_demo_corpora(folder: Path, *, seed: int) -> bool:
    """Write all corpora and the tokenizer to a folder; return False where they are there already.

    Files: `pretraining.jsonl`, `chat.jsonl`, `train.jsonl`, `test.jsonl`, `tokenizer/` and a
    manifest. The folder appears as a whole or not at all. Raises UserError where the folder holds
    other corpora.
    """
    manifest = {"seed": seed, "sizes": SIZES, "vocabulary": VOCABULARY, "generator": VERSION}
    if folder.exists() and any(folder.iterdir()):
        written = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
        if written.get("generator") in EARLIER_NAMES:
            written["generator"] = VERSION
        if written == manifest:
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
    write_record(work / MANIFEST, Manifest, manifest)
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
