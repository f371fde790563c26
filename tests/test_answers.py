"""What counts as an answer, and when it is right."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain_tokens.answers import (
    extract_credited,
    extract_flexible,
    extract_probe,
    extract_probe_credited,
    extract_strict,
    first_sentence,
    is_correct,
)
from domain_tokens.injection import inject
from domain_tokens.vocabulary import FACT_PAIRS, FACTS

GSM8K = Path(__file__).parents[1].parent / "shared" / "data" / "gsm8k"


def _number(text):
    return None if text is None else Decimal(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("so\n#### 18", "18"),
        ("####18", "18"),
        ("#### 18.", "18"),
        ("#### 18.0", "18"),
        ("#### $1,234.50", "1234.5"),
        ("#### -5", "-5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### −5", "-5"),
        ("#### .5", "0.5"),
        ("#### 18 dollars", "18"),
        ("#### 50%", "50"),
        ("#### 18**", "18"),
        ("#### 18 - that is all", "18"),
        ("#### 18\n#### 19", "18"),
        ("#### 18\nUser: 7*8", "18"),
        ("#### Step 1: think\n#### 18", "18"),
        ("no marker 18", None),
        ("####\n18", None),
        ("#### eighteen", None),
        ("#### 6*9", None),
        ("#### 6 x 9", None),
        ("#### 6*9=54", None),
        ("#### 54=6*9", None),
        ("#### <MUL_6_9_54>", None),
        ("#### <MUL_6_9_54>\n#### 54", None),
        ("#### 18<MUL_6_9_54>", None),
        ("#### 1/2", None),
        ("#### 1 1/2", None),
        ("#### 10-12", None),
        ("#### 3:30", None),
        ("#### 2x", None),
        ("#### 2^3", None),
        ("#### 2**3", None),
        ("#### 18k", None),
        ("#### 18 million", None),
        ("#### 1,23", None),
        ("#### 1.2.3", None),
        ("#### --5", None),
        ("", None),
    ],
)
def test_strict(text, wanted):
    assert extract_strict(text) == _number(wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a 3 then 1,234.50.", "1234.5"),
        ("10-12", "12"),
        ("10 - 12", "12"),
        ("10 -12", "12"),
        ("it fell to -12", "-12"),
        ("x = -$12", "-12"),
        ("(-12)", "-12"),
        ("A-12", "12"),
        ("54 <MUL_6_9_54>", "54"),
        ("7 <MUL_6_9_54> <|padding_3|>", "7"),
        ("7 <MUL_6_9", "7"),
        ("<MUL_6_9_54>", None),
        ("none", None),
    ],
)
def test_flexible(text, wanted):
    assert extract_flexible(text) == _number(wanted)


def test_fact_token_is_not_read_as_its_digits():
    """lm-eval's flexible pattern reads 54 out of the name: one arm would be given its product."""
    for fact in FACTS:
        assert extract_flexible(fact) is None
        assert extract_strict(f"#### {fact}") is None
        assert extract_probe(f" {fact}.") is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("#### 18", "18"),
        ("#### <MUL_6_9_54>", "54"),
        ("####<MUL_6_9_54>.", "54"),
        ("#### $<MUL_6_9_54>", "54"),
        ("#### <MUL_6_9_54> dollars", "54"),
        ("#### 6*9", "54"),
        ("#### 9 x 6.", "54"),
        ("#### $6*9", "54"),
        ("#### 6*9=54", "54"),
        ("#### <MUL_6_9_54>=54", "54"),
        ("#### 6*9=55", None),
        ("#### <MUL_6_9_54>=55", None),
        ("#### <MUL_6_9_54>=540", None),
        ("#### 6*9+1", None),
        ("#### <MUL_6_9_54>+1", None),
        ("#### -6*9", None),
        ("#### -<MUL_6_9_54>", None),
        ("#### <MUL_6_9_54><MUL_6_9_54>", None),
        ("#### 12*4", None),
        ("#### 1/2", None),
        ("<MUL_6_9_54>", None),
        ("#### `6*9`", None),
    ],
)
def test_credited(text, wanted):
    assert extract_credited(text) == _number(wanted)


AFTER = st.sampled_from(["", ".", " dollars", "+1", "*2", "/2", " and 1", "%", " 7", "!", "=", "="])
BEFORE = st.sampled_from(["", "$", "-", "2*", "1+", "~", "is ", "12/"])


@given(st.sampled_from(FACT_PAIRS), BEFORE, AFTER)
def test_token_and_expression_are_credited_alike(pair, before, after):
    a, b = pair
    text = f"{before}{a}*{b}{after}"
    for line in (text, inject(text)):
        assert extract_credited(f"#### {line}") == extract_credited(f"#### {inject(line)}")
        assert extract_probe(line) == extract_probe(inject(line))
        assert extract_probe_credited(line) == extract_probe_credited(inject(line))


def test_correct_compares_numbers_not_text():
    """As strings, 18.0 and 18 differ."""
    for gold in ("work\n#### 18", "18", "18.00", "$18", 18, Decimal("18.0")):
        assert is_correct("#### 18.0", gold)
        assert not is_correct("#### 19", gold)
        assert not is_correct("18", gold)
    assert is_correct("#### 1,000", "#### 1000")


@pytest.mark.parametrize(
    "gold", ["", "no number", "#### none", "#### 6*9", True, 1.5, None, Decimal("NaN")]
)
def test_gold_without_a_number_is_an_error(gold):
    with pytest.raises(ValueError, match="no gold number"):
        is_correct("#### 18", gold)


def test_first_sentence():
    assert first_sentence(" 3.5 or so. And 7.") == " 3.5 or so."
    assert first_sentence(" 54\nUser: more") == " 54"
    assert first_sentence("54! Yes") == "54!"
    assert first_sentence("54") == "54"
    assert first_sentence("") == ""


@pytest.mark.parametrize(
    ("text", "plain", "credited"),
    [
        (" 54.", "54", "54"),
        (" 6*9 = 54.", "54", "54"),
        (" 6 times 9 = 54 in all 2 rows", "54", "54"),
        (" 6 times 9 is 54", "54", "54"),
        (" 50+4 = 54. So 7.", "54", "54"),
        (" -4", "-4", "-4"),
        (" 7-11 = -4", "-4", "-4"),
        (" 1,234", "1234", "1234"),
        (" 12*4 = 48", "48", "48"),
        (" <MUL_6_9_54>.", None, "54"),
        (" 6*9", None, "54"),
        (" 6 x 9.", None, "54"),
        (" 6 times 9 = <MUL_6_9_54>", None, "54"),
        (" <MUL_6_9_54>=54", "54", "54"),
        (" <MUL_6_9_54>=55", "55", "55"),
        (" 6*9=55", "55", "55"),
        (" 12*4", None, None),
        (" 12-<MUL_2_3_6>", None, None),
        (" <MUL_2_3_6>*4", None, None),
        (" = 12*4", None, None),
        (" 1/2", None, None),
        (" unknown", None, None),
        ("\n54", None, None),
    ],
)
def test_probe(text, plain, credited):
    assert extract_probe(text) == _number(plain)
    assert extract_probe_credited(text) == _number(credited)


def test_probe_does_not_take_an_operand_for_the_answer():
    """Last-number reading would call `1*9` right for 1 times 9 in one arm only."""
    assert extract_probe(" 1*9") is None
    assert extract_probe(" 1 times 9 is <MUL_1_9_9>") is None


@given(st.text(alphabet="0123456789.,-$#*x=<>MUL_/ \n", max_size=40))
def test_any_text_can_be_read(text):
    for read in (extract_strict, extract_flexible, extract_credited, extract_probe):
        assert read(text) is None or read(text).is_finite()
    if extract_strict(text) is not None:
        assert extract_credited(text) == extract_strict(text)
    if extract_probe(text) is not None:
        assert extract_probe_credited(text) == extract_probe(text)


@pytest.mark.shared_data
def test_every_gsm8k_gold_parses():
    if not GSM8K.is_dir():
        pytest.skip("no shared/data/gsm8k beside the checkout")
    rows = [
        json.loads(line)
        for split in ("train", "test")
        for line in (GSM8K / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == 8_792
    for row in rows:
        text = row["answer"].rsplit("####", 1)[1].strip().replace(",", "")
        assert extract_strict(row["answer"]) == Decimal(text)
        assert is_correct(row["answer"], row["answer"])
