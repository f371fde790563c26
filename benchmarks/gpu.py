"""One command, one table: training, decoding and scoring on a GPU, against rivals, with profiles.

    PYTHONPATH=. python benchmarks/gpu.py [--only training decoding …] [--model llama-small]

Weights are random, rows have GSM8K's and Tulu's lengths: nothing is read but this repository. Every
section is tried by itself; clocks wait for the device. `--tiny` tries the whole of it on a CPU.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domain_tokens.checkpoints import quiet_transformers
from domain_tokens.runs import (
    Parser,
    SFTConfig,
    choose_device,
    load_config,
    peak_flops,
    run_script,
)

EXAMPLE = "uv run python benchmarks/gpu.py --only environment training decoding scoring"
LOUD = 15  # lines of a profile


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], Any], rounds: int, *, warm: int = 1) -> list[float]:
    """Return the seconds of each of some rounds after a few that warm up."""
    seconds = []
    for number in range(warm + rounds):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        if number >= warm:
            seconds.append(time.perf_counter() - start)
    return seconds


def reset_memory() -> None:
    """Begin to count the largest memory from here."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory() -> str:
    """Return the largest memory since `reset_memory`."""
    used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return f"{used / 1e9:.2f} GB"


def row(*cells: Any) -> None:
    """Print a line of the table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


class Sizes:
    """How much of everything, and which model."""

    def __init__(self, args: argparse.Namespace):
        tiny = args.tiny
        self.tiny, self.kind, self.rounds = tiny, args.model, args.rounds
        self.train_rows, self.steps = (8, 4) if tiny else (32, 40)
        self.chat_rows = 4 if tiny else 32
        self.prompts, self.slots, self.new = (6, 4, 8) if tiny else (256, 128, 128)
        self.scored, self.compared = (6, 4) if tiny else (512, 12)
        self.device, self.dtype = choose_device("auto")

    def model(self, *, small: bool = False, dtype: torch.dtype | None = None) -> Any:
        """Return random weights that write text without loops and with logits of a useful size."""
        from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        small = small or self.tiny
        if self.kind == "gpt2":
            shape = (2, 64, 4) if self.tiny else (4, 256, 4) if small else (12, 768, 12)
            names: Any = dict(zip(("n_layer", "n_embd", "n_head"), shape, strict=True))
            model: Any = GPT2LMHeadModel(GPT2Config(**names, vocab_size=50349))
            with (
                torch.no_grad()
            ):  # what is written depends on the position: drafts are seldom right
                model.transformer.wpe.weight *= 15
                model.transformer.ln_f.weight *= 6
        else:
            sizes = (2, 64, 4, 2) if self.tiny else (4, 288, 9, 3) if small else (30, 576, 9, 3)
            layers, width, heads, shared = sizes
            config = LlamaConfig(
                hidden_size=width,
                intermediate_size=width * 8 // 3,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=shared,
                max_position_embeddings=2048,
                vocab_size=50349,
                tie_word_embeddings=True,
            )
            model = LlamaForCausalLM(config)
            with torch.no_grad():
                norm: Any = model.model.norm.weight
                norm *= 6
        return model.to(dtype or torch.float32)


def lengths_like(kind: str, count: int, *, tiny: bool) -> np.ndarray:
    """Return lengths of rows: of GSM8K (mean 156, at most 439) or of Tulu-3 (mean 390, cut)."""
    chooser = np.random.default_rng(7)
    mean, spread, max_length = (156, 0.42, 439) if kind == "gsm8k" else (390, 0.8, 512)
    drawn = np.exp(chooser.normal(np.log(mean) - spread**2 / 2, spread, count))
    return np.clip(drawn, 24, max_length).astype(int) // (6 if tiny else 1)


def examples_like(kind: str, count: int, *, tiny: bool) -> list[Any]:
    """Return random rows of such lengths; 62 % of a GSM8K row's tokens carry loss, 80 % of chat."""
    from domain_tokens.prompts import END, PROMPT, TEXT, Example

    chooser = np.random.default_rng(8)
    examples = []
    for number, size in enumerate(lengths_like(kind, count, tiny=tiny)):
        prompt = int(size * (0.38 if kind == "gsm8k" else 0.2))
        roles = [PROMPT] * prompt + [TEXT] * (size - prompt - 1) + [END]
        ids = chooser.integers(0, 50000, size).astype(np.int32)
        part = {"facts": 0, "text_bytes": 4 * int(size), "match_bytes": 0, "truncated": False}
        role_array = np.array(roles, dtype=np.uint8)
        examples.append(
            Example(id=f"{kind}-{number}", input_ids=ids, token_roles=role_array, **part)
        )
    return examples


def settings_for(rows: int, *overrides: str) -> Any:
    """Return sft_gsm8k.py's settings for steps of so many rows."""
    batch = min(8, rows)
    words = [
        f"training.batch_size={batch}",
        f"training.gradient_accumulation_steps={rows // batch}",
        "training.num_epochs=1",
    ]
    return load_config(SFTConfig, "sft/configs/gsm8k.yaml", [*words, *overrides]).training


def environment(sizes: Sizes) -> None:
    """Print what this machine is, and its rate of a large bf16 product."""
    import transformers

    row("python", platform.python_version(), "torch", torch.__version__, "cuda", torch.version.cuda)
    row("transformers", transformers.__version__, "cores", os.cpu_count())
    if not torch.cuda.is_available():
        row("device", "cpu", "threads", torch.get_num_threads())
        return
    about = torch.cuda.get_device_properties(0)
    row("device", about.name, "memory", f"{about.total_memory / 2**30:.1f} GiB")
    row("cudnn", torch.backends.cudnn.version(), "bf16", torch.cuda.is_bf16_supported())
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    took = statistics.median(seconds_of(lambda: a @ a, 20, warm=3))
    row("bf16 product of 8192", f"{2 * 8192**3 / took / 1e12:.0f} TFLOP/s")
    row("stated peak", peak_flops("cuda", torch.bfloat16))


class SeedRecipe:
    """One step as the lab note trains: rows padded to 512, four batches, logits everywhere."""

    def __init__(self, sizes: Sizes, examples: list[Any]):
        self._sizes = sizes
        self._model = sizes.model().to(sizes.device).train()
        options: dict[str, Any] = {"lr": 2e-5, "weight_decay": 0.01, "fused": True}
        self._optimizer = torch.optim.AdamW(self._model.parameters(), **options)
        width = 96 if sizes.tiny else 512
        self._batches = []
        for start in range(0, len(examples), 8):
            chunk = examples[start : start + 8]
            ids = torch.zeros(len(chunk), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for number, example in enumerate(chunk):
                ids[number, : len(example.input_ids)] = torch.from_numpy(example.input_ids).long()
                mask[number, : len(example.input_ids)] = 1
            labels = ids.masked_fill(mask == 0, -100)
            self._batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})

    def __call__(self) -> None:
        """Train one optimizer step."""
        half = self._sizes.dtype == torch.bfloat16
        for batch in self._batches:
            inputs = {k: v.to(self._sizes.device) for k, v in batch.items()}
            with torch.autocast(self._sizes.device, dtype=torch.bfloat16, enabled=half):
                loss = self._model(**inputs).loss
            (loss / len(self._batches)).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


class OwnSteps:
    """One step after the other with the project's plan, inputs and loss, but without Trainer."""

    def __init__(self, sizes: Sizes, examples: list[Any], *, graphed: bool):
        from domain_tokens.modeling import fuse_activations, without_dropout
        from domain_tokens.training import MicroBatches, StepGraphs, plan_run, planned_shapes

        self._sizes = sizes
        self.model = sizes.model().to(sizes.device).train()
        fuse_activations(self.model)
        without_dropout(self.model)
        settings = settings_for(len(examples))
        self.plan = plan_run(self.model, examples, settings, choose_device(settings.precision))
        shapes = planned_shapes(examples, self.plan) if graphed else None
        data = MicroBatches(examples, self.plan, pad_id=0, shapes=shapes)
        self.items = [data[i] for i in range(len(data))]
        self._graphs = StepGraphs(self.model) if graphed else None
        options: dict[str, Any] = {"lr": 2e-5, "weight_decay": 0.01, "fused": True}
        self._optimizer = torch.optim.AdamW(self.model.parameters(), **options)

    def __call__(self) -> None:
        """Train one optimizer step of all rows."""
        from domain_tokens.modeling import packed_tokens, without_head
        from domain_tokens.training import summed_loss, to_device

        half = self._sizes.dtype == torch.bfloat16
        with packed_tokens(self.model), without_head(self.model) as head:

            def run(inputs: dict[str, Any]) -> torch.Tensor:
                with torch.autocast(self._sizes.device, dtype=torch.bfloat16, enabled=half):
                    loss = summed_loss(self.model, inputs, head) / inputs["step_supervised"]
                loss.backward()
                return loss.detach()

            for item in self.items:
                inputs = to_device(item, self._sizes.device)
                if self._graphs is None:
                    run(inputs)
                else:
                    self._graphs(inputs, run)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def trainer_step(sizes: Sizes, examples: list[Any], *, graphed: bool) -> float:
    """Return the seconds of a step of Trainer's, as sft_gsm8k.py runs it: the median of its log."""
    import json

    from domain_tokens.modeling import fuse_activations
    from domain_tokens.training import plan_run, train

    model = sizes.model().to(sizes.device)
    fuse_activations(model)
    every = max(1, sizes.steps // 4)
    epochs = f"training.num_epochs={sizes.steps}"
    words = (f"training.logging_steps={every}", f"training.cuda_graphs={str(graphed).lower()}")
    settings = settings_for(len(examples), epochs, *words)
    plan = plan_run(model, examples, settings, choose_device(settings.precision))
    with tempfile.TemporaryDirectory() as folder:
        train(model, examples, plan, settings, Path(folder))
        lines = (Path(folder) / "train_log.jsonl").read_text().splitlines()
    ends = [json.loads(line)["seconds"] for line in lines]
    return statistics.median(b - a for a, b in pairwise(ends)) / every


def training(sizes: Sizes) -> None:
    """Time an optimizer step of GSM8K's and Tulu's rows: the project's, Trainer's, the seed's."""
    from domain_tokens.training import training_flops

    peak = peak_flops(sizes.device, sizes.dtype)
    row("training", "rows", "tokens", "ms a step", "tokens/s", "MFU", "memory", "rounds ms")
    for kind, count in (("gsm8k", sizes.train_rows), ("tulu", sizes.chat_rows)):
        examples = examples_like(kind, count, tiny=sizes.tiny)
        timed: list[Any] = []
        flops = 0.0
        for graphed in (False, True) if sizes.device == "cuda" else (False,):
            how = "replayed" if graphed else "launched"
            reset_memory()
            own = OwnSteps(sizes, examples, graphed=graphed)
            took = [x / 4 for x in seconds_of(lambda o=own: [o() for _ in range(4)], sizes.rounds)]
            flops = training_flops(own.model, examples, own.plan)
            timed.append((f"own step, {len(own.items)} micro-batch(es), {how}", took, memory()))
            del own
            reset_memory()
            attempt(
                f"{kind}: train()",
                lambda e=examples, f=timed, g=graphed, h=how: f.append(
                    (f"train() on Trainer, {h}", [trainer_step(sizes, e, graphed=g)], memory())
                ),
            )
        reset_memory()
        seed = SeedRecipe(sizes, examples)
        timed.append(("the seed's recipe", seconds_of(seed, sizes.rounds), memory()))
        del seed
        tokens = sum(len(e.input_ids) for e in examples)
        for name, took, used in timed:
            middle = statistics.median(took)
            share = f"{flops / middle / peak:.1%}" if peak else "-"
            rate = f"{tokens / middle:,.0f}"
            each = " ".join(f"{1e3 * x:.1f}" for x in took)
            row(f"{kind}: {name}", count, tokens, f"{1e3 * middle:.2f}", rate, share, used, each)


def prompts_like_gsm8k(count: int, *, tiny: bool) -> list[list[int]]:
    """Return random prompts of about 60 tokens."""
    chooser = np.random.default_rng(9)
    sizes = np.clip(chooser.normal(62, 22, count), 20, 200).astype(int) // (6 if tiny else 1)
    return [chooser.integers(0, 50000, max(2, size)).tolist() for size in sizes]


def hf_generate(model: Any, prompts: list[list[int]], sizes: Sizes, *, sampled: bool) -> int:
    """Write with transformers' generate in batches of as many rows; return how many tokens."""
    from transformers import GenerationConfig

    settings = GenerationConfig(
        max_new_tokens=sizes.new,
        min_new_tokens=sizes.new,
        do_sample=sampled,
        top_k=0 if sampled else None,
        pad_token_id=0,
        eos_token_id=50256,
    )
    written = 0
    for start in range(0, len(prompts), sizes.slots):
        chunk = prompts[start : start + sizes.slots]
        width = max(map(len, chunk))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in chunk], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in chunk])
        out = model.generate(ids, attention_mask=mask.to(model.device), generation_config=settings)
        written += (out.shape[1] - width) * len(chunk)
    return written


def eos_of_half(responses: list[Any], new: int) -> int:
    """Return the token that, as EOS, would end these responses at half their length on average."""
    counts: dict[int, list[int]] = {}
    for response in responses:
        for position, token in enumerate(response.token_ids):
            seen = counts.setdefault(token, [])
            seen.append(position)
    best, gap = -1, float("inf")
    for token, _ in sorted(counts.items(), key=lambda item: -len(item[1]))[:200]:
        ids = [r.token_ids for r in responses]
        ends = [i.index(token) if token in i else new for i in ids]
        distance = abs(statistics.mean(ends) - new / 2)
        if distance < gap:
            best, gap = token, distance
    return best


def decoding(sizes: Sizes) -> None:
    """Time greedy and sampled decoding, with and without EOS, next to HF generate."""
    from domain_tokens.inference import GREEDY, Sampling, generate

    prompts = prompts_like_gsm8k(sizes.prompts, tiny=sizes.tiny)
    model = sizes.model(dtype=sizes.dtype).to(sizes.device).eval()
    row("decoding", "slots", "tokens", "seconds", "tokens/s", "memory", "rounds s")

    def show(name: str, run: Callable[[], int], slots: int, rounds: int) -> None:
        reset_memory()
        written: list[int] = []
        took = seconds_of(lambda: written.append(run()), rounds)
        middle = statistics.median(took)
        each = " ".join(f"{x:.2f}" for x in took)
        rate = f"{written[-1] / middle:,.0f}"
        row(name, slots, written[-1], f"{middle:.3f}", rate, memory(), each)

    def ours(sampling: Sampling, eos: int, slots: int) -> list[Any]:
        options: dict[str, Any] = {"eos_id": eos, "max_new_tokens": sizes.new}
        return generate(model, prompts, batch_size=slots, sampling=sampling, **options)

    first = ours(GREEDY, -1, sizes.slots)
    eos = eos_of_half(first, sizes.new)
    for name, sampling, end, slots in (
        ("greedy, no EOS", GREEDY, -1, sizes.slots),
        ("greedy, no EOS, all rows", GREEDY, -1, sizes.prompts),
        ("greedy, EOS after about half", GREEDY, eos, sizes.slots),
        ("sampled, no EOS", Sampling(1.0, seed=1), -1, sizes.slots),
        ("sampled top-p 0.95, no EOS", Sampling(1.0, top_p=0.95, seed=1), -1, sizes.slots),
    ):

        def run(s: Sampling = sampling, e: int = end, n: int = slots) -> int:
            return sum(len(r.token_ids) for r in ours(s, e, n))

        attempt(name, lambda n=name, r=run, s=slots: show(n, r, s, sizes.rounds))
    for sampled in (False, True):
        name = f"HF generate, {'sampled' if sampled else 'greedy'}"

        def rival(sampled: bool = sampled) -> int:
            return hf_generate(model, prompts, sizes, sampled=sampled)

        attempt(name, lambda n=name, r=rival: show(n, r, sizes.slots, 1))


def correctness(sizes: Sizes) -> None:
    """Compare tokens of a small fp32 model on the GPU and on the CPU, and bf16 across batches."""
    from domain_tokens.inference import GREEDY, Sampling, generate

    count = 6 if sizes.tiny else 32
    prompts = prompts_like_gsm8k(count, tiny=sizes.tiny)
    row("correctness", "equal responses", "of")

    def ids(model: Any, size: int, sampling: Sampling = GREEDY) -> list[list[int]]:
        options: dict[str, Any] = {"eos_id": -1, "max_new_tokens": min(48, sizes.new)}
        responses = generate(model, prompts, batch_size=size, sampling=sampling, **options)
        return [r.token_ids for r in responses]

    def equal(name: str, got: list[list[int]], expected: list[list[int]]) -> None:
        row(name, sum(a == b for a, b in zip(got, expected, strict=True)), len(got))

    drawn = Sampling(1.0, seed=3)
    on_cpu = sizes.model(small=True).eval()
    expected, expected_drawn = ids(on_cpu, 1), ids(on_cpu, 16, drawn)
    on_gpu = sizes.model(small=True).to(sizes.device).eval()
    for size in (1, 7, 48):
        equal(f"fp32 greedy: device in {size} slots, CPU in 1", ids(on_gpu, size), expected)
    equal("fp32 sampled: device in 16 slots, CPU in 16", ids(on_gpu, 16, drawn), expected_drawn)
    half = sizes.model(small=True, dtype=sizes.dtype).to(sizes.device).eval()
    first = ids(half, 48)
    equal(f"{sizes.dtype} greedy: device in 48 slots, in 48 again", ids(half, 48), first)
    equal(f"{sizes.dtype} greedy: device in 48 slots, in 1", ids(half, 1), first)
    equal(f"{sizes.dtype} greedy: device in 48 slots, fp32 on the CPU", first, expected)
    full = sizes.model(dtype=sizes.dtype).to(sizes.device).eval()
    first = ids(full, 48)
    equal(f"{sizes.dtype} greedy, whole model: in 48 slots, in 5", ids(full, 5), first)


def scoring(sizes: Sizes) -> None:
    """Time log-probabilities of given continuations and compare them across types and devices."""
    from domain_tokens.inference import continuation_log_probs

    prompts = prompts_like_gsm8k(sizes.scored, tiny=sizes.tiny)
    chooser = np.random.default_rng(11)
    single = [[chooser.integers(0, 50000, 3).tolist()] for _ in prompts]
    few = prompts[: 4 if sizes.tiny else 405]
    many = [[chooser.integers(0, 50000, 1 + i % 2).tolist() for i in range(36)] for _ in few]
    half = sizes.model(dtype=sizes.dtype).to(sizes.device).eval()
    row("scoring", "continuations", "seconds", "continuations/s", "prompt tokens/s", "memory")
    for name, given, continuations in (
        ("one continuation each", prompts, single),
        ("36 continuations of 405 prompts (A1)", few, many),
    ):
        reset_memory()
        took = statistics.median(
            seconds_of(
                lambda g=given, w=continuations: continuation_log_probs(half, g, w), sizes.rounds
            )
        )
        count = sum(map(len, continuations))
        rate = f"{sum(map(len, given)) / took:,.0f}"
        row(name, count, f"{took:.3f}", f"{count / took:,.0f}", rate, memory())
    n = sizes.compared
    exact = sizes.model().eval()
    values = {}
    for name, given, continuations in (("one", prompts[:n], single[:n]), ("36", few[:n], many[:n])):
        values["CPU fp32", name] = continuation_log_probs(exact, given, continuations)
        values["device bf16", name] = continuation_log_probs(half, given, continuations)
    exact = exact.to(sizes.device)
    for name, given, continuations in (("one", prompts[:n], single[:n]), ("36", few[:n], many[:n])):
        values["device fp32", name] = continuation_log_probs(exact, given, continuations)
    row("difference from CPU fp32", "continuations", "max |difference|", "mean", "mean |log p|")
    for (kind, name), scores in values.items():
        flat = np.concatenate([np.array(x) for x in scores])
        right = np.concatenate([np.array(x) for x in values["CPU fp32", name]])
        gap = abs(flat - right)
        mean = f"{gap.mean():.2e}"
        row(kind, name, f"{gap.max():.2e}", mean, f"{abs(right).mean():.1f}")


def profiled(name: str, run: Callable[[], Any], *, units: int, unit: str) -> None:
    """Profile what is run once after it ran before; print what takes long, and waits a unit."""
    from torch.profiler import ProfilerActivity, profile

    run()
    synchronize()
    kinds = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        kinds.append(ProfilerActivity.CUDA)
    start = time.perf_counter()
    with profile(activities=kinds) as profiler:
        run()
        synchronize()
    took = time.perf_counter() - start
    events: list[Any] = list(profiler.key_averages())
    on_device = [e for e in events if str(e.device_type).endswith("CUDA")]
    busy = sum(e.self_device_time_total for e in on_device) / 1e3
    print(f"\n## {name}: {1e3 * took:.1f} ms profiled, device busy {busy:.1f} ms, {units} {unit}")
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    waits += ("cudaLaunchKernel", "cuLaunchKernelEx", "cuLaunchKernel", "cudaGraphLaunch")
    waits += ("cudaLaunchKernelExC", "cudaMemcpyAsync", "aten::item", "aten::nonzero")
    for event in events:
        if event.key in waits:
            print(f"{event.key}: {event.count} ({event.count / units:.1f} a {unit})")
    for title, chosen, key in (
        ("device", on_device, "self_device_time_total"),
        ("host", events, "self_cpu_time_total"),
    ):
        print(f"by {title} time: name, calls, ms, share")
        top = sorted(chosen, key=lambda e: -getattr(e, key))[:LOUD]
        whole = sum(getattr(e, key) for e in chosen) or 1
        for event in top:
            value = getattr(event, key)
            share = f"{value / 1e3:9.2f} {value / whole:6.1%}"
            print(f"  {event.key[:100]:<100} {event.count:>6} {share}")
    sys.stdout.flush()


def training_profile(sizes: Sizes) -> None:
    """Profile training steps."""
    examples = examples_like("gsm8k", sizes.train_rows, tiny=sizes.tiny)
    own = OwnSteps(sizes, examples, graphed=sizes.device == "cuda")
    profiled("training step, gsm8k", lambda: (own(), own(), own()), units=3, unit="step")


def decoding_profile(sizes: Sizes) -> None:
    """Profile a decoding in each way, and scoring."""
    from domain_tokens.inference import GREEDY, Sampling, continuation_log_probs, generate

    model = sizes.model(dtype=sizes.dtype).to(sizes.device).eval()
    prompts = prompts_like_gsm8k(sizes.slots, tiny=sizes.tiny)
    new = 8 if sizes.tiny else 24
    for name, sampling in (("greedy", GREEDY), ("sampled", Sampling(1.0, seed=1))):
        options: dict[str, Any] = {"eos_id": -1, "max_new_tokens": new, "sampling": sampling}

        def write(options: dict[str, Any] = options) -> Any:
            return generate(model, prompts, batch_size=sizes.slots, **options)

        name = f"decoding, {name}, {len(prompts)} prompts × {new} tokens"
        attempt(name, lambda n=name, w=write: profiled(n, w, units=new, unit="pass"))
    single = [[[1, 2, 3]]] * len(prompts)
    profiled(
        "scoring, one continuation each",
        lambda: continuation_log_probs(model, prompts, single),
        units=1,
        unit="call",
    )


def attempt(name: str, run: Callable[[], Any]) -> None:
    """Run a part; a failure is printed and does not stop the rest."""
    try:
        run()
    except Exception:
        lines = traceback.format_exc().strip().splitlines()
        print(f"{name} FAILED:\n  " + "\n  ".join(lines[-14:]), flush=True)


SECTIONS: dict[str, Callable[[Sizes], None]] = {
    "environment": environment,
    "training": training,
    "training-profile": training_profile,
    "decoding": decoding,
    "decoding-profile": decoding_profile,
    "scoring": scoring,
    "correctness": correctness,
}


def main(argv: list[str] | None = None) -> int:
    """Run the sections one after the other and print their tables."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--model", choices=("gpt2", "llama-small"), default="gpt2")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="timed rounds of each")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try it on a CPU")
    args = parser.parse_args(argv)
    quiet_transformers()
    sizes = Sizes(args)
    for name in args.only:
        start = time.perf_counter()
        print(f"\n# {name} ({args.model})", flush=True)
        attempt(name, lambda n=name: SECTIONS[n](sizes))
        print(f"({name}: {time.perf_counter() - start:.1f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
