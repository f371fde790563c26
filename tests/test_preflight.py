"""Whatever can be refused is refused before the first step, and nothing is lost after the last."""

import json
import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments, get_linear_schedule_with_warmup

from domain_tokens.checkpoints.folder import _WithoutWeights, refuse_unsavable, save_checkpoint
from domain_tokens.checkpoints.hashes import weights_hash
from domain_tokens.errors import UserError
from domain_tokens.evaluation.checkpoint import LoadedCheckpoint
from domain_tokens.evaluation.endpoints import answer_scores
from domain_tokens.evaluation.preflight import refuse_broken_weights, refuse_long_questions
from domain_tokens.evaluation.responses import Question
from domain_tokens.inference.decoder import Response
from domain_tokens.prompts import Renderer
from domain_tokens.runs.config import TrainingSection
from domain_tokens.runs.files import hash_files, write_json
from domain_tokens.runs.output_folder import Workspace
from domain_tokens.training.loss import evaluate_loss
from domain_tokens.training.preflight import (
    TOKENIZER,
    learning_rates,
    refuse_unfit_to_train,
    refuse_without_room,
)
from domain_tokens.vocabulary import gpt2_tokenizer, layout_of
from tests.conftest import call, plant, train, tree

Usage = namedtuple("Usage", "total used free")


def refused(capsys, demo, *more):
    """Train with something that is wrong; return the one line, after seeing that nothing moved."""
    capsys.readouterr()
    before = tree(demo)
    assert train(demo, "new", *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert tree(demo) == before
    return line


def settings(**more):
    numbers = {"max_length": 64, "batch_size": 2, "gradient_accumulation_steps": 1}
    numbers |= {"num_epochs": 1, "learning_rate": 1e-3, "warmup_ratio": 0.0, "weight_decay": 0.0}
    return TrainingSection(**numbers | {"max_train_samples": None, "max_val_samples": 0} | more)


def test_what_cannot_be_saved_is_not_trained(demo, monkeypatch, capsys):
    """A generation config with sampling flags was refused by the library after the last step."""

    def refuse(model, tokenizer, folder):
        raise ValueError("GenerationConfig is invalid:\n- `temperature`: …")

    with monkeypatch.context() as patch:
        plant(patch, "domain_tokens.checkpoints.folder.save_checkpoint", refuse)
        assert "could not be saved after training (GenerationConfig" in refused(capsys, demo)


def test_the_trial_save_writes_what_the_save_writes_but_for_the_weights(
    tiny_model, tokenizer, tmp_path
):
    for name in ("trial", "real"):
        (tmp_path / name).mkdir()
    refuse_unsavable(tiny_model, tokenizer, tmp_path / "trial")
    save_checkpoint(tiny_model, tokenizer, tmp_path / "real")
    real = tree(tmp_path / "real")
    del real["model.safetensors"]
    trial = tree(tmp_path / "trial")
    trial.pop("model.safetensors", None)
    assert trial == real


@pytest.mark.parametrize("replaces", [False, True])
def test_a_disk_without_room_is_refused_and_one_with_it_is_not(
    tiny_model, tokenizer, tmp_path, monkeypatch, replaces
):
    numbers = sum(p.numel() for p in tiny_model.parameters())
    # Final weights and a checkpoint; or two checkpoints, each with two moments next to the weights.
    needed = 4 * numbers * (6 if replaces else 4) + TOKENIZER
    space = Workspace(tmp_path / "run", tmp_path / "run", "r.json", False, False, {})
    for free in (needed - 1, needed):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, f=free: Usage(f, 0, f))
        if free < needed:
            with pytest.raises(UserError, match="of free space, run needs"):
                refuse_without_room(tiny_model, tokenizer, space, replaces=replaces)
        else:
            refuse_without_room(tiny_model, tokenizer, space, replaces=replaces)
    assert not list(tmp_path.iterdir())


def test_both_arms_need_the_fact_tokens(tiny_model, tokenizer, tmp_path):
    """A baseline on a base without them was trained to the end, and refused by the evaluation."""
    tiny_model.config.save_pretrained(tmp_path)
    refuse_unfit_to_train(tiny_model, tokenizer, settings(), tmp_path)
    with pytest.raises(UserError, match="45 fact tokens"):
        refuse_unfit_to_train(tiny_model, gpt2_tokenizer(), settings(), tmp_path)
    with pytest.raises(UserError, match=r"training\.max_length=256"):
        refuse_unfit_to_train(tiny_model, tokenizer, settings(max_length=257), tmp_path)
    tiny_model.resize_token_embeddings(50_257)
    tiny_model.config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the model has 50257 rows"):
        refuse_unfit_to_train(tiny_model, tokenizer, settings(), tmp_path)


def test_a_tokenizer_without_an_end_is_refused(tiny_model, tmp_path):
    with pytest.raises(UserError, match="no EOS token"):
        refuse_unfit_to_train(tiny_model, SimpleNamespace(eos_token_id=None), settings(), tmp_path)


@pytest.mark.parametrize("script", ["scripts/compare_runs.py", "scripts/audit_injection.py"])
def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path, capsys, script):
    """The comparison was made, printed, and then lost to a folder that could not be written."""
    words = ["--baseline-dir", tmp_path, "--mul-tokens-dir", tmp_path]
    if "audit" in script:
        words = ["--source", tmp_path / "none.jsonl", "--kind", "problems"]
    assert call(script, *words, "--output-path", "/proc/nowhere/report.json") == 2
    assert "cannot make /proc/nowhere" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert call(script, *words, "--output-path", tmp_path / "file" / "report.json") == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def subject_of(model, tokenizer, folder):
    return LoadedCheckpoint(folder, model.eval(), tokenizer, layout_of(tokenizer))


def questions_of(renderer, size):
    """One question whose prompt has so many tokens."""
    shorter = len(renderer.prompt([("user", "a")]))
    ids = renderer.prompt([("user", "a" + " a" * (size - shorter))])
    assert len(ids) == size
    return [Question("q1", "gsm8k", "a", ids, "1234")]


def test_the_longest_rationale_and_its_answer_have_to_fit(tiny_model, tokenizer, tmp_path):
    """An IndexError came after all the sampling, when the answer was to be scored.

    The limit is exact: what is let through is scored, one token more is read beyond the context.
    """
    subject = subject_of(tiny_model, tokenizer, tmp_path)
    renderer = Renderer(tokenizer)
    # The fullest rationale: never `####`, never a line break, and then the marker and ` 1234`.
    frequent = [str(number) for number in range(1, 20)]
    new, tail = 20, len(renderer.encode("\n####")) + len(renderer.encode(" 1234"))
    rationale = Response(renderer.encode(" b" * new), "length")
    assert len(rationale.token_ids) == new
    for size, fits in ((256 - new - tail, True), (256 - new - tail + 1, False)):
        questions = questions_of(renderer, size)
        prompts = [question.prompt_ids for question in questions]

        def score(prompts=prompts):
            return answer_scores(subject, prompts, ["1234"], [[rationale]], frequent)

        if fits:
            refuse_long_questions(subject, questions, new, answers={"1234", "7"})
            assert 0 < score()[0].g1 < 1
        else:
            with pytest.raises(UserError, match=f"q1.*evaluation.max_new_tokens={new - 1}"):
                refuse_long_questions(subject, questions, new, answers={"1234", "7"})
            with pytest.raises(IndexError):
                score()


def test_weights_that_give_no_number_are_refused_before_decoding(tiny_model, tokenizer, tmp_path):
    """NaN in one row of the vocabulary: JSON cannot hold the metrics, as came out at the end."""
    subject = subject_of(tiny_model, tokenizer, tmp_path)
    questions = questions_of(Renderer(tokenizer), 12)
    refuse_broken_weights(subject, questions)
    with torch.no_grad():
        tiny_model.get_input_embeddings().weight[50_348] = torch.nan
    with pytest.raises(UserError, match="the weights are broken"):
        refuse_broken_weights(subject, questions)


def test_a_run_that_would_train_nothing_is_refused(demo, capsys):
    """One step lies in the warm-up at rate 0; the "trained" weights had their parent's hash."""
    one = ["--set", "training.max_train_samples=8", "--set", "training.max_val_samples=0"]
    line = refused(capsys, demo, *one)
    assert "at learning rate 0: nothing would be trained" in line
    assert "--set training.warmup_ratio=0" in line
    assert train(demo, "new", *one, "--set", "training.warmup_ratio=0") == 0
    assert weights_hash(demo / "new") != weights_hash(demo / "sft_tulu_baseline")


@pytest.mark.parametrize("ratio", [0.0, 0.02, 0.1, 0.5, 0.9])
def test_learning_rates_are_those_of_the_schedule(ratio):
    for steps in (1, 2, 3, 7, 50):
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=1e-3)
        args = TrainingArguments(warmup_steps=ratio, use_cpu=True, output_dir="unused")
        schedule = get_linear_schedule_with_warmup(optimizer, args.get_warmup_steps(steps), steps)
        rates = []
        for _ in range(steps):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        assert learning_rates(settings(warmup_ratio=ratio), steps) == pytest.approx(rates)


def test_a_stage_whose_weights_are_its_parents_has_failed(demo, capsys):
    """Rates too small for fp32 change nothing, whatever the log says."""
    assert train(demo, "new", "--set", "training.learning_rate=1e-30") == 1
    assert "training changed no weight" in capsys.readouterr().err
    assert not (demo / "new" / "sft_results.json").exists()


class PlantedError(RuntimeError):
    """Stands for whatever goes wrong after the last step."""


@pytest.mark.parametrize("where", ["save", "evaluate", "run_card.json", "sft_results.json"])
def test_what_fails_after_the_last_step_costs_no_training(demo, monkeypatch, where):
    assert train(demo, "whole") == 0
    honest = write_json

    def fail(*args, **more):
        raise PlantedError

    def fail_file(path, content):
        if path.name == where:
            raise PlantedError
        honest(path, content)

    def fail_save(model, tokenizer, folder):
        if not isinstance(model, _WithoutWeights):
            raise PlantedError
        (folder / "trial").touch()

    with monkeypatch.context() as patch:
        if where == "save":
            plant(patch, "domain_tokens.checkpoints.folder.save_checkpoint", fail_save)
        elif where == "evaluate":
            plant(patch, "domain_tokens.training.loss.evaluate_loss", fail)
        else:
            plant(patch, "domain_tokens.runs.files.write_json", fail_file)
        with pytest.raises(PlantedError):
            train(demo, "lost")
    with monkeypatch.context() as patch:
        plant(patch, "domain_tokens.training.loss.summed_loss", fail)  # no step is taken again
        assert train(demo, "lost", "--resume") == 0
    assert weights_hash(demo / "lost") == weights_hash(demo / "whole")
    results = [json.loads((demo / n / "sft_results.json").read_text()) for n in ("lost", "whole")]
    for key in ("train_loss", "eval_loss", "tokens", "optimizer_steps"):
        assert results[0][key] == results[1][key]


def test_a_parent_that_goes_while_its_child_trains_costs_nothing(demo, monkeypatch):
    """Parent, data and code were read again after training, and recorded as they then were."""
    data = demo / "data" / "train.jsonl"
    whole = data.read_text()
    honest = evaluate_loss

    def evaluate(*args):
        (demo / "sft_tulu_baseline").rename(demo / "gone")
        data.unlink()
        return honest(*args)

    plant(monkeypatch, "domain_tokens.training.loss.evaluate_loss", evaluate)
    assert train(demo, "new") == 0
    card = json.loads((demo / "new" / "run_card.json").read_text())
    assert card["parent"]["weights"] == weights_hash(demo / "gone")
    data.write_text(whole)
    assert card["sources"][str(data)] == hash_files([data])


def test_a_number_that_json_lacks_is_named(tmp_path):
    """NaN among the metrics ended an evaluation with a traceback of the JSON library."""
    tree = {"metrics": {"grid": [[0.5, float("nan")]]}}
    with pytest.raises(UserError, match=r"r\.json\.metrics\.grid\.0\.1 is not a finite number"):
        write_json(tmp_path / "r.json", tree)
    assert not list(tmp_path.iterdir())
