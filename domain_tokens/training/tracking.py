"""Experiment trackers, through the integrations that transformers.Trainer brings."""

import importlib.util
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from domain_tokens.errors import UserError

if TYPE_CHECKING:
    from domain_tokens.runs import TrackingSection

LOG_DIR = "TENSORBOARD_LOGGING_DIR"  # where Trainer's integration looks


def require_trackers(settings: "TrackingSection") -> None:
    """Raise UserError where tracking.report_to names a library that is not installed."""
    for name in settings.report_to:
        if importlib.util.find_spec(name) is None:
            ours = name in ("tensorboard", "trackio")
            command = "uv sync --extra tracking" if ours else f"uv pip install {name}"
            raise UserError(
                f"tracking.report_to names {name}, which is not installed; {command} installs it, "
                "--set tracking.report_to=[] does without"
            )


def with_run_name(settings: "TrackingSection", name: str) -> "TrackingSection":
    """Return the settings with a name for the run, where they have none."""
    return settings.model_copy(update={"run_name": settings.run_name or name})


@contextmanager
def tensorboard_in(folder: Path, settings: "TrackingSection") -> Generator[None]:
    """Let TensorBoard write to folder/tensorboard, unless the environment says where."""
    ours = "tensorboard" in settings.report_to and LOG_DIR not in os.environ
    if ours:
        os.environ[LOG_DIR] = str(folder / "tensorboard")
    try:
        yield
    finally:
        if ours:
            del os.environ[LOG_DIR]
