"""Rows, files of rows and short calls that the tests of data share."""

import json
from pathlib import Path

import pytest

from domain_tokens.data.corpora import load_conversations, load_problems
from domain_tokens.errors import UserError


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
