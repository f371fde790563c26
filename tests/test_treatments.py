"""Treatments: what is written, how it reads, that all else is equal, how halves are drawn."""

import copy
import dataclasses
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain_tokens.data import load_problems
from domain_tokens.data.examples import Conversation
from domain_tokens.errors import UserError
from domain_tokens.evaluation.checkpoint import LoadedCheckpoint
from domain_tokens.evaluation.fact_tokens import _read_rows, read_response, reserved_counts
from domain_tokens.injection import find_facts, inject
from domain_tokens.merges import choose_merges
from domain_tokens.prompts import PROMPT, Renderer
from domain_tokens.runs.config import SFTConfig, load_config
from domain_tokens.treatments import (
    FACT_TOKENS,
    GENERIC_ROW,
    NAMES,
    TREATMENT_VERSION,
    PlacedToken,
    Treatment,
    Written,
    count_occurrences,
    draw_half,
    record_of,
    refuse_other_treatment,
    treatment_from,
    treatment_of,
)
from domain_tokens.vocabulary import FACTS, gpt2_tokenizer, layout_of
from tests.conftest import call, load_script

GSM8K = Path(__file__).parents[1].parent / "shared" / "data" / "gsm8k"
MERGES = (("<MUL_1_1_1>", " the total number"), ("<MUL_6_9_54>", " so it is"))
F = "<MUL_6_9_54>"


def of(name, facts=frozenset(FACTS), merges=MERGES):
    treated = tuple((row, merge) for row, merge in merges if row in facts)
    return Treatment(name, frozenset(facts), treated if name == "matched_merges" else ())


@pytest.fixture(scope="module")
def plain(tokenizer):
    return Renderer(tokenizer)


def treating(plain, treatment):
    """The renderer of another arm; a new one reads the whole vocabulary again."""
    other = copy.copy(plain)
    other._responses = dataclasses.replace(plain._responses, treatment=treatment)
    return other


def written(treatment, text, key=""):
    """A text with the names of rows in it, from the rows that a treatment gives."""
    pieces, cursor = [], 0
    for row in treatment.write(text, find_facts(text), key=key).rows:
        pieces += [text[cursor : row.start], row.token]
        cursor = row.end
    return "".join([*pieces, text[cursor:]])


# What is written

TABLE = {  # the docstring of treatments.py, for 6*9=54 and for a bare 6*9
    "fact_token": (F, F),
    "unsupervised": ("6*9=54", "6*9"),
    "generic": (f"6*9={GENERIC_ROW}54", "6*9"),
    "operands": (f"{F}=54", F),
    "result": (f"6*9={F}", "6*9"),
    "appended": (f"6*9=54{F}", f"6*9{F}"),
    "matched_merges": ("6*9=54", "6*9"),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_the_docstring(name):
    assert written(of(name), "It is 6*9=54.") == f"It is {TABLE[name][0]}."
    assert written(of(name), "It is 6*9.") == f"It is {TABLE[name][1]}."
    assert set(TABLE) | {"mixed"} == set(NAMES)


def test_a_row_of_a_product_is_that_of_its_first_fact():
    assert written(of("result"), "3*4=12; 2*6=12") == "3*4=<MUL_2_6_12>; 2*6=<MUL_2_6_12>"
    assert len(of("result").meanings) == 36
    assert of("result", {"<MUL_3_4_12>"}).meanings == {"<MUL_2_6_12>": "12"}


def test_merges_are_written_as_whole_words_and_nowhere_else():
    text = "That's the total number, the total numbers; so it is 6*9=54, so it isn't"
    assert written(of("matched_merges"), text) == (
        f"That's<MUL_1_1_1>, the total numbers;{F} 6*9=54, so it isn't"
    )


texts = st.lists(
    st.sampled_from(
        [
            *("6*9", "6 × 9 = 54", "9*6=54", "6*9=54", "<<6*9=54>>54", "2*3=6", "3 * 4", "2*6=12"),
            *("8 x 8 = 64", "6*9=55", "12*3", " ", "  ", "é", "×", "\n", "so", " so it is", "1"),
            *(".", "😀", F, " the total number of", "<|endoftext|>", "`6*9`", "+", "x"),
        ]
    ),
    min_size=1,
    max_size=14,
).map("".join)
subsets = st.sets(st.sampled_from(FACTS)) | st.just(set(FACTS))


@settings(deadline=None, max_examples=200)
@given(text=texts)
def test_fact_token_is_what_the_injector_always_wrote(text):
    assert written(FACT_TOKENS, text) == inject(text)


@settings(deadline=None, max_examples=200)
@given(text=texts, facts=subsets, name=st.sampled_from(NAMES))
def test_only_treated_facts_are_touched(text, facts, name):
    treatment, matches = of(name, facts), find_facts(text)
    treated = [(m.start, m.end) for m in matches if m.token in facts]
    made = treatment.write(text, matches, key="p")
    for row in made.rows:
        inside = any(start <= row.start <= row.end <= end for start, end in treated)
        assert row.in_match == inside == (name != "matched_merges")
        assert row.token in treatment.meanings
    assert set(made.masked) == (set(treated) if name == "unsupervised" else set())
    if name in ("operands", "appended", "fact_token"):
        assert len(made.rows) == len(treated)


# Reading back


def as_spelled(treatment, text, key):
    """The original text with its matched spans spelled as each treatment's docstring says."""
    result, cursor = "", 0
    rows = {row.start for row in treatment.write(text, find_facts(text), key=key).rows}
    for match in find_facts(text):
        span = text[match.start : match.end]
        if treatment.name in ("fact_token", "mixed") and match.start in rows:
            span = f"{match.a}*{match.b}={match.product}"
        elif treatment.name == "operands" and match.start in rows:
            span = re.sub(r"^\d\s*\S\s*\d", f"{match.a}*{match.b}", span)
        result += text[cursor : match.start] + span
        cursor = match.end
    return result + text[cursor:]


@settings(deadline=None, max_examples=300)
@given(text=texts, facts=subsets, name=st.sampled_from(NAMES))
def test_what_was_written_reads_back(by_name, plain, text, facts, name):
    """By id: a typed <MUL_6_9_54> stays as it was typed."""
    treatment = of(name, facts)
    renderer = treating(plain, treatment)
    made = renderer.example("1", [("user", "q"), ("assistant", f"a{text}b")], max_length=10**4)
    assert responses_of(by_name, treatment, renderer, made) == [
        as_spelled(treatment, f" a{text}b", "1\n0")
    ]


def responses_of(subject, treatment, renderer, example):
    """The response of a rendered example, read back from its ids alone."""
    start = len(renderer.prompt([("user", "q")]))
    text, rows = _read_rows(subject, example.input_ids[start:-1].tolist())
    return [treatment.read_back(text, rows)]


@pytest.fixture(scope="module")
def by_name(tokenizer):
    """What reads rows by their names."""
    return subject_of(tokenizer, None)


def subject_of(tokenizer, treatment):
    return LoadedCheckpoint(Path(), None, tokenizer, layout_of(tokenizer), treatment=treatment)


@pytest.mark.shared_data
@pytest.mark.skipif(not GSM8K.exists(), reason="needs ../shared/data/gsm8k")
@pytest.mark.parametrize("name", NAMES)
def test_every_gsm8k_row_reads_back(by_name, plain, name):
    files = [GSM8K / f"{name}.jsonl" for name in ("train", "test")]
    lines = [line for file in files for line in file.read_text().splitlines()]
    answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) == 8792
    treatment = of(name)
    if name == "matched_merges":
        treatment = of(name, merges=chosen(plain, [f" {answer}" for answer in answers[:7473]]))
    renderer = treating(plain, treatment)
    treated = 0
    for number, answer in enumerate(answers):
        chat = [("user", "q"), ("assistant", answer)]
        made = renderer.example(str(number), chat, max_length=10**4)
        text = as_spelled(treatment, f" {answer.strip()}", f"{number}\n0")
        assert responses_of(by_name, treatment, renderer, made) == [text]
        treated += made.facts
    assert treated > 1000


@pytest.mark.parametrize("name", ["generic", "operands", "result", "appended", "matched_merges"])
def test_a_person_reads_the_text_and_not_the_rows(tokenizer, plain, name):
    renderer, subject = treating(plain, of(name)), subject_of(tokenizer, of(name))
    chat = [("user", "q"), ("assistant", "Now so it is <<6*9=54>>54.\n#### 54")]
    made = renderer.example("1", chat, max_length=10**4)
    ids = made.input_ids[len(renderer.prompt([("user", "q")])) : -1].tolist()
    text, spans = read_response(subject, ids)
    assert text == " Now so it is <<6*9=54>>54.\n#### 54"
    shown = {"operands": "6*9", "result": "54", "matched_merges": " so it is"}.get(name, "")
    assert [text[start:end] for start, end in spans] == [shown]
    six_nine = layout_of(tokenizer).first_fact_id + FACTS.index(F)
    counts = reserved_counts(subject, ids, {six_nine})
    assert counts["mul_tokens"] == counts["mul_tokens_valid"] == counts["reserved_tokens"] == 1
    assert counts["mul_tokens_correct"] == (name != "matched_merges")


@pytest.mark.parametrize("name", ["fact_token", "mixed", "unsupervised"])
def test_where_rows_are_facts_they_are_shown_by_name(tokenizer, name):
    ids = [*tokenizer.encode(" It is "), layout_of(tokenizer).first_fact_id + FACTS.index(F)]
    for treatment in (None, of(name)):
        text, spans = read_response(subject_of(tokenizer, treatment), ids)
        assert text == f" It is {F}"
        assert spans == [(7, 7 + len(F))]


def test_a_row_that_was_never_trained_gives_no_product():
    """Under another treatment the name of a row would do the arithmetic for the model."""
    treatment = of("operands", {F})
    assert treatment.read_back(f"#### {F} <MUL_2_3_6>") == "#### 6*9 <MUL_2_3>"


WRONG = {  # a text with rows by name, and whether each is right where it stands
    "operands": [(f"{F}=54", [True]), (f"{F}=55", [False]), (f"1{F}", [False])],
    "result": [(f"6*9={F}", [True]), ("6*9=<MUL_7_8_56>", [False]), (f"It is {F}", [False])],
    "generic": [
        (f"6*9={GENERIC_ROW}54", [True]),
        (f"6*9={GENERIC_ROW}55", [False]),
        (f"6*9={GENERIC_ROW * 2}54", [True, False]),
        (f"{GENERIC_ROW}6*9=54", [False]),
    ],
    "appended": [(f"6*9=54{F}", [True]), (f"7*8=56{F}", [False]), (f"6*9{F}=54", [False])],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_row_is_right_where_its_treatment_writes_it(name):
    for text, expected in WRONG[name]:
        assert of(name).right_rows(*of(name).read_rows(text)) == expected, text


# All else is equal


@settings(deadline=None, max_examples=150)
@given(text=texts, facts=subsets, size=st.integers(20, 90))
def test_all_arms_keep_the_same_exchanges_and_count_the_same_bytes(plain, text, facts, size):
    chat = [("user", "q"), ("assistant", f"a{text}b"), ("user", "and?"), ("assistant", text + "!")]
    arms = [plain, *(treating(plain, of(name, facts)) for name in NAMES)]
    made = [renderer.example("1", chat, max_length=size) for renderer in arms]
    if isinstance(made[0], str):
        assert set(map(str, made)) == {made[0]}
        return
    for example in made:
        assert len(example.input_ids) <= size
        for key in ("truncated", "text_bytes", "match_bytes"):
            assert getattr(example, key) == getattr(made[0], key)
    assert made[0].facts == made[0].untreated == 0


def test_a_place_that_does_not_fit_stays_text_and_is_counted(plain):
    appended = treating(plain, of("appended"))
    chat = [("user", "q"), ("assistant", "2*3=6, 6*9=54."), ("user", "?"), ("assistant", "7*8=56")]
    size = len(plain.example("1", chat, max_length=1000).input_ids)
    for room, treated in ((0, 0), (1, 1), (2, 2), (3, 3), (9, 3)):
        example = appended.example("1", chat, max_length=size + room)
        assert (example.facts, example.untreated) == (treated, 3 - treated)
        assert len(example.input_ids) == size + treated
        assert not example.truncated


def test_unsupervised_is_the_baseline_but_for_the_loss_of_the_span(tokenizer, plain):
    chat = [("user", "q"), ("assistant", "It is 6*9=54, or 2*3.")]
    treatment = of("unsupervised", {F})
    text = plain.example("1", chat, max_length=100)
    renderer = treating(plain, treatment)
    made = renderer.example("1", chat, max_length=100)
    assert made.input_ids.tolist() == text.input_ids.tolist()
    changed = made.token_roles != text.token_roles
    assert tokenizer.decode(made.input_ids[changed]) == " 6*9=54"
    assert set(made.token_roles[changed]) == {PROMPT}
    assert (made.facts, made.supervised) == (1, text.supervised - 5)
    measured = renderer.with_all_loss().example("1", chat, max_length=100)
    assert measured.token_roles.tolist() == text.token_roles.tolist()


@dataclasses.dataclass(frozen=True)
class Both(Treatment):
    """Masks the operands of a fact and writes a row for its result, or for all of it at its end."""

    after: bool = False

    def write(self, text, matches, *, key=""):
        name = "appended" if self.after else "result"
        rows = Treatment(name, self.facts).write(text, matches).rows
        ends = [m.end if self.after else text.index("=", m.start) for m in matches]
        return Written(rows, tuple((m.start, e) for m, e in zip(matches, ends, strict=True)))


@pytest.mark.parametrize("after", [False, True])
def test_rows_and_masked_spans_of_one_text_are_both_written(tokenizer, plain, after):
    """A treatment that gave both lost its rows without a word."""
    chat = [("user", "q"), ("assistant", "It is 6*9=54, 2*3=6.")]
    rows = treating(plain, of("appended" if after else "result")).example("1", chat, max_length=99)
    renderer = treating(plain, Both("result", after=after))
    made = renderer.example("1", chat, max_length=99)
    assert made.input_ids.tolist() == rows.input_ids.tolist()
    assert [f for f in FACTS if tokenizer.convert_tokens_to_ids(f) in made.input_ids] == (
        ["<MUL_2_3_6>", F] if after else ["<MUL_1_6_6>", F]
    )
    changed = made.token_roles != rows.token_roles
    assert set(made.token_roles[changed]) == {PROMPT}
    masked = " 6*9=54 2*3=6" if after else " 6*9 2*3"
    assert tokenizer.decode(made.input_ids[changed]) == masked
    assert (made.facts, made.untreated) == (4, 0)
    measured = renderer.with_all_loss().example("1", chat, max_length=99)
    assert measured.token_roles.tolist() == rows.token_roles.tolist()
    if after:  # what has no room stays text; its span is masked all the same
        short = renderer.example("1", chat, max_length=len(made.input_ids) - 1)
        assert (short.facts, short.untreated) == (3, 1)
        assert short.supervised == made.supervised - 1


def test_mixed_is_a_fair_coin_of_example_and_place():
    text = "2*3=6. " * 50
    treatment, count = of("mixed"), 0
    for key in range(40):
        rows = treatment.write(text, find_facts(text), key=str(key)).rows
        assert rows == treatment.write(text, find_facts(text), key=str(key)).rows
        count += len(rows)
    assert abs(count - 1000) < 5 * 500**0.5
    different = {treatment.write(text, find_facts(text), key=str(p)).rows for p in range(40)}
    assert len(different) == 40


def test_a_tokenizer_that_cannot_write_a_treatment_is_refused():
    with pytest.raises(UserError, match=r"no fact tokens, so that operands cannot be written"):
        Renderer(gpt2_tokenizer(), treatment=of("operands"))


# Half tables


def ranked(occurrences):
    return sorted(FACTS, key=lambda fact: (-occurrences.get(fact, 0), FACTS.index(fact)))


counts = st.dictionaries(st.sampled_from(FACTS), st.integers(0, 500))


@given(occurrences=counts, seed=st.integers(0, 2**32 - 1))
def test_a_half_and_its_complement_are_stratified(occurrences, seed):
    half_a, half_b = draw_half(occurrences, seed)
    assert half_a | half_b == set(FACTS)
    assert not half_a & half_b
    assert {len(half_a), len(half_b)} == {22, 23}
    order = ranked(occurrences)
    for first, second in zip(order[:44:2], order[1:44:2], strict=True):
        assert (first in half_a) != (second in half_a)
    shuffled = dict(sorted(occurrences.items(), reverse=True))
    assert draw_half(shuffled, seed) == (half_a, half_b)


def test_each_fact_is_as_often_in_one_half_as_in_the_other_and_pairs_are_independent():
    occurrences = {fact: 1000 - 7 * i for i, fact in enumerate(FACTS)}
    seeds = 2000
    inside = np.array(
        [
            [fact in half for fact in FACTS]
            for half in (draw_half(occurrences, s)[0] for s in range(seeds))
        ]
    )
    bound = 5 * 0.5 / seeds**0.5
    assert np.abs(inside.mean(0) - 0.5).max() < bound
    signs = 2.0 * inside[:, ::2] - 1  # the first of each pair, and the one without a partner
    products = [(signs[:, i] * signs[:, j]).mean() for i, j in combinations(range(23), 2)]
    assert np.abs(products).max() < 5 / seeds**0.5
    assert len({draw_half(occurrences, s) for s in range(50)}) == 50


def test_occurrences_of_something_else_are_refused():
    with pytest.raises(ValueError, match="wanted fact tokens"):
        draw_half({"<MUL_9_6_54>": 3}, 1)


def test_occurrences_are_those_of_the_injector():
    counts = count_occurrences(["6*9=54; 9 × 6", "2*3", "`2*3`"])
    assert {fact: n for fact, n in counts.items() if n} == {F: 2, "<MUL_2_3_6>": 1}
    assert list(counts) == list(FACTS)


# Merges


def chosen(renderer, rows):
    return choose_merges(rows, FACTS, length=lambda text: len(renderer.encode(text)))


@pytest.fixture(scope="module")
def stories():
    words = ["the total number of apples is", "she needs to buy", "he has", "in the end they are"]
    return [
        f" So {words[i % 4]} 2*3=6 and {words[i % 3]} left, {'6*9=54' if i % 5 == 0 else 'done'}."
        for i in range(60)
    ]


def test_merges_are_written_as_often_as_they_were_counted(plain, stories):
    merges = chosen(plain, stories)
    assert dict(merges).keys() == {"<MUL_2_3_6>", F}  # those that occur
    treatment = of("matched_merges", merges=merges)
    rows = Counter(r.token for text in stories for r in treatment.write(text, ()).rows)
    facts = {fact: n for fact, n in count_occurrences(stories).items() if n}
    for fact, merge in merges:
        assert rows[fact] == sum(text.count(merge) for text in stories)
        assert 0.5 <= rows[fact] / facts[fact] <= 2
    assert chosen(plain, stories) == merges
    assert len({merge for _, merge in merges}) == len(merges)


def test_no_text_gives_no_merges(plain):
    assert chosen(plain, ["6*9=54"]) == ()
    assert written(of("matched_merges", merges=()), " so it is") == " so it is"


# The run card


def a_record(name="operands", which="half_a"):
    occurrences = {fact: i for i, fact in enumerate(FACTS)}
    facts = dict(zip(("half_a", "half_b"), draw_half(occurrences, 7), strict=True)).get(
        which, FACTS
    )
    draw = None if which == "all" else (7, occurrences)
    return record_of(of(name, facts), treated_facts=which, draw=draw)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["all", "half_a", "half_b"])
def test_a_treatment_is_read_from_the_card_alone(name, which):
    record = a_record(name, which)
    again = treatment_from(json.loads(json.dumps(record)))
    facts = record["facts"]
    assert again == of(name, facts)
    assert len(facts) in ((45,) if which == "all" else (22, 23))
    assert again.meanings == record["meanings"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("facts", list(FACTS)),
        ("facts", []),
        ("treated_facts", "half_b"),
        ("treated_facts", "all"),
        ("meanings", {}),
        ("meanings", {F: "6*8"}),
        ("name", "result"),
        ("name", "magic"),
        ("version", "0"),
        ("draw", None),
        ("draw", {"seed": 8, "occurrences": {fact: i for i, fact in enumerate(FACTS)}}),
    ],
)
def test_a_changed_record_is_refused(key, value):
    with pytest.raises(ValueError, match="the run card"):
        treatment_from({**a_record(), key: value})


@pytest.mark.parametrize("recorded", [True, False])
def test_a_card_of_another_version_is_not_called_changed(recorded, monkeypatch):
    """It said "it was changed; train that checkpoint again" of every older checkpoint."""
    card = {"stage": "sft", "condition": "mul_tokens"}
    card |= {"treatment": a_record()} if recorded else {}  # one without was of the first version
    monkeypatch.setattr("domain_tokens.treatments.TREATMENT_VERSION", "7")
    words = rf"trained under version {TREATMENT_VERSION} of the treatments, .* code has 7; use"
    with pytest.raises(ValueError, match=words):
        treatment_of(card)


def test_older_cards_are_read_as_what_they_meant():
    card = {"stage": "sft", "condition": "mul_tokens"}
    assert treatment_of({**card, "inject": True}) == FACT_TOKENS
    assert treatment_of(card) == FACT_TOKENS
    assert treatment_of({**card, "inject": False}) is None
    assert treatment_of({**card, "condition": "baseline"}) is None
    assert treatment_of({**card, "stage": "base"}) is None
    assert treatment_of(None) is treatment_of({"stage": "gsm8k", "training": None}) is None
    told = {**card, "treatment": a_record()}
    assert treatment_of(told) == treatment_of({"stage": "gsm8k", "training": told})


def test_another_treatment_than_the_parents_is_refused_by_name():
    record = a_record()
    asked = {"name": None, "treated_facts": None, "folder": "parent"}
    refuse_other_treatment(record, **asked)
    refuse_other_treatment(record, **{**asked, "name": "operands", "treated_facts": "half_a"})
    with pytest.raises(UserError, match=r"data\.treatment is result, and parent .* operands"):
        refuse_other_treatment(record, **{**asked, "name": "result"})
    with pytest.raises(UserError, match=r"data\.treated_facts is all, and parent .* half_a"):
        refuse_other_treatment(record, **{**asked, "treated_facts": "all"})


def test_rows_without_places_are_found_by_name():
    treatment = of("operands")
    assert treatment.read_back(f"{F}=54") == "6*9=54"
    assert treatment.read_rows(f"so {F}=54") == ("so 6*9=54", [PlacedToken(3, 6, F)])


def test_the_audit_counts_what_an_epoch_reads_and_learns(tokenizer):
    audit = load_script("scripts/audit_injection.py")
    chat = (("user", "q"), ("assistant", "It is 6*9=54; so 2*3."))
    rows = [Conversation(str(number), chat, "x") for number in range(3)]
    counted = audit.count_tokens(rows, tokenizer, NAMES, "products")
    plain = counted["baseline"]
    change = {
        name: (
            counts["tokens"] - plain["tokens"],
            counts["supervised_tokens"] - plain["supervised_tokens"],
            counts["places"],
        )
        for name, counts in counted.items()
        if name not in ("mixed", "matched_merges")
    }
    # ` 6*9=54` has five tokens and ` 2*3` three; a token in their place leaves the space alone.
    assert change == {
        "baseline": (0, 0, 0),
        "fact_token": (-12, -12, 6),
        "unsupervised": (0, -24, 6),
        "generic": (3, 3, 3),
        "operands": (-6, -6, 6),
        "result": (0, 0, 3),
        "appended": (6, 6, 6),
    }


def test_the_audit_writes_the_rows_that_a_token_can_touch(tmp_path, capsys):
    """Four in five rows of GSM8K hold no fact of the table: a short study trains on the fifth."""
    rows = [
        {"question": "q1", "answer": "It is 6*9=<<6*9=54>>54.\n#### 54"},
        {"question": "q2", "answer": "It is 6+9=<<6+9=15>>15.\n#### 15"},
        {"question": "q3", "answer": "Say 3*4 twice: <<2+2=4>>\n#### 4", "id": "mine"},
    ]
    source, kept = tmp_path / "rows.jsonl", tmp_path / "kept" / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--source", source, "--kind", "problems", "--touched-path"]
    assert call("scripts/audit_injection.py", *words, kept) == 0
    options = {"split": "train", "limit": None, "subset_seed": 42}
    before = load_problems(str(source), **options).items
    touched = [problem for problem in before if problem.question != "q2"]
    assert load_problems(str(kept), **options).items == touched  # ids, too
    assert call("scripts/audit_injection.py", *words, kept) == 2
    assert "is there already" in capsys.readouterr().err
    equations = tmp_path / "equations.jsonl"
    assert call("scripts/audit_injection.py", *words, equations, "--rationale", "equations") == 0
    (row,) = load_problems(str(equations), **options).items
    ids = {problem.question: problem.id for problem in before}
    assert (row.id, row.answer) == (ids["q1"], "<<6*9=54>>\n#### 54")

    chat = {
        "messages": [{"role": "user", "content": "6*9?"}, {"role": "assistant", "content": "x"}]
    }
    source.write_text(json.dumps(chat) + "\n")
    words = ["--source", source, "--kind", "conversations", "--touched-path", tmp_path / "none"]
    assert call("scripts/audit_injection.py", *words) == 0
    assert (tmp_path / "none").read_text() == ""  # only what an assistant says is treated
    assert call("scripts/audit_injection.py", *words[:-2], "--rationale", "equations") == 2


def test_finished_runs_know_nothing_of_keys_at_their_default():
    path = "sft/configs/gsm8k.yaml"
    plain = load_config(SFTConfig, path, []).identity()
    assert not plain["data"].keys() & {"treatment", "treated_facts"}
    half = load_config(SFTConfig, path, ["data.treated_facts=half_b"]).identity()
    assert half["data"].pop("treated_facts") == "half_b"
    assert half == plain
    for wrong in ("treatment=magic", "treated_facts=half"):
        with pytest.raises(UserError, match=wrong.partition("=")[0]):
            load_config(SFTConfig, path, [f"data.{wrong}"])
