"""Tokens that are not the model's to choose: a calculator's results, and tokens that are forbidden.

What holds at a position depends on the tokens before it alone. So the decoder may ask for a draft's
positions before it knows whether the draft is right, and a response does not depend on its batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch

from domain_tokens.prompts import plain_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CalculatorKind = Literal["facts", "all"]

WINDOW = 64  # tokens before a position that are read; an equation is far shorter
MAX_FORCED = 24  # tokens of a result
MAX_BETWEEN = 5  # tokens between the `=` and the result: spaces, a currency sign
MAX_DIGITS, MAX_DECIMALS = 12, 6  # of operands; of results

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_EQUATION = re.compile(
    rf"(?P<before>(?:^|[^0-9.,])[^\S\n]*)[$€£]?(?P<a>(?<![0-9.,]){_DIGITS})[ ]?"
    rf"(?P<sign>[-+*/×·÷−–]|(?<![^\W\d_])x)[ ]?[$€£]?(?P<b>{_DIGITS})(?P<space>[ ]?)="
    r"(?P<after>[ ]{0,2}[$€£]?[ ]?<?)\Z"
)
# What makes the first operand a part of something longer: 2*6*9=, 10 - 6*9=, 2x6*9=, plus 6*9=.
_OPERATOR = r"[-+*/×·÷−–^√\\]"
_BOUND_TOUCHING = re.compile(rf"(?:{_OPERATOR}|[\w.,'%)\]}}]|[0-9]>)\Z")
_BOUND_SPACED = re.compile(
    rf"(?:{_OPERATOR}|[0-9%)\]}}]|[0-9)]\s*[xX]|\b(?:plus|minus|times|by|less|over|of|than|from))\Z"
)
_BULLET = re.compile(r"(?:^|\n)[^\S\n]*[-*+–]\Z")
_SIGNS = {"−": "-", "–": "-", "×": "*", "·": "*", "x": "*", "÷": "/"}


def result_of(text: str, kind: CalculatorKind) -> str | None:
    """Return what stands right after a text that ends in `a op b=`; None where nothing is forced.

    The `=` has to be the text's end, but for spaces, a currency sign or a `<`. `facts`: `a*b=` of
    two digits 1 to 9 (`*`, `×`, `·` or `x`), `all`: + - * / of two plain numbers as well, where the
    result is a decimal of at most six places. Neither may be part of a longer expression
    (`2*6*9=`, `10-6*9=`, `6.5*9=`). The result follows a space where one stands before the `=`.
    """
    match = _EQUATION.search(text)
    if match is None or not _stands_alone(text[: match.end("before")]):
        return None
    sign = _SIGNS.get(match["sign"], match["sign"])
    digits = all(re.fullmatch(r"[1-9]", match[name]) for name in "ab")
    if kind == "facts" and not (sign == "*" and digits):
        return None
    if max(len(match["a"]), len(match["b"])) > MAX_DIGITS:
        return None
    a, b = (Fraction(match[name].replace(",", "")) for name in "ab")
    result = _decimal(a, sign, b)
    spaced = match["space"] and not match["after"]
    return result and f"{' ' if spaced else ''}{result}"


def _stands_alone(before: str) -> bool:
    """Tell whether an expression that follows this text begins there."""
    edge = before.rstrip(" \t\u00a0")
    if edge == before:
        return not _BOUND_TOUCHING.search(edge)
    return bool(_BULLET.search(edge)) or not _BOUND_SPACED.search(edge)


def _decimal(a: Fraction, sign: str, b: Fraction) -> str | None:
    """Return the result as it is written, None where it is no decimal of a few places."""
    if sign == "/" and b == 0:
        return None
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else a}[sign]
    scaled = value * 10**MAX_DECIMALS
    if scaled.denominator != 1:
        return None
    whole, fraction = divmod(abs(scaled.numerator), 10**MAX_DECIMALS)
    decimals = f".{fraction:0{MAX_DECIMALS}}".rstrip("0").rstrip(".")
    return f"{'-' if value < 0 else ''}{whole}{decimals}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds at a position: `token` has to stand there; or, `ended`, no digit may.

    begins: nothing of the result is written yet, so that `$` or `<<` may come before it.
    """

    token: int | None = None
    begins: bool = False
    ended: bool = False


FREE = Rule()


class Calculator:
    """Writes right results where a response comes to `a op b=`, see `result_of`.

    The result stands token by token as the tokenizer encodes it by itself. The model may still
    begin an annotation or a currency (`6*9 = $<<6*9=`), and what follows a result is its choice
    again, but for a digit that would make it another number.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kind: CalculatorKind):
        self._tokenizer, self._kind = tokenizer, kind
        self._plain = plain_encoder(tokenizer)
        self._added = frozenset(tokenizer.get_added_vocab().values())
        names = {i: n for n, i in tokenizer.get_vocab().items() if i not in self._added}
        self._equals = {i for i, name in names.items() if "=" in name or name == "<0x3D>"}
        digits = re.compile(r"[.,]?[0-9]|<0x3[0-9]>")
        self.digit_ids = sorted(i for i, name in names.items() if digits.match(name))
        # Tokens that hold a result with its `=`: no calculator could come between.
        self.joined_ids = sorted(i for i in self._equals if re.search(r"=\W*[0-9]", names[i]))
        # A window of the same tokens says the same: each `=` is read once, not at each position.
        self._result = lru_cache(maxsize=100_000)(self._read)

    def _read(self, window: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tokens of the result that belongs after these; () where none does."""
        result = result_of(self._text(window), self._kind)
        return tuple(self._plain.encode(result, add_special_tokens=False).ids) if result else ()

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def rule(self, written: Sequence[int]) -> Rule:
        """Return what holds for the token after these, the tokens of a response so far."""
        end = len(written)
        oldest = max(0, end - MAX_FORCED - MAX_BETWEEN)
        after = next((i for i in range(end, oldest, -1) if written[i - 1] in self._equals), None)
        if after is None:
            return FREE
        for begin in range(min(after + MAX_BETWEEN, end), after - 1, -1):
            result = self._result(tuple(written[max(0, begin - WINDOW) : begin]))
            tail = tuple(written[begin:])
            if not result or tail[: len(result)] != result[: len(tail)]:
                continue
            if len(tail) < len(result):
                return Rule(token=result[len(tail)], begins=not tail)
            rest = self._text(tail[len(result) :])
            return Rule(ended=rest in ("", ".", ","))
        return FREE

    def may_stand(self, written: Sequence[int], token: int) -> bool:
        """Tell whether a token may stand where a result begins: `$`, a space, the start of `<<`."""
        if token in self._added:
            return False
        before = self._text(written[-WINDOW:])
        text = self._text([*written[-WINDOW:], token])
        if not text.startswith(before):
            return False
        opens = r"<" if before.endswith("<") else r" ?[$€£]?<<"
        return bool(re.match(opens, text[len(before) :])) or bool(result_of(text, self._kind))


class Constraints:
    """What a decoder's tokens have to keep to."""

    def __init__(self, *, calculator: Calculator | None = None, forbidden: Sequence[int] = ()):
        """forbidden: ids that are never written; their logits count as -inf."""
        self._calculator = calculator
        joined = calculator.joined_ids if calculator else []
        self._forbidden = torch.tensor([*forbidden, *joined], dtype=torch.long)
        digits = calculator.digit_ids if calculator else []
        self._digits = torch.tensor(digits, dtype=torch.long)

    def choose(
        self,
        logits: torch.Tensor,
        written: Sequence[Sequence[int]],
        pick: Callable[[torch.Tensor], torch.Tensor],
    ) -> list[int]:
        """Return a token for each of N positions.

        logits: [N, V], changed in place; written: the response before each position; pick: logits
        [N, V] -> ids [N].
        """
        rules = [self._rule(before) for before in written]
        logits.index_fill_(1, self._forbidden.to(logits.device), -torch.inf)
        ended = [number for number, rule in enumerate(rules) if rule.ended]
        if ended:
            rows = torch.tensor(ended, device=logits.device)
            logits[rows[:, None], self._digits.to(logits.device)] = -torch.inf
        triples = zip(rules, written, pick(logits).tolist(), strict=True)
        return [self._replaced(*triple) for triple in triples]

    def broken_at(self, token_ids: Sequence[int]) -> int | None:
        """Return the first position of a response that does not keep to this, or None."""
        digits = frozenset(self._digits.tolist())
        forbidden = frozenset(self._forbidden.tolist())
        for at, token in enumerate(token_ids):
            rule, before = self._rule(token_ids[:at]), token_ids[:at]
            if token in forbidden or (rule.ended and token in digits):
                return at
            if self._replaced(rule, before, token) != token:
                return at
        return None

    def _rule(self, written: Sequence[int]) -> Rule:
        return FREE if self._calculator is None else self._calculator.rule(written)

    def _replaced(self, rule: Rule, written: Sequence[int], token: int) -> int:
        """Return what stands where the model would write this token."""
        if self._calculator is None or rule.token is None:
            return token
        own = rule.begins and self._calculator.may_stand(written, token)
        return token if own else rule.token
