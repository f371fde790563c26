"""The one SFT run: planned optimizer steps on transformers.Trainer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from domain_tokens.errors import StoppedError, UserError
from domain_tokens.modeling import packed_tokens, without_dropout, without_head
from domain_tokens.prompts import Example
from domain_tokens.runs import (
    Device,
    TrackingSection,
    TrainingSection,
    choose_device,
    peak_memory_bytes,
    reset_peak_memory,
    world_size,
)
from domain_tokens.training.callbacks import StopWhenTold, TrainLog
from domain_tokens.training.frozen_rows import frozen_rows
from domain_tokens.training.loss import as_tensors, half_precision, summed_loss
from domain_tokens.training.preflight import refuse_zero_rates
from domain_tokens.training.step_graphs import (
    Shape,
    StepGraphs,
    graphs_pay,
    padded,
    planned_shapes,
)
from domain_tokens.training.step_plan import StepPlan, build_micro_batch, empty_micro_batch
from domain_tokens.training.tracking import tensorboard_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel


NOWHERE = TrackingSection()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a training run finds around it: where it computes, and what follows its progress."""

    device: Device
    tracking: TrackingSection = NOWHERE


class MicroBatches(Dataset):
    """The planned micro-batches in order, built when asked for; one item is one micro-batch."""

    def __init__(
        self,
        examples: Sequence[Example],
        plan: StepPlan,
        *,
        pad_id: int,
        shapes: Sequence[Shape] | None = None,
    ):
        """shapes: what each micro-batch is padded to; by default none is."""
        self._examples, self._shapes = examples, shapes
        self._items = [(s, rows) for s, step in enumerate(plan.steps) for rows in step]
        self._supervised = plan.supervised
        self._pad_id = pad_id

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, rows = self._items[index]
        batch = (
            build_micro_batch(
                [[self._examples[i] for i in row] for row in rows], pad_id=self._pad_id
            )
            if rows
            else empty_micro_batch(pad_id=self._pad_id)
        )
        inputs = as_tensors(batch)
        if self._shapes is not None:
            inputs = padded(inputs, self._shapes[index], pad_id=self._pad_id)
        return {
            **inputs,
            "step_supervised": torch.tensor(self._supervised[step], dtype=torch.float32),
        }


class SFTTrainer(Trainer):
    """Trainer that takes planned micro-batches in order; loss is summed ÷ the step's supervised."""

    loss_is_scaled_for_ga = True
    head: torch.nn.Linear | None = None  # see modeling.without_head
    graphs: StepGraphs | None = None  # that replay the passes

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)  # ty: ignore[invalid-argument-type]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return summed loss ÷ supervised tokens of the whole step; DDP's averaging is undone."""
        dtype = torch.bfloat16 if self.args.bf16 else torch.float32
        with half_precision(self.args.device.type, dtype):
            total = summed_loss(model, inputs, self.head)
        return total / inputs["step_supervised"] * self.accelerator.num_processes

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the loss of a micro-batch after its forward and backward pass."""
        step = super().training_step
        if self.graphs is None:
            return step(model, inputs, num_items_in_batch)
        return self.graphs(self._prepare_inputs(inputs), lambda static: step(model, static, None))


def training_arguments(
    settings: TrainingSection, plan: StepPlan, folder: Path, around: Surroundings
) -> TrainingArguments:
    """Translate our settings into Trainer's; defaults that have bitten people are written out."""
    (device, dtype), tracking = around.device, around.tracking
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=1,  # one item is one packed micro-batch
        gradient_accumulation_steps=plan.accumulation,
        num_train_epochs=1,  # the plan holds all epochs
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_ratio,
        lr_scheduler_type="linear",
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        bf16=dtype == torch.bfloat16,
        use_cpu=device == "cpu",
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps,
        save_total_limit=1,
        report_to=list(tracking.report_to),
        project=tracking.project,
        run_name=tracking.run_name,
        trackio_static_space_id=False,  # nothing is published
        disable_tqdm=True,  # TrainLog shows the progress
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=device == "cuda",
        accelerator_config={"non_blocking": device == "cuda"},
        average_tokens_across_devices=False,  # the plan counts the tokens
    )
    # Several GPUs that one process sees would become a DataParallel, which takes a packed row for
    # a batch, and drops what does not divide: one is used, and `hardware_line` says so.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete intermediate checkpoint (trainer_state.json is written last)."""
    checkpoints = [
        path
        for path in (folder / "checkpoints").glob("checkpoint-*")
        if (path / "trainer_state.json").is_file()
    ]
    return str(max(checkpoints, key=lambda p: int(p.name.split("-")[1]))) if checkpoints else None


def training_flops(
    model: Any, examples: Sequence[Example], plan: StepPlan, *, body_trains: bool = True
) -> float:
    """Return the matmul FLOPs of a run: forward and backward, causal attention, logits with loss.

    Follows PaLM's appendix B (Chowdhery et al. 2022): 6 per weight and token, 12 per layer, width
    and attended position; the output layer counts at supervised positions only. A body that does
    not train has no gradients of its weights: 4 per weight and token.
    """
    config = model.config
    embedding = model.get_input_embeddings().weight
    output = model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    body -= embedding.numel() + (output.numel() if output is not embedding else 0)
    body -= sum(p.numel() for n, p in model.named_parameters() if n.endswith("wpe.weight"))
    lengths = np.array([len(examples[i].input_ids) for i in plan.order], dtype=np.float64)
    attention = 6 * config.num_hidden_layers * config.hidden_size * float((lengths**2).sum())
    each = 6 if body_trains else 4
    return each * body * sum(plan.tokens) + attention + 6 * output.numel() * sum(plan.supervised)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training run measured; seconds and loss cover all segments of a resumed run.

    flops: of one process; peak_memory_bytes: of this one, on a GPU since the run began.
    """

    train_loss: float
    seconds: float
    peak_memory_bytes: int
    flops: float


def train(
    model: "PreTrainedModel",
    examples: Sequence[Example],
    plan: StepPlan,
    settings: TrainingSection,
    folder: Path,
    *,
    around: Surroundings | None = None,
) -> Outcome:
    """Train a model in place, writing train_log.jsonl and one intermediate checkpoint to folder.

    Raises FloatingPointError on a loss that is not finite, StoppedError after a SIGTERM and
    UserError where there is nothing to train on. Continues from the newest complete checkpoint in
    folder, if there is one. around: by default the device that the settings ask for, no tracking.
    """
    around = around or Surroundings(choose_device(settings.precision))
    if not examples:
        raise UserError("no training example is left; see the dropped counts and data.source")
    refuse_zero_rates(plan, settings)
    without_dropout(model)
    reset_peak_memory(around.device.type)
    pad_id = int(examples[0].input_ids[-1])  # every example ends in EOS
    graphed = graphs_pay(model, plan, settings, around.device)
    shapes = planned_shapes(examples, plan) if graphed else None
    with tensorboard_in(folder, around.tracking):
        trainer = SFTTrainer(
            model=model,
            args=training_arguments(settings, plan, folder, around),
            train_dataset=MicroBatches(examples, plan, pad_id=pad_id, shapes=shapes),
            data_collator=lambda items: items[0],
        )
    log = TrainLog(folder / "train_log.jsonl", plan, is_writer=trainer.is_world_process_zero())
    trainer.remove_callback(PrinterCallback)
    stop = StopWhenTold(every=settings.logging_steps)
    trainer.add_callback(stop)  # before the log, which is written before a checkpoint is
    trainer.add_callback(log)
    parts = frozen_rows(model, settings.train)
    with packed_tokens(model), without_head(model) as trainer.head, parts as frozen:
        if frozen is not None:
            trainer.add_callback(frozen)
        trainer.graphs = StepGraphs(model) if graphed else None
        done = trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    if stop.told and trainer.state.global_step < len(plan.steps):
        raise StoppedError(
            f"terminated after step {trainer.state.global_step} of {len(plan.steps)}; a checkpoint "
            "is kept"
        )
    return Outcome(
        train_loss=_mean_loss(trainer.state.log_history, done.training_loss),
        seconds=log.seconds,
        peak_memory_bytes=peak_memory_bytes(around.device.type),
        flops=training_flops(model, examples, plan, body_trains=settings.train != "fact_rows")
        / world_size(),
    )


def _mean_loss(history: list[dict[str, float]], fallback: float) -> float:
    """Return the mean over all logged steps; Trainer's own figure forgets earlier segments."""
    losses, weights, before = [], [], 0
    for entry in history:
        if "loss" in entry:
            losses.append(entry["loss"])
            weights.append(entry["step"] - before)
            before = entry["step"]
    return float(np.average(losses, weights=weights)) if losses else fallback
