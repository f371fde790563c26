"""One row to one example: chat rows and problems, their ids, and why a row cannot be one."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from domain_tokens.data.rationales import MARKER, as_problem_row, equations_of
from domain_tokens.data.row_files import kind_of

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat example; `messages` are (role, content) pairs and `source` names its sub-corpus.

    row: its 1-based position in the source (0: none), for messages only.
    """

    id: str
    messages: tuple[tuple[str, str], ...]
    source: str
    row: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Problem:
    """A GSM8K row; the answer is the worked solution that ends in `#### n`.

    row: its 1-based position in the source (0: none), for messages only.
    """

    id: str
    question: str
    answer: str
    row: int = field(default=0, compare=False)


# A row as it was read: `prompts` makes an Example of it.
DataRow = TypeVar("DataRow", Conversation, Problem)


class IrregularError(Exception):
    """Names why a row cannot be an example: the reason as it is counted, and what was found."""

    def __init__(self, reason: str, got: str):
        super().__init__(reason)
        self.reason, self.got = reason, got


def example_identity(item: Conversation | Problem) -> tuple:
    """Return what makes two examples the same: all but the sub-corpus's label and the row."""
    if isinstance(item, Conversation):
        return item.id, item.messages
    return item.id, item.question, item.answer


def canonical_json(value: Any) -> bytes:
    """Return the one JSON spelling of a value, for hashes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def problem_messages(problem: Problem) -> tuple[tuple[str, str], ...]:
    """Turn a GSM8K row into the (role, content) messages of a conversation."""
    return ("user", problem.question), ("assistant", problem.answer)


def row_line(row: Conversation, *, as_problem: bool) -> str:
    """Return a row as a line of JSONL that the training stages read, with the same id."""
    texts = [content for _, content in row.messages]
    if as_problem:
        fields: dict[str, Any] = dict(zip(("question", "answer"), texts, strict=True))
    else:
        messages = [{"role": role, "content": content} for role, content in row.messages]
        fields = {"messages": messages, "source": row.source}
    return json.dumps({"id": row.id, **fields}, ensure_ascii=False) + "\n"


def conversation_of(row: dict, number: int, label: str) -> Conversation:
    """Read a chat row, or raise IrregularError; label: the sub-corpus of a row that names none."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise IrregularError(
            "no_messages",
            f"`messages` is {kind_of(messages)}; wanted a list of {{role, content}}"
            f"{what_is_there(row)}",
        )
    pairs = tuple(_turn(message, at) for at, message in enumerate(messages, start=1))
    source = label if row.get("source") is None else _text(row, "source")
    return Conversation(_example_id(row, pairs), pairs, source, number)


def _turn(message: Any, number: int) -> tuple[str, str]:
    """Return role and content of a message; raises IrregularError for all that would be lost."""
    expected = f"wanted {{role, content}} with role {', '.join(ROLES)} and text as content"
    if not isinstance(message, dict):
        raise IrregularError("no_role", f"message {number} is {kind_of(message)}; {expected}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        reason = "tool_role" if role in ("tool", "function") else "other_role"
        raise IrregularError(reason, f"message {number} has role {_shown(role)}; {expected}")
    call = next((name for name in ("tool_calls", "function_call") if message.get(name)), None)
    if call:
        raise IrregularError("tool_call", f"message {number} has `{call}`; {expected}")
    if isinstance(content, list):
        raise IrregularError(
            "content_parts", f"message {number}: `content` is a list of parts; {expected}"
        )
    weight = message.get("weight")
    if role == "assistant" and weight not in (None, 1):
        raise IrregularError(
            "weight",
            f"message {number} has weight {weight}; every assistant turn carries loss here",
        )
    return role, _text(message, "content", f"message {number}: ")


def problem_of(row: dict, number: int) -> Problem:
    """Read a row of GSM8K, GSM8K-Aug or SVAMP, or raise IrregularError."""
    row = as_problem_row(row)
    if "malformed" in row and "question" not in row:
        expected = f"wanted `question||<<a+b=c>> … {MARKER} n`"
        raise IrregularError("malformed_line", f"{row['malformed']}; {expected}")
    question, answer = _text(row, "question"), _text(row, "answer")
    content = {"question": question, "answer": answer}
    return Problem(_example_id(row, content), question, answer, number)


def equations_alone(problem: Problem) -> Problem:
    """Return a problem whose solution is its equations and its answer; its id stays.

    Raises IrregularError where the solution has no answer.
    """
    text = equations_of(problem.answer)
    if text is None:
        raise IrregularError("no_final_answer", f"`answer` has no {MARKER}; wanted `{MARKER} n`")
    return replace(problem, answer=text)


def _text(row: dict, name: str, where: str = "") -> str:
    value = row.get(name)
    if not isinstance(value, str):
        reason = f"no_{name}" if value is None else f"{name}_is_no_text"
        there = what_is_there(row) if value is None and not where else ""
        raise IrregularError(reason, f"{where}`{name}` is {kind_of(value)}; wanted a string{there}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, UTF-8 cannot
        raise IrregularError(
            "half_surrogate",
            f"{where}`{name}` holds half a surrogate pair at character {error.start}; "
            "wanted text that UTF-8 can hold",
        ) from error
    return value


def _example_id(row: dict, content: Any) -> str:
    given = row.get("id")
    if given is None:
        return hashlib.sha256(canonical_json(content)).hexdigest()[:16]
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    if given == "" or not isinstance(given, str):
        got = "empty" if given == "" else kind_of(given)
        raise IrregularError(
            "unusable_id", f"`id` is {got}; wanted a name or a whole number, or no `id` in any row"
        )
    return _text(row, "id")


def what_is_there(row: dict) -> str:
    """Say what a row holds instead, and how to convert it where its format is known."""
    turns = row.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "from" in turns[0]:
        return (
            "; the row has `conversations` with from/value (ShareGPT): rename it to `messages`, "
            "from to role (human: user, gpt: assistant) and value to content"
        )
    if "instruction" in row and "output" in row:
        return (
            "; the row has instruction/input/output (Alpaca): write them as `messages`, one of "
            "role user and one of role assistant"
        )
    return f"; the row has {', '.join(map(str, list(row)[:8])) or 'no keys'}"


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) and len(value) < 40 else kind_of(value)
