"""The first wrong equation of a response: its reader against other readers, hands and gold."""

import hashlib
import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from domain_tokens.data.demo_problems import problem_rows
from domain_tokens.evaluation.attribution import KINDS, attribution, first_wrong
from domain_tokens.evaluation.equations import wrong_equations
from domain_tokens.evaluation.metrics import problem_keys
from tests.conftest import plant

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
LABELS = Path(__file__).with_name("attribution_labels.jsonl")

RIGHT = [
    "6*9=54",
    "6 × 9 = <<6*9=54>>54 apples",
    "$5.00 x 30 days = $<<5*30=150>>150",
    "16 eggs/day * 3 days = 48 eggs",
    "1,204 + 96 = 1,300",
    "10/3 = 3.33",
    "10/3 = 3",
    "20/3 = 6.66",  # cut, as money is
    "20/3 = 6.67",
    "25% of 20 = 5",
    "50 - 20% = 40",
    "100% - 25% = 75%",
    "1/4 = 25%",
    "1 1/2 * 4 = 6",
    "½ + ½ = 1",
    "3 / 1/2 = 6",
    "(2+3)*4 = 20",
    "2+3*4 = 14",
    "4 + 3 = 7 + 2 = 9",  # a running chain
    "3*60 = 3*(50+10) = 150+30 = 180",
    "[4 × 12 → = 4 × (10 + 2) → = 40 + 8 → = 48]",
    "2*1 = 2 hours = 120 minutes",
    "$2.50 - $2.24 = 26 cents",
    "1 hour = 60/5",
    "x + 5 = 12",
    "2x + 5 = 12",
    "5^2 = 25",
    "12 - x = 5",
    "He has 3 apples and 2 + 2 = 4 pears",
    "a total of 7 for 5 + 2 = 7",
    "<MUL_2_4_8>+2=10",
    "3*<MUL_2_4_8>=24",
    "<<<MUL_2_4_8>>>8",
    "4+4 = <MUL_2_4_8>",
    "17 000/5 = 3 400",
    "9:30 + 2 = 11:30",
    "- 5 + 3 = 8",  # a list item
    "-5 + 3 = -2",
    "6*9=",
    "6*9",
    "0/0 = 5",
    "",
]
WRONG = [
    ("6*9=48", "table_fact", "6*9=48"),
    ("6 * $9.00 = $48", "table_fact", "6 * $9.00 = $48"),
    ("<<6*9=48>>48", "table_fact", "6*9=48"),
    ("4×4=16=12", "table_fact", "4×4=16=12"),
    ("4*4=12=16", "table_fact", "4*4=12"),
    ("16*9=54", "product", "16*9=54"),
    ("2*3*4=20", "product", "2*3*4=20"),
    ("6*9% = 3", "product", "6*9% = 3"),
    ("6*.5=4", "product", "6*.5=4"),
    ("2*3+4=11", "sum", "2*3+4=11"),
    ("15+15+25 = 40", "sum", "15+15+25 = 40"),
    ("10-3-2=6", "difference", "10-3-2=6"),
    ("35 / 2 = 10", "quotient", "35 / 2 = 10"),
    ("2*(3+4)=15", "product", "2*(3+4)=15"),
    ("5+2=7+3=11", "sum", "7+3=11"),
    ("7\n= 7+11\n= 162", "sum", "7+11 = 162"),
    ("3*<MUL_2_4_8>=25", "product", "3*(2*4)=25"),
    ("4+5 = <MUL_2_4_8>", "sum", "4+5 = (2*4)"),
    ("5 = 7. Then 8 apples - 2 = 7", "difference", "8 apples - 2 = 7"),
    ("33 x 2 = $<<33*2=66>>67", "product", "33 x 2 = $ 67"),
    ("1+1=2. 2+2=5. 3*3=8", "sum", "2+2=5"),
    ("6*9=54 and <<8-3=8>>8 and 1+1=3", "difference", "8-3=8"),
    ("5 apples + 3 pears = 9", "sum", "5 apples + 3 pears = 9"),
    ("3 times 4 = 13", "table_fact", "3 times 4 = 13"),
]


@pytest.mark.parametrize("text", RIGHT)
def test_a_right_equation_and_what_is_none_are_left_alone(text):
    assert first_wrong(text) == {"kind": "none", "equation": None}


@pytest.mark.parametrize(("text", "kind", "equation"), WRONG)
def test_a_wrong_equation_is_named(text, kind, equation):
    assert first_wrong(text) == {"kind": kind, "equation": equation}


def test_what_comes_after_the_answer_did_not_cause_it():
    text = "2+3=5\n#### 5\nUser: 6*9=50"
    assert first_wrong(text)["kind"] == "none"
    assert first_wrong(text.replace("####", "##"))["kind"] == "table_fact"
    # Nothing can be read there: all of the response is looked at.
    assert first_wrong("2+3=5\n#### 6*9=50")["kind"] == "table_fact"


def test_a_number_at_a_cut_may_go_on():
    assert first_wrong("6*9=5", cut=True)["kind"] == "none"
    assert first_wrong("5 × 5 = 5 ", cut=True)["kind"] == "none"
    assert first_wrong("6*9=5", cut=False)["kind"] == "table_fact"
    assert first_wrong("6*9=5 and", cut=True)["kind"] == "table_fact"


def test_only_wrong_answers_are_attributed():
    items = [
        {"gold": "5", "response": "2+2=5\n#### 5", "stop_reason": "eos"},
        {"gold": "5", "response": "2+2=6\n#### 6", "stop_reason": "eos"},
        {"gold": "5", "response": "2*4=6", "stop_reason": "length"},
    ]
    items = [item | problem_keys(item) for item in items]
    assert [item["first_wrong"] and item["first_wrong"]["kind"] for item in items] == [
        None,
        "sum",
        "none",
    ]
    counts = attribution(items)
    assert tuple(counts) == KINDS
    assert counts == dict.fromkeys(KINDS, 0) | {"sum": 1, "none": 1}


# An expression as a tree of this test: a number, or (sign, left, right).
numbers = st.integers(1, 400) | st.integers(1, 9) | st.decimals("0.1", "50", places=1)
trees = st.recursive(
    numbers, lambda inner: st.tuples(st.sampled_from("+-*/"), inner, inner), max_leaves=4
)


def shown(tree, style, *, outer=0):
    """Write a tree: signs in several forms, brackets only where they are needed."""
    if not isinstance(tree, tuple):
        unit = ["", " apples", " miles/day"][style % 3]
        return f"{['', '$'][style % 2]}{tree:,}{unit}"
    sign, left, right = tree
    level = 1 if sign in "+-" else 2
    written = {"*": ["*", "×", "x"], "-": ["-", "−", "–"], "/": ["/", "÷", "/"], "+": "+++"}
    parts = shown(left, style, outer=level), shown(right, style, outer=level + 1)
    text = f" {written[sign][style % 3]} ".join(parts)
    return f"({text})" if level < outer else text


def worth(tree):
    if not isinstance(tree, tuple):
        return Fraction(tree)
    sign, left, right = tree
    a, b = worth(left), worth(right)
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[sign]


def kind_of(tree):
    sign, left, right = tree
    digits = all(not isinstance(x, tuple) and x in range(1, 10) for x in (left, right))
    names = {"+": "sum", "-": "difference", "*": "product", "/": "quotient"}
    return "table_fact" if sign == "*" and digits else names[sign]


def check(tree, style, off):
    """Assert that an equation is right as it is, and wrong by its kind with another result."""
    try:
        value = worth(tree)
    except TypeError:
        return False  # a division by zero
    if value is None or abs(value) > 10**9 or 0 < abs(value) < 1:
        return False
    text = shown(tree, style)
    rounded = f"{float(value):.2f}"
    assert wrong_equations(f"So {text} = {rounded} in all.") == []
    wrong = f"{float(value) + (1 if off > 0 else -1) * max(abs(off), abs(float(value)) / 50):.2f}"
    assert len(wrong_equations(f"So {text} = {wrong} in all.")) == 1
    response = f"So {text} = <<{text}={wrong}>>{wrong} in all.\n#### {wrong}"
    assert first_wrong(response)["kind"] == kind_of(tree)
    return True


def check_some():
    for tree in [("+", 2, ("*", 3, 4)), ("-", ("-", 9, 4), 2), ("*", 6, 9), ("/", 9, 2)]:
        check(tree, 0, 3)


@given(tree=trees, style=st.integers(0, 5), off=st.sampled_from([-7, 1, 3, 1000]))
def test_equations_are_judged_by_their_value(tree, style, off):
    assume(isinstance(tree, tuple))
    assume(check(tree, style, off))


@pytest.mark.parametrize(
    ("fault", "value"),
    [
        ("equations._value", lambda node, reading: Fraction(1)),
        ("equations._agree", lambda left, right: True),
        ("equations._first_wrong", lambda text, chain, start=None: []),
        ("attribution.kind_of", lambda operation: "product"),
    ],
)
def test_planted_faults_are_found(fault, value, monkeypatch):
    plant(monkeypatch, f"domain_tokens.evaluation.{fault}", value)
    with pytest.raises(AssertionError):
        check_some()


def test_precedence_is_not_from_left_to_right(monkeypatch):
    """A reader without precedence would take 2 + 3*4 for 20."""
    assert wrong_equations("2 + 3*4 = 14") == []
    assert len(wrong_equations("2 + 3*4 = 20")) == 1
    assert wrong_equations("20 - 6 - 4 = 10") == []
    assert wrong_equations("24 / 4 / 2 = 3") == []


@given(text=st.text(alphabet="0123456789+-*/=.,$%()[]<>x× \nab→¢½", max_size=60))
def test_no_text_is_too_odd(text):
    wrong = first_wrong(text)
    assert (wrong["kind"] == "none") == (wrong["equation"] is None)


@pytest.mark.parametrize(
    "piece", ["(", "-", "6*", "6*9=", "<<", "$", "9" * 50, "1 1/2 ", "→", "[4="]
)
def test_long_runs_are_read(piece):
    first_wrong(piece * 3000)


def test_the_demos_solutions_hold_no_wrong_equation():
    texts = [row["answer"] for row in problem_rows(500, 1, "train")]
    assert sum("=" in text for text in texts) > 300
    assert [first_wrong(text)["equation"] for text in texts] == [None] * 500


def stored():
    rows = [json.loads(x) for x in (SHARED / "seed_study" / "responses.jsonl").open()]
    return {
        hashlib.sha256(f"attribution\n{row['run']}\n{row['question']}".encode()).hexdigest()[
            :12
        ]: row
        for row in rows
    }


@pytest.mark.shared_data
def test_the_reader_agrees_with_hands_on_stored_responses():
    """220 of the original study's responses, read by hand (progress/12): 219 of 220."""
    if not SHARED.exists():
        pytest.skip("no shared/data next to the checkout")
    responses = stored()
    labels = [json.loads(line) for line in LABELS.open()]
    agree = 0
    for label in labels:
        text = responses[label["id"]]["response"]
        kind = first_wrong(text, cut=len(text) >= 500)["kind"]  # they were stored up to there
        assert kind == label["reader"]
        agree += kind == label["by_hand"]
    assert len(labels) == 220
    assert agree >= 219


@pytest.mark.shared_data
def test_gold_solutions_hold_nearly_no_wrong_equation():
    """41 of 8,792, most of them wrong indeed (progress/12)."""
    if not SHARED.exists():
        pytest.skip("no shared/data next to the checkout")
    answers = [
        json.loads(line)["answer"]
        for name in ("train", "test")
        for line in (SHARED / "gsm8k" / f"{name}.jsonl").open()
    ]
    wrong = sum(bool(wrong_equations(answer.partition("####")[0])) for answer in answers)
    assert len(answers) == 8792
    assert 25 <= wrong <= 45
