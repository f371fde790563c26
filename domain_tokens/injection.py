"""Where multiplication facts stand in a text: find them, put tokens there, spell tokens out.

Whatever is doubtful is left alone: a missed fact costs a little of the treatment, a wrong one
teaches false arithmetic. A candidate `a*b` is judged by what stands directly left and right of it.
A fact token already in the text counts there as a number, so that injecting twice changes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast, get_args

from domain_tokens.code_spans import call_spans, code_spans, merged_spans
from domain_tokens.vocabulary import FACTS, fact_token

INJECTOR_VERSION = "2"

Mode = Literal["products", "equations"]
OLDER_MODES = {"weak": "products", "strict": "equations"}  # what they were called once

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_SPACES = rf"[^\S{_LINE_ENDS}]*+"  # possessive: a run of spaces is never read twice
_FACT = r"<MUL_[1-9]_[1-9]_[0-9]{1,2}>"
_DIGIT = rf"(?:[0-9]|{_FACT})"  # where a number begins
_FACT_TOKEN = re.compile("|".join(FACTS))
_FACT_END = re.compile(rf"{_FACT}\Z")

_PRODUCT = re.compile(
    r"(?P<first>[1-9])(?P<before>[ \t\u00a0]*+)(?P<operator>[*×·xX])"
    r"(?P<after>[ \t\u00a0]*+)(?P<second>[1-9])"
)
_NOT_SPACE = re.compile(rf"[^\s]|[{_LINE_ENDS}]")
_EQUALS = re.compile(rf"{_SPACES}=")
_NUMBER_NEXT = re.compile(
    rf"{_SPACES}(?:[-+−]{_SPACES})?(?:\.?{_DIGIT}|[\u00b2\u00b3\u00b9\u00bc-\u00be\u2150-\u215f])"
)
_CALCULATED = re.compile(rf"{_SPACES}>>{_SPACES}([0-9]++)(?!\.[0-9])")
_WHOLE = re.compile(rf"{_SPACES}([0-9]++)")

# What may touch a bare a*b on its right. `*` needs an operand after it, or it ends an emphasis.
_TOUCHES = rf"""\Z|\s|[)\]}}>|]|<(?!{_FACT[1:]})|\$(?![\^0-9])|["'”’»](?!{_DIGIT})
    |[,;:?](?!{_DIGIT})|\.(?!\w|{_FACT})"""
_TOUCHES_PRODUCT = re.compile(
    rf"""{_TOUCHES}|=|\+(?!\+)|[-−](?![^\W\d_]|[-−])|[×·÷/]
    |\*(?!\*)(?={_SPACES}(?:{_DIGIT}|\.[0-9]|[(\[{{$€£]))""",
    re.VERBOSE,
)
_TOUCHES_RESULT = re.compile(rf"{_TOUCHES}|=(?![=>])", re.VERBOSE)

_UNITS = (
    "hours?|hrs?|minutes?|mins?|days?|weeks?|months?|years?|feet|foot|ft|yards?|yds?|miles?|"
    "(?:kilo|centi)?met(?:er|re)s?|kilograms?|k?g|[kc]?m|pounds?|lbs?|stones?|tons?|gallons?|"
    "quarts?|pints?|cups?|lit(?:er|re)s?|dollars?|euros?|hundreds?|thousands?|millions?|billions?|"
    "trillions?|dozens?"
)
_MARKS = r"[*_~(\[\"'“‘]*+"  # emphasis and the like around a word: 2*3 _squared_
_BEGINS, _ENDS = "(?<![a-z])", "(?![a-z])"  # of a word; \b is none between `squared` and `_` or `²`
# Powers, percentages, mixed numbers (8 x 1 1/2), digit groups (1 000), 2 hours 30 minutes.
_CHANGES_VALUE = rf"""{_SPACES}(?:\^|\*\*|%|!(?!=)|\\(?![)\]\\])|{_DIGIT}
    |[\u00b2\u00b3\u00b9\u00bc-\u00be\u2044\u2070-\u207f\u2150-\u215f]
    |{_MARKS}(?:
    (?:squared|cubed|percent|per\ cent|factorial|choose|mod|modulo|point|raised|to\ the){_ENDS}
    |and{_SPACES}(?:(?:an?|one|two|three|half){_ENDS}|{_DIGIT})
    |(?:{_UNITS})_*+{_SPACES},?{_SPACES}_*+(?:and{_SPACES})?
     (?:(?:a\ half|[a-z]+ty){_ENDS}|{_DIGIT})))"""
_PRODUCT_GOES_ON = re.compile(rf"{_CHANGES_VALUE}|\s*\^", re.VERBOSE | re.IGNORECASE)
_RESULT_GOES_ON = re.compile(
    rf"""{_CHANGES_VALUE}|\s*\^|{_SPACES}(?:[-−–+*×·/÷π]|=[=>]|\({_SPACES}[-+−$]?{_DIGIT}
    |:{_SPACES}[$€£(]*+(?:{_DIGIT}|\.[0-9]|[\u00bc-\u00be\u2150-\u215f])
    |(?:[^\W\d_][\w'’]*+{_SPACES}){{1,3}}+(?:\*\*|[-−–+*×·/÷^]){_SPACES}[-+−$€£(]*+{_DIGIT}
    |{_MARKS}(?:x|plus|minus|times|multiplied|divided|over|dozens?
    |(?:hundred|thousand|million|billion|trillion)(?:s|ths?)?|tenths?){_ENDS})""",
    re.VERBOSE | re.IGNORECASE,
)
# Signs of relation and the like; after any other mathematical symbol (∕ ∶ ⋅ ∗) all is doubtful.
_KNOWN_SYMBOLS = frozenset("+<=>|~¬±×÷−⁄√≈≠≡≤≥≅∼≃→←↔⇒⇔⟹⟶∴∵…")

_OPERATORS = "+-−*×·"
_DIVIDES = "/÷⁄^√"  # also at the end of the line above
_OPENS = "([{<>=|;~≈"
_QUOTES_AND_CURRENCY = "\"'“”‘’«»$€£"
_WORDS_BACK = 60  # characters; the words below are far shorter
_WORD_BARS = re.compile(
    rf"""(?:\\[a-z]+|{_BEGINS}(?:mod|modulo|div|over|power|power{_SPACES}of|root|root{_SPACES}of
    |sqrt|logs?|ln|exp|sin|cos|tan|choose|negative|point|per|out{_SPACES}of|raised{_SPACES}to
    |(?:reciprocal|inverse){_SPACES}of|hundred|thousand|million|billion|trillion
    |(?<!multiplied\ )by))\Z""",
    re.VERBOSE | re.IGNORECASE,
)
_WORD_CONTINUES = re.compile(rf"{_BEGINS}(?:x|plus|minus|times|less|by)\Z", re.IGNORECASE)

# `3 x 3 grid`, `a 4*5 star hotel`, `2 × 4`: a size or a name, not a product, unless `=` follows.
_CHAIN = re.compile(  # sizes have few factors, and a longer chain would be read once per factor
    rf"(?:{_SPACES}[*×·xX]{_SPACES}(?:{_FACT}|[0-9]++(?:\.[0-9]++)?)){{1,3}}+"
)
_RESULT_FOLLOWS = re.compile(rf"(?:{_SPACES}[^\W\d_][\w'’/-]*+,?){{0,6}}{_SPACES}=")
_NOUN_FOLLOWS = re.compile(
    rf"""{_SPACES}{_MARKS}(?!(?:is|are|was|were|equals?|gives?|makes?|and|or|plus|minus|times|divided
    |multiplied|which|that|then|so|because|since|for|to|from|by|as|in|if|but){_ENDS})[a-z]{{2}}""",
    re.VERBOSE | re.IGNORECASE,
)
_SIZED = (
    "grids?|boards?|matri(?:x|ces)|tables?|arrays?|squares?|tiles?|blocks?|boxe?s?|cubes?|pixels?|"
    "photos?|pictures?|prints?|convolutions?|kernels?|filters?|tensors?|maps?|trucks?|lumber|"
    "studs?|beams?|cards?|rectangles?|rooms?|sheets?|stars?"
)
_SIZED_FOLLOWS = re.compile(rf"{_SPACES}{_MARKS}(?:{_SIZED}){_ENDS}", re.IGNORECASE)
_NAMED = re.compile(
    rf"""{_BEGINS}(?:an?|the|this|that|these|those|my|your|his|her|its|our|their|every|each|one|two
    |three|four|five|six|seven|eight|nine|ten|sizes?|sized|measur(?:es?|ed|ing)
    |(?:{_SIZED}|dimensions?|size){_SPACES}(?:of|is|are))\Z""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One match in a text, which a fact token may replace: characters start to end, a <= b.

    `form` tells a bare `a*b` (expression) from a whole `a*b=c` (equation).
    """

    start: int
    end: int
    a: int
    b: int
    product: int
    form: Literal["expression", "equation"]

    @property
    def token(self) -> str:
        """Return the fact's token."""
        return fact_token(self.a, self.b)


def find_facts(text: str, *, mode: Mode = "products") -> list[Fact]:
    """Find the matches that a token may replace without changing any surrounding value.

    They do not overlap and come in order of position. `products` takes bare ones too, `equations`
    only those with a right `=c`; their older names, `weak` and `strict`, mean the same. Takes
    linear time. Raises ValueError for another mode.
    """
    return [fact for _, fact in _candidates(text, mode) if isinstance(fact, Fact)]


def near_misses(text: str, *, mode: Mode = "products") -> list[tuple[int, int, str]]:
    """Return what looks like a fact and is left alone: characters start to end, and the reason.

    Raises ValueError for an unknown mode.
    """
    return [
        (*match.span(), reason)
        for match, reason in _candidates(text, mode)
        if not isinstance(reason, Fact)
    ]


def _candidates(text: str, mode: Mode) -> Iterator[tuple[re.Match[str], Fact | str]]:
    """Yield every a*b of single digits with the fact it is, or the reason why it is none."""
    mode = cast(Mode, OLDER_MODES.get(mode, mode))
    if mode not in get_args(Mode):
        raise ValueError(
            f"unknown injection mode: got {mode!r}, wanted 'products' or 'equations'; fix the call"
        )
    code = merged_spans([*code_spans(text), *call_spans(text)])
    position = nearest = 0
    while match := _PRODUCT.search(text, position):
        position = match.start("second")  # in 12/2*3*4, 2*3 fails and 3*4 is still to be seen
        while nearest < len(code) and code[nearest][1] <= match.start():
            nearest += 1
        if nearest < len(code) and code[nearest][0] < match.end():
            yield match, "in code"
            continue
        judged = _judge(text, match, mode)
        if isinstance(judged, Fact):
            position = judged.end
        yield match, judged


def inject(text: str, *, mode: Mode = "products") -> str:
    """Return the text with a token for every match that find_facts gives.

    Raises ValueError for an unknown mode.
    """
    pieces = []
    position = 0
    for fact in find_facts(text, mode=mode):
        pieces += [text[position : fact.start], fact.token]
        position = fact.end
    return "".join([*pieces, text[position:]])


def expand(text: str) -> str:
    """Return the text with every fact token spelled out: `<MUL_6_9_54>` becomes `6*9=54`."""
    return _FACT_TOKEN.sub(lambda match: "{}*{}={}".format(*match[0][5:-1].split("_")), text)


def stands_right(before: str, token: str, after: str) -> bool:
    """Return whether a written fact token is right where it stands between two texts.

    It is where the injector itself would put it: written out, as `a*b=c` or as `a*b`, it is found
    there and substituting it keeps the value of the arithmetic around; a calculator's result after
    it (`>>54`) has to be its product.
    """
    equation = expand(token)
    result = _CALCULATED.match(after)
    if result and result[1] != equation.partition("=")[2]:
        return False
    return any(
        (fact.start, fact.end, fact.token) == (len(before), len(before) + len(form), token)
        for form in (equation, equation.partition("=")[0])
        for fact in find_facts(f"{before}{form}{after}")
    )


def _judge(text: str, match: re.Match[str], mode: Mode) -> Fact | str:
    """Decide on one candidate outside code; a reason leaves it alone."""
    left = _left_side(text, match.start())
    if left == "barred":
        touching = text[match.start() - 1]
        part = touching.isalnum() or touching in ".,"
        return "first operand is part of something longer" if part else "bound by its left side"
    a, b = sorted((int(match["first"]), int(match["second"])))
    spaced = bool(match["before"] and match["after"])
    bare_allowed = mode == "products" and (match["operator"] not in "xX" or spaced)
    start, end = match.span()
    equals = _EQUALS.match(text, end)
    if equals:
        after = equals.end()
        if text[after : after + 1] in ("=", ">"):
            return "a comparison or an arrow follows"
        # In 12-2*3=6 the 6 is the value of the whole left side, so it cannot go with the 2*3.
        if left != "tail" and _NUMBER_NEXT.match(text, after):
            whole = _WHOLE.match(text, after)
            if not whole or whole[1] != str(a * b):
                return "its result is another number"
            if _result_ends(text, whole.end()):
                return Fact(start, whole.end(), a, b, a * b, "equation")
            return "its result goes on"
    elif not _product_ends(text, end):
        return "bound by its right side, or second operand part of something longer"
    if bare_allowed and _is_size(text, match):
        return "a size or a name, as in 3 x 3 grid"
    if bare_allowed:
        return Fact(start, end, a, b, a * b, "expression")
    wants_result = mode == "equations"
    return "no result, and only equations count" if wants_result else "letter x without a result"


def _product_ends(text: str, end: int) -> bool:
    """Tell whether nothing right of a bare product binds closer than the product."""
    goes_on = _PRODUCT_GOES_ON.match(text, end) or _unknown_symbol(text, end)
    return bool(_TOUCHES_PRODUCT.match(text, end)) and not goes_on


def _result_ends(text: str, end: int) -> bool:
    """Tell whether the number that ends here is the whole right side of its equation."""
    goes_on = _RESULT_GOES_ON.match(text, end) or _unknown_symbol(text, end)
    return bool(_TOUCHES_RESULT.match(text, end)) and not goes_on


def _unknown_symbol(text: str, end: int) -> bool:
    """Tell whether a mathematical symbol follows that this module does not know."""
    after = _NOT_SPACE.search(text, end)
    return after is not None and _is_unknown(after[0])


def _is_unknown(symbol: str) -> bool:
    return unicodedata.category(symbol) == "Sm" and symbol not in _KNOWN_SYMBOLS


def _is_size(text: str, match: re.Match[str]) -> bool:
    """Tell whether a bare product may be a size (3 x 3 grid) or a name (a 4 x 4)."""
    chain = _CHAIN.match(text, match.end())
    end = chain.end() if chain else match.end()
    if _RESULT_FOLLOWS.match(text, end):
        return False
    edge = match.start()
    while edge and text[edge - 1] in " \t\u00a0*_":
        edge -= 1
    named = bool(_NAMED.search(text, max(0, edge - _WORDS_BACK), edge))
    if match["operator"] in "xX×":
        in_sum = text[edge - 1 : edge] in tuple("=+-−/÷<")
        return named or (not in_sum and bool(_NOUN_FOLLOWS.match(text, end)))
    return bool(_SIZED_FOLLOWS.match(text, end)) or (named and bool(_NOUN_FOLLOWS.match(text, end)))


def _left_side(text: str, start: int) -> Literal["free", "tail", "barred"]:
    """Judge what precedes a product: nothing that matters, a longer expression, or a bar."""
    edge, opened, spaced = start, False, False
    while edge and (text[edge - 1].isspace() or text[edge - 1] in _QUOTES_AND_CURRENCY):
        opened = opened or not text[edge - 1].isspace()
        spaced = spaced or text[edge - 1].isspace()
        edge -= 1
    if edge == 0:
        return "free"
    last = text[edge - 1]
    new_line = any(character in _LINE_ENDS for character in text[edge:start])
    if last in _DIVIDES or _is_unknown(last):
        return "barred"
    if new_line and not last.isalpha():
        return "tail" if last in _OPERATORS and _operand_before(text, edge - 1) else "free"
    if last in "\\%" or last.isnumeric() or _FACT_END.search(text, max(0, edge - 13), edge):
        return "barred"
    if last == ":":
        return "barred" if _operand_before(text, edge - 1, digits_only=True) else "free"
    if last in _OPERATORS:
        return _left_operator(text, edge - 1, touching=not spaced)
    if not opened and not spaced:
        return "free" if last in _OPENS else "barred"
    if spaced and last == "–":
        return "tail"
    if last.isalpha() or last == "_":
        words = text[max(0, edge - _WORDS_BACK) : edge].rstrip("_")
        if _WORD_BARS.search(words):
            return "barred"
        return "tail" if _WORD_CONTINUES.search(words) else "free"
    return "free"


def _left_operator(text: str, index: int, *, touching: bool) -> Literal["free", "tail", "barred"]:
    """Judge the operator at `index`, left of a product that it touches or is spaced from."""
    if text[index] == "*" and text[max(0, index - 1) : index] == "*":
        # `**Total:** 6*9` closes bold type; after anything else, `**` may be a power.
        closes_bold = not touching and text[max(0, index - 2) : index - 1] in tuple(":.,;!?")
        return "free" if closes_bold else "barred"
    if touching:
        return "tail" if _operand_before(text, index) else "barred"
    edge = index
    while edge and text[edge - 1] in " \t\u00a0>":
        edge -= 1
    if edge == 0 or text[edge - 1] in _LINE_ENDS:
        return "free"  # a list item
    return "barred" if text[edge - 1] in f"{_OPERATORS}{_DIVIDES}%\\" else "tail"


def _operand_before(text: str, end: int, *, digits_only: bool = False) -> bool:
    """Tell whether a number, a closing bracket or a one-letter variable ends before `end`."""
    edge = end
    while edge and text[edge - 1].isspace() and text[edge - 1] not in _LINE_ENDS:
        edge -= 1
    if edge == 0:
        return False
    last = text[edge - 1]
    if last.isnumeric() or _FACT_END.search(text, max(0, edge - 13), edge):
        return True
    if digits_only:
        return False
    if last in ")]}%":
        return True
    # Only a lone letter that touches: a word before `*` opens emphasis, before `-` is a hyphen.
    alone = edge < 2 or not (text[edge - 2].isalnum() or text[edge - 2] == "_")
    return last.isalpha() and alone and edge == end
