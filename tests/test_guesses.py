"""Guesses come from what a row has said; right ones make it guess more."""

from hypothesis import given
from hypothesis import strategies as st

from domain_tokens.inference.prompt_lookup import LONGEST, MAX_DRAFT_TOKENS, SHORTEST, PromptLookup

TOKENS = st.lists(st.integers(0, 4), max_size=40)


def test_what_followed_the_same_words_is_guessed():
    row = PromptLookup([1, 2, 3, 4, 5, 1, 2, 3])
    assert row.guess(9) == [4]
    row.learn(guessed=1, right=1)
    assert row.guess(9) == [4, 5]
    row.learn(guessed=2, right=0)
    assert row.guess(9) == [4]


def test_the_longest_and_newest_match_decides():
    row = PromptLookup([7, 1, 2, 30, 1, 2, 40, 7, 1, 2])
    assert row.guess(1) == [30]  # behind 7 1 2; behind 1 2 alone it would be 40
    assert PromptLookup([1, 2, 30, 1, 2, 40, 1, 2]).guess(1) == [40]


def test_nothing_is_guessed_without_a_match_or_room():
    assert PromptLookup([]).guess(5) == []
    assert PromptLookup([1, 2, 3]).guess(5) == []
    assert PromptLookup([1, 2, 3, 1, 2]).guess(0) == []
    assert PromptLookup([1, 2, 3, 1, 2]).guess(5) == [3]


@given(TOKENS, st.integers(0, 9), st.lists(st.integers(0, MAX_DRAFT_TOKENS), max_size=5))
def test_a_guess_stands_in_the_row_behind_what_the_row_ends_in(tokens, most, outcomes):
    row = PromptLookup(tokens)
    for right in outcomes:
        row.learn(guessed=max(right, 1), right=right)
    guess = row.guess(most)
    assert len(guess) <= min(most, MAX_DRAFT_TOKENS)
    if guess:
        text = [
            tokens[-size:] + guess[:1] for size in range(SHORTEST, min(LONGEST, len(tokens)) + 1)
        ]
        assert any(
            tokens[at : at + len(part)] == part for part in text for at in range(len(tokens))
        )
