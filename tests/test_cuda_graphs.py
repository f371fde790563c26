"""Decoding steps of fixed shapes, replayed: they write what steps of any shape write."""

import gc
import weakref
from weakref import WeakKeyDictionary

import pytest
import torch

from domain_tokens.inference import cuda_graphs
from domain_tokens.inference.cuda_graphs import CudaGraphRunner
from domain_tokens.inference.decoder import generate
from domain_tokens.inference.forward import PackedForward
from domain_tokens.inference.sampling import Sampling
from tests.conftest import plant, tiny_llama
from tests.test_packing import random_examples

PROMPTS = [e.input_ids.tolist() for e in random_examples(9, seed=3, low=3, high=20)]


class Again:
    """Stands in for CUDA graphs: the body runs again on the tensors that it was recorded with."""

    recorded = 0

    def __call__(self, body, *, keep):
        Again.recorded += 1
        body()  # on CUDA a first run prepares libraries
        return body


@pytest.fixture(params=["gpt2", "llama"])
def model(request, tiny_model):
    if request.param == "llama":
        return tiny_llama().eval()
    with torch.no_grad():  # EOS likely enough that rows end at different times
        tiny_model.transformer.wte.weight[50256] *= 2.5
    return tiny_model.eval()


@pytest.fixture
def capture(monkeypatch):
    def start():
        plant(monkeypatch, "domain_tokens.modeling.graph_recorder.GraphRecorder", Again)
        monkeypatch.setattr(PackedForward, "supports_cuda_graphs", property(lambda self: True))
        monkeypatch.setattr(cuda_graphs, "_KEPT", WeakKeyDictionary())
        Again.recorded = 0

    return start


@pytest.mark.parametrize("size", [1, 3, 9])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, seed=5)], ids=["greedy", "drawn"])
def test_replayed_steps_write_the_same(model, capture, size, sampling):
    def run():
        return generate(
            model, PROMPTS, eos_id=50256, max_new_tokens=40, batch_size=size, sampling=sampling
        )

    expected = run()
    capture()
    assert run() == expected
    assert 1 <= Again.recorded <= 3  # slots 9, 4 and 1
    once = Again.recorded
    assert run() == expected
    assert Again.recorded == once  # they are kept for the next call


def test_filling_after_the_last_position_is_harmless(model, capture):
    """A row at its last position is filled with tokens that GPT-2 has no position for."""
    context = model.config.max_position_embeddings
    prompts = [[(7 * i) % 11 + 100 for i in range(context - 6)], [5, 6, 7]]

    def run():
        return generate(model, prompts, eos_id=-1, max_new_tokens=30, batch_size=2)

    expected = run()
    capture()
    assert run() == expected
    assert [r.stop_reason for r in expected] == ["context", "length"]


def test_graphs_are_kept_with_the_model_and_no_longer(model, capture):
    capture()
    sizes = {"slots": 2, "capacity": 20, "context": 256}
    first = cuda_graphs.runner_of(model, **sizes)
    assert first.capacity == 256
    assert cuda_graphs.runner_of(model, slots=1, capacity=256, context=256) is first
    for more in ({"slots": 3}, {"capacity": 257}, {"context": 255}):
        before = cuda_graphs.runner_of(model, **sizes)
        assert cuda_graphs.runner_of(model, **(sizes | more)) is not before
    last = cuda_graphs.runner_of(model, **sizes)
    with torch.no_grad():  # weights that lie elsewhere: a replay would read the old ones
        weight = model.get_output_embeddings().weight
        weight.data = weight.data.clone()
    assert cuda_graphs.runner_of(model, **sizes) is not last


def test_a_model_is_not_kept_alive_by_its_graphs(capture, monkeypatch):
    """What a graph is made of holds no Python object, and what is kept with it may hold none."""
    capture()
    monkeypatch.setattr(Again, "__call__", lambda self, body, *, keep: lambda: None)
    model = tiny_llama().eval()
    generate(model, PROMPTS, eos_id=50256, max_new_tokens=4, batch_size=2)
    assert len(cuda_graphs._KEPT) == 1
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None
    assert not cuda_graphs._KEPT


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_write_the_same(model, monkeypatch):
    model = model.cuda()
    steps = []
    call = CudaGraphRunner.__call__
    monkeypatch.setattr(
        CudaGraphRunner, "__call__", lambda self, *args: steps.append(1) or call(self, *args)
    )

    def run():
        return generate(model, PROMPTS, eos_id=50256, max_new_tokens=40, batch_size=4)

    graphed = run()
    assert steps
    monkeypatch.setattr(PackedForward, "supports_cuda_graphs", property(lambda self: False))
    assert run() == graphed
