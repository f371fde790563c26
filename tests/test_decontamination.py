"""Training rows that repeat a test question are found, whoever says it, and listed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain_tokens.data.corpora import load_problems
from domain_tokens.data.decontamination import Decontaminator, find_repeat
from domain_tokens.data.examples import Conversation, problem_messages
from tests.rows import conversations

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
QUESTION = "A robe takes 2 bolts of blue fiber and half that much white fiber. How many in total?"


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        f"Please help!\n\n{QUESTION.upper()}\nShow your work.",
        "a robe takes 2 bolts -- of blue fiber, and HALF that much white",
    ],
)
def test_a_copied_question_is_found(text: str):
    match = Decontaminator(["Something else altogether.", QUESTION]).match(text)
    assert match is not None
    assert match[0] == 1
    assert match[1] > 0.5


def test_coverage_is_the_share_of_the_question_and_must_exceed_half():
    words = [f"w{number}" for number in range(20)]
    finder = Decontaminator([" ".join(words)])
    assert finder.match(" ".join(words[:10])) is None  # exactly half
    assert finder.match(" ".join(words[:11])) == (0, 11 / 20)
    assert finder.match(" ".join([*words[:7], "x", *words[7:14]])) is None  # runs of seven
    # Overlapping runs count each word once; two separate runs add up.
    assert finder.match(" ".join([*words[:8], "x", *words[12:]])) == (0, 16 / 20)


def test_the_best_question_wins_and_the_lower_index_a_tie():
    words = [f"w{number}" for number in range(16)]
    whole, longer = " ".join(words), " ".join([*words, "and", "more"])
    assert Decontaminator([longer, whole, whole]).match(whole) == (1, 1.0)


def test_short_questions_match_whole_and_empty_ones_never():
    finder = Decontaminator(["", "What is 6 times 9?", "?!"])
    assert finder.match("so: what is 6 TIMES 9 then") == (1, 1.0)
    assert finder.match("what is 6 times 8") is None
    assert finder.match("") is None


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_match_agrees_with_the_definition(data):
    words = st.lists(st.sampled_from("ab"), max_size=14)
    questions = data.draw(st.lists(words, min_size=1, max_size=4))
    text = data.draw(words)
    shares = []
    for question in questions:
        width = min(3, len(question))
        runs = {tuple(text[at : at + width]) for at in range(len(text) - width + 1)}
        starts = [
            at
            for at in range(len(question) - width + 1)
            if width and tuple(question[at : at + width]) in runs
        ]
        covered = {at + step for at in starts for step in range(width)}
        shares.append(len(covered) / max(1, len(question)))
    best = max(shares)
    expected = (shares.index(best), best) if best > 0.5 else None
    finder = Decontaminator([" ".join(question) for question in questions], ngram=3)
    assert finder.match(" ".join(text)) == expected


def decontaminate(rows, questions):
    finder = Decontaminator(questions)
    looked_up = [(row, find_repeat(finder, row)) for row in rows]
    return [row for row, drop in looked_up if not drop], [drop for _, drop in looked_up if drop]


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_every_turn_is_compared_and_every_drop_is_listed(role: str):
    """A test question quoted in an answer or a system prompt is as much seen as one asked."""
    clean = Conversation("clean", (("user", "Hello"), ("assistant", "Hi")), "s")
    turns = (("user", "Hi"), ("assistant", "Yes?"), (role, QUESTION + " x" * 200))
    kept, drops = decontaminate([clean, Conversation("bad", turns, "t", 7)], [QUESTION])
    assert kept == [clean]
    assert drops == [
        {
            "id": "bad",
            "row": 7,
            "source": "t",
            "question_index": 0,
            "coverage": 1.0,
            "role": role,
            "text": (QUESTION + " x" * 200)[:200],
        }
    ]


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data next to the checkout")
def test_real_rows_load_and_planted_test_questions_are_found():
    train = load_problems(str(SHARED / "gsm8k"), split="train", limit=None, subset_seed=42)
    test = load_problems(str(SHARED / "gsm8k"), split="test", limit=None, subset_seed=42)
    assert (train.total_rows, test.total_rows) == (7473, 1319)
    assert not {item.id for item in train.items} & {item.id for item in test.items}
    chat = conversations(SHARED / "chat")
    assert chat.total_rows == 831
    assert len(chat.items) + chat.duplicates == 831

    questions = [item.question for item in test.items]
    clean, drops = decontaminate(chat.items, questions)
    assert len(drops) <= 3  # the chat rows are general; hardly any can be a GSM8K test question

    planted = []
    for at, item in enumerate(clean[::10]):
        turns = (*item.messages, ("user", f"One more thing. {questions[at].lower()} Thanks!"))
        planted.append(Conversation(item.id, turns, item.source))
    kept, drops = decontaminate(planted, questions)
    assert kept == []
    assert [drop["question_index"] for drop in drops] == list(range(len(planted)))


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data next to the checkout")
def test_three_training_problems_of_gsm8k_repeat_test_questions():
    train = load_problems(str(SHARED / "gsm8k"), split="train", limit=None, subset_seed=42).items
    test = load_problems(str(SHARED / "gsm8k"), split="test", limit=None, subset_seed=42).items
    rows = [Conversation(p.id, problem_messages(p), "gsm8k", p.row) for p in train]
    _, drops = decontaminate(rows, [problem.question for problem in test])
    assert sorted(drop["row"] for drop in drops) == [21, 1315, 5163]
    assert all(0.5 < drop["coverage"] < 0.8 for drop in drops)
