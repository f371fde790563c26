"""Loading, subsetting, identity and decontamination of the corpora; no network."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import datasets.config
import datasets.exceptions
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from domain_tokens import corpora
from domain_tokens.corpora import (
    Conversation,
    Decontaminator,
    Problem,
    digest,
    find_repeat,
    hold_out,
    load_conversations,
    load_problems,
    order,
    problem_messages,
    rank,
    read_rows,
)
from domain_tokens.errors import UserError

SHARED = Path(__file__).parents[1].parent / "shared" / "data"

QUESTION = "A robe takes 2 bolts of blue fiber and half that much white fiber. How many in total?"


def chat_row(text: str, **other) -> dict:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]
    return {"messages": turns, **other}


def problem_row(number: int) -> dict:
    return {"question": f"How much is {number} + 1?", "answer": f"#### {number + 1}"}


def write_jsonl(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def problems(source: str | Path, *, limit: int | None = None, seed: int = 0):
    return load_problems(str(source), split="train", limit=limit, subset_seed=seed)


def conversations(source: str | Path, *, limit: int | None = None):
    return load_conversations(str(source), split="train", limit=limit, subset_seed=0)


def message_of(source: str | Path, **names) -> str:
    """The one line that a user gets for a bad source of chat rows."""
    with pytest.raises(UserError) as caught:
        load_conversations(str(source), split="train", limit=None, subset_seed=0, **names)
    text = str(caught.value)
    assert "\n" not in text
    assert names.get("key", "data.source") in text
    return text


# --- files ----------------------------------------------------------------------------------------


def write_parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("suffix", corpora.SUFFIXES)
@pytest.mark.parametrize("place", ["file", "folder", "data"])
def test_every_format_and_place_gives_the_same_rows(tmp_path: Path, suffix: str, place: str):
    rows = [chat_row("one", id="a", source="s"), chat_row("two × 2", id="b", source="t")]
    folder = tmp_path / "data" if place == "data" else tmp_path
    folder.mkdir(exist_ok=True)
    file = folder / f"train{suffix}"
    if suffix == ".jsonl":
        write_jsonl(file, rows)
    elif suffix == ".json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    else:
        write_parquet(file, rows)
    source = file if place == "file" else tmp_path
    assert list(read_rows(str(source), split="train")) == rows


def test_shards_are_read_in_order_and_must_be_complete(tmp_path: Path):
    rows = [chat_row(str(number), id=str(number)) for number in range(4)]
    write_parquet(tmp_path / "train-00000-of-00002.parquet", rows[:2])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", rows[:1])
    assert "holds 1 shards" in message_of(tmp_path)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", rows[2:])
    assert list(read_rows(str(tmp_path), split="train")) == rows


def test_a_split_that_stands_twice_in_a_folder_is_refused(tmp_path: Path):
    write_jsonl(tmp_path / "train.jsonl", [chat_row("a")])
    (tmp_path / "train.json").write_text("[]")
    assert "train.jsonl, train.json" in message_of(tmp_path)


def test_jsonl_skips_blank_lines_and_a_byte_order_mark(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    text = json.dumps(chat_row("line\u2028separator"), ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\n  \n" + text.encode())
    assert [row["messages"][0]["content"] for row in read_rows(str(file), split="-")] == [
        "line\u2028separator"
    ] * 2


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"messages": [}', "not valid JSON"),
        (b'{"messages": "\xff"}', "not valid JSON ('utf-8' codec"),
        (b"[" * 100_000, "not valid JSON"),
        (b"9" * 5000, "not valid JSON"),
        (b"[1, 2]", "got a list; wanted a JSON object"),
        (b"null", "got missing or null; wanted a JSON object"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, line: bytes, why: str):
    file = tmp_path / "rows.jsonl"
    good = json.dumps(chat_row("fine")).encode()
    file.write_bytes(good + b"\n\n" + line + b"\n" + good + b"\n")
    message = message_of(file)
    assert f"{file}, line 3: {why}" in message
    assert message.endswith("mend or delete that line")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("rows.json", b'{"a": 1}\n{"a": 2}', "call it .jsonl"),
        ("rows.json", b'{"a": 1}', "got an object; wanted a list"),
        ("rows.json", b"[3]", "row 1: got a number"),
        ("rows.parquet", b"PAR0", "not a readable parquet file"),
        ("rows.csv", b"a,b", "ends in '.csv'"),
        ("rows.jsonl", b"\n\n", "holds no rows"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, why: str):
    file = tmp_path / name
    file.write_bytes(content)
    assert why in message_of(file)


def test_a_missing_path_is_never_asked_of_the_hub(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(corpora, "_hub_table", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    for source in ("./owner/name", "~/no/such", "/no/such", "owner/rows.jsonl", "../a/b", "word"):
        assert "looked for" in message_of(source, key="data.validation_source")
    assert "for split 'train'" in message_of(tmp_path)
    # A folder that has the name of a hub data set is the folder.
    (tmp_path / "owner" / "name").mkdir(parents=True)
    shutil.copy(write_jsonl(tmp_path / "train.jsonl", [chat_row("a")]), tmp_path / "owner/name")
    assert len(conversations("owner/name").items) == 1


# --- the hub, which no test asks ------------------------------------------------------------------


def test_the_hub_is_asked_for_the_named_config(monkeypatch):
    asked = []
    table = datasets.Dataset.from_list([problem_row(number) for number in range(3)])

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(corpora, "_hub_answers", lambda: True)
    assert list(read_rows("openai/gsm8k", split="test")) == table.to_list()
    list(read_rows("openai/gsm8k:socratic", split="train"))
    list(read_rows("allenai/tulu-3-sft-mixture", split="train"))
    assert asked == [
        ("openai/gsm8k", "main", "test"),
        ("openai/gsm8k", "socratic", "train"),
        ("allenai/tulu-3-sft-mixture", None, "train"),
    ]
    assert problems("openai/gsm8k").source_composition == {"openai/gsm8k": 3}


def test_an_unreachable_hub_is_one_line_that_names_the_key(monkeypatch, tmp_path: Path, capfd):
    monkeypatch.setattr(corpora, "_hub_answers", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    before = datasets.config.HF_HUB_OFFLINE
    message = message_of("no-such-owner/no-such-set", key="data.decontaminate_against")
    assert "could not be reached" in message
    assert "--set data.decontaminate_against=PATH" in message
    assert before == datasets.config.HF_HUB_OFFLINE
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ValueError('Unknown split "dev".\nShould be "train".'), '(Unknown split "dev".); wanted'),
        (datasets.exceptions.DatasetNotFoundError("no such set"), "(no such set); wanted"),
        (FileNotFoundError("LocalEntryNotFoundError: a proxy said 403"), "could not be reached"),
        (ConnectionError("cut off"), "could not be reached"),
    ],
)
def test_what_the_hub_refuses_is_bad_input(monkeypatch, error: Exception, why: str):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(corpora, "_hub_answers", lambda: True)
    assert why in message_of("owner/name")


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "`messages` is missing or null; wanted a list"),
        ({"messages": "hello"}, "`messages` is a string"),
        ({"messages": ["hello"]}, "message 1 has role 'hello'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role 'tool'; wanted {role, content}"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "has role a list"),
        ({"messages": [{"role": "user"}]}, "message 1: `content` is missing or null"),
        (chat_row("a", source=3), "`source` is a number"),
        (chat_row("a", id=1.5), "`id` is a number"),
        (chat_row("a", id=""), "`id` is empty"),
        (chat_row("a\ud800"), "half a surrogate pair at character 1"),
    ],
)
def test_a_row_of_another_shape_is_named_by_its_number(tmp_path: Path, row: dict, why: str):
    source = write_jsonl(tmp_path / "rows.jsonl", [chat_row("fine"), row])
    message = message_of(source)
    assert "row 2: " in message
    assert why in message


def test_a_problem_needs_question_and_answer_strings(tmp_path: Path):
    for row in ({"question": "q"}, {"question": 3, "answer": "#### 3"}):
        with pytest.raises(UserError, match=r"row 2: `(answer|question)` is .*wanted a string"):
            problems(write_jsonl(tmp_path / "rows.jsonl", [problem_row(1), row]))


def test_ids_are_given_or_hashed_from_the_content(tmp_path: Path):
    rows = [chat_row("a", id=7), chat_row("a"), chat_row("b", id="x")]
    loaded = conversations(write_jsonl(tmp_path / "rows.jsonl", rows))
    content = '[["user","a"],["assistant","Yes."]]'
    hashed = hashlib.sha256(content.encode()).hexdigest()[:16]
    assert {item.id for item in loaded.items} == {"7", hashed, "x"}


def test_duplicates_are_counted_and_the_survivor_does_not_depend_on_order(tmp_path: Path):
    rows = [chat_row("a"), chat_row("a"), chat_row("b", id="x"), chat_row("c", id="x")]
    loaded = conversations(write_jsonl(tmp_path / "rows.jsonl", rows))
    turned = conversations(write_jsonl(tmp_path / "rows.jsonl", rows[::-1]))
    assert (loaded.total_rows, loaded.duplicates, len(loaded.items)) == (4, 2, 2)
    assert loaded == turned


def test_composition_counts_the_kept_rows(tmp_path: Path):
    rows = [chat_row(str(number), source="ab"[number % 2]) for number in range(10)]
    rows += [chat_row("unnamed"), chat_row("also", source=None)]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert conversations(source).source_composition == {"a": 5, "b": 5, "rows.jsonl": 2}
    assert sum(conversations(source, limit=4).source_composition.values()) == 4
    assert problems(write_jsonl(tmp_path / "gsm.jsonl", [problem_row(1)])).source_composition == {
        "gsm.jsonl": 1
    }


def test_a_problem_is_a_question_and_its_answer():
    problem = Problem("id", "Why?", "#### 1")
    assert problem_messages(problem) == (("user", "Why?"), ("assistant", "#### 1"))


# --- subset, order, identity ----------------------------------------------------------------------


def test_rank_is_pinned():
    """The subset of every published run hangs on these numbers."""
    assert [rank(42, "a"), rank("42:0", "a"), rank(7, "é")] == [
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
    expected = sorted({item.id: item for item in every}.values(), key=lambda i: rank(seed, i.id))
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
    assert max(rank(3, item.id) for item in held) < min(rank(3, item.id) for item in kept)
    assert hold_out(items, count=0, seed=3) == (items, [])
    with pytest.raises(UserError, match=r"hold-out of 50 examples .* lower data\.holdout"):
        hold_out(items, count=50, seed=3)


def test_epochs_are_different_permutations_that_follow_the_ids():
    ids = [f"id-{number}" for number in range(40)]
    first, second = (order(ids, seed=42, epoch=epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second != order(ids, seed=43, epoch=1)
    turned = order(ids[::-1], seed=42, epoch=0)
    assert [ids[::-1][at] for at in turned] == [ids[at] for at in first]


def test_the_digest_sees_order_and_boundaries():
    assert len(digest([])) == 64
    digests = {digest(ids) for ids in (["a", "b"], ["b", "a"], ["ab"], ['a","b'], iter(["a"]))}
    assert len(digests) == 5


# --- decontamination ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        f"Please help!\n\n{QUESTION.upper()}\nShow your work.",
        "a robe takes 2 bolts -- of blue fiber, and HALF that much white",
    ],
)
def test_a_copied_question_is_found(text: str):
    found = Decontaminator(["Something else altogether.", QUESTION]).match(text)
    assert found is not None
    assert found[0] == 1
    assert found[1] > 0.5


def test_coverage_is_the_share_of_the_question_and_must_exceed_half():
    words = [f"w{number}" for number in range(20)]
    finder = Decontaminator([" ".join(words)])
    assert finder.match(" ".join(words[:10])) is None  # exactly half
    assert finder.match(" ".join(words[:11])) == (0, 11 / 20)
    assert finder.match(" ".join([*words[:7], "x", *words[7:14]])) is None  # runs of seven
    # Overlapping runs count each word once; two separate runs add up.
    assert finder.match(" ".join([*words[:8], "x", *words[12:]])) == (0, 16 / 20)


def test_the_best_question_wins_and_the_lower_index_a_tie():
    words = [f"w{number}" for number in range(16)]
    whole, longer = " ".join(words), " ".join([*words, "and", "more"])
    assert Decontaminator([longer, whole, whole]).match(whole) == (1, 1.0)


def test_short_questions_match_whole_and_empty_ones_never():
    finder = Decontaminator(["", "What is 6 times 9?", "?!"])
    assert finder.match("so: what is 6 TIMES 9 then") == (1, 1.0)
    assert finder.match("what is 6 times 8") is None
    assert finder.match("") is None


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_match_agrees_with_the_definition(data):
    words = st.lists(st.sampled_from("ab"), max_size=14)
    questions = data.draw(st.lists(words, min_size=1, max_size=4))
    text = data.draw(words)
    shares = []
    for question in questions:
        width = min(3, len(question))
        runs = {tuple(text[at : at + width]) for at in range(len(text) - width + 1)}
        starts = [
            at
            for at in range(len(question) - width + 1)
            if width and tuple(question[at : at + width]) in runs
        ]
        covered = {at + step for at in starts for step in range(width)}
        shares.append(len(covered) / max(1, len(question)))
    best = max(shares)
    expected = (shares.index(best), best) if best > 0.5 else None
    found = Decontaminator([" ".join(question) for question in questions], ngram=3)
    assert found.match(" ".join(text)) == expected


def decontaminate(rows, questions):
    finder = Decontaminator(questions)
    found = [(row, find_repeat(finder, row)) for row in rows]
    return [row for row, drop in found if not drop], [drop for _, drop in found if drop]


def test_only_user_turns_are_compared_and_every_drop_is_listed():
    clean = Conversation("clean", (("user", "Hello"), ("assistant", QUESTION)), "s")
    second = (("user", "Hi"), ("assistant", "Yes?"), ("user", QUESTION + " x" * 200))
    kept, drops = decontaminate([clean, Conversation("bad", second, "t")], [QUESTION])
    assert kept == [clean]
    assert drops == [
        {
            "id": "bad",
            "source": "t",
            "question_index": 0,
            "coverage": 1.0,
            "user_text": (QUESTION + " x" * 200)[:200],
        }
    ]


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout")
def test_real_rows_load_and_planted_test_questions_are_found():
    train = load_problems(str(SHARED / "gsm8k"), split="train", limit=None, subset_seed=42)
    test = load_problems(str(SHARED / "gsm8k"), split="test", limit=None, subset_seed=42)
    assert (train.total_rows, test.total_rows) == (7473, 1319)
    assert not {item.id for item in train.items} & {item.id for item in test.items}
    chat = conversations(SHARED / "chat")
    assert chat.total_rows == 831
    assert len(chat.items) + chat.duplicates == 831

    questions = [item.question for item in test.items]
    clean, drops = decontaminate(chat.items, questions)
    assert len(drops) <= 3  # the chat rows are general; hardly any can be a GSM8K test question

    planted = []
    for at, item in enumerate(clean[::10]):
        turns = (*item.messages, ("user", f"One more thing. {questions[at].lower()} Thanks!"))
        planted.append(Conversation(item.id, turns, item.source))
    kept, drops = decontaminate(planted, questions)
    assert kept == []
    assert [drop["question_index"] for drop in drops] == list(range(len(planted)))
