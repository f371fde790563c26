"""An arithmetic evaluator of its own judges what injection does to the values in random texts."""

import re
from fractions import Fraction

import pytest

from domain_tokens.injection import Fact
from tests.oracles.arithmetic import keeps_value, sides
from tests.oracles.injected_texts import texts
from tests.oracles.injection_oracle import judge


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10-2*3", 4),
        ("12/2*3", 18),
        ("2*3^2", 18),
        ("-2*3", -6),
        ("8 x 1 1/2", 12),
        ("8 × 1½", 12),
        ("2*3 squared", 18),
        ("5 * 2 feet 6 inches", 150),
        ("2*3 thousand 500", 7000),
        ("2*3%", Fraction(6, 100)),
        ("12 divided by 2*3", 18),
        ("5 * 1 000", 5000),
        ("2(3*4)", 12),
        ("**Total:** 2*3", 6),
        ("2*3 thousand²", 6_000_000),
        ("2*3!", 12),
    ],
)
def test_the_evaluator_knows_precedence(text, value):
    match = re.search("[0-9]+", text[text.find("(") + 1 :])
    shift = text.find("(") + 1
    assert sides(text, match.start() + shift, match.end() + shift) == [value]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("2*3=6", True),
        ("2*3=7", False),
        ("12-2*3=6", True),
        ("5*2*3=6", False),
        ("12/2*3", False),
        ("2*3=6/2", False),
        ("2*3 and so", True),
    ],
)
def test_the_evaluator_compares_both_sides(text, kept):
    match = re.search(r"2\*3(=[67])?", text)
    assert keeps_value(text, *match.span(), 6) is kept


def naive(text):
    """Take every a*b there is."""
    return [
        Fact(
            m.start(), m.end(), *sorted((int(m[1]), int(m[2]))), int(m[1]) * int(m[2]), "expression"
        )
        for m in re.finditer(r"([1-9]) ?[*×·x] ?([1-9])", text)
    ]


def test_no_judged_fact_changes_a_value():
    """19 of 50,495 judged facts once did; benchmarks/injection_oracle.py judges 50,000 texts."""
    verdict = judge(texts(5000, seed=1))
    print(verdict)
    assert verdict.changed == []
    assert verdict.judged > 1500
    assert verdict.taken > 0.3 * verdict.harmless


def test_the_judgement_is_not_vacuous():
    """Injection that looks at nothing around a product is caught, many times over."""
    verdict = judge(texts(500, seed=2), naive)
    assert len(verdict.changed) > 50
