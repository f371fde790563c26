"""Oracle of `domain_tokens.answers`: readers written from the README's "How answers are read".

Strict: the number in digits after the first `####`; flexible: the last number. They are compared on
all gold solutions of GSM8K, where they must agree, and on the 300 free responses of the original
study, where the few disagreements are listed here with the reason; any other one is a fault.
"""

import json
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from domain_tokens.answers import extract_flexible, extract_strict, is_correct

DATA = Path(__file__).parents[3] / "shared" / "data"
NEEDS_DATA = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")


def number(text):
    return Decimal(text.replace(",", "").replace("$", ""))


GOES_ON = re.compile(
    r"\w|[.,]\d|\s*=|\s*[-+*/×÷–^]\s*[$(]?(?:\d|\.\d|<MUL)|\s*x\s*\d"
    r"|\s*(?:dozen|hundred|thousand|million|billion)"
)


def strict(text):
    """Return the number that follows the first `####` with a digit after it.

    None where it is the beginning of something else: an expression, a word, a list, 168 dozens.
    """
    for line in re.findall(r"####[ \t]*([^\n]*)", text):
        if re.match(r"[-$]*\d", line):
            first = re.match(r"-?\$?-?\d+(?:,\d{3})*(?:\.\d+)?", line)
            return None if GOES_ON.match(line[first.end() :]) else number(first[0])
    return None


def flexible(text):
    """Return the last number in digits; the digits in a reserved token's name are none."""
    text = re.sub(r"<MUL_\d+_\d+_\d+>|<\|padding_\d+\|>", " ", text)
    numbers = list(re.finditer(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+", text))
    if not numbers:
        return None
    last, before = numbers[-1], text[: numbers[-1].start()].rstrip("$")
    sign = before.endswith("-") and not re.search(r"[\w)>%] *-$", before)
    return -number(last[0]) if sign else number(last[0])


# Cases by hand: text, strict, flexible

CASES = [
    ("so\n#### 18", "18", "18"),
    ("####18", "18", "18"),
    ("#### 18.", "18", "18"),
    ("#### $1,234.50", "1234.50", "1234.50"),
    ("#### -5", "-5", "-5"),
    ("#### 18.0", "18", "18"),
    ("#### 7\nand then\n#### 9", "7", "9"),
    ("He has 12 of 15.", None, "15"),
    ("#### <MUL_6_9_54>", None, None),
    ("#### 6*9", None, "9"),
    ("no number", None, None),
    ("", None, None),
    ("3 + 4 = 7, not 8\n####", None, "8"),
    ("#### 1,000,000", "1000000", "1000000"),
    ("it is 10-12", None, "12"),
]


def check_cases(read_strict, read_flexible):
    for text, first, last in CASES:
        assert read_strict(text) == (None if first is None else Decimal(first)), text
        assert read_flexible(text) == (None if last is None else Decimal(last)), text


def test_answers_by_hand():
    check_cases(extract_strict, extract_flexible)


def test_the_oracle_by_hand():
    check_cases(strict, flexible)


def golds():
    for name in ("train", "test"):
        for line in (DATA / "gsm8k" / f"{name}.jsonl").read_text().splitlines():
            yield json.loads(line)["answer"]


def check_golds(read_strict, read_flexible, is_correct):
    count = 0
    for solution in golds():
        gold = number(solution.split("####")[-1].strip())
        for read, own in ((read_strict, strict), (read_flexible, flexible)):
            assert read(solution) == own(solution) == gold, solution
        assert is_correct(solution, solution)
        assert is_correct(f"#### {gold}.00", solution)
        assert not is_correct(f"#### {gold + 1}", solution)
        assert not is_correct(f"The answer is {gold}", solution)
        count += 1
    assert count == 7473 + 1319


@pytest.mark.shared_data
@NEEDS_DATA
def test_every_gold_is_read_as_it_stands():
    check_golds(extract_strict, extract_flexible, is_correct)


def responses():
    lines = (DATA / "seed_study" / "responses.jsonl").read_text().splitlines()
    return [json.loads(line)["response"] for line in lines]


def disagreements(read, own):
    """Count (found, expected) where two readers differ, on all 300 responses."""
    return Counter((read(text), own(text)) for text in responses() if read(text) != own(text))


def check_responses(read_strict, read_flexible):
    assert sum(strict(text) is not None for text in responses()) > 60
    assert sum(flexible(text) is not None for text in responses()) > 290
    assert disagreements(read_flexible, flexible) == {}
    # One of 300 ends in `#### 10,400*.5`, an expression, which was read as 10,400.
    assert set(disagreements(read_strict, strict)) <= {(Decimal(10_400), None)}


@pytest.mark.shared_data
@NEEDS_DATA
def test_free_responses_are_read_alike_but_one():
    check_responses(extract_strict, extract_flexible)


def test_a_product_with_a_decimal_is_no_answer():
    text = "#### 10,400*.5 = <<10400*.5=10400>>10,400"
    assert strict(text) is None
    assert extract_strict(text) is None


# Planted faults


def after(marker_index, text):
    """The number after one of the `####`."""
    parts = text.split("####")[1:]
    return strict(f"####{parts[marker_index]}") if parts else None


FAULTS = {
    "the last ####": (lambda text: after(-1, text), flexible),
    "flexible as strict": (flexible, flexible),
    "strict as flexible": (strict, strict),
    "thousands cut off": (
        lambda text: strict(re.sub(r"(\d),(\d)", r"\1 \2", text)),
        flexible,
    ),
    "decimals cut off": (lambda text: strict(re.sub(r"\.\d+", "", text)), flexible),
    "sign lost": (lambda text: (lambda n: None if n is None else abs(n))(strict(text)), flexible),
    "product computed": (
        lambda text: strict(text.replace("<MUL_6_9_54>", "54").replace("6*9", "54")),
        flexible,
    ),
    "fact token's digits": (
        strict,
        lambda text: flexible(text.replace("<MUL_6_9_54>", "54")),
    ),
    "the first number": (
        strict,
        lambda text: (lambda m: number(m[0]) if m else None)(re.search(r"\d[\d,]*(\.\d+)?", text)),
    ),
    "dash as a sign": (strict, lambda text: flexible(text.replace("10-", "10 -- -"))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_reader_is_refused(fault):
    with pytest.raises(AssertionError):
        check_cases(*FAULTS[fault])


def text_equal(response, gold):
    """Compare as text, as lm-eval does: 18.00 is not 18."""
    return response.split("####")[-1].strip() == gold.split("####")[-1].strip()


EQUAL = {
    "as text": text_equal,
    "anywhere": lambda response, gold: flexible(response) == strict(gold),
    "None equals None": lambda response, gold: strict(response) in (strict(gold), None),
    "always right": lambda response, gold: True,
}


@pytest.mark.shared_data
@NEEDS_DATA
@pytest.mark.parametrize("fault", EQUAL)
def test_a_wrong_equality_is_refused(fault):
    with pytest.raises(AssertionError):
        check_golds(strict, flexible, EQUAL[fault])


@pytest.mark.shared_data
@NEEDS_DATA
@pytest.mark.parametrize("fault", ["the last ####", "flexible as strict", "the first number"])
def test_a_wrong_reader_of_responses_is_refused(fault):
    with pytest.raises(AssertionError):
        check_responses(*FAULTS[fault])
