"""Scores of continuations equal those of a plain forward pass over the whole text."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain_tokens.inference.log_probs import _groups, continuation_log_probs, next_token_mass
from tests.conftest import plant

IDS = st.lists(st.integers(0, 50_348), min_size=1, max_size=9)


@pytest.fixture
def model(tiny_model):
    return tiny_model.eval()


def plainly(model, prompt, continuation):
    """One forward pass without padding and cache."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *continuation]]), use_cache=False).logits[0]
    steps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return float(steps.gather(-1, torch.tensor(continuation)[:, None]).sum())


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(IDS, st.lists(IDS, min_size=1, max_size=4)), min_size=1, max_size=4))
def test_scores_are_those_of_a_plain_forward_pass(model, cases):
    prompts = [prompt for prompt, _ in cases]
    continuations = [group for _, group in cases]
    scores = continuation_log_probs(model, prompts, continuations)
    for prompt, group, values in zip(prompts, continuations, scores, strict=True):
        expected = [plainly(model, prompt, continuation) for continuation in group]
        assert values == pytest.approx(expected, abs=2e-4)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=9), st.integers(1, 40), st.booleans())
def test_texts_with_one_continuation_are_read_packed(model, cases, max_tokens, able):
    """G1 scores sixteen rationales a question; padded and masked they cost as much as sampling."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, "domain_tokens.inference.log_probs.PACKED_TOKENS", {"cpu": max_tokens})
        patch.setattr(type(model), "_supports_attention_backend", able)
        scores = continuation_log_probs(model, [p for p, _ in cases], [[c] for _, c in cases])
    expected = [[plainly(model, prompt, continuation)] for prompt, continuation in cases]
    assert scores == [pytest.approx(values, abs=2e-4) for values in expected]


def test_many_prompts_go_through_in_groups(model, monkeypatch):
    plant(monkeypatch, "domain_tokens.inference.log_probs.TOKENS", 250)
    groups = _groups([[1] * n for n in (3, 9, 2, 6)], [20, 30, 20, 20], max_tokens=250)
    assert groups == [[1], [3, 0], [2]]  # the longest is alone though it is too much
    prompts = [[i + 1] * (i % 5 + 1) for i in range(30)]
    continuations = [[[j, 50_256] for j in range(20)]] * 30
    scores = continuation_log_probs(model, prompts, continuations)
    assert [len(values) for values in scores] == [20] * 30
    alone = continuation_log_probs(model, prompts[7:8], continuations[7:8])
    assert scores[7] == pytest.approx(alone[0], abs=1e-4)


def test_the_whole_vocabulary_has_mass_one(model):
    assert next_token_mass(model, [[5, 6], [7]], range(50_349)) == pytest.approx([1, 1])
    (part,) = next_token_mass(model, [[5, 6]], [9])
    ((score,),) = continuation_log_probs(model, [[5, 6]], [[[9]]])
    assert part == pytest.approx(math.exp(score), rel=1e-4)
