"""What is written where a fact stands, and how it is read back: the only place that knows how.

A treatment says this for the facts that it treats; whatever else a run depends on (vocabulary,
base, examples, their order, the steps) is equal in all of them. Every one writes with the same 45
reserved rows: a row's name means nothing to a model, so most of them give it another meaning, which
the run card records. For `6*9=54` and for a bare `6*9`:

    fact_token      <MUL_6_9_54>                        and the same
    unsupervised    6*9=54, without loss                6*9, without loss
    generic         6*9= then one row for all, then 54  left as text: there is no result
    operands        a row for (6, 9), then =54          a row for (6, 9)
    result          6*9= and a row for 54               left as text: there is no result
    appended        6*9=54 and then a row               6*9 and then a row
    matched_merges  facts stay text; 45 word sequences as frequent and long get a row each
    mixed           as fact_token or as text, each with p = 1/2 by a hash of example and position

Reading back what was written gives the original text, but for how a matched span was spelled: what
a row took the place of reads in canonical spelling (`6*9` for `9 × 6` under `operands`, `6*9=54`
for each spelling of the fact, a bare `6*9` included, under `fact_token` and `mixed`). All other
treatments give back every character. `generic` keeps the operands for this reason: after one row
for all facts, `12` alone would read as 2*6 or as 3*4.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from domain_tokens.errors import UserError
from domain_tokens.injection import Fact, Mode, expand, find_facts
from domain_tokens.merges import WORD_ENDS
from domain_tokens.vocabulary import FACT_PAIRS, FACTS

TREATMENT_VERSION = "1"
UNRECORDED_VERSION = "1"  # of cards from before treatments were recorded

Name = Literal[
    "fact_token",
    "unsupervised",
    "generic",
    "operands",
    "result",
    "appended",
    "matched_merges",
    "mixed",
]
TreatedFacts = Literal["all", "half_a", "half_b"]
NAMES: tuple[Name, ...] = get_args(Name)

TOKENLESS: tuple[Name, ...] = ("unsupervised", "matched_merges")  # no row stands for a fact
GENERIC_ROW = FACTS[0]
# The row of a product is that of its first fact, whether or not that one is treated.
RESULT_ROWS = {a * b: fact for (a, b), fact in reversed(list(zip(FACT_PAIRS, FACTS, strict=True)))}

_ROW_NAME = re.compile("|".join(FACTS))


@dataclass(frozen=True, slots=True)
class PlacedToken:
    """A reserved row in the place of characters start to end; where these are one, it is added.

    token: the row's name, one of FACTS. in_match: whether it stands in a matched fact.
    """

    start: int
    end: int
    token: str
    in_match: bool = True


@dataclass(frozen=True, slots=True)
class Written:
    """What a treatment does to a text: rows and spans of characters without loss, each in order.

    Both refer to the text as it was; they may be there together, and overlap.
    """

    rows: tuple[PlacedToken, ...] = ()
    masked: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Treatment:
    """One treatment of a set of facts.

    facts: names of the treated ones. merges: (row, what it stands for) of matched_merges.
    """

    name: Name
    facts: frozenset[str] = frozenset(FACTS)
    merges: tuple[tuple[str, str], ...] = ()

    @cached_property
    def meanings(self) -> dict[str, str]:
        """Return what each row that may be written reads as; "" where it is only added."""
        treated = [fact for fact in FACTS if fact in self.facts]
        match self.name:
            case "fact_token" | "mixed":
                return {fact: expand(fact) for fact in treated}
            case "operands":
                return {fact: expand(fact).partition("=")[0] for fact in treated}
            case "appended":
                return dict.fromkeys(treated, "")
            case "generic":
                return {GENERIC_ROW: ""}
            case "result":
                products = {expand(fact).partition("=")[2] for fact in treated}
                return {row: str(p) for p, row in RESULT_ROWS.items() if str(p) in products}
            case "matched_merges":
                return dict(self.merges)
        return {}  # unsupervised writes no row

    @property
    def rows_are_facts(self) -> bool:
        """Whether a row still is the fact of its name, to which the rules for answers apply."""
        return self.name in ("fact_token", "mixed", "unsupervised")

    def write(self, text: str, matches: Sequence[Fact], *, key: str = "") -> Written:
        """Return what becomes of a text; matches: what find_facts finds in it.

        key: what tells this text from all others (its example and turn), for `mixed`.
        """
        if self.name == "matched_merges":
            return Written(tuple(self._merge_rows(text)))
        treated = [match for match in matches if match.token in self.facts]
        if self.name == "unsupervised":
            return Written(masked=tuple((match.start, match.end) for match in treated))
        if self.name == "mixed":
            treated = [match for match in treated if _coin_is_heads(f"{key}\n{match.start}")]
        rows = (_row(self.name, text, match) for match in treated)
        return Written(tuple(row for row in rows if row is not None))

    def _merge_rows(self, text: str) -> Iterator[PlacedToken]:
        if self._merge_pattern is not None:
            for match in self._merge_pattern.finditer(text):
                row = self._row_of_merge[match[0]]
                yield PlacedToken(match.start(), match.end(), row, in_match=False)

    @cached_property
    def _row_of_merge(self) -> dict[str, str]:
        return {merge: row for row, merge in self.merges}

    @cached_property
    def _merge_pattern(self) -> re.Pattern[str] | None:
        longest_first = sorted(self._row_of_merge, key=lambda merge: (-len(merge), merge))
        words = "|".join(map(re.escape, longest_first))
        return re.compile(rf"(?:{words}){WORD_ENDS}") if words else None

    def row_of(self, fact: str) -> str | None:
        """Return the row that is written for a fact, whatever its form; None for none."""
        if self.rows_are_facts:
            return fact
        if fact not in self.facts or self.name == "matched_merges":
            return None
        if self.name == "result":
            return RESULT_ROWS[int(expand(fact).partition("=")[2])]
        return GENERIC_ROW if self.name == "generic" else fact

    def reads(self, row: str) -> str:
        """Return what a row reads as; one without a meaning is named, without a product."""
        if self.rows_are_facts:
            return expand(row)
        return self.meanings.get(row, f"{row.rpartition('_')[0]}>")

    def read_back(self, text: str, rows: Iterable[PlacedToken] | None = None) -> str:
        """Return the text with every row read; rows: where they stand, by default where named."""
        return self.read_rows(text, rows)[0]

    def read_rows(
        self, text: str, rows: Iterable[PlacedToken] | None = None
    ) -> tuple[str, list[PlacedToken]]:
        """Return the text with every row read, and the rows where they stand in it."""
        if rows is None:
            rows = [PlacedToken(*name.span(), name[0]) for name in _ROW_NAME.finditer(text)]
        read, cursor, placed = "", 0, []
        for row in rows:
            read += text[cursor : row.start]
            start = len(read)
            read += self.reads(row.token)
            placed.append(PlacedToken(start, len(read), row.token))
            cursor = row.end
        return read + text[cursor:], placed

    def right_rows(self, text: str, rows: Sequence[PlacedToken]) -> list[bool]:
        """Return, for rows in a text that was read back, whether they are where they belong.

        They do where this treatment writes them in that text.
        """
        written = self.write(text, find_facts(text)).rows
        missing = Counter((row.start, row.end, row.token) for row in written)
        right = []
        for row in rows:
            key = (row.start, row.end, row.token)
            right.append(missing[key] > 0)
            missing[key] -= 1
        return right


FACT_TOKENS = Treatment("fact_token")


def _row(name: Name, text: str, match: Fact) -> PlacedToken | None:
    """Return the row that a treatment writes for one match; None where it stays text."""
    operands = text[match.start : match.end].partition("=")[0].rstrip()
    result = match.end - len(str(match.product))
    match name:
        case "operands":
            return PlacedToken(match.start, match.start + len(operands), match.token)
        case "appended":
            return PlacedToken(match.end, match.end, match.token)
        case "generic" | "result" if match.form == "expression":
            return None
        case "generic":
            return PlacedToken(result, result, GENERIC_ROW)
        case "result":
            return PlacedToken(result, match.end, RESULT_ROWS[match.product])
    return PlacedToken(match.start, match.end, match.token)


def _coin_is_heads(text: str) -> bool:
    return bool(hashlib.blake2b(text.encode(), digest_size=1).digest()[0] & 1)


# Half tables


def draw_half(occurrences: Mapping[str, int], seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """Return half A and half B of the 45 facts, from the seed alone (22 and 23 of them).

    Facts are ranked by how often they occur (one that is not there: never) and, where that is
    equal, by id. Of two that follow each other a fair coin sends one to each half; the last one,
    which has no partner, goes where its own coin says. Raises ValueError for a name that is no fact
    token.
    """
    unknown = sorted(occurrences.keys() - set(FACTS))
    if unknown:
        raise ValueError(f"got occurrences of {unknown[0]}, wanted fact tokens (vocabulary.FACTS)")
    ranked = sorted(FACTS, key=lambda fact: -occurrences.get(fact, 0))
    coins = int.from_bytes(hashlib.blake2b(f"half tables\n{seed}".encode()).digest())
    halves: tuple[set[str], set[str]] = (set(), set())
    for number, fact in enumerate(ranked):
        halves[(coins >> number // 2 & 1) ^ (number % 2)].add(fact)
    return frozenset(halves[0]), frozenset(halves[1])


def count_occurrences(texts: Iterable[str], *, mode: Mode = "products") -> dict[str, int]:
    """Return how often each of the 45 facts is found in texts."""
    counts = Counter(match.token for text in texts for match in find_facts(text, mode=mode))
    return {fact: counts[fact] for fact in FACTS}


# The run card


def record_of(
    treatment: Treatment,
    *,
    treated_facts: TreatedFacts,
    draw: tuple[int, Mapping[str, int]] | None = None,
) -> dict[str, Any]:
    """Return what a run card says of a treatment; draw: seed and occurrences of a half table."""
    return {
        "name": treatment.name,
        "version": TREATMENT_VERSION,
        "treated_facts": treated_facts,
        "facts": [fact for fact in FACTS if fact in treatment.facts],
        "draw": None if draw is None else {"seed": draw[0], "occurrences": dict(draw[1])},
        "meanings": treatment.meanings,
    }


def treatment_of(card: Mapping[str, Any] | None) -> Treatment | None:
    """Return the treatment that a checkpoint was trained under, from its run card.

    card: that of a training stage or of an evaluation. None for the baseline, a base, and a
    checkpoint without a card. A card from before treatments were recorded means fact_token for all
    facts. Raises ValueError where a card contradicts itself.
    """
    return treatment_from(record_in(card))


def treatment_from(record: Mapping[str, Any] | None) -> Treatment | None:
    """Return the treatment of a run card's record.

    Raises ValueError for one that belies itself, or that other code means otherwise.
    """
    if record is None:
        return None
    if record["name"] not in NAMES:
        raise ValueError(
            f"the run card names treatment {record['name']!r}, wanted one of {', '.join(NAMES)}; "
            "read it with the code that wrote it"
        )
    if record["version"] != TREATMENT_VERSION:
        raise ValueError(
            "by the run card the checkpoint was trained under version "
            f"{record['version']} of the treatments, and this code has {TREATMENT_VERSION}; use "
            "the code that trained it (the card's code.commit), or train it again with this code"
        )
    merges = tuple(record["meanings"].items()) if record["name"] == "matched_merges" else ()
    merges = tuple((row, merge) for row, merge in merges if row in record["facts"])
    treatment = Treatment(record["name"], frozenset(record["facts"]), merges)
    for key, expected in _expected(record, treatment).items():
        if record[key] != expected:
            raise ValueError(
                f"the run card's treatment.{key} does not follow from its other keys: it was "
                "changed; train that checkpoint again"
            )
    return treatment


def _expected(record: Mapping[str, Any], treatment: Treatment) -> dict[str, Any]:
    """Return the keys of a record that follow from the others."""
    facts, draw = frozenset(FACTS), record["draw"]
    if draw is not None:
        half_a, half_b = draw_half(draw["occurrences"], draw["seed"])
        facts = {"half_a": half_a, "half_b": half_b}.get(record["treated_facts"], facts)
    return {
        "treated_facts": record["treated_facts"] if draw else "all",
        "facts": [fact for fact in FACTS if fact in facts],
        "meanings": treatment.meanings,
    }


def record_in(card: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a run card says of its treatment; of an older one, what it meant."""
    if card is not None and "training" in card:
        card = card["training"]  # of an evaluation
    if card is None or card["stage"] == "base":
        return None
    if "treatment" in card:
        return card["treatment"]
    if card["condition"] != "mul_tokens" or not card.get("inject", True):
        return None
    return {**record_of(FACT_TOKENS, treated_facts="all"), "version": UNRECORDED_VERSION}


def refuse_other_treatment(
    parent: Mapping[str, Any] | None, *, name: str | None, treated_facts: str | None, folder: Any
) -> None:
    """Raise UserError where a config names another treatment than the parent was trained under.

    parent: what the parent's card says, None for nothing; name, treated_facts: the config's keys.
    """
    asked = {"treatment": name, "treated_facts": treated_facts}
    if parent is None:
        return
    recorded = {"treatment": parent["name"], "treated_facts": parent["treated_facts"]}
    for key, value in asked.items():
        if value not in (None, recorded[key]):
            raise UserError(
                f"data.{key} is {value}, and {folder} was trained with {recorded[key]}; leave the "
                "key out, or give another --model-path"
            )
