"""A source's examples: duplicates, subset, order and identity."""

import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from domain_tokens.data.corpora import (
    digest_of_ids,
    epoch_order,
    hash_rank,
    hold_out,
    without_rows_of,
)
from domain_tokens.data.examples import Conversation, Problem
from domain_tokens.errors import UserError
from tests.rows import chat_row, conversations, problem_row, problems, write_jsonl

# --- duplicates and accounts ----------------------------------------------------------------------


def test_duplicates_are_counted_and_the_survivor_does_not_depend_on_order(tmp_path: Path):
    rows = [chat_row("a"), chat_row("a"), chat_row("b", id="x"), chat_row("b", id="y")]
    rows += [chat_row("b", id="x", source="before rows.jsonl"), chat_row("c", id="z")]
    loaded = conversations(write_jsonl(tmp_path / "rows.jsonl", rows))
    turned = conversations(write_jsonl(tmp_path / "rows.jsonl", rows[::-1]))
    assert (loaded.total_rows, loaded.duplicates, len(loaded.items)) == (6, 3, 3)
    assert loaded == turned
    assert loaded.dropped == {"duplicate": 3}
    assert loaded.notes()[0].endswith("3 of 6 rows left out: 3 duplicate")


@pytest.mark.parametrize("ids", [("x", "x"), (1, 1), (1, "1")])
@pytest.mark.parametrize("limit", [None, 0])
def test_one_id_for_two_contents_is_refused(tmp_path: Path, ids: tuple, limit: int | None):
    """Two files that number from 0, joined, lost half of their rows as 'duplicates'."""
    rows = [chat_row("start"), chat_row("a", id=ids[0]), chat_row("b", id=ids[1])]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        UserError, match=f"rows 2 and 3 have the id '{ids[0]}' and differ"
    ) as caught:
        conversations(source, limit=limit)
    assert "drop the `id` field of all rows" in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), min_size=1, max_size=40),
    limit=st.none() | st.integers(0, 8),
    shuffle=st.randoms(use_true_random=False),
)
@example(pairs=[(0, 0), (0, 1), (0, 2), (1, 3)], limit=1, shuffle=random.Random(1))
def test_of_equal_contents_the_first_by_rank_is_drawn(tmp_path_factory, pairs, limit, shuffle):
    """Against the definition: one row per content, the smallest (rank, id), then the subset."""
    folder = tmp_path_factory.mktemp("rows")
    contents = {number: content for content, number in pairs}  # one content per id
    rows = [problem_row(contents[number]) | {"id": f"i{number}"} for _, number in pairs]
    shuffle.shuffle(rows)
    loaded = problems(write_jsonl(folder / "a.jsonl", rows), limit=limit)
    best = {}
    for number, content in contents.items():
        key = (hash_rank(0, f"i{number}"), f"i{number}")
        best[content] = min(best.get(content, key), key)
    assert [item.id for item in loaded.items] == [key[1] for key in sorted(best.values())][:limit]
    assert loaded.duplicates == len(rows) - len(best)


def test_composition_counts_the_kept_rows(tmp_path: Path):
    rows = [chat_row(str(number), source="ab"[number % 2]) for number in range(10)]
    rows += [chat_row("unnamed"), chat_row("also", source=None)]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert conversations(source).source_composition == {"a": 5, "b": 5, "rows.jsonl": 2}
    assert sum(conversations(source, limit=4).source_composition.values()) == 4
    assert problems(write_jsonl(tmp_path / "gsm.jsonl", [problem_row(1)])).source_composition == {
        "gsm.jsonl": 1
    }


# --- subset, order, identity ----------------------------------------------------------------------


def test_rank_is_pinned():
    """The subset of every published run hangs on these numbers."""
    assert [hash_rank(42, "a"), hash_rank("42:0", "a"), hash_rank(7, "é")] == [
        10167919162102447641,
        727383432534534673,
        17366406585480485519,
    ]


@settings(max_examples=50, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    limit=st.none() | st.integers(0, 30),
    seed=st.integers(0, 3),
    shuffle=st.randoms(use_true_random=False),
)
@example(numbers=[3, 1, 3, 2], limit=2, seed=0, shuffle=random.Random(1))
def test_the_subset_does_not_depend_on_file_order(tmp_path_factory, numbers, limit, seed, shuffle):
    folder = tmp_path_factory.mktemp("rows")
    rows = [problem_row(number) for number in numbers]
    loaded = problems(write_jsonl(folder / "a.jsonl", rows), limit=limit, seed=seed)
    shuffle.shuffle(rows)
    again = problems(write_jsonl(folder / "a.jsonl", rows), limit=limit, seed=seed)
    assert loaded == again
    assert loaded.duplicates == len(numbers) - len(set(numbers))

    # Against the definition, sorting everything.
    every = problems(folder / "a.jsonl", limit=None, seed=seed).items
    expected = sorted(
        {item.id: item for item in every}.values(), key=lambda i: hash_rank(seed, i.id)
    )
    assert loaded.items == expected[:limit]


def test_the_order_property_is_not_vacuous(tmp_path: Path):
    source = write_jsonl(tmp_path / "a.jsonl", [problem_row(number) for number in range(100)])
    one, two = (problems(source, limit=10, seed=seed) for seed in (1, 2))
    assert one.items != two.items
    assert one.fingerprint != two.fingerprint
    assert [item.id for item in one.items] != [item.id for item in problems(source).items[:10]]


@pytest.mark.parametrize("given_id", [True, False])
@pytest.mark.parametrize("load", [problems, conversations])
def test_one_character_changes_the_fingerprint(tmp_path: Path, given_id: bool, load):
    rows: list[dict] = [problem_row(n) | chat_row(f"text {n}") for n in range(5)]
    if given_id:
        rows = [row | {"id": f"row-{number}"} for number, row in enumerate(rows)]
    before = load(write_jsonl(tmp_path / "a.jsonl", rows)).fingerprint
    assert load(write_jsonl(tmp_path / "b.jsonl", rows[::-1])).fingerprint == before
    rows[3]["answer"] += " "
    rows[3]["messages"][1]["content"] += " "
    assert load(write_jsonl(tmp_path / "a.jsonl", rows)).fingerprint != before


def test_hold_out_splits_by_hash_and_keeps_the_order():
    items = [Problem(str(number), "q", "a") for number in range(50)]
    kept, held = hold_out(items, count=8, seed=3)
    assert sorted(kept + held, key=items.index) == items
    assert kept == [item for item in items if item in kept]
    turned = hold_out(items[::-1], count=8, seed=3)
    assert {item.id for item in turned[1]} == {item.id for item in held}
    assert max(hash_rank(3, item.id) for item in held) < min(hash_rank(3, item.id) for item in kept)
    assert hold_out(items, count=0, seed=3) == (items, [])
    with pytest.raises(UserError, match=r"hold-out of 50 examples .* lower data\.holdout"):
        hold_out(items, count=50, seed=3)


def test_epochs_are_different_permutations_that_follow_the_ids():
    ids = [f"id-{number}" for number in range(40)]
    first, second = (epoch_order(ids, seed=42, epoch=epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second != epoch_order(ids, seed=43, epoch=1)
    turned = epoch_order(ids[::-1], seed=42, epoch=0)
    assert [ids[::-1][at] for at in turned] == [ids[at] for at in first]


def test_the_digest_sees_order_and_boundaries():
    assert len(digest_of_ids([])) == 64
    digests = {
        digest_of_ids(ids) for ids in (["a", "b"], ["b", "a"], ["ab"], ['a","b'], iter(["a"]))
    }
    assert len(digests) == 5


def test_rows_that_are_trained_on_are_found_under_any_id():
    """Ids say nothing across two files: both may number from 0."""
    training = [Problem("0", "Why?", "#### 1"), Problem("1", "How?", "#### 2")]
    others = [Problem("0", "Who?", "#### 3"), Problem("7", " How? ", "So #### 2")]
    assert without_rows_of(others, training) == (others[:1], 1)
    chats = [Conversation(str(n), (("user", "Hi"), ("assistant", f"{n}")), "s") for n in range(3)]
    renamed = [Conversation("x", chats[1].messages, "other")]
    assert without_rows_of(chats, renamed) == ([chats[0], chats[2]], 1)
