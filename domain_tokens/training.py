"""The one SFT run: planned optimizer steps on transformers.Trainer."""

import hashlib
import json
import math
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, SequentialSampler
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from domain_tokens import attention, hardware, losses, packing
from domain_tokens import tracking as trackers
from domain_tokens.config import TrackingSection, TrainingSection
from domain_tokens.corpora import order
from domain_tokens.errors import FailedError, StoppedError, UserError
from domain_tokens.prompts import MATCH, TEXT, Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel


NOWHERE = TrackingSection()


@dataclass(frozen=True, slots=True)
class Plan:
    """All optimizer steps of all epochs, laid out before training starts.

    steps[s] holds processes × accumulation micro-batches, each a list of rows of example indices;
    an empty micro-batch only keeps processes in step. order: example indices as they are trained.
    """

    steps: list[list[list[list[int]]]]
    order: list[int]
    accumulation: int
    tokens: list[int]  # per step, padding not counted
    supervised: list[int]  # per step


def make_plan(
    examples: Sequence[Example], settings: TrainingSection, *, processes: int = 1
) -> Plan:
    """Plan a run: a step is batch_size × accumulation examples, an epoch's last may be less.

    The order depends on the examples' ids, the seed and the epoch alone. At most batch_size rows
    of max_length tokens are in memory at once, as in a run that pads.
    """
    step_size = settings.batch_size * settings.gradient_accumulation_steps
    ids = [example.id for example in examples]
    chunks: list[list[int]] = []
    for epoch in range(settings.num_epochs):
        permutation = order(ids, seed=settings.seed, epoch=epoch)
        chunks += [permutation[i : i + step_size] for i in range(0, len(ids), step_size)]
    steps = []
    for chunk in chunks:
        parts = packing.split_step(
            [len(examples[i].input_ids) for i in chunk],
            max_length=settings.max_length,
            rows_at_once=settings.batch_size,
            processes=processes,
            packing=settings.packing,
        )
        steps.append([[[chunk[i] for i in row] for row in rows] for rows in parts])
    accumulation = max(math.ceil(len(step) / processes) for step in steps)
    for step in steps:
        step += [[] for _ in range(processes * accumulation - len(step))]
    return Plan(
        steps=steps,
        order=[i for chunk in chunks for i in chunk],
        accumulation=accumulation,
        tokens=[sum(len(examples[i].input_ids) for i in chunk) for chunk in chunks],
        supervised=[sum(_targets(examples[i]) for i in chunk) for chunk in chunks],
    )


def _targets(example: Example) -> int:
    return int(np.count_nonzero(example.kinds[1:]))  # the first token is never predicted


def as_tensors(batch: packing.MicroBatch) -> dict[str, Any]:
    """Return what a forward pass needs.

    ids and positions [B, T], keep bool [B, T], targets [N]; starts [D + 1] and longest say where
    the documents lie.
    """
    targets = torch.from_numpy(batch.targets)
    positions = torch.from_numpy(batch.position_ids)
    keep = targets != packing.IGNORED
    return {
        "input_ids": torch.from_numpy(batch.input_ids),
        "position_ids": positions,
        "keep": keep,
        "targets": targets[keep],
        "starts": attention.documents(positions),
        "longest": int(positions.max()) + 1,
    }


def on_device(inputs: dict[str, Any], device: str) -> dict[str, Any]:
    """Return inputs with their tensors on a device."""
    return {n: v.to(device) if torch.is_tensor(v) else v for n, v in inputs.items()}


def hidden_states(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Return what the model gives at supervised positions: [N, W] within `without_head`, or logits.

    No attention mask and no cache: only then do restarting positions keep packed documents apart.
    """
    plain: Any = getattr(model, "module", model)  # under DDP
    own = plain.config._attn_implementation == attention.NAME
    output = model(
        input_ids=inputs["input_ids"],
        position_ids=inputs["position_ids"],
        logits_to_keep=inputs["keep"],
        use_cache=False,
        **({"starts": inputs["starts"], "longest": inputs["longest"]} if own else {}),
    )
    return output.logits.flatten(0, -2)


def summed_loss(
    model: torch.nn.Module, inputs: dict[str, Any], head: torch.nn.Linear | None
) -> torch.Tensor:
    """Return the summed loss in nats over the supervised tokens, fp32.

    head: the output layer that `without_head` took away, or None where the model has its own.
    """
    found = hidden_states(model, inputs)
    if head is not None:
        return losses.summed(found, head.weight, inputs["targets"])
    return cross_entropy(found.float(), inputs["targets"], reduction="sum")


@torch.no_grad()
def token_losses(model: "PreTrainedModel", inputs: dict[str, Any]) -> torch.Tensor:
    """Return the loss in nats of each supervised token, fp32 [N]."""
    with losses.without_head(model) as head:
        found = hidden_states(model, inputs)
    if head is not None:
        return losses.each(found, head.weight, inputs["targets"])
    return cross_entropy(found.float(), inputs["targets"], reduction="none")


def learning_rates(settings: TrainingSection, steps: int) -> list[float]:
    """Return the rate of each optimizer step as Trainer's linear schedule sets it.

    Step k of w warm-up steps, counted from 0, has k/w of the rate: the first one has none.
    """
    warmup = _warmup_steps(settings, steps)
    shares = [
        step / warmup if step < warmup else (steps - step) / max(steps - warmup, 1)
        for step in range(steps)
    ]
    return [settings.learning_rate * share for share in shares]


def _warmup_steps(settings: TrainingSection, steps: int) -> int:
    return math.ceil(settings.warmup_ratio * steps)


def refuse_zero_rates(plan: Plan, settings: TrainingSection) -> None:
    """Raise UserError where every step lies in the warm-up at learning rate 0."""
    steps = len(plan.steps)
    if not any(learning_rates(settings, steps)):
        raise UserError(
            f"all of the run ({steps} optimizer step) lies in the warm-up, at learning rate 0: "
            f"nothing would be trained (training.warmup_ratio is {settings.warmup_ratio}); "
            "--set training.warmup_ratio=0, or give more examples"
        )


def long_warmup(plan: Plan, settings: TrainingSection) -> str:
    """Return a note where more than half of the steps are warm-up, else ""."""
    steps = len(plan.steps)
    warmup = _warmup_steps(settings, steps)
    if 2 * warmup <= steps:
        return ""
    return (
        f"\nnote: {warmup} of {steps} optimizer steps are warm-up, the first at learning rate 0 "
        "(training.warmup_ratio)"
    )


def weights_digest(model: torch.nn.Module) -> str:
    """Return a hash of all parameters as they are in memory."""
    digest = hashlib.blake2b()
    for name, weight in model.named_parameters():
        digest.update(name.encode() + b"\0")
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def refuse_useless(model: torch.nn.Module, before: str) -> None:
    """Raise FailedError where training changed no weight, or left one that is not finite.

    before: the digest of the weights that training began with.
    """
    if weights_digest(model) == before:
        raise FailedError(
            "training changed no weight: these are the parent's; look at the learning rates in "
            "train_log.jsonl, and train again into another --output-dir"
        )
    broken = [n for n, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise FailedError(
            f"{broken[0]} holds numbers that are not finite after the last step; lower "
            "training.learning_rate and train again into another --output-dir"
        )


class MicroBatches(Dataset):
    """The planned micro-batches in order, built when asked for; one item is one micro-batch."""

    def __init__(self, examples: Sequence[Example], plan: Plan, *, pad_id: int):
        self._examples = examples
        self._items = [(s, rows) for s, step in enumerate(plan.steps) for rows in step]
        self._supervised = plan.supervised
        self._pad_id = pad_id

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, rows = self._items[index]
        batch = (
            packing.build([[self._examples[i] for i in row] for row in rows], pad_id=self._pad_id)
            if rows
            else packing.empty(pad_id=self._pad_id)
        )
        return {
            **as_tensors(batch),
            "step_supervised": torch.tensor(self._supervised[step], dtype=torch.float32),
        }


class SFTTrainer(Trainer):
    """Trainer that takes planned micro-batches in order; loss is summed ÷ the step's supervised."""

    loss_is_scaled_for_ga = True
    head: torch.nn.Linear | None = None  # see losses.without_head

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
        total = summed_loss(model, inputs, self.head)
        return total / inputs["step_supervised"] * self.accelerator.num_processes


class TrainLog(TrainerCallback):
    """Writes a line per logging step and keeps run time and token counts over resumed legs.

    On a terminal a progress bar shows the newest line; elsewhere lines are printed plainly.
    """

    def __init__(self, path: Path, plan: Plan, *, is_writer: bool):
        self._path, self._plan, self._is_writer = path, plan, is_writer
        self._bar = tqdm(
            total=len(plan.steps), desc="train", unit=" steps", disable=None if is_writer else True
        )
        self._last_step = 0
        self._last_time = self._start = time.perf_counter()
        self.earlier_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier legs included."""
        return self.earlier_seconds + time.perf_counter() - self._start

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop lines that a killed leg wrote after its last checkpoint."""
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


def arguments(
    settings: TrainingSection, plan: Plan, folder: Path, tracking: TrackingSection
) -> TrainingArguments:
    """Translate our settings into Trainer's; defaults that have bitten people are written out."""
    device, dtype = hardware.choose(settings.precision)
    return TrainingArguments(
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
        average_tokens_across_devices=False,  # the plan counts the tokens
    )


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete intermediate checkpoint (trainer_state.json is written last)."""
    found = [
        path
        for path in (folder / "checkpoints").glob("checkpoint-*")
        if (path / "trainer_state.json").is_file()
    ]
    return str(max(found, key=lambda p: int(p.name.split("-")[1]))) if found else None


@torch.no_grad()
def evaluate(
    model: "PreTrainedModel", examples: Sequence[Example], settings: TrainingSection
) -> dict[str, float | None]:
    """Return the token-weighted loss in nats and bits per byte of supervised text.

    eval_bits_per_byte leaves out EOS and whatever the injector replaces or would replace, with what
    shares a token with it in either arm (the space in ` 6*9`), so that both arms are measured on
    the same bytes; eval_eligible_bits_per_byte is of just those places, where a fact token stands
    for many spellings, and no verdict may rest on it.
    """
    if not examples:
        return dict.fromkeys(("eval_loss", "eval_bits_per_byte", "eval_eligible_bits_per_byte"))
    model.eval()
    device, dtype = hardware.choose(settings.precision)
    total = text = eligible = 0.0
    tokens = 0
    pad_id = int(examples[0].input_ids[-1])
    for start in range(0, len(examples), 32):
        chunk = examples[start : start + 32]
        parts = packing.split_step(
            [len(e.input_ids) for e in chunk],
            max_length=settings.max_length,
            rows_at_once=settings.batch_size,
        )
        for rows in parts:
            grouped = [[chunk[i] for i in row] for row in rows]
            inputs = as_tensors(packing.build(grouped, pad_id=pad_id))
            inputs = on_device(inputs, device)
            half = torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)
            with half, attention.packed(model):
                nats = token_losses(model, inputs).double().cpu().numpy()
            kinds = np.concatenate([e.kinds[1:][e.kinds[1:] > 0] for row in grouped for e in row])
            total += float(nats.sum())
            text += float(nats[kinds == TEXT].sum())
            eligible += float(nats[kinds == MATCH].sum())
            tokens += len(nats)
    if not math.isfinite(total):
        raise FailedError(
            f"the loss on the validation rows is {total}; lower training.learning_rate and train "
            "again into another --output-dir"
        )
    return {
        "eval_loss": total / tokens,
        "eval_bits_per_byte": _bits_per_byte(text, sum(e.text_bytes for e in examples)),
        "eval_eligible_bits_per_byte": _bits_per_byte(
            eligible, sum(e.match_bytes for e in examples)
        ),
    }


def _bits_per_byte(nats: float, size: int) -> float | None:
    return nats / math.log(2) / size if size else None


def training_flops(model: Any, examples: Sequence[Example], plan: Plan) -> float:
    """Return the matmul FLOPs of a run: forward and backward, causal attention, logits with loss.

    Follows PaLM's appendix B (Chowdhery et al. 2022): 6 per weight and token, 12 per layer, width
    and attended position; the output layer counts at supervised positions only.
    """
    config = model.config
    embedding = model.get_input_embeddings().weight
    output = model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    body -= embedding.numel() + (output.numel() if output is not embedding else 0)
    body -= sum(p.numel() for n, p in model.named_parameters() if n.endswith("wpe.weight"))
    lengths = np.array([len(examples[i].input_ids) for i in plan.order], dtype=np.float64)
    attention = 6 * config.num_hidden_layers * config.hidden_size * float((lengths**2).sum())
    return 6 * body * sum(plan.tokens) + attention + 6 * output.numel() * sum(plan.supervised)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training run measured; seconds and loss cover all legs of a resumed run."""

    train_loss: float
    seconds: float
    peak_memory_bytes: int
    flops: float


def without_dropout(model: "PreTrainedModel") -> None:
    """Set every dropout of a model to 0, in its config, too."""
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def train(
    model: "PreTrainedModel",
    examples: Sequence[Example],
    plan: Plan,
    settings: TrainingSection,
    folder: Path,
    *,
    tracking: TrackingSection = NOWHERE,
) -> Outcome:
    """Train a model in place, writing train_log.jsonl and one intermediate checkpoint to folder.

    Raises FloatingPointError on a loss that is not finite, StoppedError after a SIGTERM and
    UserError where there is nothing to train on. Continues from the newest complete checkpoint in
    folder, if there is one.
    """
    if not examples:
        raise UserError("no training example is left; see the dropped counts and data.source")
    refuse_zero_rates(plan, settings)
    without_dropout(model)
    pad_id = int(examples[0].input_ids[-1])  # every example ends in EOS
    with trackers.writing_to(folder, tracking):
        trainer = SFTTrainer(
            model=model,
            args=arguments(settings, plan, folder, tracking),
            train_dataset=MicroBatches(examples, plan, pad_id=pad_id),
            data_collator=lambda items: items[0],
        )
    log = TrainLog(folder / "train_log.jsonl", plan, is_writer=trainer.is_world_process_zero())
    trainer.remove_callback(PrinterCallback)
    stop = StopWhenTold(every=settings.logging_steps)
    trainer.add_callback(stop)  # before the log, which is written before a checkpoint is
    trainer.add_callback(log)
    with attention.packed(model), losses.without_head(model) as trainer.head:
        done = trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    if stop.told and trainer.state.global_step < len(plan.steps):
        raise StoppedError(
            f"terminated after step {trainer.state.global_step} of {len(plan.steps)}; a checkpoint "
            "is kept"
        )
    device, _ = hardware.choose(settings.precision)
    return Outcome(
        train_loss=_mean_loss(trainer.state.log_history, done.training_loss),
        seconds=log.seconds,
        peak_memory_bytes=hardware.peak_memory_bytes(device),
        flops=training_flops(model, examples, plan),
    )


def _mean_loss(history: list[dict[str, float]], fallback: float) -> float:
    """Return the mean over all logged steps; Trainer's own figure forgets earlier legs."""
    losses, weights, before = [], [], 0
    for entry in history:
        if "loss" in entry:
            losses.append(entry["loss"])
            weights.append(entry["step"] - before)
            before = entry["step"]
    return float(np.average(losses, weights=weights)) if losses else fallback
