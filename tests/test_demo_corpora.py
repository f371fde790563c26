"""The demo's corpora: right sums, disjoint questions, the same rows from the same seed."""

import json
import re
from itertools import islice

import pytest

from domain_tokens.answers import extract_strict
from domain_tokens.data.demo_corpora import (
    chat_rows,
    pretraining_texts,
    train_tokenizer,
    write_demo_corpora,
)
from domain_tokens.data.demo_problems import problem_rows
from domain_tokens.errors import UserError
from domain_tokens.injection import find_facts
from domain_tokens.prompts import plain_encoder
from tests.conftest import plant, tree

SPLITS = ("pretraining", "train", "test")


@pytest.mark.parametrize("split", SPLITS)
def test_every_calculation_holds_and_the_last_one_is_the_answer(split):
    for row in problem_rows(300, 1, split):
        steps = re.findall(r"<<(\d+)([*+-])(\d+)=(\d+)>>(\d+)", row["answer"])
        for left, sign, right, result, shown in steps:
            value = {"*": int.__mul__, "+": int.__add__, "-": int.__sub__}[sign]
            assert value(int(left), int(right)) == int(result) == int(shown)
        final = extract_strict(row["answer"])
        assert final is not None
        if steps:
            assert final == int(steps[-1][3])
        assert final >= 0


def test_no_question_is_in_two_splits_or_twice_in_one():
    questions = {
        split: [row["question"] for row in problem_rows(500, 1, split)] for split in SPLITS
    }
    seen = [question for rows in questions.values() for question in rows]
    assert len(seen) == len(set(seen)) == 1500


def test_the_chat_mixture_holds_what_it_is_meant_to_teach():
    rows = list(chat_rows(400, 1))
    assert len({row["id"] for row in rows}) == 400
    assert len({json.dumps(row["messages"]) for row in rows}) == 400
    roles = [[message["role"] for message in row["messages"]] for row in rows]
    assert any(r[0] == "system" for r in roles)
    assert any(r.count("user") > 1 for r in roles)
    sources = {row["source"] for row in rows}
    assert {"demo/times-table", "demo/addition", "demo/talk"} <= sources
    answers = " ".join(row["messages"][-1]["content"] for row in rows)
    assert find_facts(answers)  # the arms differ
    assert "<MUL" not in answers


def test_rows_depend_on_the_seed_alone():
    for make in (
        lambda seed: list(chat_rows(20, seed)),
        lambda seed: list(problem_rows(20, seed, "train")),
        lambda seed: list(pretraining_texts(20, seed)),
    ):
        assert make(1) == make(1) != make(2)


def test_every_digit_is_a_token_of_its_own():
    tokenizer = train_tokenizer(pretraining_texts(300, 1), 400)
    pieces = plain_encoder(tokenizer).encode("12*345 = 4140 apples", add_special_tokens=False)
    digits = [token.lstrip("Ġ") for token in pieces.tokens if re.search(r"\d", token)]
    assert digits == list("123454140")
    assert tokenizer.decode(pieces.ids) == "12*345 = 4140 apples"


def test_corpora_are_written_once_and_others_are_refused(tmp_path, monkeypatch):
    sizes = {"pretraining": 60, "chat": 12, "train": 12, "test": 6}
    plant(monkeypatch, "domain_tokens.data.demo_corpora.SIZES", sizes)
    folder = tmp_path / "data"
    assert write_demo_corpora(folder, seed=1)
    before = tree(tmp_path)
    for name, count in sizes.items():
        assert len((folder / f"{name}.jsonl").read_text().splitlines()) == count
    assert not write_demo_corpora(folder, seed=1)
    with pytest.raises(UserError, match="other demo corpora"):
        write_demo_corpora(folder, seed=2)
    assert tree(tmp_path) == before


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'validation'"):
        list(islice(problem_rows(1, 1, "validation"), 1))
