"""The most likely token without all logits: the one that all logits name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domain_tokens.inference.cpu.int8_argmax import (
    HIDDEN_MAX,
    WEIGHT_MAX,
    Int8Argmax,
    _packed,
    _rounded,
    int8_available,
)
from domain_tokens.inference.cpu.packed_weights import _Output, most_likely, prepacked
from tests.conftest import tiny_llama

pytestmark = pytest.mark.skipif(not int8_available(), reason="torch without FBGEMM")


def assert_largest(hidden, weight):
    """The exact logit of a chosen token is the largest, but for what fp32 cannot tell apart."""
    logits = hidden.double() @ weight.double().t()
    tokens = Int8Argmax(weight)(hidden)
    short = logits.amax(1) - logits.gather(1, tokens[:, None])[:, 0]
    scale = hidden.double().norm(dim=1) * weight.double().norm(dim=1).max()
    assert (short <= 1e-6 * scale).all()
    return tokens


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    tokens=st.sampled_from([1, 2, 31, 1024, 1025, 5000]),
    width=st.sampled_from([1, 3, 64, 100]),
    spread=st.sampled_from([0.0, 0.01, 1.0]),
    outlier=st.sampled_from([1.0, 300.0]),
    seed=st.integers(0, 99),
)
def test_what_is_chosen_is_the_largest(rows, tokens, width, spread, outlier, seed):
    """Also where all tokens are nearly alike, and where one component is much the largest."""
    noise = torch.Generator().manual_seed(seed)
    one = torch.randn(width, generator=noise)
    weight = one + spread * torch.randn(tokens, width, generator=noise)
    hidden = torch.randn(rows, width, generator=noise)
    hidden[:, 0] *= outlier
    assert_largest(hidden, weight)


def test_whole_numbers_alone_would_name_other_tokens():
    """Rows that differ by less than a step of the integers: many must be looked at exactly."""
    noise = torch.Generator().manual_seed(0)
    weight = torch.randn(64, generator=noise) + 1e-3 * torch.randn(3000, 64, generator=noise)
    hidden = torch.randn(40, 64, generator=noise)
    argmax = Int8Argmax(weight)
    rounded, _ = _rounded(hidden @ argmax._rotation, HIDDEN_MAX)
    approximate = argmax._approximate_logits(rounded)
    tokens = assert_largest(hidden, weight)
    assert (approximate.argmax(1) != tokens).float().mean() > 0.5


def test_of_equal_logits_the_first_token_is_named():
    """As torch's argmax does it: tokens added to a vocabulary begin as copies of one mean."""
    weight = torch.randn(2000, 48, generator=torch.Generator().manual_seed(2))
    weight[[70, 1500, 1999]] = weight[1200] * 3
    hidden = weight[1200].repeat(3, 1)
    hidden[2] = 0
    assert Int8Argmax(weight)(hidden).tolist() == [70, 70, 0]


def test_extreme_integers_do_not_overflow():
    """FBGEMM adds products in pairs of 16 bits on AVX2: two of 127 times 255 would saturate."""
    weight = torch.ones(3, 512)
    weight[1] = -1
    weight[2] = 0.999
    hidden = torch.ones(2, 512)
    hidden[1] = -1
    argmax = Int8Argmax(weight)
    argmax._rotation = torch.eye(512)
    whole = weight.sign().mul(WEIGHT_MAX).to(torch.int8)
    argmax._packed = _packed(whole, torch.ones(3))
    approximate = argmax._approximate_logits(hidden * HIDDEN_MAX)
    largest = 512 * HIDDEN_MAX * WEIGHT_MAX
    assert approximate.tolist() == [[largest, -largest, largest], [-largest, largest, -largest]]


@pytest.mark.parametrize("which", ["gpt2", "llama"])
def test_a_model_that_only_writes_greedily_has_no_packed_output_layer(which, tiny_model):
    """The largest weight of a small model, 0.1 of its 0.6 GB, was packed next to the embedding."""
    model = tiny_model.eval() if which == "gpt2" else tiny_llama().eval()
    output = model.get_output_embeddings()
    hidden = torch.randn(5, output.in_features, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = output(hidden)
        with prepacked(model):
            layer = vars(output)["forward"]
            assert isinstance(layer, _Output)
            assert most_likely(output, hidden).tolist() == expected.argmax(1).tolist()
            assert layer._packed is None
            torch.testing.assert_close(output(hidden), expected, atol=1e-5, rtol=1e-5)
            assert layer._packed is not None
        assert "forward" not in vars(output)
        assert most_likely(output, hidden).tolist() == expected.argmax(1).tolist()
        assert torch.equal(output(hidden), expected)


def test_integers_are_made_again_after_training(tiny_model):
    """Validation decodes with weights that the next steps change."""
    output = tiny_model.eval().get_output_embeddings()
    hidden = torch.randn(5, output.in_features, generator=torch.Generator().manual_seed(3))
    for _ in range(2):
        with torch.inference_mode(), prepacked(tiny_model):
            tokens = most_likely(output, hidden)
        assert tokens.tolist() == (hidden @ output.weight.t()).argmax(1).tolist()
        with torch.no_grad():
            output.weight.copy_(output.weight.flip(0))
