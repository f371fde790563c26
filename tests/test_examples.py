"""One row to one example: ids, and why a row cannot be one."""

import hashlib
from pathlib import Path

import pytest

from domain_tokens.data.examples import Problem, problem_messages
from domain_tokens.errors import UserError
from tests.rows import chat_row, conversations, message_of, problem_row, problems, write_jsonl


def chat(*messages, **other) -> dict:
    return {"messages": list(messages), **other}


def turn(role, content, **other) -> dict:
    return {"role": role, "content": content, **other}


ASK, REPLY = turn("user", "Hi"), turn("assistant", "Hello.")
CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
IRREGULAR = [
    ({}, "no_messages", "`messages` is missing or null; wanted a list"),
    ({"messages": "hello"}, "no_messages", "`messages` is a string"),
    (chat("hello"), "no_role", "message 1 is a string"),
    (
        chat(ASK, turn("tool", "x")),
        "tool_role",
        "message 2 has role 'tool'; wanted {role, content}",
    ),
    (chat(turn("function", "x")), "tool_role", "has role 'function'"),
    (chat(turn(["user"], "x")), "other_role", "has role a list"),
    (chat(turn(None, "x")), "other_role", "has role missing or null"),
    (chat({"role": "user"}), "no_content", "message 1: `content` is missing or null"),
    (chat(ASK, turn("assistant", None, tool_calls=[])), "no_content", "message 2: `content` is m"),
    (chat(ASK, turn("assistant", "a", tool_calls=[CALL])), "tool_call", "has `tool_calls`"),
    (chat(ASK, turn("assistant", None, function_call={"name": "f"})), "tool_call", "`function_c"),
    (chat(turn("user", [{"type": "text", "text": "a"}]), REPLY), "content_parts", "list of parts"),
    (chat(turn("user", 3), REPLY), "content_is_no_text", "`content` is a number"),
    (chat(ASK, turn("assistant", "a", weight=0)), "weight", "has weight 0"),
    (chat(ASK, turn("assistant", "a", weight=0.5)), "weight", "has weight 0.5"),
    (chat_row("a", source=3), "source_is_no_text", "`source` is a number"),
    (chat_row("a", id=1.5), "unusable_id", "`id` is a number"),
    (chat_row("a", id=True), "unusable_id", "`id` is a boolean"),
    (chat_row("a", id=""), "unusable_id", "`id` is empty"),
    (chat_row("a\ud800"), "half_surrogate", "half a surrogate pair at character 1"),
]


@pytest.mark.parametrize(("row", "reason", "why"), IRREGULAR)
def test_an_irregular_row_is_counted_and_named(tmp_path: Path, row: dict, reason: str, why: str):
    """One such row among many ended the run: a person fixed one row a run."""
    source = write_jsonl(tmp_path / "rows.jsonl", [chat_row("fine"), row, chat_row("too"), row])
    loaded = conversations(source)
    assert loaded.irregular == {reason: [2, 4]}
    assert loaded.dropped == {reason: 2}
    assert [item.row for item in sorted(loaded.items, key=lambda item: item.row)] == [1, 3]
    assert loaded.notes() == [
        f"data.source: {source}: 2 of 4 rows left out: 2 {reason} (rows 2, 4)"
    ]
    mostly = message_of(write_jsonl(tmp_path / "rows.jsonl", [row, chat_row("fine"), row]))
    assert f"2 of 3 rows are not what was wanted, most of them {reason}: row 1: " in mostly
    assert why in mostly


@pytest.mark.parametrize(
    "message",
    [
        turn("assistant", "Hello.", weight=1),
        turn("assistant", "Hello.", weight=None),
        turn("assistant", "Hello.", tool_calls=None, function_call=None),
        turn("assistant", "Hello.", tool_calls=[], name="x"),
    ],
)
def test_keys_that_change_nothing_are_regular(tmp_path: Path, message: dict):
    """A user's weight is no matter: user turns carry no loss."""
    row = chat(turn("system", ""), turn("user", "Hi", weight=0), message)
    (item,) = conversations(write_jsonl(tmp_path / "rows.jsonl", [row])).items
    assert item.messages == (("system", ""), ("user", "Hi"), ("assistant", "Hello."))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes."}]},
            "the row has `conversations` with from/value (ShareGPT): rename it to `messages`",
        ),
        ({"instruction": "Add.", "input": "", "output": "3"}, "(Alpaca): write them as `messages`"),
        ({"prompt": "Hi", "chosen": "a"}, "the row has prompt, chosen"),
    ],
)
def test_rows_of_another_format_are_named_by_it(tmp_path: Path, row: dict, why: str):
    assert why in message_of(write_jsonl(tmp_path / "rows.jsonl", [row] * 3))


def test_a_problem_needs_question_and_answer_strings(tmp_path: Path):
    rows = [{"question": "q"}, {"question": 3, "answer": "#### 3"}, {"answer": "#### 3"}]
    good = [problem_row(number) for number in range(3)]
    loaded = problems(write_jsonl(tmp_path / "rows.jsonl", [*good, *rows]))
    assert loaded.irregular == {"no_answer": [4], "question_is_no_text": [5], "no_question": [6]}
    with pytest.raises(
        UserError, match=r"3 of 4 .* row 1: `answer` is missing or null; wanted a s"
    ):
        problems(write_jsonl(tmp_path / "rows.jsonl", [*rows, problem_row(1)]))


def test_ids_are_given_or_hashed_from_the_content(tmp_path: Path):
    rows = [chat_row("c", id=7), chat_row("a"), chat_row("b", id="x")]
    loaded = conversations(write_jsonl(tmp_path / "rows.jsonl", rows))
    content = '[["user","a"],["assistant","Yes."]]'
    hashed = hashlib.sha256(content.encode()).hexdigest()[:16]
    assert {item.id for item in loaded.items} == {"7", hashed, "x"}


def test_a_problem_is_a_question_and_its_answer():
    problem = Problem("id", "Why?", "#### 1")
    assert problem_messages(problem) == (("user", "Why?"), ("assistant", "#### 1"))
