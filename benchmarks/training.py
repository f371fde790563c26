"""Training throughput: this repository next to the seed's recipe, plain Trainer and TRL, same rows.

Each measurement is a process of its own that trains the same rows twice and times the second pass;
the peers alternate. Real tokens (no padding) per second, ratios, share of the machine's own GEMM
rate (on a GPU: MFU against the stated peak) and peak memory.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from domain_tokens.errors import UserError
from domain_tokens.runs import (
    Parser,
    choose_device,
    code_identity,
    peak_flops,
    peak_memory_bytes,
    run_environment,
    run_script,
    write_json,
)

EXAMPLE = (
    "uv run --group bench python benchmarks/training.py --model-path outputs/hf_baseline_10b "
    "--data ../shared/data/gsm8k/train.jsonl --rows 32 --repeats 5"
)
# The best fair settings of each peer.
PEERS = {
    "seed": "every row padded to max_length, batch 8, logits everywhere, fused AdamW",
    "trainer": "transformers.Trainer, rows padded to the longest of the batch of 8, fused AdamW",
    "trl": "TRL SFTTrainer, bfd packing, rows of max_length, 4 a batch, no checkpointing, fp32",
    "ours": "domain_tokens.training as sft_gsm8k.py runs it",
}


def prepare(args: argparse.Namespace) -> tuple[Any, list[Any]]:
    """Load the model in fp32 and render the rows."""
    import torch

    from domain_tokens.checkpoints import load_model, load_tokenizer
    from domain_tokens.data import load_conversations, load_problems, problem_messages
    from domain_tokens.prompts import Renderer

    folder = Path(args.model_path)
    model = load_model(folder, dtype=torch.float32)
    renderer = Renderer(load_tokenizer(folder))
    options: dict[str, Any] = {"split": "train", "limit": args.rows, "subset_seed": 42}
    try:
        problems = load_problems(args.data, key="--data", **options).items
        pairs = [(p.id, problem_messages(p)) for p in problems]
    except UserError:  # chat rows have messages instead of question and answer
        rows = load_conversations(args.data, key="--data", **options).items
        pairs = [(row.id, row.messages) for row in rows]
    examples = [renderer.example(i, m, max_length=args.max_length) for i, m in pairs]
    return model, [e for e in examples if not isinstance(e, str)]


def train_seed(model: Any, examples: list[Any], args: argparse.Namespace) -> float:
    """The recipe of the lab note; returns the seconds of the second pass."""
    import torch

    device, dtype = choose_device("auto")
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01, fused=True)
    batches = []
    for start in range(0, len(examples), 8):
        chunk = examples[start : start + 8]
        ids = torch.full((len(chunk), args.max_length), 0)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(chunk):
            ids[row, : len(example.input_ids)] = torch.from_numpy(example.input_ids.astype("int64"))
            mask[row, : len(example.input_ids)] = 1
        labels = ids.masked_fill(mask == 0, -100)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    seconds = 0.0
    for _ in range(2):
        start_time = time.perf_counter()
        for batch in batches:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = model(**{k: v.to(device) for k, v in batch.items()}).loss
            (loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start_time
    return seconds


def second_epoch() -> Any:
    """Return a Trainer callback whose `seconds` is the time of the second of two epochs."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        seconds = 0.0

        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            self._start = time.perf_counter()

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds = time.perf_counter() - self._start

    return Clock()


def trainer_arguments(folder: str) -> dict[str, Any]:
    """Return the settings that both Trainer peers share."""
    device, _ = choose_device("auto")
    return {
        "output_dir": folder,
        "num_train_epochs": 2,
        "learning_rate": 2e-5,
        "weight_decay": 0.01,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "bf16": device == "cuda",
        "use_cpu": device == "cpu",
        "logging_strategy": "no",
    }


def train_trainer(model: Any, examples: list[Any], args: argparse.Namespace) -> float:
    """Plain transformers.Trainer with dynamic padding."""
    import torch
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from domain_tokens.checkpoints import load_tokenizer

    tokenizer: Any = load_tokenizer(Path(args.model_path))
    tokenizer.pad_token = tokenizer.eos_token
    rows = [
        {
            "input_ids": e.input_ids.tolist(),
            "labels": [
                int(t) if k else -100 for t, k in zip(e.input_ids, e.token_roles, strict=True)
            ],
        }
        for e in examples
    ]
    clock = second_epoch()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=model,
            args=TrainingArguments(
                **trainer_arguments(folder),
                per_device_train_batch_size=8,
                gradient_accumulation_steps=max(1, len(rows) // 8),
            ),
            train_dataset=torch.utils.data.Subset(rows, range(len(rows))),  # ty: ignore[invalid-argument-type]
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            callbacks=[clock],
        ).train()
    return clock.seconds


def train_trl(model: Any, examples: list[Any], args: argparse.Namespace) -> float:
    """TRL's SFTTrainer with bfd packing."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from domain_tokens.checkpoints import load_tokenizer

    tokenizer: Any = load_tokenizer(Path(args.model_path))
    tokenizer.pad_token = tokenizer.eos_token
    rows = [
        {
            "input_ids": e.input_ids.tolist(),
            "completion_mask": [int(k > 0) for k in e.token_roles],
        }
        for e in examples
    ]
    clock = second_epoch()
    with tempfile.TemporaryDirectory() as folder:
        SFTTrainer(
            model=model,
            args=SFTConfig(
                **trainer_arguments(folder),
                per_device_train_batch_size=4,
                gradient_accumulation_steps=len(rows),  # all of them in one optimizer step, as ours
                packing=True,
                packing_strategy="bfd",
                max_length=args.max_length,
                gradient_checkpointing=False,
                activation_checkpointing=False,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[clock],
        ).train()
    return clock.seconds


def train_ours(model: Any, examples: list[Any], args: argparse.Namespace) -> float:
    """The project's own run: two epochs, one optimizer step each."""
    from domain_tokens.runs import SFTConfig, load_config
    from domain_tokens.training import plan_steps, train

    overrides = [
        f"training.max_length={args.max_length}",
        "training.num_epochs=2",
        f"training.gradient_accumulation_steps={-(-len(examples) // 8)}",
        "training.batch_size=8",
        "training.logging_steps=1",
        *args.overrides,
    ]
    settings = load_config(SFTConfig, "sft/configs/gsm8k.yaml", overrides).training
    plan = plan_steps(examples, settings)
    with tempfile.TemporaryDirectory() as folder:
        train(model, examples, plan, settings, Path(folder))
        lines = (Path(folder) / "train_log.jsonl").read_text().split("\n")
    ends = [json.loads(line)["seconds"] for line in lines if line]
    half = len(ends) // 2
    return ends[-1] - ends[half - 1]


TRAIN: dict[str, Callable[[Any, list[Any], argparse.Namespace], float]] = {
    "seed": train_seed,
    "trainer": train_trainer,
    "trl": train_trl,
    "ours": train_ours,
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train with one peer in this process."""
    from domain_tokens.checkpoints import quiet_transformers
    from domain_tokens.runs import SFTConfig, load_config
    from domain_tokens.training import plan_steps, training_flops

    quiet_transformers()
    device, dtype = choose_device("auto")
    peak = peak_flops(device, dtype)
    model, examples = prepare(args)
    settings = load_config(
        SFTConfig, "sft/configs/gsm8k.yaml", ["training.num_epochs=1", "training.max_length=1024"]
    ).training
    plan = plan_steps(examples, settings)
    flops = training_flops(model, examples, plan)
    seconds = TRAIN[args.peer](model, examples, args)
    after = peak_flops(device, dtype)
    top = max(peak, after) if peak and after else None
    return {
        "tokens": sum(plan.tokens),
        "seconds": seconds,
        "tokens_per_second": sum(plan.tokens) / seconds,
        "peak_flops": top,
        "utilisation": flops / seconds / top if top else None,
        "peak_memory_bytes": peak_memory_bytes(device),
    }


def table(results: dict[str, list[dict]]) -> str:
    """Return medians and ratios as a Markdown table."""

    def median(peer: str, key: str) -> float:
        values = [row[key] for row in results[peer] if row[key] is not None]
        return statistics.median(values) if values else float("nan")

    lines = [
        "| peer | real tokens/s | ours is | useful share of peak | peak memory, GB |",
        "|---|---|---|---|---|",
    ]
    for peer in results:
        ratios = [
            mine["tokens_per_second"] / row["tokens_per_second"]
            for mine, row in zip(results.get("ours", []), results[peer], strict=False)
        ]
        ratio = f"{statistics.median(ratios):.2f} ×" if ratios else ""
        lines.append(
            f"| {peer}: {PEERS[peer]} | {median(peer, 'tokens_per_second'):.0f} | {ratio} | "
            f"{median(peer, 'utilisation'):.0%} | {median(peer, 'peak_memory_bytes') / 1e9:.1f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the peers by turns and print the table."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--model-path", required=True, metavar="DIR")
    parser.add_argument("--data", required=True, metavar="FILE", help="GSM8K or chat rows")
    parser.add_argument("--rows", type=int, default=32, metavar="N", help="examples of a step")
    parser.add_argument("--max-length", type=int, default=512, metavar="N")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--peer", choices=PEERS, help="measure this one here and print JSON")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--output-path", metavar="FILE", help="write all measurements as JSON")
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    if args.peer:
        print("RESULT " + json.dumps(measure(args)))
        return 0
    results: dict[str, list[dict]] = {peer: [] for peer in args.peers}
    for _ in range(args.repeats):
        for peer in args.peers:
            done = subprocess.run(
                [sys.executable, __file__, *words, "--peer", peer], capture_output=True, text=True
            )
            lines = [x for x in done.stdout.split("\n") if x.startswith("RESULT ")]
            if not lines:
                print(f"{peer} failed: {done.stderr[-2000:]}", file=sys.stderr)
                return 1
            results[peer].append(json.loads(lines[0].removeprefix("RESULT ")))
            print(f"{peer}: {results[peer][-1]['tokens_per_second']:.0f} tokens/s", flush=True)
    print(table(results))
    if args.output_path:
        about = {"environment": run_environment(*_device()), "code": code_identity()}
        write_json(Path(args.output_path), {"found": results, "peers": PEERS, **about})
    return 0


def _device() -> tuple[str, str]:
    device, dtype = choose_device("auto")
    return device, str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(run_script(main))
