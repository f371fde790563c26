"""Where code stands in a text: fenced, inline, and the brackets of calls."""

from __future__ import annotations

import re
from itertools import pairwise

_FENCE_LINE = re.compile(
    r"(?:\A|(?<=[\n\r]))(?P<prefix>[ \t>]*+(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]++)*+)"
    r"(?P<fence>`{3,}+|~{3,}+)(?P<info>[^\n\r]*+)"
)
_BACKTICKS = re.compile(r"`++")
_BLANK_LINE = re.compile(r"\r?\n[ \t]*+(?=\r?\n|\Z)")
_LINE_END = re.compile(r"[\n\r]")


def code_spans(text: str) -> list[tuple[int, int]]:
    """Return the (start, end) of fenced and inline code, merged and in order.

    Markdown readers differ about fences inside lists and about where a paragraph ends. What is
    code in any of these readings counts as code.
    """
    if "`" not in text and "~~~" not in text:
        return []
    spans: list[tuple[int, int]] = []
    for nested in (False, True):
        fences = _fenced(text, nested=nested)
        spans += fences
        edges = [0, *(edge for fence in fences for edge in fence), len(text)]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            for separator in (_BLANK_LINE, _LINE_END):
                cuts = [start, *(m.start() for m in separator.finditer(text, start, end)), end]
                for first, last in pairwise(cuts):
                    spans += _inline(text, first, last)
    return merged_spans(spans)


_BRACKET = re.compile(r"[()\[\]\n\r]")


def call_spans(text: str) -> list[tuple[int, int]]:
    """Return what stands in the brackets of a call or an index, as in range(3*4) or cell[2*3].

    Such brackets open directly after a name and close on the same line, or at its end.
    """
    spans: list[tuple[int, int]] = []
    opened: list[int] = []
    outermost = -1  # how many brackets were open around the outermost call; -1: in no call
    start = 0
    for bracket in _BRACKET.finditer(text):
        at = bracket.start()
        if bracket[0] in "([":
            if outermost < 0 and at and (text[at - 1].isalpha() or text[at - 1] == "_"):
                outermost, start = len(opened), at
            opened.append(at)
        elif bracket[0] in ")]":
            if opened:
                opened.pop()
            if outermost >= 0 and len(opened) <= outermost:
                spans.append((start, at))
                outermost = -1
        else:
            if outermost >= 0:
                spans.append((start, at))
            opened, outermost = [], -1
    if outermost >= 0:
        spans.append((start, len(text)))
    return spans


def merged_spans(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans in order, those that touch as one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _fenced(text: str, *, nested: bool) -> list[tuple[int, int]]:
    """Return the fenced blocks; `nested` also takes those in quotes, lists and deep indents."""
    spans = []
    opening: re.Match[str] | None = None
    for line in _FENCE_LINE.finditer(text):
        plain = len(line["prefix"]) <= 3 and not line["prefix"].strip(" ")
        if opening is None:
            # A backtick in the info string makes it inline code.
            valid = line["fence"][0] == "~" or "`" not in line["info"]
            if valid and (plain or nested):
                opening = line
            continue
        deep = len(opening["prefix"]) > 3 or bool(opening["prefix"].strip(" "))
        closes = (
            line["fence"].startswith(opening["fence"])
            and not line["info"].strip()
            and (plain or (deep and not line["prefix"].strip(" \t>")))
        )
        if closes:
            spans.append((opening.start(), line.end()))
            opening = None
    if opening is not None:
        spans.append((opening.start(), len(text)))
    return spans


def _inline(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return the code spans of one paragraph: backtick runs paired by length."""
    runs = [match.span() for match in _BACKTICKS.finditer(text, start, end)]
    later: dict[int, list[int]] = {}  # length -> numbers of the runs of that length, last first
    for number in reversed(range(len(runs))):
        later.setdefault(runs[number][1] - runs[number][0], []).append(number)
    spans = []
    number = 0
    while number < len(runs):
        first, last = runs[number]
        slashes = 0
        while first - slashes > start and text[first - slashes - 1] == "\\":
            slashes += 1
        opens = first + slashes % 2  # an escaped backtick opens nothing
        candidates = later.get(last - opens, [])
        while candidates and candidates[-1] <= number:
            candidates.pop()
        if last > opens and candidates:
            number = candidates[-1]
            spans.append((opens, runs[number][1]))
        number += 1
    return spans
