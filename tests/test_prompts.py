"""Rendering: one format for training and evaluation, EOS supervised, content forges nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain_tokens.prompts import END, MATCH, PROMPT, TEXT, Renderer

GSM8K = Path(__file__).parents[1].parent / "shared" / "data" / "gsm8k"
CHAT = [
    ("system", "Be brief."),
    ("user", " Hi! "),
    ("assistant", "Hello. "),
    ("user", "6*9?"),
    ("assistant", "6*9=54."),
]
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def plain(tokenizer):
    return Renderer(tokenizer)


@pytest.fixture(scope="module")
def injecting(tokenizer):
    return Renderer(tokenizer, inject=True)


def test_the_format_word_for_word(tokenizer, plain):
    example = plain.example("1", CHAT, max_length=200)
    assert tokenizer.decode(example.input_ids) == (
        "System: Be brief.\nUser: Hi!\nAssistant: Hello.<|endoftext|>\n"
        "User: 6*9?\nAssistant: 6*9=54.<|endoftext|>"
    )


def test_only_assistant_tokens_and_their_eos_are_supervised(tokenizer, plain):
    example = plain.example("1", CHAT, max_length=200)
    supervised = tokenizer.decode(example.input_ids[example.kinds != PROMPT])
    assert supervised == " Hello.<|endoftext|> 6*9=54.<|endoftext|>"


def test_every_token_is_supervised_with_loss_on_all(tokenizer):
    example = Renderer(tokenizer, loss_on="all").example("1", CHAT, max_length=200)
    assert example.supervised == len(example.input_ids)


def test_eos_is_supervised_although_it_is_also_the_pad_token(tokenizer, plain):
    """The study's own bug: pad == eos and labels masked by pad id, so no model ever stopped."""
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    example = plain.example("1", CHAT, max_length=200)
    ends = example.input_ids == tokenizer.eos_token_id
    assert ends.sum() == 2
    assert (example.kinds[ends] == END).all()


@given(question=words, answer=words)
def test_a_training_prefix_equals_the_evaluation_prompt(plain, injecting, question, answer):
    for renderer in (plain, injecting):
        example = renderer.example(
            "1", [("user", question), ("assistant", answer)], max_length=1000
        )
        if isinstance(example, str):
            assert example == "empty_turn"
            continue
        prompt = renderer.prompt([("user", question)])
        assert example.input_ids[: len(prompt)].tolist() == prompt
        assert (example.kinds[: len(prompt)] == PROMPT).all()
        assert (example.kinds[len(prompt) :] != PROMPT).all()
        assert example.kinds[-1] == END


@pytest.mark.parametrize("forgery", ["<|endoftext|>", "<MUL_6_9_54>", "<|padding_0|>"])
def test_typed_tokens_stay_ordinary_text(tokenizer, injecting, forgery):
    forged = tokenizer.convert_tokens_to_ids(forgery)
    example = injecting.example(
        "1", [("user", f"say {forgery}"), ("assistant", f"{forgery} is text")], max_length=200
    )
    ids = example.input_ids[:-1]
    assert forged not in ids
    assert forgery in tokenizer.decode(ids)
    assert example.facts == 0
    assert forged not in injecting.prompt([("user", forgery)])


def test_injection_touches_assistant_turns_only(tokenizer, injecting):
    example = injecting.example("1", CHAT, max_length=200)
    text = tokenizer.decode(example.input_ids)
    assert "User: 6*9?" in text
    assert "Assistant: <MUL_6_9_54>.<|endoftext|>" in text
    assert example.facts == 1
    assert (example.input_ids[example.kinds == MATCH] == 50342).all()


def test_bits_per_byte_leaves_out_matches_and_eos_in_both_arms(plain, injecting):
    chat = [("user", "q"), ("assistant", "It is 6*9=54 é")]
    baseline = plain.example("1", chat, max_length=200)
    mul = injecting.example("1", chat, max_length=200)
    assert mul.text_bytes == len(" It is  é".encode())
    assert baseline.text_bytes == len(
        " It is é".encode()
    )  # the space before 6 is one token with it
    assert (baseline.kinds == MATCH).sum() > 1
    assert (baseline.kinds == TEXT).sum() <= (mul.kinds == TEXT).sum()


def test_a_long_conversation_keeps_whole_leading_exchanges(tokenizer, plain):
    whole = plain.example("1", CHAT, max_length=200)
    size = len(whole.input_ids)
    assert not plain.example("1", CHAT, max_length=size).truncated
    cut = plain.example("1", CHAT, max_length=size - 1)
    assert cut.truncated
    assert cut.input_ids[-1] == tokenizer.eos_token_id
    assert cut.input_ids.tolist() == whole.input_ids[: len(cut.input_ids)].tolist()
    assert plain.example("1", CHAT, max_length=5) == "first_exchange_too_long"


def test_both_arms_cut_and_drop_alike(plain, injecting):
    """Fact tokens shorten a text: cut apart, the arms would train on other examples."""
    for limit in range(4, 60):
        a = plain.example("1", CHAT, max_length=limit)
        b = injecting.example("1", CHAT, max_length=limit)
        assert isinstance(a, str) == isinstance(b, str)
        if not isinstance(a, str) and not isinstance(b, str):
            assert a.truncated == b.truncated
            assert len(a.input_ids) <= limit
            assert len(b.input_ids) <= limit


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([("user", "a"), ("assistant", "  ")], "empty_turn"),
        ([("user", ""), ("assistant", "b")], "empty_turn"),
        ([("user", "a")], "no_assistant_turn"),
        ([], "no_assistant_turn"),
        ([("assistant", "a"), ("user", "b"), ("assistant", "c")], "irregular_turns"),
        ([("user", "a"), ("user", "b"), ("assistant", "c")], "irregular_turns"),
    ],
)
def test_what_cannot_be_rendered_is_dropped_with_a_reason(plain, messages, reason):
    assert plain.example("1", messages, max_length=100) == reason


def test_a_trailing_user_turn_is_cut(plain):
    whole = plain.example("1", CHAT, max_length=200)
    longer = plain.example("1", [*CHAT, ("user", "and?")], max_length=200)
    assert np.array_equal(whole.input_ids, longer.input_ids)


def test_a_prompt_ends_without_a_space_and_takes_a_forced_start(tokenizer, plain):
    assert tokenizer.decode(plain.prompt([("user", "Hi")])) == "User: Hi\nAssistant:"
    forced = plain.prompt([("user", "Hi")], forced_start=" The answer is")
    assert tokenizer.decode(forced) == "User: Hi\nAssistant: The answer is"


@pytest.mark.shared_data
@pytest.mark.skipif(not GSM8K.exists(), reason="real GSM8K is not beside the checkout")
def test_prefix_equals_prompt_for_every_gsm8k_row(tokenizer, plain, injecting):
    rows = [
        json.loads(line)
        for name in ("train", "test")
        for line in (GSM8K / f"{name}.jsonl").open(encoding="utf-8")
    ]
    assert len(rows) == 8792
    for row in rows:
        prompt = plain.prompt([("user", row["question"])])
        for renderer in (plain, injecting):
            example = renderer.example(
                "1", [("user", row["question"]), ("assistant", row["answer"])], max_length=1024
            )
            assert example.input_ids[: len(prompt)].tolist() == prompt
            assert example.kinds[len(prompt) - 1] == PROMPT
            assert example.kinds[len(prompt)] != PROMPT
            assert example.input_ids[-1] == tokenizer.eos_token_id
            assert example.kinds[-1] == END
