"""Oracle of `training.train`: optimizer steps in plain torch, written out, in double precision.

One and three steps: every example goes through the model alone (no packing, eager attention, full
logits), the step's summed cross-entropy is divided by its supervised tokens, gradients are clipped
to norm 1, and AdamW (Loshchilov and Hutter 2019) is applied by hand: bias correction, decoupled
decay of matrices alone, a linear schedule. The weights must be those of `train`, for a GPT-2 and
for a Llama with grouped heads, whatever the batch size, accumulation and packing.
"""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from domain_tokens.runs.config import TrainingSection
from domain_tokens.training.loss import summed_loss
from domain_tokens.training.step_plan import build_micro_batch, plan_steps
from domain_tokens.training.trainer import SFTTrainer, train, training_arguments
from tests.conftest import plant
from tests.test_packing import make_example

VOCABULARY = 96  # small, so that few gradients are lost in rounding
RATE = 1e-3
SETTINGS = TrainingSection(
    max_length=64,
    batch_size=4,
    gradient_accumulation_steps=2,
    num_epochs=1,
    learning_rate=RATE,
    warmup_ratio=0.0,
    weight_decay=0.1,
    max_train_samples=None,
    max_val_samples=0,
    precision="fp32",
)


def gpt2():
    torch.manual_seed(1)
    shape = dict(n_layer=2, n_embd=16, n_head=4, n_positions=64, vocab_size=VOCABULARY)
    config = GPT2Config(
        **shape,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def llama():
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


MODELS = {"gpt2": gpt2, "llama": llama}


def examples(count):
    """Examples of unequal length; every other one has a second exchange, without loss within."""
    chooser = np.random.default_rng(count)
    made = []
    for number in range(count):
        ids = [*chooser.integers(1, VOCABULARY, size=int(chooser.integers(6, 40))).tolist(), 0]
        example = make_example(ids)
        if number % 2:
            roles = example.token_roles.copy()
            roles[4 : len(ids) // 2 + 2] = 0
            example = dataclasses.replace(example, token_roles=roles)
        made.append(example)
    return made


# The reference


def example_loss(model, example):
    """Summed cross-entropy in nats of the tokens that carry loss, and their number."""
    ids = torch.from_numpy(example.input_ids.astype(np.int64))
    log_p = model(ids[None], use_cache=False).logits[0].log_softmax(-1)
    positions = [t for t in range(1, len(ids)) if example.token_roles[t]]
    return -sum(log_p[t - 1, ids[t]] for t in positions), len(positions)


def rates(steps, warmup, first):
    """Linear warm-up, then linear decay to 0 after the last step.

    first: the rate of the first warm-up step is first ÷ warmup (0, or 1 where a run warms up from
    1/n; design.md leaves it open).
    """
    return [
        (s + first) / warmup if s < warmup else (steps - s) / (steps - warmup) for s in range(steps)
    ]


def gradients(model, batch, max_norm):
    """Clipped gradients of one step."""
    losses, counts = zip(*(example_loss(model, e) for e in batch), strict=True)
    names = dict(model.named_parameters())
    parts = torch.autograd.grad(sum(losses) / sum(counts), list(names.values()))
    norm = math.sqrt(sum(float((g**2).sum()) for g in parts))
    scale = min(1.0, max_norm / (norm + 1e-6))
    return {name: scale * g for name, g in zip(names, parts, strict=True)}


def reference(model, batches, *, schedule, decay, max_norm, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """Return the weights after the steps, and where every gradient stood above rounding."""
    model = copy.deepcopy(model).double().eval()
    model.set_attn_implementation("eager")
    weights = dict(model.named_parameters())
    first = {n: torch.zeros_like(w) for n, w in weights.items()}
    second = {n: torch.zeros_like(w) for n, w in weights.items()}
    sure = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    for step, (batch, factor) in enumerate(zip(batches, schedule, strict=True), start=1):
        slopes, rate = gradients(model, batch, max_norm), RATE * factor
        for name, w in weights.items():
            g = slopes[name]
            sure[name] &= (g.abs() > 1e-5) | (g == 0)  # 0: a token that is not there
            first[name] = beta1 * first[name] + (1 - beta1) * g
            second[name] = beta2 * second[name] + (1 - beta2) * g**2
            m, v = first[name] / (1 - beta1**step), second[name] / (1 - beta2**step)
            with torch.no_grad():
                if w.ndim == 2:  # biases and norms are not decayed
                    w -= rate * decay * w
                w -= rate * m / (v.sqrt() + epsilon)
    return {n: w.detach() for n, w in weights.items()}, sure


def difference(trained, expected, sure):
    """Return the greatest difference of weights: where sure, and elsewhere; and the share of sure.

    Elsewhere Adam turns the rounding of a gradient near 0 into a step of up to one learning rate:
    a key's bias, for one, has no gradient at all, since softmax does not see it.
    """
    gaps = {n: (trained[n].detach().double() - w).abs() for n, w in expected.items()}
    certain = torch.cat([gaps[n][sure[n]] for n in gaps])
    others = torch.cat([gaps[n][~sure[n]] for n in gaps])
    share = len(certain) / (len(certain) + len(others))
    return float(certain.max()), float(others.max()) if len(others) else 0.0, share


def check(model, rows, settings, folder, *, warmup=0, trained_rows=None):
    """Train and compare with the reference, to 2e-6 (a step is 1e-3)."""
    start = copy.deepcopy(model)
    plan = plan_steps(rows, settings)
    size = settings.batch_size * settings.gradient_accumulation_steps
    chunks = [plan.order[i : i + size] for i in range(0, len(plan.order), size)]
    train(model, trained_rows or rows, plan, settings, folder)
    trained = dict(model.named_parameters())
    batches = [[rows[i] for i in chunk] for chunk in chunks]
    differences = [
        difference(
            trained,
            *reference(
                start,
                batches,
                schedule=rates(len(batches), warmup, begin),
                decay=SETTINGS.weight_decay,
                max_norm=1.0,
            ),
        )
        for begin in ((0, 1) if warmup else (0,))
    ]
    certain, others, share = min(differences)
    assert share > 0.9
    assert certain < 2e-6, f"weights differ by {certain}"
    assert others <= 2.5 * RATE * len(chunks)


def with_(**changes):
    return SETTINGS.model_copy(update=changes)


SHAPES = [
    {},
    {"batch_size": 1, "gradient_accumulation_steps": 8},
    {"batch_size": 8, "gradient_accumulation_steps": 1},
    {"packing": False},
    {"packing": False, "batch_size": 2, "gradient_accumulation_steps": 4},
]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("changes", SHAPES)
def test_one_step_is_the_one_written_out(family, changes, tmp_path):
    check(MODELS[family](), examples(8), with_(**changes), tmp_path)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("changes", SHAPES[::2])
def test_three_steps_are_those_written_out(family, changes, tmp_path):
    """The last step is short (20 examples in steps of 8): its loss has fewer tokens under it."""
    check(MODELS[family](), examples(20), with_(**changes), tmp_path)


@pytest.mark.parametrize("family", MODELS)
def test_five_steps_with_warm_up_are_those_written_out(family, tmp_path):
    check(MODELS[family](), examples(40), with_(warmup_ratio=0.3), tmp_path, warmup=2)


# Planted faults


def masked_eos(rows):
    return [
        dataclasses.replace(e, token_roles=np.array([*e.token_roles[:-1], 0], np.uint8))
        for e in rows
    ]


def all_supervised(rows):
    return [dataclasses.replace(e, token_roles=np.ones_like(e.token_roles)) for e in rows]


@pytest.mark.parametrize("change", [masked_eos, all_supervised])
def test_a_wrong_mask_is_refused(change, tmp_path):
    rows = examples(8)
    with pytest.raises(AssertionError, match="weights differ"):
        check(gpt2(), rows, SETTINGS, tmp_path, trained_rows=change(rows))


@pytest.mark.parametrize(
    "changes",
    [
        {"max_grad_norm": 1e9},
        {"weight_decay": 0.0},
        {"learning_rate": 0.98 * RATE},
        {"adam_beta1": 0.8},
        {"adam_beta2": 0.99},
        {"warmup_ratio": 0.3},
    ],
)
def test_a_wrong_setting_is_refused(changes, tmp_path):
    with pytest.raises(AssertionError, match="weights differ"):
        check(gpt2(), examples(24), with_(**changes), tmp_path)


def test_shifted_labels_are_refused(tmp_path, monkeypatch):
    build = build_micro_batch

    def shifted(rows, *, pad_id):
        batch = build(rows, pad_id=pad_id)
        return dataclasses.replace(batch, targets=np.roll(batch.targets, 1, axis=1))

    plant(monkeypatch, "domain_tokens.training.step_plan.build_micro_batch", shifted)
    with pytest.raises(AssertionError, match="weights differ"):
        check(gpt2(), examples(8), SETTINGS, tmp_path)


def test_documents_that_see_each_other_are_refused(tmp_path, monkeypatch):
    build = build_micro_batch

    def mixed(rows, *, pad_id):
        batch = build(rows, pad_id=pad_id)
        positions = np.broadcast_to(np.arange(batch.input_ids.shape[1]), batch.input_ids.shape)
        return dataclasses.replace(batch, position_ids=positions.copy() % 64)

    plant(monkeypatch, "domain_tokens.training.step_plan.build_micro_batch", mixed)
    with pytest.raises(AssertionError, match="weights differ"):
        check(llama(), examples(8), SETTINGS, tmp_path)


def test_a_mean_of_micro_batch_means_is_refused(tmp_path, monkeypatch):
    """It over-weights short examples (torchtune #1875)."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        total = summed_loss(model, inputs, self.head)
        return total / max(len(inputs["targets"]), 1) / self.args.gradient_accumulation_steps

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
    settings = with_(batch_size=1, gradient_accumulation_steps=8)
    with pytest.raises(AssertionError, match="weights differ"):
        check(gpt2(), examples(8), settings, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"adam_epsilon": 1e-4},
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "cosine"},
        {"optim": "adafactor"},
    ],
)
def test_another_optimizer_is_refused(changes, tmp_path, monkeypatch):
    make = training_arguments

    def changed(*words):
        made = make(*words)
        return dataclasses.replace(made, **changes)

    plant(monkeypatch, "domain_tokens.training.trainer.training_arguments", changed)
    with pytest.raises(AssertionError, match="weights differ"):
        check(gpt2(), examples(24), SETTINGS, tmp_path)


def test_decay_of_biases_and_norms_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        SFTTrainer,
        "get_decay_parameter_names",
        lambda self, model: [name for name, _ in model.named_parameters()],
    )
    with pytest.raises(AssertionError, match="weights differ"):
        check(llama(), examples(24), SETTINGS, tmp_path)


class Update(torch.optim.Optimizer):
    """AdamW with one fault."""

    def __init__(self, groups, *, fault):
        super().__init__(groups, {"lr": RATE, "weight_decay": 0.0})
        self._fault = fault

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for w in group["params"]:
                self._update(w, self.state[w], group["lr"], group["weight_decay"])

    def _update(self, w, state, rate, decay):
        g = w.grad
        if self._fault == "coupled decay":
            g = g + decay * w
        step = state["step"] = state.get("step", 0) + 1
        m = state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
        v = state["v"] = 0.999 * state.get("v", 0) + 0.001 * g**2
        if self._fault != "no bias correction":
            m, v = m / (1 - 0.9**step), v / (1 - 0.999**step)
        if self._fault != "coupled decay":
            w *= 1 - rate * decay
        root = (v + 1e-8).sqrt() if self._fault == "epsilon within the root" else v.sqrt() + 1e-8
        w -= rate * m / root


def planted_update(monkeypatch, fault):
    def create(self, model=None):
        named = list((model or self.model).named_parameters())
        groups = [
            {"params": [p for _, p in named if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for _, p in named if p.ndim != 2], "weight_decay": 0.0},
        ]
        self.optimizer = Update(groups, fault=fault)
        return self.optimizer

    monkeypatch.setattr(SFTTrainer, "create_optimizer", create)


def test_an_update_without_a_planted_fault_is_accepted(tmp_path, monkeypatch):
    planted_update(monkeypatch, None)
    check(gpt2(), examples(24), SETTINGS, tmp_path)


@pytest.mark.parametrize(
    "fault", ["no bias correction", "coupled decay", "epsilon within the root"]
)
def test_a_wrong_update_is_refused(fault, tmp_path, monkeypatch):
    planted_update(monkeypatch, fault)
    with pytest.raises(AssertionError, match="weights differ"):
        check(gpt2(), examples(24), SETTINGS, tmp_path)
