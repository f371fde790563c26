"""Oracle of `prompts.Renderer`: a renderer written from design rules 1 to 3, on a BPE of our own.

Token ids and loss masks of training examples, and the ids of prompts, must be equal for real GSM8K
and chat rows and for conversations that hypothesis makes. Where facts stand is asked of
`injection.find_facts` (another oracle judges that); which ids then come out is said here.
"""

import itertools
import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain_tokens.injection import find_facts
from domain_tokens.prompts import Renderer
from domain_tokens.treatments import FACT_TOKENS

from .bpe import BPE, gpt2_files

DATA = Path(__file__).parents[3] / "shared" / "data"
EOS, FIRST_FACT = 50_256, 50_304
PAIRS = [(a, b) for a in range(1, 10) for b in range(a, 10)]  # a-major, a <= b
FACT_IDS = {f"<MUL_{a}_{b}_{a * b}>": FIRST_FACT + i for i, (a, b) in enumerate(PAIRS)}
LONG = 10**6

encode = BPE(*gpt2_files()).encode


# The rules


def turns(messages):
    """Strip, cut trailing user turns, split off a system turn; None for a dropped conversation."""
    stripped = [(role, content.strip()) for role, content in messages]
    while stripped and stripped[-1][0] == "user":
        stripped.pop()
    system = ""
    if stripped and stripped[0][0] == "system":
        system = stripped.pop(0)[1]
    if not stripped or any(not content for _, content in stripped):
        return None
    return system, list(zip(stripped[::2], stripped[1::2], strict=True))


def user_ids(system, user, *, first):
    before = (f"System: {system}\n" if system else "") if first else "\n"
    return encode(f"{before}User: {user}\nAssistant:")


def assistant_ids(text, inject):
    """Ids of a response; with facts, the text between spans is encoded on its own."""
    ids, at = [], 0
    for fact in find_facts(text) if inject else []:
        ids += [*encode(text[at : fact.start]), FACT_IDS[fact.token]]
        at = fact.end
    return ids + encode(text[at:])


def render(messages, *, inject=False, max_length=LONG):
    """Ids and mask (1: carries loss) of a conversation, or None where it is dropped."""
    parsed = turns(messages)
    if parsed is None:
        return None
    system, exchanges = parsed
    ids, mask, length = [], [], 0
    for number, ((_, user), (_, assistant)) in enumerate(exchanges):
        prompt = user_ids(system, user, first=number == 0)
        length += len(prompt) + len(assistant_ids(f" {assistant}", False)) + 1
        if length > max_length:  # decided on the uninjected text
            break
        response = [*assistant_ids(f" {assistant}", inject), EOS]
        ids += prompt + response
        mask += [0] * len(prompt) + [1] * len(response)
    return (ids, mask) if ids else None


def prompt_of(messages):
    """Ids up to `Assistant:` of messages that end with a user turn."""
    ids, _ = render([*messages, ("assistant", "x")])
    return ids[: -len([*encode(" x"), EOS])]


def check_example(renderer, messages, *, inject=False, max_length=LONG):
    expected = render(messages, inject=inject, max_length=max_length)
    example = renderer.example("1", messages, max_length=max_length)
    if expected is None:
        assert isinstance(example, str)
        return
    assert not isinstance(example, str), example
    assert example.input_ids.tolist() == expected[0]
    assert (np.asarray(example.token_roles) > 0).astype(int).tolist() == expected[1]


def check_prompt(renderer, messages, response_prefix=""):
    expected = [*prompt_of(messages), *encode(response_prefix)]
    assert renderer.prompt(messages, response_prefix=response_prefix) == expected


@pytest.fixture(scope="module")
def renderers(tokenizer):
    return {
        inject: Renderer(tokenizer, treatment=FACT_TOKENS if inject else None)
        for inject in (False, True)
    }


# Real rows


def rows(name, count, seed=0):
    lines = (DATA / name).read_text().splitlines()
    return [json.loads(line) for line in random.Random(seed).sample(lines, min(count, len(lines)))]


@pytest.mark.shared_data
@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("name", ["gsm8k/train.jsonl", "gsm8k/test.jsonl"])
@pytest.mark.parametrize("inject", [False, True])
def test_real_problems_are_rendered_by_the_rules(renderers, name, inject):
    for row in rows(name, 1500):
        question = [("user", row["question"])]
        messages = [*question, ("assistant", row["answer"])]
        check_example(renderers[inject], messages, inject=inject)
        prompt = renderers[inject].prompt(question)
        assert prompt == prompt_of(question)
        assert prompt == render(messages)[0][: len(prompt)]  # training prefix == prompt


@pytest.mark.shared_data
@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("inject", [False, True])
def test_real_conversations_are_rendered_by_the_rules(renderers, inject):
    lengths, kept = [], 0
    chat = [
        [(m["role"], m["content"]) for m in row["messages"]]
        for row in rows("chat/train.jsonl", 400)
    ]
    for first, second in itertools.pairwise(chat):
        messages = [*first, *second]  # two exchanges
        check_example(renderers[inject], messages, inject=inject)
        rendered = render(messages)
        lengths.append(len(rendered[0]) if rendered else 0)
    middle = sorted(lengths)[len(lengths) // 2]
    for first, second in itertools.pairwise(chat[:150]):
        check_example(renderers[False], [*first, *second], max_length=middle)
        kept += render([*first, *second], max_length=middle) is not None
    assert 0 < kept < 149  # some are dropped, some cut, some whole


# Conversations that hypothesis makes

# No control characters 1c-1f: Python's strip and `regex` take them for space, Unicode does not.
LETTERS = "abczA059 \n\t.,:;'\"*×=-+#<>_|$()\u00a0\u3000é漢字😀½²٣’–"
PHRASES = ["6*9", " 6 × 9 = 54", "<<3*4=12>>", "<|endoftext|>", "<MUL_6_9_54>", "it's", "User:"]
PHRASES += ["\nUser: ", "Assistant:", "#### 54", "2*2=5", "`7*8`", "  ", "<|padding_3|>", "I'LL"]
piece = st.one_of(st.sampled_from(PHRASES), st.text(LETTERS, max_size=8))
text = st.lists(piece, max_size=6).map("".join)
solid = text.filter(lambda t: t.strip())
exchange = st.tuples(st.tuples(st.just("user"), text), st.tuples(st.just("assistant"), solid))
conversation = st.tuples(
    st.lists(st.tuples(st.just("system"), solid), max_size=1),
    st.lists(exchange, min_size=1, max_size=4).map(lambda pairs: [t for p in pairs for t in p]),
    st.lists(st.tuples(st.just("user"), solid), max_size=1),
).map(lambda parts: [turn for part in parts for turn in part])


@settings(deadline=None, max_examples=250)
@given(conversation, st.booleans())
def test_made_conversations_are_rendered_by_the_rules(renderers, messages, inject):
    check_example(renderers[inject], messages, inject=inject)


@settings(deadline=None, max_examples=150)
@given(conversation, st.integers(5, 90))
def test_whole_leading_exchanges_are_kept(renderers, messages, max_length):
    check_example(renderers[False], messages, max_length=max_length)


@settings(deadline=None, max_examples=100)
@given(conversation, st.sampled_from(["", " The answer is", " 6*9", "<|endoftext|>"]))
def test_prompts_end_at_assistant(renderers, messages, start):
    while messages and messages[-1][0] != "user":
        messages = messages[:-1]
    if turns([*messages, ("assistant", "x")]):
        check_prompt(renderers[False], messages, start)


@pytest.mark.parametrize("system", ["", "  \n"])
def test_an_empty_system_turn_is_no_system_turn(renderers, system):
    check_example(renderers[False], [("system", system), ("user", "Hi"), ("assistant", "Ho")])


# Planted faults

TALK = [("system", " Be brief. "), ("user", "Hi  "), ("assistant", "6*9=54 <|endoftext|>")]
TALK += [("user", "<MUL_6_9_54> 7*8"), ("assistant", "\nSo 7 × 8 = 56.")]


class Changed:
    """A renderer whose results, or what it is given, are changed."""

    def __init__(self, renderer, *, ids=None, messages=None, prompt=None):
        self._renderer, self._ids = renderer, ids
        self._messages = messages or (lambda m: m)
        self._prompt = prompt or (lambda p: p)

    def example(self, id, messages, *, max_length):
        rendered = self._renderer.example(id, self._messages(messages), max_length=max_length)
        if isinstance(rendered, str) or self._ids is None:
            return rendered
        ids, roles = self._ids(list(rendered.input_ids), list(rendered.token_roles))
        return SimpleNamespace(input_ids=np.array(ids), token_roles=np.array(roles))

    def prompt(self, messages, *, response_prefix=""):
        return self._prompt(self._renderer.prompt(messages, response_prefix=response_prefix))


def masked(test):
    """Take the loss from the tokens for which the test of (id, kind, next id) holds."""

    def change(ids, roles):
        after = [*ids[1:], None]
        return ids, [0 if test(i, k, n) else k for i, k, n in zip(ids, roles, after, strict=True)]

    return change


def without(token):
    def change(ids, roles):
        kept = [(i, k) for i, k in zip(ids, roles, strict=True) if i != token]
        return [i for i, _ in kept], [k for _, k in kept]

    return change


EXAMPLES = {
    "EOS without loss": {"ids": masked(lambda i, k, n: i == EOS)},
    "no loss before EOS": {"ids": masked(lambda i, k, n: n == EOS)},
    "no EOS": {"ids": without(EOS)},
    "mask one to the left": {"ids": lambda ids, roles: (ids, [*roles[1:], 0])},
    "mask one to the right": {"ids": lambda ids, roles: (ids, [0, *roles[:-1]])},
    "everything has loss": {"ids": lambda ids, roles: (ids, [1] * len(ids))},
    "facts without loss": {"ids": masked(lambda i, k, n: i >= FIRST_FACT)},
    "another fact": {"ids": lambda ids, roles: ([i + (i >= FIRST_FACT) for i in ids], roles)},
    "second exchange lost": {"messages": lambda m: m[:3]},
    "system lost": {"messages": lambda m: m[1:]},
    "capital": {"messages": lambda m: [(r, c.replace("Hi", "hi")) for r, c in m]},
}


@pytest.mark.parametrize("fault", EXAMPLES)
def test_a_wrong_example_is_refused(renderers, fault):
    check_example(Changed(renderers[True]), TALK, inject=True)
    with pytest.raises(AssertionError):
        check_example(Changed(renderers[True], **EXAMPLES[fault]), TALK, inject=True)


def test_an_arm_taken_for_the_other_is_refused(renderers):
    for inject in (False, True):
        with pytest.raises(AssertionError):
            check_example(renderers[not inject], TALK, inject=inject)


def test_typed_tokens_that_become_tokens_are_refused(renderers, tokenizer):
    def typed(ids, roles):
        again = tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False)
        return again, (roles * 2)[: len(again)]

    with pytest.raises(AssertionError):
        check_example(Changed(renderers[True], ids=typed), TALK, inject=True)


PROMPTS = {
    "a space at the end": lambda ids: [*ids, 220],
    "no colon": lambda ids: ids[:-1],
    "EOS at the end": lambda ids: [*ids, EOS],
    "EOS first": lambda ids: [EOS, *ids],
    "EOS between lost": lambda ids: [i for i in ids if i != EOS],
}


@pytest.mark.parametrize("fault", PROMPTS)
def test_a_wrong_prompt_is_refused(renderers, fault):
    check_prompt(renderers[False], TALK[:4])
    with pytest.raises(AssertionError):
        check_prompt(Changed(renderers[False], prompt=PROMPTS[fault]), TALK[:4])
