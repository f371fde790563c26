"""What only a real GPU can show: values. `pytest -m gpu`; skipped where there is none."""

import copy

import pytest
import torch

from domain_tokens.inference.decoder import generate
from domain_tokens.inference.log_probs import continuation_log_probs
from domain_tokens.inference.noise import _uniforms, noise_keys, uniforms
from domain_tokens.inference.sampling import GREEDY, Sampling
from domain_tokens.modeling import packed_tokens, without_head
from domain_tokens.modeling.output_layer import fp32_product
from domain_tokens.training.loss import half_precision, summed_loss, to_device
from domain_tokens.training.step_graphs import StepGraphs, planned_shapes
from domain_tokens.training.step_plan import plan_steps
from domain_tokens.training.trainer import MicroBatches, train
from tests.conftest import tiny_llama
from tests.test_packing import random_examples
from tests.test_training import SETTINGS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EXAMPLES = random_examples(9, seed=3, low=3, high=20)
PROMPTS = [e.input_ids.tolist() for e in EXAMPLES]


@pytest.fixture(params=["gpt2", "llama"])
def model(request, tiny_model):
    return tiny_model.eval() if request.param == "gpt2" else tiny_llama().eval()


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, seed=5), Sampling(1.0, 50, 0.9)])
def test_both_devices_write_the_same_in_fp32(model, sampling):
    def run(size):
        words = {"eos_id": 50256, "max_new_tokens": 40, "batch_size": size, "sampling": sampling}
        return generate(model, PROMPTS, **words)

    expected = run(3)
    model.cuda()
    for size in (1, 4, 9):
        assert run(size) == expected


def test_graphs_and_steps_of_any_shape_write_the_same_in_bf16(model, monkeypatch):
    from domain_tokens.inference.forward import PackedForward

    model = model.cuda().bfloat16()
    words = {"eos_id": -1, "max_new_tokens": 40, "batch_size": 4}
    graphed = generate(model, PROMPTS, **words)
    again = generate(model, PROMPTS, **words)
    assert graphed == again
    monkeypatch.setattr(PackedForward, "supports_cuda_graphs", property(lambda self: False))
    slow = generate(model, PROMPTS, **words)
    assert sum(a == b for a, b in zip(graphed, slow, strict=True)) >= len(PROMPTS) - 2  # near ties


def test_noise_is_the_same_bits_on_both_devices():
    keys = noise_keys(torch.arange(5) * 7919, torch.arange(5))
    on_cpu = uniforms(keys, 50_349)
    assert torch.equal(_uniforms(keys.cuda(), 50_349).cpu(), on_cpu)


def test_scores_of_both_devices_agree(model):
    many = [[[5, 6, 7], [9]]] * len(PROMPTS)
    single = [[[5, 6, 7]]] * len(PROMPTS)
    expected = [continuation_log_probs(model, PROMPTS, which) for which in (many, single)]
    model.cuda()
    scored = [continuation_log_probs(model, PROMPTS, which) for which in (many, single)]
    for a, b in zip(expected, scored, strict=True):
        for ours, theirs in zip(a, b, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)


def test_gradients_under_autocast_are_those_of_fp32_but_for_rounding(model):
    def gradients(device, dtype):
        model.zero_grad()
        inputs = MicroBatches(EXAMPLES, plan_steps(EXAMPLES, SETTINGS), pad_id=50256)[0]
        inputs = to_device(inputs, device)
        model.to(device)
        with packed_tokens(model), without_head(model) as head:
            with half_precision(device, dtype):
                loss = summed_loss(model, inputs, head)
            loss.backward()
        return torch.cat([p.grad.flatten().float().cpu() for p in model.parameters()])

    exact = gradients("cpu", torch.float32)
    on_gpu = gradients("cuda", torch.float32)
    assert (on_gpu - exact).norm() < 1e-4 * exact.norm()
    half = gradients("cuda", torch.bfloat16)
    assert (half - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("which", ["all", "fact_rows", "all_but_fact_rows"])
def test_replayed_passes_train_as_others_do(model, which, tmp_path):
    examples = random_examples(60)
    settings = SETTINGS.model_copy(update={"precision": "auto", "train": which})
    replays = []

    def run(graphs):
        chosen = settings.model_copy(update={"cuda_graphs": graphs})
        trained = copy.deepcopy(model)
        outcome = train(
            trained, examples, plan_steps(examples, chosen), chosen, tmp_path / f"{graphs}"
        )
        return outcome, torch.cat([p.detach().flatten().cpu() for p in trained.parameters()])

    before = torch.cat([p.detach().flatten().cpu() for p in model.parameters()])
    plain, expected = run(graphs=False)
    with pytest.MonkeyPatch.context() as patch:
        honest = StepGraphs.__call__
        patch.setattr(StepGraphs, "__call__", lambda *a: replays.append(1) or honest(*a))
        replayed, weights = run(graphs=True)
    assert len(replays) == 16
    assert replayed.train_loss == pytest.approx(plain.train_loss, rel=1e-3)
    assert (weights - expected).norm() < 0.2 * (expected - before).norm()


def test_gradients_of_replayed_passes_are_those_of_others(model):
    examples = random_examples(60)
    plan = plan_steps(examples, SETTINGS)
    batches = MicroBatches(examples, plan, pad_id=50256, shapes=planned_shapes(examples, plan))
    model.cuda()

    def gradients(graphs):
        found = []
        with packed_tokens(model), without_head(model) as head:

            def run(inputs):
                with half_precision("cuda", torch.bfloat16):
                    loss = summed_loss(model, inputs, head)
                loss.backward()
                return loss.detach()

            for inputs in batches:
                model.zero_grad()
                inputs = to_device(inputs, "cuda")
                loss = graphs(inputs, run) if graphs else run(inputs)
                slopes = torch.cat([p.grad.flatten() for p in model.parameters()])
                found.append((float(loss), slopes.clone()))
        return found

    for (loss, slopes), (expected, right) in zip(
        gradients(StepGraphs(model)), gradients(None), strict=True
    ):
        assert loss == pytest.approx(expected, rel=1e-4)
        assert (slopes - right).norm() < 1e-2 * right.norm()


def test_products_of_bf16_factors_are_summed_and_kept_in_fp32():
    a, b = (torch.randn(128, 768, device="cuda").bfloat16() for _ in range(2))
    product = fp32_product(a, b.t())
    exact = a.double() @ b.double().t()
    assert product.dtype == torch.float32
    assert (product - exact).abs().max() < 1e-3
