"""Trackers get the curves and change nothing else."""

import importlib.util
import os

import pytest

from domain_tokens.errors import UserError
from domain_tokens.runs.config import SFTConfig, TrackingSection, load_config
from domain_tokens.runs.device import choose_device
from domain_tokens.training.step_plan import plan_steps
from domain_tokens.training.tracking import LOG_DIR, require_trackers, with_run_name
from domain_tokens.training.trainer import Surroundings, train
from tests.conftest import ROOT
from tests.test_packing import random_examples
from tests.test_training import with_


def config(*overrides):
    return load_config(SFTConfig, ROOT / "sft/configs/gsm8k.yaml", list(overrides))


def test_a_tracker_that_is_not_installed_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_trackers(TrackingSection())
    with pytest.raises(UserError, match="names trackio, which is not installed; uv sync --extra"):
        require_trackers(TrackingSection(report_to=["trackio"]))
    with pytest.raises(UserError, match="uv pip install wandb"):
        require_trackers(TrackingSection(report_to=["wandb"]))


def test_an_unknown_tracker_is_refused():
    with pytest.raises(UserError, match=r"tracking\.report_to\.0 is 'tensorbord'"):
        config("tracking.report_to=[tensorbord]")


def test_tracking_is_no_part_of_what_a_run_is():
    tracked = config("tracking.report_to=[tensorboard]", "tracking.run_name=first")
    assert tracked.identity() == config().identity()
    assert tracked.tracking.run_name == "first"


def test_a_run_is_named_after_its_folder():
    assert with_run_name(TrackingSection(), "sft_tulu_baseline").run_name == "sft_tulu_baseline"
    assert with_run_name(TrackingSection(run_name="mine"), "folder").run_name == "mine"


def test_tensorboard_holds_the_loss_of_every_logged_step(tiny_model, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `tracking` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    examples = random_examples(8, seed=1, low=5, high=20)
    settings = with_(num_epochs=2, batch_size=4, gradient_accumulation_steps=1, logging_steps=1)
    plan = plan_steps(examples, settings)
    where = TrackingSection(report_to=["tensorboard"])
    around = Surroundings(choose_device("fp32"), where)
    train(tiny_model, examples, plan, settings, tmp_path, around=around)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert LOG_DIR not in os.environ
