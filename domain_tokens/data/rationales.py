"""Rows of other formats as GSM8K's question and solution, and a solution's equations alone.

The text of equations: GSM8K's calculator annotations with a space between them, and `#### n` on a
line of its own, as in the full text: G1 puts a line end before `####`, and would measure a model
that had never seen one there.
"""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, NamedTuple

MARKER = "####"
ANNOTATION = re.compile(r"<<[^<>\r\n]*>>")
SEPARATOR = "||"
# A number, an operator or a bracket of an equation such as `( ( 3.0 + 2.0 ) * 4.0 )`.
_PART = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|[-+*/()])")
_OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def solution_of(equations: str, answer: str) -> str:
    """Return a solution of equations `<<…>> <<…>>`, none for "", and its answer."""
    return f"{equations}\n{MARKER} {answer}" if equations else f"{MARKER} {answer}"


def equations_of(solution: str) -> str | None:
    """Return the calculator annotations of a solution and its answer; None where it has no `####`.

    What a solution calculates outside annotations is lost; one without any keeps `#### n` alone.
    """
    rationale, marker, answer = solution.rpartition(MARKER)
    if not marker:
        return None
    return solution_of(" ".join(ANNOTATION.findall(rationale)), answer.strip())


def split_line(line: str) -> dict[str, str]:
    """Read a line `question||<<…>> <<…>> #### n` of GSM8K-Aug's text files as a row.

    Where it is none, the row has `malformed`, which says why, and nothing else.
    """
    question, separator, solution = line.partition(SEPARATOR)
    equations, marker, answer = solution.partition(MARKER)
    faults = {
        "blank line": not line.strip(),
        f"no {SEPARATOR}": not separator,
        f"more than one {SEPARATOR}": SEPARATOR in solution,
        f"no {MARKER}": not marker,
        f"more than one {MARKER}": MARKER in answer,
        "no question": not question.strip(),
        "no answer": not answer.strip(),
        "text outside << >>": bool(ANNOTATION.sub("", equations).strip()),
    }
    fault = next((words for words, there in faults.items() if there), None)
    if fault:
        return {"malformed": fault}
    steps = " ".join(ANNOTATION.findall(equations))
    return {"question": question, "answer": solution_of(steps, answer.strip())}


def as_problem_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of GSM8K-Aug or SVAMP with GSM8K's keys `question` and `answer`; others as is.

    GSM8K-Aug {question, cot or steps, answer}: equations as a text or a list, and a bare answer.
    SVAMP {Body, Question, Equation, Answer, ID}: the question follows its body, and the equation is
    worked out step by step.
    """
    if "Body" in row and "Question" in row and "question" not in row:
        return _svamp_row(row)
    steps, answer = row.get("steps", row.get("cot")), row.get("answer")
    if isinstance(steps, list) and all(isinstance(step, str) for step in steps):
        steps = " ".join(steps)
    if isinstance(steps, str) and isinstance(answer, str) and MARKER not in answer:
        return {**row, "answer": solution_of(steps.strip(), answer.strip())}
    return row


def _svamp_row(row: dict[str, Any]) -> dict[str, Any]:
    texts = [row["Body"], row["Question"]]
    whole = all(isinstance(text, str) for text in texts)
    fields = {"question": " ".join(text.strip() for text in texts)} if whole else {}
    answer = _number(row.get("Answer"))
    if answer is not None:
        equation = row.get("Equation")
        steps = _steps(equation) if isinstance(equation, str) else []
        agrees = steps and steps[-1].endswith(f"={answer}>>")  # of one item it does not
        fields["answer"] = solution_of(" ".join(steps) if agrees else "", answer)
    return {**fields, **({"id": row["ID"]} if "ID" in row else {})}


def _number(value: Any) -> str | None:
    """Return a number as text, 54.0 as 54; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return _written(Fraction(number)) if number.is_finite() else None


class _Value(NamedTuple):
    number: Fraction
    text: str


def _steps(equation: str) -> list[str]:
    """Return `<<a+b=c>>` for each operation, the innermost first; none where it cannot be read.

    Every operation stands in brackets. A result that decimals cannot write ends in no steps at all:
    a rounded one would be a wrong equation.
    """
    parts = _PART.findall(equation)
    if "".join(parts) != "".join(equation.split()):
        return []
    stack: list[_Value | str] = []
    steps: list[str] = []
    for part in parts:
        if part != ")":
            text = _number(part)
            stack.append(part if text is None else _Value(Fraction(text), text))
            continue
        match stack[-4:]:
            case ["(", _Value() as a, str(sign), _Value() as b] if sign in _OPERATIONS:
                text = _result(a.number, sign, b.number)
                if text is None:
                    return []
                steps.append(f"<<{a.text}{sign}{b.text}={text}>>")
                stack[-4:] = [_Value(Fraction(text), text)]
            case _:
                return []
    return steps if len(stack) == 1 else []


def _result(a: Fraction, sign: str, b: Fraction) -> str | None:
    return None if sign == "/" and not b else _written(_OPERATIONS[sign](a, b))


def _written(number: Fraction) -> str | None:
    """Return a number in digits, or None where its decimals never end."""
    rest = number.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return None
    text = format(Decimal(number.numerator) / Decimal(number.denominator), "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text if Fraction(text) == number else None  # more digits than are kept
