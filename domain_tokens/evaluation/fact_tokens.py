"""Where the fact tokens of a response stand and whether they are right there."""

from collections.abc import Collection, Sequence

from domain_tokens.data import Problem
from domain_tokens.evaluation.checkpoint import LoadedCheckpoint, _decode
from domain_tokens.injection import find_facts, stands_right
from domain_tokens.vocabulary import FACTS


def facts_in_place(subject: LoadedCheckpoint, token_ids: Sequence[int]) -> list[bool]:
    """Return, for each fact token of a response, whether it is right where it stands.

    The other facts of the response are read as their products.
    """
    layout, pieces, start = subject.layout, [], 0
    places = [at for at, token in enumerate(token_ids) if token in layout.fact_ids]
    for at in places:
        pieces += [_decode(subject, token_ids[start:at]), str(layout.fact_of(token_ids[at])[2])]
        start = at + 1
    pieces.append(_decode(subject, token_ids[start:]))
    return [
        stands_right(
            "".join(pieces[: 2 * i + 1]),
            FACTS[token_ids[at] - layout.first_fact_id],
            "".join(pieces[2 * i + 2 :]),
        )
        for i, at in enumerate(places)
    ]


def fact_spans(subject: LoadedCheckpoint, token_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return where the fact tokens of a response stand in its text, as [start, end) of characters.

    Facts are known by id: a typed `<MUL_6_9_54>` is none.
    """
    places = [at for at, token in enumerate(token_ids) if token in subject.layout.fact_ids]
    return [
        (len(_decode(subject, token_ids[:at])), len(_decode(subject, token_ids[: at + 1])))
        for at in places
    ]


def reserved_counts(
    subject: LoadedCheckpoint, token_ids: Sequence[int], right: Collection[int]
) -> dict[str, int]:
    """Return how many reserved tokens a response holds; they count by id, not in text.

    right: ids of the facts that belong in its answer. mul_tokens: fact tokens, mul_tokens_correct:
    those that are among them, mul_tokens_valid: those that are right where they stand.
    """
    layout = subject.layout
    return {
        "mul_tokens": sum(i in layout.fact_ids for i in token_ids),
        "mul_tokens_correct": sum(i in right for i in token_ids),
        "mul_tokens_valid": sum(facts_in_place(subject, token_ids)),
        "reserved_tokens": sum(i in layout.reserved_ids for i in token_ids),
    }


def facts_in_solution(subject: LoadedCheckpoint, problem: Problem) -> set[int]:
    """Return the ids of the facts that a gold solution uses."""
    used = {fact.token for fact in find_facts(problem.answer)}
    return {subject.layout.first_fact_id + i for i, fact in enumerate(FACTS) if fact in used}


def facts_with_product(subject: LoadedCheckpoint, product: int) -> set[int]:
    """Return the ids of the facts whose product this is."""
    return {i for i in subject.layout.fact_ids if subject.layout.fact_of(i)[2] == product}
