"""Where the fact tokens of a response stand and whether they are right there."""

from collections.abc import Collection, Sequence

from domain_tokens.data import Problem
from domain_tokens.evaluation.checkpoint import LoadedCheckpoint, _decode
from domain_tokens.injection import find_facts, stands_right
from domain_tokens.treatments import PlacedToken
from domain_tokens.vocabulary import FACTS


def read_response(
    subject: LoadedCheckpoint, token_ids: Sequence[int]
) -> tuple[str, list[tuple[int, int]]]:
    """Return what a person reads in a response, and where its fact tokens stand in that text.

    A fact token reads `<MUL_6_9_54>` where rows are the facts of their names, and else as its
    treatment says: then a span is what the row stands for, empty where it was only added. Spans
    are [start, end) of characters. Facts are known by id: a typed `<MUL_6_9_54>` is none.
    """
    text, rows = _read_rows(subject, token_ids)
    return text, [(row.start, row.end) for row in rows]


def _read_rows(
    subject: LoadedCheckpoint, token_ids: Sequence[int]
) -> tuple[str, list[PlacedToken]]:
    layout, treatment = subject.layout, subject.treatment
    text = _decode(subject, token_ids)
    rows = [
        PlacedToken(
            len(_decode(subject, token_ids[:at])),
            len(_decode(subject, token_ids[: at + 1])),
            FACTS[token - layout.first_fact_id],
        )
        for at, token in enumerate(token_ids)
        if token in layout.fact_ids
    ]
    if treatment is None or treatment.rows_are_facts:
        return text, rows
    return treatment.read_rows(text, rows)


def facts_in_place(subject: LoadedCheckpoint, token_ids: Sequence[int]) -> list[bool]:
    """Return, for each fact token of a response, whether it is right where it stands.

    The other facts of the response are read as their products. A row with another meaning is right
    where its treatment writes it in the text that is read.
    """
    layout, treatment = subject.layout, subject.treatment
    if treatment is not None and not treatment.rows_are_facts:
        return treatment.right_rows(*_read_rows(subject, token_ids))
    pieces, start = [], 0
    positions = [at for at, token in enumerate(token_ids) if token in layout.fact_ids]
    for at in positions:
        pieces += [_decode(subject, token_ids[start:at]), str(layout.fact_of(token_ids[at])[2])]
        start = at + 1
    pieces.append(_decode(subject, token_ids[start:]))
    return [
        stands_right(
            "".join(pieces[: 2 * i + 1]),
            FACTS[token_ids[at] - layout.first_fact_id],
            "".join(pieces[2 * i + 2 :]),
        )
        for i, at in enumerate(positions)
    ]


def reserved_counts(
    subject: LoadedCheckpoint, token_ids: Sequence[int], right: Collection[int]
) -> dict[str, int]:
    """Return how many reserved tokens a response holds; they count by id, not in text.

    right: ids of the facts that belong in its answer. mul_tokens: fact tokens, mul_tokens_correct:
    those that are written for one of them, mul_tokens_valid: those that are right where they stand.
    """
    layout, belong = subject.layout, rows_of(subject, right)
    return {
        "mul_tokens": sum(i in layout.fact_ids for i in token_ids),
        "mul_tokens_correct": sum(i in belong for i in token_ids),
        "mul_tokens_valid": sum(facts_in_place(subject, token_ids)),
        "reserved_tokens": sum(i in layout.reserved_ids for i in token_ids),
    }


def rows_of(subject: LoadedCheckpoint, facts: Collection[int]) -> set[int]:
    """Return the ids of the rows that the checkpoint's treatment writes for facts, given by id."""
    treatment, first = subject.treatment, subject.layout.first_fact_id
    if treatment is None:
        return set(facts)
    rows = (treatment.row_of(FACTS[fact - first]) for fact in facts)
    return {first + FACTS.index(row) for row in rows if row is not None}


def names_of(subject: LoadedCheckpoint, facts: Collection[int]) -> list[str]:
    """Return the names of facts given by id, in the order of their ids."""
    return [FACTS[fact - subject.layout.first_fact_id] for fact in sorted(facts)]


def facts_in_solution(subject: LoadedCheckpoint, problem: Problem) -> set[int]:
    """Return the ids of the facts that a gold solution uses."""
    used = {fact.token for fact in find_facts(problem.answer)}
    return {subject.layout.first_fact_id + i for i, fact in enumerate(FACTS) if fact in used}


def facts_with_product(subject: LoadedCheckpoint, product: int) -> set[int]:
    """Return the ids of the facts whose product this is."""
    return {i for i in subject.layout.fact_ids if subject.layout.fact_of(i)[2] == product}
