"""What a proof of a base has accounted for, and how it refuses."""

from dataclasses import dataclass, field
from typing import Any, NoReturn

from domain_tokens.errors import UserError


@dataclass
class Account:
    """What was compared: goes into the results; left_out maps what was not used to its reason."""

    tensors: int = 0
    config_keys: int = 0
    tokens: int = 0
    merges: int = 0
    texts: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def fail(what: str) -> NoReturn:
    """Raise the UserError of a folder that is not what it was made from."""
    raise UserError(f"the written folder is not its source: {what}; nothing was kept, report this")


# Design §2, rule 5, written here again: a proof reads no rule from the code that it checks.
FACT_PAIRS = [(a, b) for a in range(1, 10) for b in range(a, 10)]
FACT_NOISE = 0.1  # of the base rows' standard deviation
ROWS_MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class Rows:
    """The regions of a written vocabulary, as ids: the source's tokens, padding, 45 facts."""

    base_size: int
    first_fact_id: int
    total: int


def rows_of(tokenizer: Any) -> Rows:
    """Return where a written tokenizer has its tokens; fails where that is not as the rule says."""
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary.get(f"<MUL_{a}_{b}_{a * b}>") for a, b in FACT_PAIRS]
    first, total = ids[0], len(vocabulary)
    if first is None or ids != list(range(first, first + len(ids))) or total != ids[-1] + 1:
        fail(f"the 45 facts are at {ids}, wanted the last ids, one after the other")
    padding = 0
    while vocabulary.get(f"<|padding_{padding}|>") is not None:
        padding += 1
    base = first - padding
    if first % ROWS_MULTIPLE or [vocabulary[f"<|padding_{i}|>"] for i in range(padding)] != list(
        range(base, first)
    ):
        fail(f"{padding} padding tokens before id {first}; wanted ids up to a multiple of 64")
    return Rows(base, first, total)
