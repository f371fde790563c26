"""Draft tokens come from what a row has said; right ones make it draft more."""

from hypothesis import given
from hypothesis import strategies as st

from domain_tokens.inference.prompt_lookup import (
    MAX_DRAFT_TOKENS,
    MAX_NGRAM,
    MIN_NGRAM,
    PromptLookup,
)

TOKENS = st.lists(st.integers(0, 4), max_size=40)


def test_what_followed_the_same_words_is_drafted():
    row = PromptLookup([1, 2, 3, 4, 5, 1, 2, 3])
    assert row.draft(9) == [4]
    row.adapt(drafted=1, accepted=1)
    assert row.draft(9) == [4, 5]
    row.adapt(drafted=2, accepted=0)
    assert row.draft(9) == [4]


def test_the_longest_and_newest_match_decides():
    row = PromptLookup([7, 1, 2, 30, 1, 2, 40, 7, 1, 2])
    assert row.draft(1) == [30]  # after 7 1 2; after 1 2 alone it would be 40
    assert PromptLookup([1, 2, 30, 1, 2, 40, 1, 2]).draft(1) == [40]


def test_nothing_is_drafted_without_a_match_or_room():
    assert PromptLookup([]).draft(5) == []
    assert PromptLookup([1, 2, 3]).draft(5) == []
    assert PromptLookup([1, 2, 3, 1, 2]).draft(0) == []
    assert PromptLookup([1, 2, 3, 1, 2]).draft(5) == [3]


@given(TOKENS, st.integers(0, 9), st.lists(st.integers(0, MAX_DRAFT_TOKENS), max_size=5))
def test_a_draft_stands_in_the_row_after_what_the_row_ends_in(tokens, max_tokens, outcomes):
    row = PromptLookup(tokens)
    for right in outcomes:
        row.adapt(drafted=max(right, 1), accepted=right)
    draft = row.draft(max_tokens)
    assert len(draft) <= min(max_tokens, MAX_DRAFT_TOKENS)
    if draft:
        text = [
            tokens[-size:] + draft[:1] for size in range(MIN_NGRAM, min(MAX_NGRAM, len(tokens)) + 1)
        ]
        assert any(
            tokens[at : at + len(part)] == part for part in text for at in range(len(tokens))
        )
