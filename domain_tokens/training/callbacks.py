"""What listens to a training run: the log, and the signal that ends it."""

import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from domain_tokens.runs import TrainLogLine, require_record
from domain_tokens.training.step_plan import StepPlan


class TrainLog(TrainerCallback):
    """Writes a line per logging step and keeps run time and token counts over resumed segments.

    On a terminal a progress bar shows the newest line; elsewhere lines are printed plainly.
    """

    def __init__(self, path: Path, plan: StepPlan, *, is_writer: bool):
        self._path, self._plan, self._is_writer = path, plan, is_writer
        self._bar = tqdm(
            total=len(plan.steps), desc="train", unit=" steps", disable=None if is_writer else True
        )
        self._last_step = 0
        self._last_time = self._start = time.perf_counter()
        self.earlier_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier segments included."""
        return self.earlier_seconds + time.perf_counter() - self._start

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop lines that a killed segment wrote after its last checkpoint."""
        self._last_step = state.global_step
        self._last_time = self._start = time.perf_counter()
        if not self._is_writer:
            return
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
        self.earlier_seconds = json.loads(kept[-1])["seconds"] if kept else 0.0
        self._path.write_text("".join(f"{line}\n" for line in kept))
        self._bar.update(state.global_step - self._bar.n)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar; log the first and the last step, and each that is saved.

        Logging comes before saving and refuses a loss that is not finite, so that no checkpoint
        holds one.
        """
        self._bar.update()
        if control.should_save or state.global_step in (1, len(self._plan.steps)):
            control.should_log = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append loss, learning rate, gradient norm and tokens/s; stop on a non-finite loss."""
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"loss is {logs['loss']} at step {state.global_step} of {len(self._plan.steps)}; "
                "the last checkpoint is from before: lower training.learning_rate and start again "
                "in another --output-dir"
            )
        now = time.perf_counter()
        tokens = sum(self._plan.tokens[self._last_step : state.global_step])
        line = {
            "step": state.global_step,
            "steps": len(self._plan.steps),
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "tokens_per_second": round(tokens / max(now - self._last_time, 1e-9), 1),
            "seconds": round(self.seconds, 3),
        }
        self._last_step, self._last_time = state.global_step, now
        if self._is_writer:
            require_record(TrainLogLine, line, self._path.name)
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._show(line)

    def _show(self, line: dict[str, Any]) -> None:
        if not self._bar.disable:
            self._bar.set_postfix(loss=f"{line['loss']:.4f}", lr=f"{line['learning_rate']:.2g}")
            return
        print(
            f"step {line['step']}/{line['steps']}  loss {line['loss']:.4f}  "
            f"lr {line['learning_rate']:.3g}  grad norm {line['grad_norm']:.3g}  "
            f"{line['tokens_per_second']:,.0f} tokens/s",
            flush=True,
        )


class StopWhenTold(TrainerCallback):
    """On SIGTERM, as a preempted job gets it, ends after the step that is under way and saves."""

    def __init__(self, *, every: int):
        self.told = False
        self._every = every  # steps after which several processes agree on it
        self._previous: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen to the signal."""

        def note(number: int, frame: Any) -> None:
            self.told = True

        self._previous = signal.signal(signal.SIGTERM, note)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop where any process was told to."""
        if args.world_size > 1:
            if state.global_step % self._every:
                return
            flag = torch.tensor(int(self.told), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            self.told = bool(flag)
        if self.told:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the signal to whoever had it before."""
        signal.signal(signal.SIGTERM, self._previous)
