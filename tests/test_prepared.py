"""Prepared data: the same on one core or many, found again under its key, never a stale one."""

from collections import Counter

import numpy as np
import pytest

from domain_tokens.data.examples import Conversation
from domain_tokens.data.prepared import (
    Examples,
    StageData,
    cache_key,
    prepare_examples,
    render_table,
    table_of,
)
from domain_tokens.errors import UserError
from domain_tokens.prompts import Renderer
from domain_tokens.treatments import FACT_TOKENS
from tests.conftest import plant, train

QUESTION = "A robe takes 2 bolts of blue fiber and half that much white fiber. How many in total?"


def rows(count):
    """Conversations of all kinds: with a fact, too long, empty, and one that repeats a question."""
    answers = ["It is 6*9=54.", "Hello! " * 60, "", "Yes."]
    made = [
        Conversation(str(i), (("user", f"Ask {i}"), ("assistant", answers[i % 4])), f"s{i % 3}")
        for i in range(count)
    ]
    return [*made, Conversation("bad", (("user", QUESTION), ("assistant", "3")), "s0")]


def same(one, other):
    return (
        one.id == other.id
        and np.array_equal(one.input_ids, other.input_ids)
        and np.array_equal(one.token_roles, other.token_roles)
        and [one.facts, one.text_bytes, one.match_bytes, one.truncated]
        == [other.facts, other.text_bytes, other.match_bytes, other.truncated]
    )


def test_examples_come_back_from_their_table(tokenizer):
    renderer = Renderer(tokenizer, treatment=FACT_TOKENS)
    made = [renderer.example(r.id, r.messages, max_length=100) for r in rows(12)]
    made = [example for example in made if not isinstance(example, str)]
    back = Examples(table_of(made))
    assert len(back) == len(made) > 5
    assert all(same(*pair) for pair in zip(back, made, strict=True))
    assert same(back[-1], made[-1])
    assert [e.id for e in back[1:3]] == [e.id for e in made[1:3]]
    with pytest.raises(IndexError):
        back[len(made)]


def test_worker_processes_change_nothing(tokenizer, monkeypatch):
    renderer = Renderer(tokenizer, treatment=FACT_TOKENS)
    options = {"max_length": 64, "test_questions": [QUESTION]}
    alone, dropped, listed = render_table(renderer, rows(60), **options)
    plant(monkeypatch, "domain_tokens.data.prepared.POOL_FROM", 10)
    plant(monkeypatch, "domain_tokens.data.prepared.CHUNK", 7)
    plant(monkeypatch, "domain_tokens.runs.threads.job_cpus", lambda: 2)
    shared, dropped_too, listed_too = render_table(renderer, rows(60), **options)
    assert shared.equals(alone)
    assert (dropped_too, listed_too) == (dropped, listed)
    assert dropped == {"first_exchange_too_long": 15, "empty_turn": 15, "repeats_test_question": 1}
    assert [drop["id"] for drop in listed] == ["bad"]


def test_the_second_run_finds_what_the_first_one_kept(tokenizer, tmp_path, monkeypatch, capsys):
    plant(monkeypatch, "domain_tokens.data.prepared.cache_folder", lambda: tmp_path / "cache")
    data = StageData(rows(8), rows(2)[:2], "test", {"train": "x"}, test_questions=[QUESTION])
    calls = []

    def load():
        calls.append(1)
        return data

    options = {"renderer": Renderer(tokenizer), "max_length": 64}
    first = prepare_examples(load, identity={"data": 1}, **options)
    again = prepare_examples(load, identity={"data": 1}, **options)
    assert len(calls) == 1
    assert "prepared data" in capsys.readouterr().out
    assert again.account == first.account
    assert first.account.source_composition == {"s0": 2, "s1": 2}
    for part in ("train", "validation"):
        pairs = zip(getattr(first, part), getattr(again, part), strict=True)
        assert all(same(*pair) for pair in pairs)
    prepare_examples(load, identity={"data": 2}, **options)
    assert len(calls) == 2


def test_the_account_names_what_was_left_out(tokenizer, tmp_path, monkeypatch):
    """Validation rows that could not be rendered were counted nowhere."""
    plant(monkeypatch, "domain_tokens.data.prepared.cache_folder", lambda: tmp_path)
    data = StageData(
        rows(8),
        rows(6)[:6],
        "test",
        {},
        dropped=Counter(duplicate=2),
        validation_dropped=Counter(also_in_training=1),
        irregular={"no_answer": [3, 5]},
        notes=["a line"],
    )
    options = {"renderer": Renderer(tokenizer), "max_length": 64, "identity": {}}
    for account in (prepare_examples(lambda: data, **options).account for _ in range(2)):
        assert account.dropped["duplicate"] == 2
        assert account.validation_dropped == {
            "first_exchange_too_long": 2,
            "empty_turn": 1,
            "also_in_training": 1,
        }
        assert (account.irregular, account.notes) == ({"no_answer": [3, 5]}, ["a line"])


def test_a_change_of_the_code_changes_the_key(monkeypatch):
    """open-instruct #1497: a token cache ignored the template and served yesterday's tokens."""
    before = cache_key({"data": 1})
    assert before == cache_key({"data": 1})
    plant(monkeypatch, "domain_tokens.data.prepared.code_hash", lambda files: "edited")
    assert cache_key({"data": 1}) != before


def test_a_broken_file_is_made_again(tokenizer, tmp_path, monkeypatch):
    plant(monkeypatch, "domain_tokens.data.prepared.cache_folder", lambda: tmp_path)
    data = StageData(rows(8), [], "test", {})
    options = {"renderer": Renderer(tokenizer), "max_length": 64, "identity": {}}
    first = prepare_examples(lambda: data, **options)
    (file,) = tmp_path.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:200])
    assert len(prepare_examples(lambda: data, **options).train) == len(first.train)
    assert [path.suffix for path in tmp_path.glob("*.partial")] == []


def test_a_folder_that_cannot_be_written_is_named(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    plant(
        monkeypatch, "domain_tokens.data.prepared.cache_folder", lambda: tmp_path / "file" / "cache"
    )
    with pytest.raises(UserError, match="set HF_HOME"):
        prepare_examples(lambda: None, Renderer(tokenizer), max_length=64, identity={})


def test_training_reads_what_was_prepared_and_ends_the_same(demo, monkeypatch, capsys):
    plant(monkeypatch, "domain_tokens.data.prepared.cache_folder", lambda: demo / "cache")
    assert train(demo, "first") == 0
    assert "prepared data" not in capsys.readouterr().out
    assert train(demo, "second") == 0
    assert "prepared data" in capsys.readouterr().out
    one, two = (demo / name / "model.safetensors" for name in ("first", "second"))
    assert one.read_bytes() == two.read_bytes()


def test_a_dry_run_trains_and_writes_nothing(demo, capsys):
    assert train(demo, "dry", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "dry run" in shown
    assert "optimizer steps" in shown
    assert not (demo / "dry").exists()
