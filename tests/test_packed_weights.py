"""Prepacked weights: the same logits, and a model that is afterwards what it was."""

import platform

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from domain_tokens.inference.cpu.packed_weights import _Layer, prepack_, prepacked
from tests.conftest import tiny_llama

pytestmark = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"}, reason="packs weights for x86 only"
)
IDS = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])


@pytest.fixture(params=["gpt2", "llama"])
def model(request, tiny_model):
    return tiny_model.eval() if request.param == "gpt2" else tiny_llama().eval()


def test_logits_are_the_same_and_weights_come_back_to_the_bit(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    with torch.inference_mode():
        expected = model(IDS).logits
        with prepacked(model), prepacked(model):  # the inner one finds nothing left to do
            away = [name for name, tensor in model.state_dict().items() if not tensor.numel()]
            packed = model(IDS).logits
    assert len(away) >= 8
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-5)
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    assert (embedding.weight is output.weight) == tied
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, expected)


def test_a_model_can_be_trained_after_it_has_decoded(model):
    """Tensors made in inference mode may not be saved for a backward pass, and weights put back
    inside a decoder would be such tensors."""
    with torch.inference_mode(), prepacked(model):
        model(IDS)
    model(input_ids=IDS).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_weights_come_back_after_an_error(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), prepacked(model):
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def test_a_model_that_was_packed_for_good_stays_packed(model):
    """Packing again for every call left 0.4 GB of holes in the memory of a decoder of 135M."""
    with torch.inference_mode():
        expected = model(IDS).logits
    prepack_(model)
    with prepacked(model):
        pass
    away = [name for name, tensor in model.state_dict().items() if not tensor.numel()]
    assert len(away) >= 8
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_other_architectures_compute_each_product_once(monkeypatch):
    """Packed as one weight, query, key and value were all three computed for each of the three by
    every forward pass that is not written out in `inference.forward`."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 100}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    model = MistralForCausalLM(MistralConfig(**sizes, **heads)).eval()
    widths = []
    product = _Layer.__call__

    def counted(self, x):
        output = product(self, x)
        widths.append(output.shape[-1])
        return output

    monkeypatch.setattr(_Layer, "__call__", counted)
    with torch.inference_mode():
        expected = model(IDS).logits
        with prepacked(model):
            packed = model(IDS).logits
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-5)
    assert sorted(widths) == [16, 16, 32, 32, 32, 64, 64, 100]
