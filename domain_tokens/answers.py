"""Which number a response gives: strict, flexible and expression-credited reading, and equality.

All numbers are exact decimals, since as strings "18.0" and "18" would differ. Both arms are read by
the same rules: a fact token and the expression that it stands for count alike in every function.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from domain_tokens.errors import UserError
from domain_tokens.injection import inject
from domain_tokens.vocabulary import FACTS

ANSWERS_VERSION = "2"

# 9,500 also as LaTeX (9{,}500 and 9\,500) and with the spaces that do not break a line.
_GROUP_SIGN = r"(?:,|\{,\}|\\,|[\u00a0\u2009\u202f])"
_UNSIGNED = (
    rf"(?:[0-9]{{1,3}}(?:{_GROUP_SIGN}[0-9]{{3}})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++"
)
_RESERVED = r"<MUL_[0-9_]*+>?|<\|padding_[0-9]*+(?:\|>)?"  # their digits are names, not numbers
_ITEM = re.compile(rf"(?P<reserved>{_RESERVED})|(?P<number>{_UNSIGNED})")
_PRODUCTS = {fact: Decimal(fact[1:-1].split("_")[-1]) for fact in FACTS}

_MARKER = re.compile(r"####[^\S\r\n]*+(?P<rest>[^\r\n]*+)")
_DRESS = r"(?:[*_`]++|\\boxed\{|\\\(|\\\[|\\\$)*+\s*+"  # bold, code, \boxed, math: read over
_CURRENCY = r"(?:\\?\$|[€£])?"
_SIGNED = rf"[-+−]?\s*+{_CURRENCY}\s*+{_DRESS}[-+−]?\s*+"
# `#### Step 1` is a heading and `#### 1. Count` one of a list; an expression is an answer, though
# not a number.
_ATTEMPT = re.compile(rf"{_DRESS}{_SIGNED}(?:\.?\d|[\u00bc-\u00be\u2150-\u215f]|<MUL_|\()")
_LISTED = r"[*_]*+(?:[.)]|:(?![0-9]))[*_]*+(?:\s++[^\s*_]|[^\W\d_])"
_HEADING = re.compile(rf"{_DRESS}(?:[0-9]{{1,3}}|{'|'.join(FACTS)}){_LISTED}")
_ANSWER = re.compile(
    rf"{_DRESS}(?P<sign>[-−+]?)\s*+{_CURRENCY}\s*+{_DRESS}(?P<inner_sign>[-−]?)"
    rf"(?P<number>{_UNSIGNED})(?P<rest>.*)"
)
_FRACTION = r"\.[0-9]"  # 10*.5
_OPERATOR = rf"""(?:[+/÷×·^=√⁄∕∶∗⋅±]|[-−–]\s*+\\?[$€£(]?(?:[0-9<]|{_FRACTION})
    |\*++\s*+\\?[$€£]?(?:[\w(<]|{_FRACTION})|x\s*+\\?[$€£]?(?:[0-9(<]|{_FRACTION}))"""
_LARGER_UNIT = r"(?:feet|foot|ft|yards?|hours?|hrs?|minutes?|dollars?|pounds?|lbs?)\.?"
# What makes the number a part of something: a unit, an expression, a range, 5 feet 6 inches. What
# comes after a word is not read, as in other GSM8K scorers.
_NO_ANSWER_AFTER = re.compile(
    rf"""\w|[.,:'’٫٬]?[0-9]|{_LISTED}|\s*+(?:{_OPERATOR}|{_RESERVED}
    |\\?[$€£]?[0-9]|[\u00bc-\u00be\u2150-\u215f]|:\s*+[0-9]
    |\\(?:[dt]?frac|times|cdot|div|pm|over|sqrt)(?![a-z])|\\[;:!\ ]\s*+[0-9]
    |(?:dozen|hundred|thousand|million|billion|trillion)s?\b|and\s++(?:a\b|[0-9])
    |(?:squared|cubed)\b|{_LARGER_UNIT}\s*+,?\s*+(?:and\s++)?[0-9]
    |(?:plus|minus|times|over|multiplied\ by|divided\ by|to|or|of|out\ of|point)\s++
     \\?[$€£]?[0-9])""",
    re.VERBOSE | re.IGNORECASE,
)
_FACT_EQUALS = re.compile(rf"({'|'.join(FACTS)})\s*=\s*[$€£]?([0-9]+)(?![0-9])")
_LONE_FACT = re.compile(rf"(?P<currency>[$€£]?\s*)(?P<fact>{'|'.join(FACTS)})(?P<rest>.*)")
_SENTENCE_END = re.compile(r"[\n\r]|[.!?](?=\s|\Z)")
_OPERATOR_AFTER = re.compile(r"\s*(?:[*×·/÷^+]|[-−–]\s*[$€£]?[0-9<(]|x\s*[$€£]?[0-9<(])", re.I)
_OPERATOR_BEFORE = re.compile(r"(?:[*×·/÷^+]|[0-9)>]\s*(?:[-−–]|x))\s*[$€£]?\s*\Z", re.I)


@dataclass(frozen=True, slots=True)
class _Item:
    """A number in digits, or a reserved token (`value` is None unless it is a fact)."""

    start: int
    end: int
    value: Decimal | None
    in_digits: bool


@dataclass(frozen=True, slots=True)
class Gold:
    """The right answer of one item: its number, and the text of that number as the data write it.

    The text keeps its thousands separators; currency, units and whatever follows are left out.
    """

    number: Decimal
    text: str


def gold(solution: str) -> Gold:
    """Return the answer of a worked solution, which strict reading and G1 share.

    Raises ValueError where no `#### n` can be read, or where several differ.
    """
    matches = [_match(answer) for answer in _answers(solution)]
    readable = [match for match in matches if match is not None]
    if not readable or len(readable) < len(matches):
        raise ValueError(_no_gold(solution, "a solution with `#### n`, n in digits"))
    golds = [Gold(_number(match), _as_written(match)) for match in readable]
    if len({each.number for each in golds}) > 1:
        several = " and ".join(f"#### {each.text}" for each in golds)
        raise ValueError(f"got {several}, wanted one answer; fix that row of the data")
    return golds[0]


def gold_text(solution: str) -> str:
    """Return the text of a solution's answer, thousands separators included; raise as gold does."""
    return gold(solution).text


def refuse_unreadable(numbers: Sequence[str], *, key: str) -> None:
    """Raise UserError where one of a config key's answers is no number."""
    for number in numbers:
        if _parse(number.strip()) is None:
            raise UserError(f"{key} holds {number!r}; wanted numbers in digits; fix that entry")


def extract_strict(text: str) -> Decimal | None:
    """Return the number after the first `####`, or None if none in digits stands there.

    Currency signs, thousands separators, bold type and a final full stop are read over. An
    expression (`6*9`, `1/2`) or a fact token is no number. A heading such as `#### Step 1` or
    `#### 1. Count` is passed over. The README's table shows more.
    """
    answer = _first_answer(text)
    return None if answer is None else _parse(answer)


def extract_flexible(text: str) -> Decimal | None:
    """Return the last number that the text holds in digits, or None.

    The digits inside a fact token's name are not read, and the dash of `10-12` is not a sign.
    """
    last = None
    for item in _items(text):
        last = item.value if item.in_digits else last
    return last


def extract_credited(text: str) -> Decimal | None:
    """Return what extract_strict gives, or the product if the answer is one multiplication fact.

    A lone `a*b`, `a*b=c` or fact token after `####` counts, all found by the injector's own rules,
    so that crediting the token does not do the arithmetic for one arm only.
    """
    answer = _first_answer(text)
    if answer is None:
        return None
    plain = _parse(answer)
    if plain is not None:
        return plain
    lone = _LONE_FACT.fullmatch(_join_result(inject(answer)))
    return _parse(f"{_PRODUCTS[lone['fact']]}{lone['rest']}") if lone else None


def is_correct(response: str, gold: str | int | Decimal) -> bool:
    """Tell whether the response's strict answer equals the gold number.

    `gold` is a solution with `####` or a number. Raises ValueError if it holds no number.
    """
    return extract_strict(response) == gold_number(gold)


def first_sentence(text: str) -> str:
    """Return the text up to its first line end, or through its first `.`, `!` or `?`.

    A mark that neither whitespace nor the text's end follows, as in 3.5, ends nothing.
    """
    match = _SENTENCE_END.search(text)
    if match is None:
        return text
    return text[: match.start()] if match[0] in "\n\r" else text[: match.end()]


def extract_probe(text: str) -> Decimal | None:
    """Return a probe's answer in digits: the number after the first sentence's last `=`, else its
    last number.

    None where a fact token or an expression stands in that place: reading the 9 of `1*9` would
    count an answer that was never given.
    """
    item = _probe_item(text)
    return item.value if item is not None and item.in_digits else None


def extract_probe_credited(text: str) -> Decimal | None:
    """Return what extract_probe gives, or the product if a lone fact stands in that place."""
    item = _probe_item(text)
    return item.value if item is not None else None


def _answers(text: str) -> Iterator[str]:
    """Yield the rest of the line after each `####` that an answer follows; headings are none.

    A fact counts there as the number that it stands for, so that both arms are read alike.
    """
    for marker in _MARKER.finditer(text):
        rest = marker["rest"].strip()
        if _ATTEMPT.match(rest) and not _HEADING.match(_join_result(inject(rest))):
            yield rest


def _first_answer(text: str) -> str | None:
    """Return the rest of the line after the first `####` that an answer follows."""
    return next(_answers(text), None)


def _match(answer: str) -> re.Match[str] | None:
    """Match a line that begins with a number; None if it begins with something else."""
    match = _ANSWER.fullmatch(answer)
    if match is None or (match["sign"] and match["inner_sign"]):
        return None
    return None if _NO_ANSWER_AFTER.match(match["rest"]) else match


def _parse(answer: str) -> Decimal | None:
    """Read a line that begins with a number; None if it begins with something else."""
    match = _match(answer)
    return None if match is None else _number(match)


def _number(match: re.Match[str]) -> Decimal:
    number = _decimal(match["number"])
    return number.copy_negate() if (match["sign"] + match["inner_sign"]) in ("-", "−") else number


def _as_written(match: re.Match[str]) -> str:
    return match["sign"] + match["inner_sign"] + match["number"]


def _decimal(digits: str) -> Decimal:
    return Decimal(re.sub(r"[^0-9.]", "", digits))


def _no_gold(got: object, expected: str) -> str:
    shown = repr(got) if len(repr(got)) <= 80 else f"…{repr(got)[-80:]}"
    return f"no gold number: got {shown}, wanted {expected}; fix that row of the data"


def gold_number(value: str | int | Decimal) -> Decimal:
    """Return the number of a gold: a solution with `####`, or a number; else raise ValueError."""
    if isinstance(value, str) and "####" in value:
        return gold(value).number
    number = None
    if isinstance(value, str):
        number = _parse(value.strip())
    elif isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        number = Decimal(value)
    if number is None or not number.is_finite():
        raise ValueError(_no_gold(value, "a solution with `#### n`, or a number"))
    return number


def _items(text: str) -> Iterator[_Item]:
    """Yield the numbers and reserved tokens of a text in order."""
    for match in _ITEM.finditer(text):
        if match["reserved"] is not None:
            yield _Item(match.start(), match.end(), _PRODUCTS.get(match[0]), in_digits=False)
            continue
        number = _decimal(match[0])
        number = number.copy_negate() if _is_negative(text, match.start()) else number
        yield _Item(match.start(), match.end(), number, in_digits=True)


def _is_negative(text: str, start: int) -> bool:
    """Tell whether a minus sign, not a dash or an operator, stands before a number."""
    before = text[max(0, start - 4) : start].rstrip("$€£")
    if before[-1:] not in ("-", "−"):
        return False
    before = before[:-1]
    if before[-1:].isalpha() or before[-1:] == "-":
        return False
    return not (before.rstrip()[-1:].isdigit() or before.rstrip()[-1:] in tuple(")]}%>"))


def _join_result(text: str) -> str:
    """Read `<MUL_6_9_54>=54` as the fact alone, since `6*9=54` is one fact too."""
    return _FACT_EQUALS.sub(
        lambda match: match[1] if _PRODUCTS[match[1]] == Decimal(match[2]) else match[0], text
    )


def _probe_item(text: str) -> _Item | None:
    """Return the item in a probe's answer position, None if it is part of an expression."""
    sentence = first_sentence(text)
    written = _item_after_equals(sentence)
    if written is None or not written.in_digits or _in_expression(sentence, written):
        sentence = inject(sentence)  # so that 6*9 and its token are one item
        items = list(_items(sentence))
        written = _item_after_equals(sentence) or (items[-1] if items else None)
    return None if written is None or _in_expression(sentence, written) else written


def _item_after_equals(sentence: str) -> _Item | None:
    after = sentence.rfind("=") + 1
    return next((item for item in _items(sentence) if after and item.start >= after), None)


def _in_expression(sentence: str, item: _Item) -> bool:
    before = sentence[max(0, item.start - 20) : item.start]
    after = _OPERATOR_AFTER.match(sentence, item.end)
    return bool(after or _OPERATOR_BEFORE.search(before))
