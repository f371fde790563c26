"""Which number a response gives: strict, flexible and expression-credited reading, and equality.

All numbers are exact decimals, since as strings "18.0" and "18" would differ. Both arms are read by
the same rules: a fact token and the expression that it stands for count alike in every function.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from domain_tokens.injection import inject
from domain_tokens.vocabulary import FACTS

ANSWERS_VERSION = "1"

_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++"
_RESERVED = r"<MUL_[0-9_]*+>?|<\|padding_[0-9]*+(?:\|>)?"  # their digits are names, not numbers
_ITEM = re.compile(rf"(?P<reserved>{_RESERVED})|(?P<number>{_UNSIGNED})")
_PRODUCTS = {fact: Decimal(fact[1:-1].split("_")[-1]) for fact in FACTS}

_MARKER = re.compile(r"####[^\S\r\n]*+(?P<rest>[^\r\n]*+)")
# A heading such as `#### Step 1` is no answer; an expression is one, though not a number.
_ATTEMPT = re.compile(r"[-+−]?\s*[$€£]?\s*[-+−]?\s*(?:\.?[0-9]|<MUL_|\()")
_ANSWER = re.compile(
    rf"(?P<sign>[-−+]?)\s*[$€£]?\s*(?P<inner_sign>[-−]?)(?P<number>{_UNSIGNED})(?P<rest>.*)"
)
_NO_ANSWER_AFTER = re.compile(
    rf"""\w|[.,:]?[0-9]|\s*(?:[+/÷×·^=√]|[-−–]\s*[$€£(]?[0-9<]|\*+\s*[$€£]?[\w(<]|{_RESERVED}
    |[$€£]?[0-9]|[\u00bc-\u00be\u2150-\u215f]|x\s*[$€£]?[0-9(<]
    |(?:dozen|hundred|thousand|million|billion|trillion)s?\b|and\s+(?:a\b|[0-9]))""",
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


def gold_text(solution: str) -> str:
    """Return a GSM8K solution's answer as the data write it, thousands separators included."""
    return solution.rpartition("####")[2].strip()


def extract_strict(text: str) -> Decimal | None:
    """Return the number after the first `####`, or None if none in digits stands there.

    Currency signs, thousands separators and a final full stop are read over. An expression
    (`6*9`, `1/2`) or a fact token is no number. A heading such as `#### Step 1` is passed over.
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
    return extract_strict(response) == _gold_number(gold)


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


def _first_answer(text: str) -> str | None:
    """Return the rest of the line after the first `####` that an answer follows."""
    for marker in _MARKER.finditer(text):
        if _ATTEMPT.match(marker["rest"]):
            return marker["rest"].strip()
    return None


def _parse(answer: str) -> Decimal | None:
    """Read a line that begins with a number; None if it begins with something else."""
    match = _ANSWER.fullmatch(answer)
    if match is None or (match["sign"] and match["inner_sign"]):
        return None
    if _NO_ANSWER_AFTER.match(match["rest"]):
        return None
    number = Decimal(match["number"].replace(",", ""))
    return -number if (match["sign"] + match["inner_sign"]) in ("-", "−") else number


def _gold_number(gold: str | int | Decimal) -> Decimal:
    number = None
    if isinstance(gold, str):
        number = extract_strict(gold) if "####" in gold else _parse(gold.strip())
    elif isinstance(gold, (int, Decimal)) and not isinstance(gold, bool):
        number = Decimal(gold)
    if number is None or not number.is_finite():
        raise ValueError(
            f"no gold number: got {gold!r}, wanted a solution with `#### n` or a number; "
            "mend that row of the data"
        )
    return number


def _items(text: str) -> Iterator[_Item]:
    """Yield the numbers and reserved tokens of a text in order."""
    for match in _ITEM.finditer(text):
        if match["reserved"] is not None:
            yield _Item(match.start(), match.end(), _PRODUCTS.get(match[0]), in_digits=False)
            continue
        number = Decimal(match[0].replace(",", ""))
        number = -number if _is_negative(text, match.start()) else number
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
