"""training.train: the frozen stay to the bit, the others take the steps that they should."""

import copy
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain_tokens.errors import UserError
from domain_tokens.runs.config import PretrainingConfig, SFTConfig, load_config
from domain_tokens.training import frozen_rows
from domain_tokens.training.frozen_rows import KeepRows, vocabulary_parameters
from domain_tokens.training.stage_data import refuse_unsuited
from domain_tokens.training.step_plan import plan_steps
from domain_tokens.training.trainer import train, training_flops
from tests.conftest import ROOT, call, tiny_llama
from tests.test_packing import make_example, random_examples
from tests.test_training import plain_backward, with_

FIRST = 50_304  # the first fact's id, of 50,349
PARTS = ("fact_rows", "all_but_fact_rows")


def with_facts(count):
    """Rows in which every third token is a fact, as no real text has it."""
    examples = []
    for example in random_examples(count):
        ids = example.input_ids[:-1] % 50
        ids[1::3] = FIRST + ids[1::3] % 45
        examples.append(make_example([*ids.tolist(), 50256]))
    return examples


def model_of(family, tiny_model):
    """A small GPT-2 with tied embeddings, or a Llama with an output matrix of its own."""
    return copy.deepcopy(tiny_model) if family == "gpt2" else tiny_llama()


def parts_of(model):
    """Every number of a model by where it lies: in fact rows, or anywhere else."""
    matrices = {id(weight) for weight in vocabulary_parameters(model)}
    facts, others = [], []
    for weight in model.parameters():
        value = weight.detach()
        if id(weight) in matrices:
            facts.append(value[FIRST:].flatten().clone())
            value = value[:FIRST]
        others.append(value.flatten().clone())
    return {"fact_rows": torch.cat(facts), "all_but_fact_rows": torch.cat(others)}


def trained(model, folder, *, part, **changes):
    """Train a model in place; return the log."""
    settings = with_(**{"num_epochs": 1, "learning_rate": 1e-2, "warmup_ratio": 0.0, **changes})
    settings = settings.model_copy(update={"train": part})
    examples = with_facts(40)
    train(model, examples, plan_steps(examples, settings), settings, folder)
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("part", PARTS)
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(decay=st.sampled_from([0.0, 0.5]), clip=st.sampled_from([1e-3, 1e9]))
def test_frozen_rows_stay_to_the_bit_and_the_others_move(
    tiny_model, tmp_path_factory, family, part, decay, clip
):
    model = model_of(family, tiny_model)
    before = parts_of(model)
    folder = tmp_path_factory.mktemp("frozen")
    trained(model, folder, part=part, weight_decay=decay, max_grad_norm=clip)
    after = parts_of(model)
    (other,) = set(PARTS) - {part}
    assert torch.equal(after[other], before[other])
    moved = after[part] != before[part]
    assert moved.float().mean() > 0.2
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any(weight._backward_hooks for weight in model.parameters())


def plain_steps(model, part, *, decay):
    """Train example by example; AdamW as Loshchilov and Hutter write it, on what trains alone.

    Returns (loss, gradient norm) of each step.
    """
    changes = {"num_epochs": 1, "learning_rate": 1e-2, "warmup_ratio": 0.0}
    examples = with_facts(40)
    plan = plan_steps(examples, with_(**changes))
    matrices = {id(weight) for weight in vocabulary_parameters(model)}
    rows = {"fact_rows": slice(FIRST, None), "all_but_fact_rows": slice(0, FIRST)}[part]
    chosen = [
        (weight, rows if id(weight) in matrices else slice(None))
        for weight in model.parameters()
        if id(weight) in matrices or part == "all_but_fact_rows"
    ]
    first, second = ([torch.zeros_like(w.detach()[r]) for w, r in chosen] for _ in range(2))
    lines = []
    for number, step in enumerate(plan.steps):
        model.zero_grad()
        total = plain_backward(model, examples, step, plan.supervised[number])
        gradients = [w.grad[r] for w, r in chosen]
        norm = torch.sqrt(sum((g**2).sum() for g in gradients)).item()
        rate, t = 1e-2 * (1 - number / len(plan.steps)), number + 1
        with torch.no_grad():
            for k, (weight, part_) in enumerate(chosen):
                gradient = gradients[k] * min(1.0, 1.0 / (norm + 1e-6))
                first[k] = 0.9 * first[k] + 0.1 * gradient
                second[k] = 0.999 * second[k] + 0.001 * gradient**2
                m, v = first[k] / (1 - 0.9**t), second[k] / (1 - 0.999**t)
                shrunk = weight[part_] * (1 - rate * (decay if weight.ndim > 1 else 0))
                weight[part_] = shrunk - rate * m / (v.sqrt() + 1e-8)
        lines.append((total, norm))
    return lines


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("part", PARTS)
def test_what_trains_takes_the_steps_of_adamw_on_it_alone(tiny_model, tmp_path, family, part):
    """The gradient's norm counts only what trains; weight decay moves only what trains."""
    model, reference = model_of(family, tiny_model), model_of(family, tiny_model).train()
    before = parts_of(model)[part]
    lines = trained(model, tmp_path, part=part, weight_decay=0.3)
    steps = plain_steps(reference, part, decay=0.3)
    assert [line["loss"] for line in lines] == pytest.approx([x for x, _ in steps], rel=1e-3)
    assert [line["grad_norm"] for line in lines] == pytest.approx([x for _, x in steps], rel=5e-3)
    expected = parts_of(reference)[part]
    assert (parts_of(model)[part] - expected).norm() < 5e-3 * (expected - before).norm()


@pytest.mark.parametrize("fault", ["rows are not put back", "their gradient counts", "no decay"])
def test_each_half_of_freezing_is_needed(tiny_model, tmp_path, monkeypatch, fault):
    """Planted: what the two tests above would see."""
    model, honest = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    before = parts_of(model)
    right = trained(honest, tmp_path / "right", part="fact_rows", weight_decay=0.5)
    if fault == "rows are not put back":
        monkeypatch.setattr(KeepRows, "on_optimizer_step", lambda *_, **__: None)
    elif fault == "their gradient counts":
        monkeypatch.setattr(frozen_rows, "_without_gradient", lambda frozen: lambda g: None)
    decay = 0.0 if fault == "no decay" else 0.5
    wrong = trained(model, tmp_path / "wrong", part="fact_rows", weight_decay=decay)
    after, expected = parts_of(model), parts_of(honest)
    kept = torch.equal(after["all_but_fact_rows"], before["all_but_fact_rows"])
    assert kept == (fault != "rows are not put back")
    assert torch.equal(expected["all_but_fact_rows"], before["all_but_fact_rows"])
    if fault == "their gradient counts":
        assert wrong[0]["grad_norm"] > 1.1 * right[0]["grad_norm"]
    if fault == "no decay":
        assert not torch.equal(after["fact_rows"], expected["fact_rows"])


def test_a_resumed_run_freezes_what_the_first_segment_froze(tiny_model, tmp_path):
    """Bit for bit as a whole run: the optimizer's state holds what trains, in either segment."""
    whole, part = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    examples = with_facts(40)
    settings = with_(num_epochs=1, save_steps=2, train="fact_rows", weight_decay=0.3)
    plan = plan_steps(examples, settings)
    train(whole, examples, plan, settings, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        original = KeepRows.on_optimizer_step

        def dying(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt
            original(self, args, state, control, **kwargs)

        patch.setattr(KeepRows, "on_optimizer_step", dying)
        (tmp_path / "part").mkdir()
        with pytest.raises(KeyboardInterrupt):
            train(part, examples, plan, settings, tmp_path / "part")
    resumed = copy.deepcopy(tiny_model)
    train(resumed, examples, plan, settings, tmp_path / "part")
    for name, value in parts_of(whole).items():
        assert torch.equal(parts_of(resumed)[name], value), name


def test_weights_without_gradients_cost_no_flops(tiny_model):
    examples = with_facts(8)
    plan = plan_steps(examples, with_(num_epochs=1))
    body = sum(p.numel() for n, p in tiny_model.named_parameters() if p.ndim == 2 and ".h." in n)
    saved = training_flops(tiny_model, examples, plan) - training_flops(
        tiny_model, examples, plan, body_trains=False
    )
    assert saved == 2 * body * sum(plan.tokens)


def config_of(*overrides):
    return load_config(SFTConfig, ROOT / "sft/configs/gsm8k.yaml", list(overrides))


def test_a_stage_without_fact_tokens_cannot_train_their_rows_alone():
    config = config_of("training.train=fact_rows")
    refuse_unsuited(config, "test", inject=True)
    with pytest.raises(UserError, match="could only learn not to be said"):
        refuse_unsuited(config, "test", inject=False)
    refuse_unsuited(config_of("training.train=all_but_fact_rows"), "test", inject=False)


def test_a_base_that_is_pretrained_has_no_fact_rows_to_choose():
    path = ROOT / "sft/configs/demo/base.yaml"
    with pytest.raises(UserError, match="has to be all"):
        load_config(PretrainingConfig, path, ["training.train=fact_rows"])


@pytest.mark.parametrize("stage", ["tulu", "gsm8k"])
def test_both_stages_train_what_they_are_told_and_the_card_says_it(demo, capsys, stage):
    parent = "hf_mul_tokens" if stage == "tulu" else "sft_tulu_mul_tokens"
    words = ["--model-path", demo / parent, "--config", f"sft/configs/demo/{stage}.yaml"]
    data = {"source": "chat" if stage == "tulu" else "train", "decontaminate_against": "test"}
    data |= {} if stage == "tulu" else {"validation_source": "test"}
    for key, name in data.items():
        words += ["--set", f"data.{key}={demo / 'data' / name}.jsonl"]
    words += ["--set", "training.train=fact_rows", "--set", "training.warmup_ratio=0"]
    inject = [] if stage == "tulu" else ["--inject-mul-tokens"]
    script = f"sft/sft_{stage}.py"
    done = call(script, *words, "--output-dir", demo / "rows", "--condition", "mul_tokens", *inject)
    assert done == 0
    card = json.loads((demo / "rows" / "run_card.json").read_text())
    assert card["config"]["training"]["train"] == "fact_rows"
    assert card["identity"]["config"]["training"]["train"] == "fact_rows"
    capsys.readouterr()
    words += ["--output-dir", demo / "none", "--condition", "baseline", "--cross-base"]
    assert call(script, *words) == 2
    assert "training.train=fact_rows" in capsys.readouterr().err
    assert not (demo / "none").exists()
