"""Passes of padded micro-batches, replayed: they train what passes of any shape train."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domain_tokens.modeling.packed_attention import packed_tokens
from domain_tokens.modeling.patches import without_head
from domain_tokens.training.frozen_rows import frozen_rows
from domain_tokens.training.loss import summed_loss
from domain_tokens.training.step_graphs import MIN_USES, Shape, StepGraphs, padded, planned_shapes
from domain_tokens.training.step_plan import plan_steps
from domain_tokens.training.trainer import MicroBatches, last_checkpoint, train
from tests.conftest import plant, tiny_llama
from tests.test_cuda_graphs import Again
from tests.test_packing import make_example, random_examples
from tests.test_training import SETTINGS, with_

PAD = 50_256


@pytest.fixture(params=["gpt2", "llama"])
def model(request, tiny_model):
    return tiny_model if request.param == "gpt2" else tiny_llama()


@pytest.fixture
def recorded(monkeypatch):
    plant(monkeypatch, "domain_tokens.modeling.graph_recorder.GraphRecorder", Again)
    plant(monkeypatch, "domain_tokens.training.step_graphs.graphs_pay", lambda *any: True)
    Again.recorded = 0


def sizes_of(examples, plan):
    parts = [[i for row in rows for i in row] for step in plan.steps for rows in step]
    return [sum(len(examples[i].input_ids) for i in part) for part in parts]


@given(
    lengths=st.lists(st.integers(2, 128), min_size=1, max_size=150),
    batch=st.integers(1, 8),
    accumulation=st.integers(1, 3),
)
@settings(deadline=None, max_examples=60)
def test_every_micro_batch_fits_its_shape_and_shapes_are_few(lengths, batch, accumulation):
    examples = [make_example(list(range(size))) for size in lengths]
    plan = plan_steps(examples, with_(batch_size=batch, gradient_accumulation_steps=accumulation))
    shapes = planned_shapes(examples, plan)
    plain = MicroBatches(examples, plan, pad_id=PAD)
    batches = MicroBatches(examples, plan, pad_id=PAD, shapes=shapes)
    assert len(shapes) == len(batches) == len(plain)
    for number, shape in enumerate(shapes):
        inputs, before = batches[number], plain[number]
        here = before["input_ids"].shape[1]
        assert inputs["input_ids"].shape == inputs["position_ids"].shape == (1, shape.tokens)
        assert torch.equal(inputs["input_ids"][:, :here], before["input_ids"])
        starts = inputs["cu_seqlens"]
        assert starts.dtype == torch.int32
        assert len(starts) == shape.documents + 1
        assert (starts[0], starts[-1]) == (0, shape.tokens)
        assert 0 <= starts.diff().min() <= starts.diff().max() <= inputs["max_seqlen"]
        assert torch.equal(starts[: len(before["cu_seqlens"])], before["cu_seqlens"])
        weights = inputs["loss_weights"]
        assert len(weights) == len(inputs["keep"]) == len(inputs["targets"]) == shape.supervised
        real = int(weights.sum())
        assert torch.equal(inputs["keep"][:real], before["keep"])
        assert torch.equal(inputs["targets"][:real], before["targets"])
        assert not weights[real:].any()
    uses = [shapes.count(shape) for shape in set(shapes)]
    assert min(uses) >= min(MIN_USES, len(shapes))


def test_padding_of_usual_steps_is_little():
    """32 GSM8K rows a step: mean 156 tokens, spread as in the data."""
    chooser = np.random.default_rng(1)
    lengths = np.clip(np.exp(chooser.normal(np.log(143), 0.42, 7_200)), 24, 439).astype(int)
    examples = [make_example([number, *[5] * (size - 1)]) for number, size in enumerate(lengths)]
    steps = with_(batch_size=32, gradient_accumulation_steps=1, max_length=512)
    plan = plan_steps(examples, steps)
    shapes = planned_shapes(examples, plan)
    assert sum(shape.tokens for shape in shapes) < 1.08 * sum(sizes_of(examples, plan))
    assert len(set(shapes)) <= 12


def gradients(model, batches, *, graphs=None):
    """Loss and gradients summed over micro-batches."""
    model.zero_grad()
    losses = []
    with packed_tokens(model), without_head(model) as head:

        def run(inputs):
            loss = summed_loss(model, inputs, head) / inputs["step_supervised"]
            loss.backward()
            return loss.detach()

        for inputs in batches:
            losses.append(graphs(inputs, run) if graphs else run(inputs))
    return torch.stack(losses), torch.cat([p.grad.flatten().clone() for p in model.parameters()])


def test_padding_changes_neither_loss_nor_gradients(model):
    examples = random_examples(40, high=60)
    plan = plan_steps(examples, SETTINGS)
    plain = MicroBatches(examples, plan, pad_id=PAD)
    batches = MicroBatches(examples, plan, pad_id=PAD, shapes=planned_shapes(examples, plan))
    assert any(
        a["input_ids"].shape != b["input_ids"].shape for a, b in zip(plain, batches, strict=True)
    )
    expected, slopes = gradients(model, plain)
    losses, others = gradients(model, batches)
    assert torch.allclose(losses, expected, rtol=1e-5)
    assert (slopes - others).abs().max() < 1e-5 * slopes.abs().max()


@pytest.mark.parametrize("fault", ["loss_weights", "cu_seqlens", "keep"])
def test_padding_that_counts_is_seen(model, fault):
    """Planted: padding with loss, padding read as one with the last document, a wrong position."""
    examples = random_examples(40, high=60)
    plan = plan_steps(examples, SETTINGS)
    batches = MicroBatches(examples, plan, pad_id=PAD, shapes=planned_shapes(examples, plan))
    _, slopes = gradients(model, batches)

    def broken(inputs):
        inputs = dict(inputs)
        if fault == "loss_weights":
            inputs[fault] = torch.ones_like(inputs[fault])
        elif fault == "keep":
            inputs[fault] = inputs[fault].roll(1)
        else:
            inputs[fault] = inputs[fault][[0, -1]]
        return inputs

    _, others = gradients(model, map(broken, batches))
    assert (slopes - others).abs().max() > 1e-3 * slopes.abs().max()


def test_replays_add_to_the_gradients_and_begin_again_when_these_are_forgotten(model, recorded):
    examples = random_examples(40, high=60)
    plan = plan_steps(examples, SETTINGS)
    batches = list(MicroBatches(examples, plan, pad_id=PAD, shapes=planned_shapes(examples, plan)))
    graphs = StepGraphs(model)
    for chosen in (batches[:2], batches[:2], batches[3:8]):
        expected, slopes = gradients(model, chosen)
        losses, others = gradients(model, chosen, graphs=graphs)
        assert torch.equal(losses, expected)
        assert torch.equal(slopes, others)
    assert Again.recorded <= len({b["input_ids"].shape for b in batches})


def trained(model, examples, settings, folder):
    plan = plan_steps(examples, settings)
    outcome = train(model, examples, plan, settings, folder)
    return outcome, torch.cat([p.detach().flatten().clone() for p in model.parameters()])


@pytest.mark.parametrize("which", ["all", "fact_rows", "all_but_fact_rows"])
def test_a_run_with_replayed_passes_trains_the_same(model, which, tmp_path, request):
    examples = random_examples(60)
    settings = with_(train=which, weight_decay=0.1)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    plain, weights = trained(copy.deepcopy(model), examples, settings, tmp_path / "plain")
    request.getfixturevalue("recorded")
    graphed, others = trained(copy.deepcopy(model), examples, settings, tmp_path / "graphed")
    assert 0 < Again.recorded < 2 * len(examples) / 8
    assert graphed.train_loss == pytest.approx(plain.train_loss, rel=1e-5)
    moved = (weights - before).norm()
    assert (weights - others).norm() < 0.01 * moved  # AdamW moves what has no gradient by its noise


def test_a_resumed_run_pads_as_the_whole_one_does(tiny_model, recorded, tmp_path):
    """Shapes follow from the plan, not from what a process has seen of it."""
    examples = random_examples(60)
    whole, weights = trained(copy.deepcopy(tiny_model), examples, SETTINGS, tmp_path / "whole")
    saving = with_(save_steps=7)
    stopped = copy.deepcopy(tiny_model)

    class Killed(Exception):
        pass

    honest, passes = StepGraphs.__call__, []

    def until(self, inputs, run):
        passes.append(1)
        if len(passes) > 9:
            raise Killed
        return honest(self, inputs, run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepGraphs, "__call__", until)
        with pytest.raises(Killed):
            trained(stopped, examples, saving, tmp_path / "stopped")
    assert last_checkpoint(tmp_path / "stopped").endswith("-7")
    passes.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepGraphs, "__call__", lambda *a: passes.append(1) or honest(*a))
        resumed, others = trained(copy.deepcopy(tiny_model), examples, saving, tmp_path / "stopped")
    assert len(passes) == 16 - 7
    assert torch.equal(weights, others)
    assert resumed.train_loss == whole.train_loss


def test_frozen_parameters_have_no_gradient_of_ours(model):
    with frozen_rows(model, "fact_rows"), pytest.MonkeyPatch.context() as patch:
        plant(patch, "domain_tokens.modeling.graph_recorder.GraphRecorder", Again)
        graphs = StepGraphs(model)
        assert len(graphs._gradients) < len(list(model.parameters()))


def test_a_small_micro_batch_in_a_large_shape_is_padded_with_several_documents():
    example = make_example([5] * 9)
    inputs = MicroBatches([example], plan_steps([example], SETTINGS), pad_id=PAD)[0]
    shape = Shape(tokens=64, supervised=16, documents=9, max_seqlen=9)
    starts = padded(inputs, shape, pad_id=PAD)["cu_seqlens"].tolist()
    assert starts == [0, 9, 18, 27, 36, 45, 54, 63, 64, 64]
