"""A killed run goes on where it stopped and ends in the same weights and the same answers."""

import json

import pytest

from domain_tokens.evaluation.responses import Answers
from domain_tokens.training.loss import summed_loss
from tests.conftest import call, plant, train, tree


class KilledError(RuntimeError):
    """Stands for a kill: whatever is on disk at that moment is what the next segment finds."""


def test_a_killed_training_run_ends_in_the_same_weights(demo, monkeypatch, capsys):
    assert train(demo, "whole") == 0
    calls = []
    honest = summed_loss

    def dying(model, inputs, head):
        calls.append(1)
        if len(calls) == 4:
            raise KilledError
        return honest(model, inputs, head)

    with monkeypatch.context() as patch:
        plant(patch, "domain_tokens.training.loss.summed_loss", dying)
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
    honest = Answers.append
    kept = []

    def dying(self, id, response):
        if len(kept) == 9:
            raise KilledError
        kept.append(id)
        honest(self, id, response)

    with monkeypatch.context() as patch:
        patch.setattr(Answers, "append", dying)
        with pytest.raises(KilledError):
            evaluate("killed")
    (partial,) = (demo / "killed").glob("*.partial.jsonl")
    partial.write_text(partial.read_text() + '{"id": "half a li')
    assert evaluate("killed") == 2
    assert "--resume continues it" in capsys.readouterr().err
    again = []
    with monkeypatch.context() as patch:
        patch.setattr(
            Answers,
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


def test_a_run_is_not_resumed_by_other_code(demo, monkeypatch, capsys):
    """A second segment by changed training code gave weights that no code gives from the start."""

    def dying(*args):
        raise KilledError

    with monkeypatch.context() as patch:
        plant(patch, "domain_tokens.training.loss.evaluate_loss", dying)
        with pytest.raises(KilledError):
            train(demo, "killed")
    before = tree(demo)
    with monkeypatch.context() as patch:
        plant(patch, "domain_tokens.runs.source_code.code_hash", lambda *args, **more: "f" * 64)
        assert train(demo, "killed", "--resume") == 2
        line = capsys.readouterr().err
    assert "was begun by other code" in line
    assert "go back to that code to continue" in line
    assert tree(demo) == before
    assert train(demo, "killed", "--resume") == 0
    with monkeypatch.context() as patch:
        plant(patch, "domain_tokens.runs.source_code.code_hash", lambda *args, **more: "f" * 64)
        capsys.readouterr()
        assert train(demo, "killed", "--resume") == 0
    assert "is already finished (made by other code: " in capsys.readouterr().out


def test_a_run_is_not_resumed_on_other_data(demo, monkeypatch, capsys):
    """The file under the same path may have other rows: the config says nothing of them."""

    def dying(*args):
        raise KilledError

    with monkeypatch.context() as patch:
        plant(patch, "domain_tokens.training.loss.evaluate_loss", dying)
        with pytest.raises(KilledError):
            train(demo, "killed")
    data = demo / "data" / "train.jsonl"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:-1]))
    assert train(demo, "killed", "--resume") == 2
    assert "was begun with data" in capsys.readouterr().err


def mul_tokens(demo, folder, *more):
    """Run the GSM8K stage of the treated arm."""
    words = ["--model-path", demo / "sft_tulu_mul_tokens", "--output-dir", demo / folder]
    words += ["--condition", "mul_tokens", "--config", "sft/configs/demo/gsm8k.yaml"]
    for key, name in (("source", "train"), ("validation_source", "test")):
        words += ["--set", f"data.{key}={demo / 'data' / name}.jsonl"]
    return call("sft/sft_gsm8k.py", *words, *more)


def test_injection_is_part_of_what_a_run_is(demo, capsys):
    """Without --inject-mul-tokens, --resume of a run that had it said "already finished"."""
    finished = "new"
    assert mul_tokens(demo, finished, "--inject-mul-tokens") == 0
    assert mul_tokens(demo, finished, "--inject-mul-tokens", "--resume") == 0
    capsys.readouterr()
    assert mul_tokens(demo, finished, "--resume") == 2
    assert "--allow-no-injection if that is meant" in capsys.readouterr().err
    assert mul_tokens(demo, finished, "--resume", "--allow-no-injection") == 2
    assert "was made with inject True, now it is False" in capsys.readouterr().err


def test_a_folder_from_before_these_were_recorded_stays_readable(demo, capsys):
    folder = demo / "new"
    assert mul_tokens(demo, folder.name, "--inject-mul-tokens") == 0
    for name in ("run_card.json", "sft_results.json"):
        content = json.loads((folder / name).read_text())
        for key in ("inject", "injection_mode", "ancestors"):
            content.pop(key, None)
        for key in ("inject", "code"):
            content.get("identity", {}).pop(key, None)
        (folder / name).write_text(json.dumps(content))
    assert mul_tokens(demo, folder.name, "--inject-mul-tokens", "--resume") == 0
    assert "made before the code that trains was recorded" in capsys.readouterr().out
    assert mul_tokens(demo, folder.name, "--resume", "--allow-no-injection") == 2
    assert "fact tokens in its training text, now inject is False" in capsys.readouterr().err


def test_a_treated_arm_without_facts_is_refused_unless_meant(demo, capsys):
    """Rows without a product: the "treated" arm was a second baseline, and compared as one."""
    rows = [
        {"question": f"What is {n} plus 100?", "answer": f"It is {n + 100}.\n#### {n + 100}"}
        for n in range(40)
    ]
    path = demo / "data" / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = tree(demo)
    assert mul_tokens(demo, "new", "--inject-mul-tokens") == 2
    assert "no place that treatment fact_token of all could write" in capsys.readouterr().err
    assert tree(demo) == before
    assert mul_tokens(demo, "new", "--inject-mul-tokens", "--allow-no-injection") == 0
    card = json.loads((demo / "new" / "run_card.json").read_text())
    assert (card["inject"], card["injected_tokens"]) == (True, 0)


def test_an_evaluation_is_not_resumed_by_other_code(demo, monkeypatch, capsys):
    """Half of the answers were decoded by one version, half by the next, under one code hash."""

    def evaluate(*more):
        words = ["--model-path", demo / "sft_gsm8k_baseline", "--output-dir", demo / "new"]
        words += ["--condition", "baseline", "--max-new-tokens", 2]
        return call("eval/run_arithmetic_probes.py", *words, *more)

    def dying(self, items, results, **more):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Answers, "finish", dying)
        with pytest.raises(KilledError):
            evaluate()

    def other(*args, **more):
        return "f" * 64

    with monkeypatch.context() as patch:
        plant(patch, "domain_tokens.runs.source_code.code_hash", other)
        assert evaluate("--resume") == 2
    assert "or code" in capsys.readouterr().err
    assert evaluate("--resume") == 0
    with monkeypatch.context() as patch:
        plant(patch, "domain_tokens.runs.source_code.code_hash", other)
        assert evaluate("--resume") == 0
