"""What counts as an answer, and when it is right."""

import itertools
import json
import time
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain_tokens.answers import (
    Gold,
    extract_credited,
    extract_flexible,
    extract_probe,
    extract_probe_credited,
    extract_strict,
    first_sentence,
    gold,
    gold_text,
    is_correct,
    refuse_unreadable,
)
from domain_tokens.data.examples import Problem
from domain_tokens.errors import UserError
from domain_tokens.evaluation.gsm8k import read_golds
from domain_tokens.evaluation.metrics import problem_verdicts
from domain_tokens.injection import inject
from domain_tokens.vocabulary import FACT_PAIRS, FACTS
from tests.conftest import load_script

GSM8K = Path(__file__).parents[1].parent / "shared" / "data" / "gsm8k"


def _number(text):
    return None if text is None else Decimal(text)


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_strict(text, expected):
    assert extract_strict(text) == _number(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_flexible(text, expected):
    assert extract_flexible(text) == _number(expected)


def _table_of_the_readme():
    lines = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").split("\n")
    start = lines.index("| after `####` | strict | why |") + 2
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    return [[cell.strip() for cell in row.strip("|").split("|")][:2] for row in rows]


@pytest.mark.parametrize(("written", "read"), _table_of_the_readme())
def test_answers_are_read_as_the_readme_says(written, read):
    line = written[1:-1]
    assert written == f"`{line}`"
    number = None if read in ("none", "heading") else Decimal(read)
    assert extract_strict(f"so\n#### {line}\n") == number
    passed_over = read == "heading"
    assert extract_strict(f"#### {line}\n#### 77") == (Decimal(77) if passed_over else number)


def test_the_readmes_table_is_not_empty():
    reads = [read for _, read in _table_of_the_readme()]
    assert len(reads) > 30
    assert {"none", "heading", "9500"} <= set(reads)


@pytest.mark.parametrize("written", ["9{,}500", "$9{,}500$", "9\\,500", "9,500", "9\u202f500"])
def test_thousands_are_one_number_in_every_reading(written):
    """LaTeX's 9{,}500 read 9 in strict and 500 in flexible reading: two different wrong numbers."""
    text = f"So it costs\n#### {written}"
    assert extract_strict(text) == extract_flexible(text) == 9500


def test_a_long_line_is_read_in_linear_time():
    """Spaces between sign and currency were tried in every split."""

    def seconds(count):
        begin = time.process_time()
        for text in ("#### -" + " " * count + "x", "#### " + "#### 6*" * count, "9{,}" * count):
            for read in (extract_strict, extract_flexible, extract_credited, extract_probe):
                read(text)
        return time.process_time() - begin

    short = max(min(seconds(2_000) for _ in range(3)), 2e-3)
    assert any(seconds(20_000) < 40 * short for _ in range(3))


# --- golds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solution", "number", "text"),
    [
        ("work\n#### 18", 18, "18"),
        ("#### 18\n\nSource: own.", 18, "18"),
        ("#### 18 dollars", 18, "18"),
        ("#### $1,234.50.", "1234.5", "1,234.50"),
        ("#### -$5", -5, "-5"),
        ("#### Step 1\nadd\n#### 7", 7, "7"),
        ("a\n#### 7\nso\n#### 7.0", 7, "7"),
        ("#### 9{,}500", 9500, "9{,}500"),
    ],
)
def test_the_golds_text_is_that_of_its_number(solution, number, text):
    """G1 scored everything after the last `####`: ` dollars`, a source, another number."""
    assert gold(solution) == Gold(Decimal(number), text)
    assert gold(solution).number == extract_strict(solution)
    assert gold_text(solution) == text


@pytest.mark.parametrize(
    "solution",
    [
        "",
        "The answer is 4",
        "#### five",
        "#### 1 000",
        "\\boxed{7}",
        "#### 1/2",
        "#### 6*9",
        "a\n#### 7\nwait\n#### 5",
        "#### 7\n#### 6*9",
        "#### <MUL_6_9_54>",
    ],
)
def test_an_unreadable_or_ambiguous_gold_is_refused(solution):
    """Unreadable golds were None, which equals the None of silence: random weights scored 83 %."""
    with pytest.raises(ValueError, match=r"got .*wanted .*fix that row of the data"):
        gold(solution)


@given(st.text(alphabet="0123456789.,-$#*x=/ \n{}<>", max_size=30))
def test_a_gold_is_what_strict_reading_takes(text):
    try:
        answer = gold(f"#### {text}")
    except ValueError:
        return
    assert answer.number.is_finite()
    assert extract_strict(f"#### {text}") == answer.number
    assert extract_strict(f"#### {answer.text}") == answer.number
    assert answer.text in text.replace(" ", "") or answer.text in text


def test_a_bad_gold_is_named_by_item_and_question():
    problems = [Problem("a", "How many?", "#### 3"), Problem("b7", "How  many\nhats?", "so 4")]
    with pytest.raises(UserError, match=r"item b7 \('How many hats\?'\): .*'so 4'"):
        read_golds(problems)
    assert read_golds(problems[:1]) == [Gold(Decimal(3), "3")]


def test_frequent_answers_have_to_be_numbers():
    refuse_unreadable(["4", "-5", "1,000"], key="k")
    with pytest.raises(UserError, match="k holds 'four'"):
        refuse_unreadable(["4", "four"], key="k")


def test_silence_is_never_right():
    frequent = [str(number) for number in range(1, 20)]
    golds_of = load_script("eval/run_gsm8k.py").golds_of
    for answer in ("The answer is 4", "#### five"):
        with pytest.raises(UserError, match="no gold number"):
            golds_of([Problem("a", "q", answer)], frequent)
    assert golds_of([Problem("a", "q", "#### 4")], frequent) == ["4"]
    for expected in ("4", "None"):
        verdict = problem_verdicts(expected, "I do not know")
        assert not any(verdict[k] for k in ("correct", "correct_flexible", "correct_credited"))


def test_fact_token_is_not_read_as_its_digits():
    """lm-eval's flexible pattern reads 54 out of the name: one arm would be given its product."""
    for fact in FACTS:
        assert extract_flexible(fact) is None
        assert extract_strict(f"#### {fact}") is None
        assert extract_probe(f" {fact}.") is None


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_credited(text, expected):
    assert extract_credited(text) == _number(expected)


AFTER = st.sampled_from(
    ["", ".", " dollars", "+1", "*2", "/2", " and 1", "%", " 7", "!", "=", "=", ". So", ") x"]
)
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
    for right in ("work\n#### 18", "18", "18.00", "$18", 18, Decimal("18.0")):
        assert is_correct("#### 18.0", right)
        assert not is_correct("#### 19", right)
        assert not is_correct("18", right)
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
        pytest.skip("no shared/data/gsm8k next to the checkout")
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
        # What G1 scored when it took all after the last `####`; it may not change.
        assert gold_text(row["answer"]) == row["answer"].rpartition("####")[2].strip()
