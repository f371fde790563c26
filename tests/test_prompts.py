"""Rendering: one format for training and evaluation, EOS supervised, content forges nothing."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from domain_tokens.injection import find_facts
from domain_tokens.prompts import END, FACT, PROMPT, TEXT, Renderer, plain_encoder
from domain_tokens.treatments import FACT_TOKENS
from domain_tokens.vocabulary import FACTS, extend_tokenizer

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
    return Renderer(tokenizer, treatment=FACT_TOKENS)


def test_the_format_word_for_word(tokenizer, plain):
    example = plain.example("1", CHAT, max_length=200)
    assert tokenizer.decode(example.input_ids) == (
        "System: Be brief.\nUser: Hi!\nAssistant: Hello.<|endoftext|>\n"
        "User: 6*9?\nAssistant: 6*9=54.<|endoftext|>"
    )


def test_only_assistant_tokens_and_their_eos_are_supervised(tokenizer, plain):
    example = plain.example("1", CHAT, max_length=200)
    supervised = tokenizer.decode(example.input_ids[example.token_roles != PROMPT])
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
    assert (example.token_roles[ends] == END).all()


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
        assert (example.token_roles[: len(prompt)] == PROMPT).all()
        assert (example.token_roles[len(prompt) :] != PROMPT).all()
        assert example.token_roles[-1] == END


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
    assert tokenizer.decode(example.input_ids[example.token_roles == FACT]) == " <MUL_6_9_54>"


# --- which bytes the bits per byte are of ---------------------------------------------------------


def _wrapped(model, trainer, *, pre_tokenizer=None, normalizer=None, decoder):
    """Train a small tokenizer and give it padding and fact tokens as make_base does."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(model)
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoder
    corpus = [
        f"User: It is {a}*{b}={a * b}, or  {a} × {b} = {a * b}. Assistant: ok"
        for a in range(1, 10)
        for b in range(1, 10)
    ]
    tokenizer.train_from_iterator(corpus, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    extend_tokenizer(wrapped)
    return wrapped


@pytest.fixture(scope="module", params=["gpt2", "whole lines", "byte fallback"])
def any_tokenizer(request, tokenizer):
    """GPT-2's; one whose tokens run over spaces and digits; one with SentencePiece's spaces."""
    if request.param == "gpt2":
        return tokenizer
    if request.param == "whole lines":
        return _wrapped(
            models.BPE(),
            trainers.BpeTrainer(
                vocab_size=600,
                special_tokens=["<end>"],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            ),
            pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            decoder=decoders.ByteLevel(),
        )
    octets = [f"<0x{i:02X}>" for i in range(256)]
    return _wrapped(
        models.BPE(byte_fallback=True),
        trainers.BpeTrainer(vocab_size=600, special_tokens=["<end>", *octets]),
        normalizer=normalizers.Replace(" ", "▁"),
        decoder=decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        ),
    )


def _width(tokenizer, token):
    """Bytes that a token stands for, read off its name and not off anybody's offsets."""
    if (
        tokenizer.convert_tokens_to_ids("Ġ") is not None
    ):  # byte level: a character for each of the 256 bytes
        return len(token)
    return 1 if token.startswith("<0x") else len(token.replace("▁", " ").encode())


def _bytes_under(tokenizer, example, text, prompt_length):
    """The byte positions of a response under TEXT and under FACT tokens; facts by their spans."""
    facts = iter(find_facts(text))
    at, under = 0, {TEXT: set(), FACT: set()}
    ids, kinds = example.input_ids[prompt_length:-1], example.token_roles[prompt_length:-1]
    for token, kind in zip(tokenizer.convert_ids_to_tokens(ids.tolist()), kinds, strict=True):
        if token in FACTS:
            fact = next(facts)
            width = len(text[fact.start : fact.end].encode())
        else:
            width = _width(tokenizer, token)
        under[int(kind)] |= set(range(at, at + width))
        at += width
    assert at == len(text.encode())
    return under


pieces = st.lists(
    st.sampled_from(
        ["6*9", "6 × 9 = 54", "6*9=54", " ", "  ", "é", "×", "\n", "so", "1", ".", "😀"]
    ),
    min_size=1,
    max_size=12,
).map(lambda parts: f"a{''.join(parts)}b")


@pytest.fixture(scope="module")
def both_arms(any_tokenizer):
    return [
        Renderer(any_tokenizer, treatment=FACT_TOKENS if inject else None)
        for inject in (False, True)
    ]


@settings(deadline=None, max_examples=300)
@given(text=st.one_of(pieces, words.map(lambda t: f"a{t}b")))
@example(text="It is 6*9=54 é")
def test_both_arms_are_measured_on_the_same_bytes(any_tokenizer, both_arms, text):
    """In ` 6*9` the plain arm's token ` 6` holds the space, which the other arm has apart.

    The space was left out of one arm's bits per byte and stood in the other's.
    """
    response = f" {text}"
    under = []
    for renderer in both_arms:
        start = len(renderer.prompt([("user", "q")]))
        made = renderer.example("1", [("user", "q"), ("assistant", text)], max_length=10**4)
        under.append(_bytes_under(any_tokenizer, made, response, start))
        assert made.text_bytes == len(under[-1][TEXT])
        assert made.match_bytes == len(under[-1][FACT])
        assert made.text_bytes + made.match_bytes == len(response.encode())
    assert under[0] == under[1]
    matched = {
        i
        for f in find_facts(response)
        for i in range(len(response[: f.start].encode()), len(response[: f.end].encode()))
    }
    assert matched <= under[0][FACT]


def test_the_same_bytes_in_gpt2s_tokens(plain, injecting):
    chat = [("user", "q"), ("assistant", "It is 6*9=54 é")]
    for renderer in (plain, injecting):
        made = renderer.example("1", chat, max_length=200)
        assert made.text_bytes == len(" It is é".encode())
        assert made.match_bytes == len(" 6*9=54")


def test_with_loss_on_all_the_prompts_bytes_count_too(tokenizer):
    """The prompt's nats were divided by the response's bytes; the first token has no loss."""
    made = Renderer(tokenizer, loss_on="all").example("1", CHAT, max_length=200)
    text = tokenizer.decode(made.input_ids, skip_special_tokens=True)
    first = tokenizer.decode(made.input_ids[:1])
    assert made.text_bytes + made.match_bytes == len(text.encode()) - len(first.encode())


def _slowly(encoder, tokenizer, text, inject):
    """Ids and the tokens that touch a match, by the definition: quadratic, and so once too slow."""
    matches = find_facts(text)
    encoded = encoder.encode(text, add_special_tokens=False)
    covered = [any(s < m.end and e > m.start for m in matches) for s, e in encoded.offsets]
    if not inject:
        return encoded.ids, covered
    ids, touched, cursor = [], [], 0
    for match in [*matches, None]:
        between = encoder.encode(text[cursor : match.start if match else len(text)]).ids
        ids += [*between, *([tokenizer.convert_tokens_to_ids(match.token)] if match else [])]
        touched += [False] * len(between) + [True] * bool(match)
        cursor = match.end if match else len(text)
    return ids, touched


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return plain_encoder(tokenizer)


@settings(deadline=None)
@given(text=st.one_of(pieces, words.map(lambda t: f"a{t}b")), inject=st.booleans())
def test_a_response_is_rendered_as_the_slow_definition_says(
    tokenizer, plain, injecting, encoder, text, inject
):
    renderer = injecting if inject else plain
    start = len(renderer.prompt([("user", "q")]))
    made = renderer.example("1", [("user", "q"), ("assistant", text)], max_length=10**4)
    ids, touched = _slowly(encoder, tokenizer, f" {text}", inject)
    assert made.input_ids[start:-1].tolist() == ids
    assert made.facts == (len(find_facts(f" {text}")) if inject else 0)
    for kind, hit in zip(made.token_roles[start:-1], touched, strict=True):
        assert kind == FACT if hit else kind in (TEXT, FACT)


@pytest.mark.parametrize(
    "unit",
    ["6*9=54, ", "6*", "6*9 ", "`6*9` ", "~~~\n", "((( ", "5", "  ", "× 6*9\n", "<MUL_6_9_54>"],
)
def test_rendering_time_grows_linearly(plain, unit):
    """Each token was compared with every match: 86 kB took 21 s, 1 MB never ended."""

    def seconds(count):
        text = unit * count + "."
        begin = time.process_time()
        plain.example("1", [("user", "q"), ("assistant", text)], max_length=10**9)
        return time.process_time() - begin

    short = max(min(seconds(2_000) for _ in range(3)), 2e-3)
    assert any(seconds(20_000) < 40 * short for _ in range(3))


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


@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_an_empty_system_turn_is_none(plain, empty):
    """Chat formats write an empty system message for none; whole sources were dropped for it."""
    chat = CHAT[1:]
    expected = plain.example("1", chat, max_length=200)
    made = plain.example("1", [("system", empty), *chat], max_length=200)
    assert made.input_ids.tolist() == expected.input_ids.tolist()
    assert plain.prompt([("system", empty), ("user", "Hi")]) == plain.prompt([("user", "Hi")])
    assert plain.example("1", [("system", empty)], max_length=9) == "no_assistant_turn"


def test_a_trailing_user_turn_is_cut(plain):
    whole = plain.example("1", CHAT, max_length=200)
    longer = plain.example("1", [*CHAT, ("user", "and?")], max_length=200)
    assert np.array_equal(whole.input_ids, longer.input_ids)


def test_a_prompt_ends_without_a_space_and_takes_a_response_prefix(tokenizer, plain):
    assert tokenizer.decode(plain.prompt([("user", "Hi")])) == "User: Hi\nAssistant:"
    forced = plain.prompt([("user", "Hi")], response_prefix=" The answer is")
    assert tokenizer.decode(forced) == "User: Hi\nAssistant: The answer is"


@pytest.mark.shared_data
@pytest.mark.skipif(not GSM8K.exists(), reason="real GSM8K is not next to the checkout")
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
            assert example.token_roles[len(prompt) - 1] == PROMPT
            assert example.token_roles[len(prompt)] != PROMPT
            assert example.input_ids[-1] == tokenizer.eos_token_id
            assert example.token_roles[-1] == END
