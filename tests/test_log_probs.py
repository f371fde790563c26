"""Scores of continuations equal those of a plain forward pass over the whole text."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain_tokens.inference.log_probs import _groups, continuation_log_probs
from domain_tokens.inference.prefix_tree import PrefixTree, prefix_tree
from tests.conftest import plant

IDS = st.lists(st.integers(0, 50_348), min_size=1, max_size=9)
FEW = st.lists(st.integers(5, 7), min_size=1, max_size=4)  # which often begin alike


@pytest.fixture
def model(tiny_model):
    return tiny_model.eval()


def plainly(model, prompt, continuation):
    """One forward pass without padding and cache."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *continuation]]), use_cache=False).logits[0]
    steps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return float(steps.gather(-1, torch.tensor(continuation)[:, None]).sum())


PATIENT = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@PATIENT
@given(
    st.lists(st.tuples(IDS, st.lists(IDS | FEW, min_size=1, max_size=6)), min_size=1, max_size=4),
    st.integers(0, 4),
    st.integers(1, 60),
    st.integers(1, 5),
)
def test_scores_are_those_of_a_plain_forward_pass(model, cases, given, max_tokens, logit_rows):
    """A1 read every prompt four times and each of 126 answers with a copy of it: 3.5 minutes."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, "domain_tokens.inference.log_probs.PACKED_TOKENS", {"cpu": max_tokens})
        plant(patch, "domain_tokens.inference.log_probs.LOGIT_ROWS", logit_rows)
        check(model, cases, given)


def check(model, cases, given):
    """Compare scores of what follows the first ids with plain ones; given: how many ids at most."""
    prompts = [prompt for prompt, _ in cases]
    continuations = [group for _, group in cases]
    counts = [[min(given, len(c) - 1) for c in group] for group in continuations]
    scores = continuation_log_probs(model, prompts, continuations, counts)
    if given == 0:
        assert scores == continuation_log_probs(model, prompts, continuations)
    for (prompt, group), known, values in zip(cases, counts, scores, strict=True):
        expected = [
            plainly(model, [*prompt, *c[:n]], c[n:]) for c, n in zip(group, known, strict=True)
        ]
        assert values == pytest.approx(expected, abs=2e-4)


@PATIENT
@given(FEW, st.lists(FEW, min_size=1, max_size=8))
def test_a_tree_holds_every_beginning_once(prompt, continuations):
    tree = prefix_tree(prompt, continuations, [0] * len(continuations))
    sequences = []
    for token, seen in enumerate(tree.visible().tolist()):
        before = [at for at, is_seen in enumerate(seen) if is_seen]
        assert before[-1] == token
        assert tree.positions[token] == len(before) - 1
        sequences.append(tuple(tree.ids[at] for at in before))
    beginnings = {(*prompt, *c[:n]) for c in continuations for n in range(1, len(c))}
    assert sorted(sequences[len(prompt) :]) == sorted(beginnings)
    for path, continuation in zip(tree.paths, continuations, strict=True):
        assert [i for _, i in path] == continuation
        texts = [sequences[at] for at, _ in path]
        assert texts == [(*prompt, *continuation[:n]) for n in range(len(continuation))]
    longest = max(beginnings, key=len, default=())
    assert tree.is_chain == all(b == longest[: len(b)] for b in beginnings)


FAULTS = {
    "sees what it does not follow": lambda tree: (
        torch.ones(len(tree.ids), len(tree.ids)).bool().tril()
    ),
    "sees itself alone": lambda tree: torch.eye(len(tree.ids), dtype=torch.bool),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tree_that_sees_wrongly_is_noticed(model, monkeypatch, fault):
    prompt, group = [3, 4, 5], [[5, 6, 7], [5, 7, 7], [6, 7]]
    expected = [plainly(model, prompt, continuation) for continuation in group]
    assert continuation_log_probs(model, [prompt], [group]) == [pytest.approx(expected, abs=2e-4)]
    monkeypatch.setattr(PrefixTree, "visible", FAULTS[fault])
    assert continuation_log_probs(model, [prompt], [group]) != [pytest.approx(expected, abs=2e-4)]


@PATIENT
@given(
    st.lists(st.tuples(IDS, st.lists(IDS, min_size=1, max_size=3)), min_size=1, max_size=9),
    st.integers(0, 2),
)
def test_an_architecture_that_reads_no_packed_tokens_scores_the_same(model, cases, given):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "_supports_attention_backend", False)
        check(model, cases, given)


def test_many_prompts_go_through_in_groups(model, monkeypatch):
    groups = _groups([[1] * n for n in (3, 9, 2, 6)], [20, 30, 20, 20], max_tokens=250)
    assert groups == [[1], [3, 0], [2]]  # the longest is alone though it is too much
    plant(monkeypatch, "domain_tokens.inference.log_probs.PACKED_TOKENS", {"cpu": 250})
    prompts = [[i + 1] * (i % 5 + 1) for i in range(30)]
    continuations = [[[j, 50_256] for j in range(20)]] * 30
    scores = continuation_log_probs(model, prompts, continuations)
    assert [len(values) for values in scores] == [20] * 30
    alone = continuation_log_probs(model, prompts[7:8], continuations[7:8])
    assert scores[7] == pytest.approx(alone[0], abs=1e-4)
