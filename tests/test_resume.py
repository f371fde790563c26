"""A killed run goes on where it stopped and ends in the same weights and the same answers."""

import json

import pytest

from domain_tokens import evaluation, training
from tests.conftest import call, train, tree


class KilledError(RuntimeError):
    """Stands for a kill: whatever is on disk at that moment is what the next leg finds."""


def test_a_killed_training_run_ends_in_the_same_weights(demo, monkeypatch, capsys):
    assert train(demo, "whole") == 0
    calls = []
    honest = training.summed_loss

    def dying(model, inputs, head):
        calls.append(1)
        if len(calls) == 4:
            raise KilledError
        return honest(model, inputs, head)

    with monkeypatch.context() as patch:
        patch.setattr(training, "summed_loss", dying)
        with pytest.raises(KilledError):
            train(demo, "killed")
    assert not (demo / "killed" / "sft_results.json").exists()
    before = tree(demo)
    assert train(demo, "killed") == 2
    assert "--resume continues it" in capsys.readouterr().err
    assert train(demo, "killed", "--resume", "--set", "training.learning_rate=1e-2") == 2
    assert "learning_rate" in capsys.readouterr().err
    words = ["--model-path", demo / "killed", "--output-dir", demo / "e", "--condition", "baseline"]
    assert call("eval/run_arithmetic_probes.py", *words) == 2
    assert "unfinished" in capsys.readouterr().err
    assert tree(demo) == before
    assert train(demo, "killed", "--resume") == 0
    whole, killed = (
        json.loads((demo / folder / "sft_results.json").read_text())
        for folder in ("whole", "killed")
    )
    name = "model.safetensors"
    assert (demo / "whole" / name).read_bytes() == (demo / "killed" / name).read_bytes()
    for key in ("train_loss", "eval_loss", "tokens", "order_digest"):
        assert whole[key] == killed[key]
    logs = [
        [json.loads(line)["step"] for line in (demo / folder / "train_log.jsonl").open()]
        for folder in ("whole", "killed")
    ]
    assert logs[0] == logs[1] == list(range(1, whole["optimizer_steps"] + 1))
    assert not (demo / "killed" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("script", "name"),
    [("eval/run_gsm8k.py", "gsm8k"), ("eval/run_arithmetic_probes.py", "arithmetic")],
)
def test_a_killed_evaluation_keeps_its_answers(demo, monkeypatch, capsys, script, name):
    def evaluate(folder, *more):
        words = ["--model-path", demo / "sft_gsm8k_mul_tokens", "--output-dir", demo / folder]
        words += ["--condition", "mul_tokens", "--batch-size", 4, "--max-new-tokens", 6]
        if name == "gsm8k":
            words += ["--set", f"data.source={demo}/data/test.jsonl"]
        return call(script, *words, *more)

    assert evaluate("whole") == 0
    honest = evaluation.Answers.append
    kept = []

    def dying(self, id, response):
        if len(kept) == 9:
            raise KilledError
        kept.append(id)
        honest(self, id, response)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Answers, "append", dying)
        with pytest.raises(KilledError):
            evaluate("killed")
    (partial,) = (demo / "killed").glob("*.partial.jsonl")
    partial.write_text(partial.read_text() + '{"id": "half a li')
    assert evaluate("killed") == 2
    assert "--resume continues it" in capsys.readouterr().err
    again = []
    with monkeypatch.context() as patch:
        patch.setattr(
            evaluation.Answers,
            "append",
            lambda self, id, response: (again.append(id), honest(self, id, response)),
        )
        assert evaluate("killed", "--resume") == 0
    assert not set(kept) & set(again)
    items = f"{name}_items.jsonl"
    assert (demo / "whole" / items).read_bytes() == (demo / "killed" / items).read_bytes()
    more = {"gsm8k": "rationales", "arithmetic": "scores"}[name]
    lines = [items, f"{name}_{more}.jsonl"]
    assert sorted(p.name for p in (demo / "killed").iterdir()) == sorted(
        [*lines, f"{name}_results.json"]
    )
    for file in lines:
        assert (demo / "whole" / file).read_bytes() == (demo / "killed" / file).read_bytes()


def test_a_finished_evaluation_is_not_another_checkpoints(demo, capsys):
    words = ["--output-dir", demo / "eval_baseline", "--condition", "mul_tokens", "--resume"]
    words += ["--model-path", demo / "sft_gsm8k_mul_tokens"]
    before = tree(demo)
    assert call("eval/run_arithmetic_probes.py", *words) == 2
    assert "was made with another condition" in capsys.readouterr().err
    assert tree(demo) == before
