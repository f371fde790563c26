"""Equations that stand in a text: where each of its sides ends, what they are worth, which differ.

A chain `a op b = c = …` is read side by side. Units, currency, digit groups, percent signs and
words between a number and the next sign are read over; a side that cannot be read (a variable, a
power, words in a number's place) is compared with nothing. Doubt is in the equation's favour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

_ANNOTATION = re.compile(r"<<((?:(?!<<|>>|\n).)*)>>")
_LETTERS = r"[^\W\d_]+(?:['’][^\W\d_]+)*"
_WORD = rf"{_LETTERS}(?:[-/]{_LETTERS})*"
_FRACTIONS = {"¼": (1, 4), "½": (1, 2), "¾": (3, 4), "⅓": (1, 3), "⅔": (2, 3), "⅛": (1, 8)}
_TOKEN = re.compile(
    rf"""(?P<number>(?:\\?[$€£]\ *)?(?:
        (?P<whole>[0-9]+)\ (?:and\ )?(?P<over>[1-9])/(?P<under>[1-9])(?![0-9/.])   # 1 1/2
        |(?<=/\ )(?P<top>[0-9]+)/(?P<bottom>[1-9][0-9]*)   # 2 / 1/6
        |(?P<digits>(?:[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)
         (?P<glyph>[{"".join(_FRACTIONS)}])?
        |(?P<lone_glyph>[{"".join(_FRACTIONS)}]))
        (?P<percent>\ ?%)?)
    |(?P<equals>(?:→[^\S\n]*|\n[^\S\n]*)?=(?![=>]))
    |(?P<power>\*\*|\^)
    |(?P<operator>[+*×·⋅∗÷∕−–-]|/(?=\s*[$€£(\[]*\s*\.?[0-9])
      |(?<![^\W\d_])(?:[xX](?=\s*[$€£(]*\.?[0-9])
        |(?:times|plus|minus|multiplied\ by|divided\ by)(?=\s+[$€£(]*\.?[0-9])
        |(?<=[0-9%)]\ )of(?=\s+[$€£(]*\.?[0-9])))
    |(?P<open>[(\[])|(?P<close>[)\]])
    |(?P<word>(?:/[^\S\n]?)?{_WORD})
    |(?P<space>[^\S\n]+)
    |(?P<stop>.)""",
    re.VERBOSE | re.DOTALL,
)
# What a number is only a part of: 17 000, 16,0000, 5:30, x2.
_BEGAN_BEFORE = re.compile(r"(?:[0-9][,. :]|[^\W\d_])\Z")
_GROUP_BEFORE = re.compile(r"[0-9], \Z")  # 14, 400
_GOES_ON = re.compile(r",? [0-9]{3}(?![0-9])|:[0-9]|[^\W\d_](?![^\W\d_])")
_CENTS = re.compile(r" ?(?:¢|cents?\b)")
_SIGNS = {"−": "-", "–": "-", "minus": "-", "plus": "+", "÷": "/", "∕": "/", "divided by": "/"}
MAX_UNIT_WORDS = 3  # between a number and the next sign: `16 eggs per day * 3`
MAX_SIDE, MAX_DIGITS = 100, 40  # tokens of a side, characters of a number; longer is not read

KIND_OF_OPERATION = {"+": "sum", "-": "difference", "*": "product", "/": "quotient"}


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it is written: its value, the decimals shown, and what may make it a hundredth.

    hundredths: "", "%" or "cents".
    """

    value: Fraction
    decimals: int = 0
    hundredths: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One of + - * / and what it joins."""

    sign: str
    left: Node
    right: Node


Node = Number | Operation


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a chain: where it stands, and what it says or None where it cannot be read."""

    start: int
    end: int
    node: Node | None
    has_unit: bool = False


@dataclass(frozen=True, slots=True)
class WrongEquation:
    """Two sides that differ: what was calculated, its text, and where that text ends."""

    operation: Operation
    text: str
    end: int


def wrong_equations(text: str) -> list[WrongEquation]:
    """Return the wrong equations of a text in the order in which their results stand.

    A calculator's annotation `<<6*9=54>>` is read by itself, and the text around it without it. Of
    a chain only the first wrong equation counts.
    """
    equations: list[WrongEquation] = []
    for match in _ANNOTATION.finditer(text):
        for chain in _chains(match[1]):
            equations += _first_wrong(match[1], chain, start=match.start(1))
    outside = _ANNOTATION.sub(lambda match: " " * len(match[0]), text)
    for chain in _chains(outside):
        equations += _first_wrong(outside, chain)
    return sorted(equations, key=lambda wrong: wrong.end)


def _first_wrong(text: str, chain: list[Side], *, start: int | None = None) -> list[WrongEquation]:
    """Return the first equation of a chain that is wrong; start: of the annotation that text is.

    What a number is compared with is the calculation that the chain began or went on with: in
    `4*4=16=12` the second result is one of 4*4. A bare `1 hour = 60/5` is none but in an
    annotation.
    """
    calculated: Side | None = None
    for left, right in pairwise(chain):
        if isinstance(left.node, Operation):
            calculated = left
        elif left.node is None or left.has_unit:  # 2*1 = 2 hours = 120 minutes
            calculated = None
        first = calculated if calculated and isinstance(right.node, Number) else left
        if first.node is None or right.node is None or (calculated is None and start is None):
            continue
        sides = calculated.node if calculated else None, first.node, right.node
        operation = next((node for node in sides if isinstance(node, Operation)), None)
        if operation is not None and not _agree(first.node, right.node):
            shown = " ".join(text[first.start : right.end].split())
            return [WrongEquation(operation, shown, right.end + (start or 0))]
    return []


def _agree(left: Node, right: Node) -> bool:
    """Tell whether two sides are equal in any reading, to the digits that the right one shows.

    In a running chain, `2*3=6+4=10`, the right side begins with the result of the left one.
    """
    if not (_readings(left) and _readings(right)):
        return True  # a division by zero
    for a in _readings(left):
        if any(_near(a, b) for b in _readings(right)):
            return True
        begins = right
        while isinstance(begins, Operation):
            begins = begins.left
            if _is_fraction(begins) and any(_near(a, b) for b in _readings(begins)):
                return True
        if any(_rounds_to(a, b, begins) for b in _readings(begins)):
            return True
    return False


def _is_fraction(node: Node) -> bool:
    parts = (node.left, node.right) if isinstance(node, Operation) and node.sign == "/" else ()
    return bool(parts) and all(isinstance(part, Number) for part in parts)


def _rounds_to(value: Fraction, shown: Fraction, number: Number) -> bool:
    """Tell whether a value, rounded to the decimals of a number or cut there, is that number.

    A quotient is cut only to decimals, not to a whole number.
    """
    unit = Fraction(1, 10**number.decimals)
    if number.hundredths and shown != number.value:
        unit /= 100
    off = abs(value - shown)
    return shown != 0 and (off <= unit / 2 or (off < unit and number.decimals >= 2))


def _near(a: Fraction, b: Fraction) -> bool:
    """Tell whether two calculated values are equal but for numbers rounded before."""
    whole = a.denominator == b.denominator == 1
    return a == b or (not whole and abs(a - b) <= abs(a) / 200)


def _readings(node: Node) -> list[Fraction]:
    """Return what a side may be worth: 20% is 20, a fifth, and in `50 - 20%` a fifth of 50."""
    values = []
    for reading in ("hundredths", "whole", "relative"):
        try:
            values.append(_value(node, reading))
        except ZeroDivisionError:
            continue
        if not _has_hundredths(node):
            break
    return values


def _has_hundredths(node: Node) -> bool:
    if isinstance(node, Number):
        return bool(node.hundredths)
    return _has_hundredths(node.left) or _has_hundredths(node.right)


def _value(node: Node, reading: str) -> Fraction:
    if isinstance(node, Number):
        return node.value / 100 if node.hundredths and reading != "whole" else node.value
    a, b = _value(node.left, reading), _value(node.right, reading)
    if reading == "relative" and node.sign in "+-" and _has_hundredths(node.right):
        b *= a
    match node.sign:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
        case _:
            return a / b


def _chains(text: str) -> Iterator[list[Side]]:
    """Yield the chains of a text: two or more sides with `=` between them."""
    chain: list[Side] = []
    part = _Part()
    for match in _TOKEN.finditer(text):
        kind = "number" if match["number"] else match.lastgroup or ""
        if kind == "space":
            continue
        if kind == "equals":
            if part.depth and chain:  # 2*35*10 = (2*35 = 70)*10: another chain within this one
                yield chain
                chain = []
            chain.append(part.side(match.start()))
            part = _Part(begins="=")
            continue
        closes = kind == "close" and not part.depth  # the bracket opened before this side
        if kind == "stop" or closes or (kind in ("number", "open") and part.is_over):
            yield [*chain, part.side(match.start())]
            chain = []
            part = _Part(begins=match[0] if kind == "stop" else "word" if closes else "")
        if kind != "stop" and not closes:
            part.add(kind, match)
    yield [*chain, part.side(len(text))]


class _Part:
    """The tokens of a side while it is read."""

    def __init__(self, begins: str = "\n"):
        """begins: the character that stands before it."""
        self._tokens: list[tuple[str, Number | str]] = []
        self._begins, self._start, self._end = begins, -1, -1
        self._unreadable, self._words = False, 0

    @property
    def is_over(self) -> bool:
        """Tell whether a number or a bracket cannot go on what was read: `5 apples 3`."""
        return bool(self._tokens) and self._tokens[-1][0] in ("number", "close")

    @property
    def depth(self) -> int:
        """How many brackets are open."""
        kinds = [kind for kind, _ in self._tokens]
        return kinds.count("open") - kinds.count("close")

    def add(self, kind: str, match: re.Match[str]) -> None:
        """Take the next token."""
        last = self._tokens[-1][0] if self._tokens else ""
        if kind == "word":
            self._words += 1
            variable = len(match[0].lstrip("/ ")) == 1 and match[0] not in "aA"
            self._unreadable |= last in ("operator", "open") or (variable and bool(last))
            self._begins = self._begins if last or self._begins == "=" else "word"
            return
        too_far = self._words > (MAX_UNIT_WORDS if last else 0 if self._begins == "=" else 999)
        self._unreadable |= kind == "power" or too_far or self._is_part_of_number(kind, match)
        self._words = 0
        if kind == "operator" and not last:
            if self._is_bullet(match):
                return
            self._unreadable |= self._begins == "word"
        if not self._tokens:
            self._start = match.start()
        self._end = match.end()
        self._tokens.append((kind, _number(match) if kind == "number" else _sign(match[0])))

    def _is_part_of_number(self, kind: str, match: re.Match[str]) -> bool:
        """Tell whether what is read is less than a number: of 17 000, 5:30, 3x, 5(2+3)."""
        before = match.string[max(0, match.start() - 3) : match.start()]
        if kind == "open":
            return not self._tokens and before.rstrip()[-1:].isdigit()
        if kind != "number":
            return False
        group = len(match[0]) == 3 and _GROUP_BEFORE.search(before)
        began = not self._tokens and (group or _BEGAN_BEFORE.search(before))
        too_long = len(match[0]) > MAX_DIGITS
        return too_long or bool(began or _GOES_ON.match(match.string, match.end()))

    def _is_bullet(self, match: re.Match[str]) -> bool:
        after = match.string[match.end() : match.end() + 1]
        return self._begins == "\n" and match[0] in "-*+–" and after.isspace()

    def side(self, end: int) -> Side:
        """Return the side; end: where it ends if it is empty."""
        if self._start < 0 or self._unreadable:
            return Side(max(self._start, 0), end, None)
        tokens = _without_unclosed(self._tokens)
        node = _Parser(tokens).parse() if len(tokens) <= MAX_SIDE else None
        return Side(self._start, self._end, node, has_unit=self._words > 0)


def _number(match: re.Match[str]) -> Number:
    if len(match[0]) > MAX_DIGITS:
        return Number(Fraction(0))  # of a side that is not read
    cents = _CENTS.match(match.string, match.end())
    hundredths = "%" if match["percent"] else "cents" if cents else ""
    if match["whole"]:
        fraction = Fraction(int(match["over"]), int(match["under"]))
        return Number(int(match["whole"]) + fraction, 2, hundredths)
    if match["top"]:
        return Number(Fraction(int(match["top"]), int(match["bottom"])), 2, hundredths)
    digits = (match["digits"] or "0").replace(",", "")
    glyph = match["glyph"] or match["lone_glyph"]
    value = Fraction(digits) + (Fraction(*_FRACTIONS[glyph]) if glyph else 0)
    return Number(value, 2 if glyph else len(digits.partition(".")[2]), hundredths)


def _sign(text: str) -> str:
    if text in "([":
        return "("
    if text in ")]":
        return ")"
    return _SIGNS.get(text, text if text in "+-/" else "*")


def _without_unclosed(tokens: list[tuple[str, Number | str]]) -> list[tuple[str, Number | str]]:
    """Leave out brackets that open at the very start and close in a later side: `(2*3=6)`."""
    unclosed: list[int] = []
    for at, (kind, _) in enumerate(tokens):
        if kind == "open":
            unclosed.append(at)
        elif kind == "close":
            unclosed.pop()
    depth = next((n for n, at in enumerate(unclosed) if n != at), len(unclosed))
    return tokens[depth:]


class _Parser:
    """Reads one side by the usual precedence; nothing is evaluated by Python."""

    def __init__(self, tokens: list[tuple[str, Number | str]]):
        self._tokens, self._at = tokens, 0

    def parse(self) -> Node | None:
        """Return the side as a tree, None where it is none."""
        try:
            node = self._sum()
        except (IndexError, ValueError):
            return None
        return node if self._at == len(self._tokens) else None

    def _next_is(self, *signs: str) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at][1] in signs

    def _take(self) -> Number | str:
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _sum(self) -> Node:
        node = self._product()
        while self._next_is("+", "-"):
            node = Operation(str(self._take()), node, self._product())
        return node

    def _product(self) -> Node:
        node = self._factor()
        while self._next_is("*", "/"):
            node = Operation(str(self._take()), node, self._factor())
        return node

    def _factor(self) -> Node:
        token = self._take()
        if isinstance(token, Number):
            return token
        if token == "-":
            inner = self._factor()
            if isinstance(inner, Number):
                return Number(-inner.value, inner.decimals, inner.hundredths)
            return Operation("-", Number(Fraction(0)), inner)
        if token != "(":
            raise ValueError(token)
        node = self._sum()
        if self._take() != ")":
            raise ValueError(token)
        return node
