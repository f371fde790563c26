"""Training: memory knobs change nothing but speed; the plan is the same in both arms."""

import copy
import json

import numpy as np
import pytest
import torch

from domain_tokens.modeling.chunked_loss import summed_cross_entropy, token_cross_entropy
from domain_tokens.modeling.packed_attention import packed_tokens
from domain_tokens.modeling.patches import without_head
from domain_tokens.runs.config import TrainingSection
from domain_tokens.runs.device import choose_device
from domain_tokens.training.callbacks import TrainLog
from domain_tokens.training.loss import evaluate_loss, summed_loss, token_losses
from domain_tokens.training.step_plan import plan_steps
from domain_tokens.training.trainer import MicroBatches, last_checkpoint, train
from tests.conftest import plant, tiny_llama
from tests.test_packing import make_example, random_examples

SETTINGS = TrainingSection(
    max_length=128,
    batch_size=4,
    gradient_accumulation_steps=2,
    num_epochs=2,
    learning_rate=1e-3,
    warmup_ratio=0.1,
    weight_decay=0.01,
    max_train_samples=None,
    max_val_samples=0,
    precision="fp32",
    logging_steps=1,
)


def with_(**changes):
    return SETTINGS.model_copy(update=changes)


def step_gradients(model, examples, settings):
    """Gradients of the first optimizer step, summed over its micro-batches."""
    plan = plan_steps(examples, settings)
    batches = MicroBatches(examples, plan, pad_id=50256)
    model.zero_grad()
    with packed_tokens(model), without_head(model) as head:
        for i in range(plan.accumulation):
            inputs = batches[i]
            loss = summed_loss(model, inputs, head)
            (loss / inputs["step_supervised"]).backward()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters()])


def test_the_plan_is_fixed_lists_of_examples_whatever_the_memory_knobs():
    examples = random_examples(21)
    plans = [
        plan_steps(examples, with_(batch_size=b, gradient_accumulation_steps=8 // b, packing=p))
        for b in (1, 2, 8)
        for p in (True, False)
    ]
    for plan in plans:
        assert plan.order == plans[0].order
        for step in range(len(plan.steps)):
            flat = sorted(i for rows in plan.steps[step] for row in rows for i in row)
            assert flat == sorted(plan.order[step // 3 * 21 :][step % 3 * 8 :][: len(flat)])
    assert len(plans[0].steps) == 6  # 21 examples in steps of 8 over two epochs
    assert sorted(plans[0].order[:21]) == sorted(plans[0].order[21:]) == list(range(21))
    assert plans[0].order[:21] != plans[0].order[21:]


def test_order_depends_on_the_seed_and_not_on_the_order_of_examples():
    examples = random_examples(12)

    def ids(plan, rows):
        return [rows[i].id for i in plan.order]

    first = ids(plan_steps(examples, SETTINGS), examples)
    turned = examples[::-1]
    assert ids(plan_steps(turned, SETTINGS), turned) == first
    assert ids(plan_steps(examples, with_(seed=7)), examples) != first


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 1, "gradient_accumulation_steps": 8},
        {"batch_size": 8, "gradient_accumulation_steps": 1},
        {"packing": False},
        {"packing": False, "batch_size": 2, "gradient_accumulation_steps": 4},
    ],
)
def test_gradients_do_not_depend_on_accumulation_or_packing(tiny_model, changes):
    """A mean of micro-batch means over-weights short examples (torchtune #1875)."""
    examples = random_examples(8)
    whole = step_gradients(tiny_model, examples, SETTINGS)
    other = step_gradients(tiny_model, examples, with_(**changes))
    assert whole.abs().max() > 1e-2
    assert (whole - other).abs().max() < 1e-5 * max(1.0, whole.abs().max().item())


def test_logits_only_where_there_is_loss_give_the_loss_of_full_logits(tiny_model):
    examples = random_examples(3)
    plan = plan_steps(examples, SETTINGS)
    inputs = MicroBatches(examples, plan, pad_id=50256)[0]
    mine = token_losses(tiny_model, inputs).sum()
    expected = torch.zeros(())
    for example in examples:
        ids = torch.from_numpy(example.input_ids[None].astype(np.int64))
        log_p = tiny_model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        picked = log_p[torch.arange(len(log_p)), ids[0, 1:]]
        expected = expected - picked[torch.from_numpy(example.token_roles[1:] > 0)].sum()
    assert torch.allclose(mine, expected, rtol=1e-5)


def trained(model, examples, settings, folder):
    plan = plan_steps(examples, settings)
    train(model, examples, plan, settings, folder)
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def plain_backward(model, examples, step, supervised):
    """Add a step's gradients example by example, with a mask and full logits; return its loss."""
    total = 0.0
    for i in (i for rows in step for row in rows for i in row):
        ids = torch.from_numpy(examples[i].input_ids[None].astype(np.int64))
        labels = ids[0, 1:].masked_fill(torch.from_numpy(examples[i].token_roles[1:] == 0), -100)
        logits = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels, reduction="sum")
        (loss / supervised).backward()
        total += loss.item() / supervised
    return total


def plain_losses(model, examples, plan):
    """Train example by example, with a mask, full logits and torch's AdamW; losses of the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    losses = []
    for number, step in enumerate(plan.steps):
        optimizer.zero_grad()
        total = plain_backward(model, examples, step, plan.supervised[number])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - number / len(plan.steps))
        optimizer.step()
        losses.append(total)
    return losses


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_twenty_steps_are_those_that_plain_adamw_takes(tiny_model, family, tmp_path):
    """Trainer's scaling of an accumulated loss has changed before (transformers #34191); packing,
    attention by document and the loss in chunks have to leave the whole trajectory alone."""
    model = tiny_model if family == "gpt2" else tiny_llama()
    examples = [
        make_example([*(e.input_ids[:-1] % 50).tolist(), 50256])  # few tokens, to be learned soon
        for e in random_examples(160)
    ]
    settings = with_(num_epochs=1, learning_rate=1e-2, warmup_ratio=0.0, weight_decay=0.0)
    reference = copy.deepcopy(model).train()
    before = torch.cat([p.detach().flatten().clone() for p in reference.parameters()])
    weights = trained(model, examples, settings, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    losses = plain_losses(reference, examples, plan_steps(examples, settings))
    assert len(losses) == 20
    assert losses[-1] < 0.7 * losses[0]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    expected = torch.cat([p.detach().flatten() for p in reference.parameters()])
    moved = (expected - before).norm()
    assert moved > 0.1  # Adam turns rounding of gradients near zero into steps: bound the norm
    assert (weights - expected).norm() < 1e-3 * moved


def test_the_log_has_a_line_per_step(tiny_model, tmp_path):
    trained(tiny_model, random_examples(16), with_(num_epochs=1), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"loss", "learning_rate", "grad_norm", "tokens_per_second"} <= lines[0].keys()


def test_training_learns_to_stop(tiny_model, tmp_path):
    """The historic failure: every response ran to the token limit, because EOS carried no loss."""
    examples = [make_example([11, 12, 13 + i, 40, 50256], prompt=3) for i in range(4)]
    settings = with_(num_epochs=40, learning_rate=1e-2, batch_size=4, gradient_accumulation_steps=1)
    trained(tiny_model, examples, settings, tmp_path)
    logits = tiny_model(input_ids=torch.tensor([[11, 12, 13, 40]]), use_cache=False).logits
    assert logits[0, -1].argmax() == 50256


def test_evaluation_is_weighted_by_tokens_whatever_the_batch(tiny_model):
    """Trainer's own eval_loss was 5.996, 5.906 and 5.899 at batch 1, 2 and 8 on the same rows."""
    examples, device = random_examples(9), choose_device("fp32")
    losses = [
        evaluate_loss(tiny_model, examples, with_(batch_size=size), device)["eval_loss"]
        for size in (1, 2, 8)
    ]
    assert max(losses) - min(losses) < 1e-5


def test_a_killed_run_resumes_to_bitwise_the_same_weights(tiny_model, tmp_path):
    examples = random_examples(40)
    settings = with_(num_epochs=1, save_steps=2)
    other = copy.deepcopy(tiny_model)
    again = copy.deepcopy(tiny_model)
    expected = trained(tiny_model, examples, settings, tmp_path / "whole")
    plan = plan_steps(examples, settings)

    class Killed(Exception):
        pass

    original = TrainLog.on_log

    def dying(self, args, state, control, logs=None, **kwargs):
        original(self, args, state, control, logs, **kwargs)
        if state.global_step == 3:
            raise Killed

    (tmp_path / "part").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainLog, "on_log", dying)
        with pytest.raises(Killed):
            train(other, examples, plan, settings, tmp_path / "part")
    assert last_checkpoint(tmp_path / "part").endswith("checkpoint-2")
    resumed = trained(again, examples, settings, tmp_path / "part")
    assert torch.equal(resumed, expected)
    lines = (tmp_path / "part" / "train_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_fast_path_gives_the_gradients_of_the_plain_one(tiny_model, family, monkeypatch):
    """Attention by document and the loss in chunks against a mask and full logits."""
    plant(
        monkeypatch, "domain_tokens.modeling.chunked_loss.CHUNK_BYTES", {"cpu": 64 * 4 * 50_349}
    )  # several chunks
    model = tiny_model if family == "gpt2" else tiny_llama()
    examples = random_examples(24, low=8)
    settings = with_(batch_size=24, gradient_accumulation_steps=1)
    fast = step_gradients(model, examples, settings)
    inputs = MicroBatches(examples, plan_steps(examples, settings), pad_id=50256)[0]
    assert len(inputs["targets"]) > 128
    model.zero_grad()
    (summed_loss(model, inputs, None) / inputs["step_supervised"]).backward()
    plain = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert plain.abs().max() > 1e-2
    assert (fast - plain).abs().max() < 1e-5 * max(1.0, plain.abs().max().item())


def test_the_fast_path_leaves_the_model_as_it_was(tiny_model, tmp_path):
    before = tiny_model.config._attn_implementation
    trained(tiny_model, random_examples(8), with_(num_epochs=2), tmp_path)
    assert tiny_model.config._attn_implementation == before
    ids = torch.tensor([[1, 2, 3]])
    assert tiny_model(ids).logits.shape == (1, 3, 50_349)


def test_a_head_that_does_more_keeps_its_own_logits(tiny_model):
    """Gemma caps its logits after the output layer: they may not be computed without it."""
    tiny_model.config.model_type = "gemma2"
    with without_head(tiny_model) as head:
        assert head is None
        assert tiny_model(torch.tensor([[1]])).logits.shape[-1] == 50_349
    tiny_model.config.model_type = "gpt2"


def test_losses_one_by_one_add_up_to_their_sum(tiny_model, monkeypatch):
    plant(monkeypatch, "domain_tokens.modeling.chunked_loss.CHUNK_BYTES", {"cpu": 64 * 4 * 50_349})
    hidden = torch.randn(150, 32)
    weight, targets = tiny_model.lm_head.weight, torch.randint(50_349, (150,))
    one_by_one = token_cross_entropy(hidden, weight, targets)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    assert torch.allclose(one_by_one, expected, rtol=1e-5)
    assert torch.allclose(summed_cross_entropy(hidden, weight, targets), expected.sum(), rtol=1e-6)
    assert len(token_cross_entropy(hidden[:0], weight, targets[:0])) == 0
