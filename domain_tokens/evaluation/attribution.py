"""What went wrong first in a wrong answer: the kind of its first wrong equation.

A wrong answer without a wrong equation is a set-up error (`none`): what was calculated is right,
and it was not what the question asks for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from domain_tokens.answers import extract_strict
from domain_tokens.evaluation.equations import (
    KIND_OF_OPERATION,
    Number,
    Operation,
    wrong_equations,
)
from domain_tokens.vocabulary import FACTS

ATTRIBUTION_VERSION = "1"  # of these rules and of `equations`

KINDS = ("table_fact", "product", "sum", "difference", "quotient", "none")

_FACT = re.compile("|".join(FACTS))
_ANSWER_LINE = re.compile(r"####[^\n]*")
_MAX_SHOWN = 120  # characters of an equation


def first_wrong(response: str, *, cut: bool = False) -> dict[str, Any]:
    """Return the kind of the first wrong equation before a response's answer, and its text.

    kind: `table_fact` (a*b of whole numbers 1 to 9), `product` (any other), `sum`, `difference`,
    `quotient`: by the operation that is done last, so that `2*3+4=11` is a sum; `none` where no
    equation is wrong (equation None). Results may be rounded to the digits they show. What stands
    after the first answer that can be read (`#### n`) cannot have caused it and is not read.
    cut: the response did not end by itself, so that a number at its very end may go on.
    """
    text = written_out(_before_answer(response))
    wrong = [x for x in wrong_equations(text) if not (cut and x.end >= len(text.rstrip()))]
    if not wrong:
        return {"kind": "none", "equation": None}
    first = wrong[0]
    return {"kind": kind_of(first.operation), "equation": first.text[:_MAX_SHOWN]}


def written_out(text: str) -> str:
    """Return the text with every fact token as the product it reads, in brackets.

    Without its result, as in `3*<MUL_2_4_8>=24`: the token says that result itself.
    """
    return _FACT.sub(lambda match: "({}*{})".format(*match[0][5:-1].split("_")[:2]), text)


def kind_of(operation: Operation) -> str:
    """Return the kind of an equation by the operation that is done last."""
    factors = (operation.left, operation.right)
    digits = all(
        isinstance(f, Number) and not f.hundredths and f.value in range(1, 10) for f in factors
    )
    return "table_fact" if operation.sign == "*" and digits else KIND_OF_OPERATION[operation.sign]


def attribution(items: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many wrong answers are wrong first in each kind of equation."""
    counts = Counter(item["first_wrong"]["kind"] for item in items if item["first_wrong"])
    return {kind: counts[kind] for kind in KINDS}


def _before_answer(response: str) -> str:
    """Return what stands before the first answer in digits; all of a response without one."""
    if extract_strict(response) is None:
        return response
    answers = _ANSWER_LINE.finditer(response)
    at = next((m.start() for m in answers if extract_strict(m[0]) is not None), len(response))
    return response[:at]
