"""What an arithmetic expression in a text is worth, read with the usual precedence.

Written from school arithmetic alone and independent of `domain_tokens`: a text is cut into tokens,
the longest expression around a place is parsed, each side of its equations evaluated exactly.
Units are unknown factors, `5 feet 6 inches` is a sum that binds tighter than a product, words that
are no arithmetic end an expression.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

PUT = "\ue000{}\ue001"  # marks a number that was put in for an expression
_LEXEMES = [
    ("put", r"\ue000[0-9]+\ue001"),
    ("number", r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"),
    ("vulgar", "[¼½¾]"),
    ("word", r"[^\W\d_¼½¾²³]+"),
    ("power", r"\^|\*\*"),
    ("raised", "[²³]"),
    ("times", "[*×·∗⋅]"),
    ("divided", "[/÷∕∶:⁄]"),
    ("sum", "[-+−–]"),
    ("percent", "%"),
    ("factorial", "!(?!=)"),
    ("open", r"\("),
    ("close", r"\)"),
    ("equals", "="),
    ("skip", "[_$€£ \t\u00a0]"),
    ("end", r"[\s\S]"),
]
_LEXER = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _LEXEMES))
_OPERATOR_WORDS = {"plus": "sum", "minus": "sum", "times": "times", "over": "divided", "x": "times"}
_OPERATOR_WORDS |= {"mod": "divided", "squared": "raised", "cubed": "raised", "percent": "percent"}
_MANY = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6}
_UNITS = {"hours": 60, "minutes": 1, "feet": 12, "inches": 1, "dollars": 100, "cents": 1}
_UNITS |= {"ft": 12, "cm": 7, "apples": 11, "kg": 13}


class UnreadableError(Exception):
    """The text is no expression that this reader knows."""


@dataclass(frozen=True)
class Token:
    """kind as in _LEXEMES; start, end: characters; gap: a space stands before it."""

    kind: str
    text: str
    start: int
    end: int
    gap: bool


def tokens(text: str) -> list[Token]:
    """Cut a text into tokens; what is only looks (spaces, currency, emphasis) is left out."""
    tokens_read: list[Token] = []
    gap = False
    for match in _LEXER.finditer(text):
        kind = str(match.lastgroup)
        if kind == "skip":
            gap = gap or not match[0].strip()
            continue
        if kind == "word":
            word = match[0].lower()
            kind = _OPERATOR_WORDS.get(word, "many" if word in _MANY else kind)
            kind = "unit" if word in _UNITS else kind
            kind = "and" if word == "and" else kind
            kind = "by" if word in ("divided", "by") else kind
        tokens_read.append(Token(kind, match[0], match.start(), match.end(), gap))
        gap = False
    return _without_looks(tokens_read)


_ENDS_OPERAND = {"put", "number", "vulgar", "close", "raised", "unit", "many", "percent"}
_STARTS_OPERAND = {"put", "number", "vulgar", "open", "sum"}


def _without_looks(all_tokens: list[Token]) -> list[Token]:
    """Leave out stars of emphasis and list bullets; a colon is a ratio only between operands."""
    kept: list[Token] = []
    for index, token in enumerate(all_tokens):
        before = kept[-1].kind if kept else "end"
        after = all_tokens[index + 1].kind if index + 1 < len(all_tokens) else "end"
        between = before in _ENDS_OPERAND and after in _STARTS_OPERAND
        if token.text in ("*", "**") and not between:
            continue
        if token.text == ":" and not between:
            token = Token("end", ":", token.start, token.end, token.gap)
        if token.text in "+-−–" and before == "end" and index + 1 < len(all_tokens):
            gap_after = all_tokens[index + 1].gap
            if gap_after and (not kept or kept[-1].text == "\n"):
                continue  # a bullet
        kept.append(token)
    return kept


def sides(text: str, start: int, end: int) -> list[Fraction] | None:
    """Return the values of the equation's sides that characters start to end have a part in.

    None where no expression that this reader knows stands there. Raises UnreadableError where the
    place does not begin and end with a token.
    """
    all_tokens = tokens(text)
    starts = {token.start: i for i, token in enumerate(all_tokens)}
    ends = {token.end: i for i, token in enumerate(all_tokens)}
    if start not in starts or end not in ends:
        raise UnreadableError("the place cuts a number")
    first, last = _around(all_tokens, starts[start], ends[end])
    values, side = [], []
    for token in [*all_tokens[first : last + 1], None]:
        if token is not None and token.kind != "equals":
            side.append(token)
            continue
        if side and side[0].start < end and side[-1].end > start:
            value = _value(side)
            if value is None:
                return None
            values.append(value)
        side = []
    return values


def _around(all_tokens: list[Token], first: int, last: int) -> tuple[int, int]:
    """Widen to the longest run of arithmetic within the innermost brackets around it."""
    depth = 0
    while first and all_tokens[first - 1].kind not in ("end", "word"):
        depth += {"close": 1, "open": -1}.get(all_tokens[first - 1].kind, 0)
        if depth < 0:
            break
        first -= 1
    depth = 0
    while last + 1 < len(all_tokens) and all_tokens[last + 1].kind not in ("end", "word"):
        depth += {"open": 1, "close": -1}.get(all_tokens[last + 1].kind, 0)
        if depth < 0:
            break
        last += 1
    while last > first and all_tokens[last].kind in ("and", "by"):
        last -= 1
    return first, last


def _value(side: list[Token]) -> Fraction | None:
    """Evaluate one side; its last unit is left out, since 3 * 4 = 12 apples is said and right."""
    side = list(side)
    while len(side) > 1 and side[-1].kind in ("unit", "raised"):
        unit = max(i for i, token in enumerate(side) if token.kind != "raised")
        compound = unit > 1 and side[unit - 2].kind in ("unit", "many", "and")
        if side[unit].kind != "unit" or unit < len(side) - 2 or compound:
            break
        del side[unit:]
    parser = _Parser(side)
    try:
        value = parser.sum()
        return value if parser.at == len(side) else None
    except (UnreadableError, ZeroDivisionError):
        return None


class _Parser:
    def __init__(self, side: list[Token]):
        self.side, self.at = side, 0

    def kind(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.side[at].kind if at < len(self.side) else "nothing"

    def take(self) -> Token:
        if self.at >= len(self.side):
            raise UnreadableError("ends too early")
        self.at += 1
        return self.side[self.at - 1]

    def sum(self) -> Fraction:
        value = self.product()
        while self.kind() == "sum":
            plus = self.take().text.lower() in ("+", "plus")
            other = self.product()
            value = value + other if plus else value - other
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while True:
            if self.kind() == "times":
                self.take()
                value *= self.signed()
            elif self.kind() == "divided":
                modulo = self.take().text.lower() == "mod"
                other = self.signed()
                value = value % other if modulo else value / other
            elif self.kind() == "by" and self.kind(1) == "by":
                self.at += 2
                value /= self.signed()
            elif self.kind() == "open":
                value *= self.signed()
            else:
                return value

    def signed(self) -> Fraction:
        if self.kind() == "sum":
            word = self.take().text
            if word.isalpha():
                raise UnreadableError("an operator in words begins")
            value = self.signed()
            return value if word == "+" else -value
        return self.power()

    def power(self) -> Fraction:
        value = self.raised()
        if self.kind() != "power":
            return value
        self.take()
        return _power(value, self.signed())

    def raised(self) -> Fraction:
        value = self.quantity()
        while self.kind() in ("raised", "percent", "factorial"):
            token = self.take()
            if token.kind == "percent":
                value /= 100
            elif token.kind == "factorial":
                value = _factorial(value)
            else:
                value = _power(value, Fraction(2 if token.text in ("²", "squared") else 3))
        return value

    def quantity(self) -> Fraction:
        value, factor, token = self.numeral(), Fraction(1), None
        while self.kind() in ("many", "unit"):
            token = self.take()
            worth = Fraction((_MANY | _UNITS)[token.text.lower()])
            if self.kind() == "raised":
                worth = _power(worth, Fraction(2 if self.take().text in ("²", "squared") else 3))
            if self.kind() == "power":  # ft^2 is a unit
                self.take()
                worth = _power(worth, self.numeral())
            factor *= worth
        value *= factor
        more = 1 if self.kind() == "and" else 0
        if token and self.kind(more) in ("number", "put") and self.goes_on(token, more):
            self.at += more
            return value + self.quantity()
        if token and more and self.kind(1) == "vulgar":
            self.at += 1
            return value + self.numeral()
        return value

    def goes_on(self, unit: Token, more: int) -> bool:
        """Tell whether a number after a unit belongs to it: 5 feet 6 inches, 2 thousand 500."""
        if not self.side[self.at + more].gap:
            return False
        return unit.kind == "many" or self.kind(more + 1) == "unit"

    def numeral(self) -> Fraction:
        token = self.take()
        if token.kind == "open":
            value = self.sum()
            if self.take().kind != "close":
                raise UnreadableError("a bracket is left open")
            return value
        if token.kind == "vulgar":
            return {"¼": Fraction(1, 4), "½": Fraction(1, 2), "¾": Fraction(3, 4)}[token.text]
        if token.kind not in ("number", "put"):
            raise UnreadableError(token.text)
        return self.mixed(_worth(token))

    def mixed(self, value: Fraction) -> Fraction:
        """Read on where digits or a fraction follow a number: 1 000, 8 1/2, 8 ½, 8 and 1/2."""
        if self.kind() == "vulgar":
            return value + self.numeral()
        more = 1 if self.kind() == "and" else 0
        if self.kind(more) in ("number", "put"):
            if self.side[self.at + more].text.isdigit() and self.kind(more + 1) == "divided":
                self.at += more
                top, bottom = self.take(), self.side[self.at + 1]
                if bottom.kind in ("number", "put"):
                    self.at += 2
                    return value + _worth(top) / _worth(bottom)
            if not more and re.fullmatch("[0-9]{3}", self.side[self.at].text):
                return value * 1000 + Fraction(self.take().text)
            raise UnreadableError("two numbers side by side")
        return value


def _worth(number: Token) -> Fraction:
    return Fraction(number.text.strip("\ue000\ue001").replace(",", ""))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > 12 or abs(base) > 10**9:
        raise UnreadableError("a power that is not worth having")
    return base ** int(exponent)


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or not 0 <= value <= 90:
        raise UnreadableError("no factorial")
    product = Fraction(1)
    for factor in range(2, int(value) + 1):
        product *= factor
    return product


def keeps_value(text: str, start: int, end: int, product: int) -> bool | None:
    """Tell whether a product may stand for characters start to end; None where it is no arithmetic.

    The place is `a*b` or `a*b=c`. It may if the expression keeps its value, and if an equation's
    right side that goes with it had this value, too.
    """
    try:
        before = sides(text, start, end)
    except UnreadableError:
        return False
    if before is None or not before:
        return None
    put = PUT.format(product)
    after = sides(f"{text[:start]}{put}{text[end:]}", start, start + len(put))
    return after is not None and len(after) == 1 and all(value == after[0] for value in before)
