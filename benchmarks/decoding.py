"""Greedy decoding of real questions: this repository next to HF generate, lm-eval and batching.

Each measurement is a process of its own; the peers alternate. Useful tokens (up to EOS) per second,
ratios, peak memory, and how many responses equal the first peer's, token for token.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from domain_tokens.runs import (
    Parser,
    choose_device,
    code_identity,
    peak_memory_bytes,
    run_environment,
    run_script,
    write_json,
)

EXAMPLE = (
    "uv run --group bench python benchmarks/decoding.py --model-path outputs/hf_smollm2 "
    "--data ../shared/data/gsm8k/test.jsonl --questions 192 --repeats 5"
)
PEERS = {
    "hf1": "transformers generate, batch 1",
    "hf16": "transformers generate, batch 16, prompts sorted by length",
    "hf32": "transformers generate, batch 32, prompts sorted by length",
    "lm-eval": "lm-evaluation-harness, hf backend, batch 16, text in and out",
    "continuous": "transformers generate_batch (continuous batching), pages of 32 tokens on a CPU",
    "ours": "domain_tokens.inference.decoder",
}


def prepare(args: argparse.Namespace) -> tuple[Any, int, list[list[int]]]:
    """Load the model and render the questions."""
    from domain_tokens.checkpoints import load_model, load_tokenizer
    from domain_tokens.data import load_problems
    from domain_tokens.prompts import Renderer

    device, dtype = choose_device("auto")
    folder = Path(args.model_path)
    model = load_model(folder, dtype=dtype).to(device).eval()
    renderer = Renderer(load_tokenizer(folder))
    problems = load_problems(
        args.data, split="test", limit=args.questions, subset_seed=42, key="--data"
    ).items
    return model, renderer.eos, [renderer.prompt([("user", p.question)]) for p in problems]


def hf(batch: int) -> Callable[..., list[list[int]]]:
    """Return `generate` at one batch size; longest prompts first, as ours."""

    def decode(model: Any, eos: int, prompts: list[list[int]], new: int) -> list[list[int]]:
        import torch

        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        token_ids: dict[int, list[int]] = {}
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            width = max(len(prompts[i]) for i in chosen)
            ids = torch.tensor([[eos] * (width - len(prompts[i])) + prompts[i] for i in chosen])
            mask = torch.tensor(
                [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen]
            )
            written = model.generate(
                ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=eos,
                pad_token_id=eos,
            )[:, width:].tolist()
            for i, row in zip(chosen, written, strict=True):
                token_ids[i] = row[: row.index(eos)] if eos in row else row
        return [token_ids[i] for i in range(len(prompts))]

    return decode


def continuous(model: Any, eos: int, prompts: list[list[int]], new: int) -> list[list[int]]:
    """The continuous batching of transformers; on a CPU it cannot see how much memory there is."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    settings = GenerationConfig(
        max_new_tokens=new, do_sample=False, eos_token_id=eos, pad_token_id=eos
    )
    batching = (
        ContinuousBatchingConfig(page_size=32, num_blocks=1024, max_batch_tokens=512)
        if model.device.type == "cpu"
        else ContinuousBatchingConfig()
    )
    done = model.generate_batch(
        inputs=prompts,
        generation_config=settings,
        continuous_batching_config=batching,
        progress_bar=False,
    )
    rows = [list(done[key].generated_tokens) for key in sorted(done, key=lambda k: int(k[4:]))]
    return [row[: row.index(eos)] if eos in row else row for row in rows]


def lm_eval(folder: Path) -> Callable[..., list[list[int]]]:
    """Return lm-evaluation-harness's decoding; its text is counted in tokens of the folder's."""

    def decode(model: Any, eos: int, prompts: list[list[int]], new: int) -> list[list[int]]:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        from domain_tokens.checkpoints import load_tokenizer

        tokenizer: Any = load_tokenizer(folder)
        backend: Any = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=16, device=str(model.device)
        )
        settings = {"until": [tokenizer.eos_token], "max_gen_toks": new, "do_sample": False}
        requests = [
            Instance("generate_until", {}, (tokenizer.decode(prompt), settings), i)
            for i, prompt in enumerate(prompts)
        ]
        texts = backend.generate_until(requests, disable_tqdm=True)
        return [tokenizer.encode(text) for text in texts]

    return decode


def ours(slots: int) -> Callable[..., list[list[int]]]:
    """Return the project's decoder with a number of slots."""

    def decode(model: Any, eos: int, prompts: list[list[int]], new: int) -> list[list[int]]:
        from domain_tokens.inference import generate

        responses = generate(model, prompts, eos_id=eos, max_new_tokens=new, batch_size=slots)
        return [response.token_ids for response in responses]

    return decode


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Decode with one peer in this process, after a short warm-up."""
    from domain_tokens.checkpoints import quiet_transformers
    from domain_tokens.inference import prepack_

    quiet_transformers()
    model, eos, prompts = prepare(args)
    peers = {"hf1": hf(1), "hf16": hf(16), "hf32": hf(32), "continuous": continuous}
    peers["lm-eval"] = lm_eval(Path(args.model_path))
    decode = peers.get(args.peer) or ours(args.slots)
    if args.peer == "ours":
        prepack_(model)  # as the evaluations load it
    decode(model, eos, prompts[:2], 4)
    start = time.perf_counter()
    responses = decode(model, eos, prompts, args.max_new_tokens)
    seconds = time.perf_counter() - start
    tokens = sum(map(len, responses))
    return {
        "responses": responses,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_memory_bytes": peak_memory_bytes(choose_device("auto")[0]),
    }


def table(results: dict[str, list[dict]]) -> str:
    """Return medians, ratios and how many responses equal the first peer's, as Markdown."""
    first = next(iter(results))
    lines = [
        f"| peer | useful tokens/s | ours is | peak memory, GB | equal to {first} |",
        "|---|---|---|---|---|",
    ]
    reference = results[first][0]["responses"]
    for peer, rows in results.items():
        speed = statistics.median(row["tokens_per_second"] for row in rows)
        memory = statistics.median(row["peak_memory_bytes"] for row in rows) / 1e9
        ratios = [
            mine["tokens_per_second"] / row["tokens_per_second"]
            for mine, row in zip(results.get("ours", []), rows, strict=False)
        ]
        ratio = f"{statistics.median(ratios):.2f} ×" if ratios else ""
        pairs = zip(rows[0]["responses"], reference, strict=True)
        equal = f"{sum(a == b for a, b in pairs)} of {len(reference)}"
        what = f"{peer}: {PEERS[peer]}"
        lines.append(f"| {what} | {speed:.0f} | {ratio} | {memory:.2f} | {equal} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the peers by turns and print the table, of those that did not fail."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--model-path", required=True, metavar="DIR")
    parser.add_argument("--data", required=True, metavar="FILE", help="GSM8K rows")
    parser.add_argument("--questions", type=int, default=192, metavar="N")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    parser.add_argument("--slots", type=int, default=64, metavar="N", help="of ours")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="batch 1 runs once")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--peer", choices=PEERS, help="measure this one here and print JSON")
    parser.add_argument("--output-path", metavar="FILE", help="write all measurements as JSON")
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    if args.peer:
        print("RESULT " + json.dumps(measure(args)))
        return 0
    results: dict[str, list[dict]] = {peer: [] for peer in args.peers}
    for number in range(args.repeats):
        for peer in args.peers:
            if peer not in results or (peer == "hf1" and number):
                continue
            done = subprocess.run(
                [sys.executable, __file__, *words, "--peer", peer], capture_output=True, text=True
            )
            lines = [x for x in done.stdout.split("\n") if x.startswith("RESULT ")]
            if not lines:
                print(f"{peer} failed: {done.stderr[-2000:]}", file=sys.stderr)
                del results[peer]
                continue
            results[peer].append(json.loads(lines[0].removeprefix("RESULT ")))
            print(f"{peer}: {results[peer][-1]['tokens_per_second']:.1f} tokens/s", flush=True)
    if not results:
        return 1
    print(table(results))
    if args.output_path:
        device, dtype = choose_device("auto")
        about = {
            "environment": run_environment(device, str(dtype).removeprefix("torch.")),
            "code": code_identity(),
        }
        kept = {p: [{**r, "responses": None} for r in rows] for p, rows in results.items()}
        write_json(Path(args.output_path), {"found": kept, "peers": PEERS, **about})
    return 0 if set(args.peers) == set(results) else 1


if __name__ == "__main__":
    sys.exit(run_script(main))
