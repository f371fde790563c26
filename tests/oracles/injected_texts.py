"""Random texts around multiplication facts: arithmetic, words, units, powers, code, emphasis."""

import random
import re

_NUMBERS = ["1", "2", "3", "5", "9", "12", "40", "2.5", "0.5", "1,200", "1 000", "8 1/2", "½", "7"]
_OPERATORS = ["+", "-", "*", "/", " + ", " - ", " * ", " / ", " × ", " ÷ ", " x ", "^", "**", " : "]
_OPERATORS += [" plus ", " minus ", " times ", " divided by ", " over ", " mod ", " ∕ ", " ⋅ ", "−"]
_AFTER = ["", " apples", " cm", " ft²", "²", " squared", " _squared_", "%", " percent", "!", "^2"]
_AFTER += [" ½", " 1/2", " and 1/2", " 000", " thousand", " thousand²", " thousand 500", " : 2"]
_AFTER += [
    " hours 30 minutes",
    " feet 6 inches",
    " dollars and 5 cents",
    " **2",
    ".5",
    "/2",
    " * 2",
]
_BEFORE = ["", "$", "(", "-", "- ", "* ", "_", "*", "**Total:** ", "Total: ", "12/", "10-", "2^"]
_BEFORE += [
    "1 ",
    "1,",
    "4*",
    "4 x ",
    "12 divided by ",
    "17 mod ",
    "is ",
    "so ",
    "= ",
    "<<",
    "√",
    "5(",
]
_ENDS = ["", ".", ",", ")", "_", "*", " so", " and then", "; ", "\n", "?", ">>", "**", " is 4"]
_FILL = ["He has ", "\n", "Then ", ", ", ". ", "`2*3` ", "So that ", "(", ") ", "it costs $", "1. "]


def texts(count: int, *, seed: int) -> list[str]:
    """Return so many texts; the same seed gives the same ones."""
    chooser = random.Random(seed)
    return [_text(chooser) for _ in range(count)]


def _text(chooser: random.Random) -> str:
    parts = []
    for _ in range(chooser.choice((1, 1, 2))):
        if chooser.random() < 0.4:
            parts.append(chooser.choice(_FILL))
        parts.append(_BEFORE[0] if chooser.random() < 0.4 else chooser.choice(_BEFORE))
        if chooser.random() < 0.3:
            parts.append(chooser.choice(_NUMBERS) + chooser.choice(_OPERATORS))
        parts.append(_fact(chooser))
        if chooser.random() < 0.3:
            parts.append(chooser.choice(_OPERATORS) + chooser.choice(_NUMBERS))
        parts.append(_AFTER[0] if chooser.random() < 0.4 else chooser.choice(_AFTER))
        if chooser.random() < 0.2:
            parts.append(f" = {chooser.choice(_NUMBERS)}")
        parts.append(chooser.choice(_ENDS))
        if chooser.random() < 0.3:
            parts.append(" ")
    return "".join(parts)


def _fact(chooser: random.Random) -> str:
    a, b = chooser.randint(1, 9), chooser.randint(1, 9)
    sign = chooser.choice(("*", " * ", " x ", " × ", "·", "x"))
    if chooser.random() < 0.5:
        return f"{a}{sign}{b}"
    result = a * b if chooser.random() < 0.9 else a * b + chooser.randint(1, 3)
    return f"{a}{sign}{b}{chooser.choice(('=', ' = '))}{chooser.choice(('', '', '$'))}{result}"


def candidates(text: str) -> list[tuple[int, int, int]]:
    """Return start, end and product of every single-digit a*b and a*b=c with the right c."""
    spans = []
    for match in re.finditer(r"([1-9]) ?[*×·x] ?(?=([1-9])((?: ?= ?([0-9]+))?))", text):
        product = int(match[1]) * int(match[2])
        spans.append((match.start(), match.end(2), product))
        if match[4] and int(match[4]) == product:
            spans.append((match.start(), match.end(3), product))
    return spans


def code(text: str) -> list[tuple[int, int]]:
    """Return where the generator put code."""
    return [match.span() for match in re.finditer("`2\\*3`", text)]
