"""Greedy decoding of real questions: this repository next to other engines and to batching.

Each measurement is a process of its own; the peers alternate. Useful tokens (up to EOS) per second,
ratios, peak memory, and how many responses equal the first peer's, token for token. Loading and
making a model readable for another library (once, in --converted-dir) are not timed.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.decoding_peers import CONVERTERS, PEERS, Job
from domain_tokens.errors import UserError
from domain_tokens.runs import (
    Parser,
    choose_device,
    code_identity,
    file_digest,
    job_cpus,
    run_environment,
    run_script,
    write_json,
)

EXAMPLE = (
    "uv run --group bench --group bench-rivals python benchmarks/decoding.py "
    "--model-path outputs/hf_smollm2 --data ../shared/data/gsm8k/test.jsonl --questions 96 "
    "--slots 96 --max-new-tokens 128 --repeats 5 --converted-dir outputs/converted "
    "--peers hf16 lm-eval continuous ctranslate2 openvino ours"
)
HERE = Path(__file__).parent
USUAL = ["hf1", "hf16", "hf32", "lm-eval", "continuous", "ours"]  # of the group `bench`
# Left out of each process's environment: a library waits as it does by itself, ours as it is run.
SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "NUMBA_", "DOMAIN_TOKENS_THREADS")


def render(args: argparse.Namespace) -> Job:
    """Render the questions, once for all peers."""
    from domain_tokens.checkpoints import load_tokenizer
    from domain_tokens.data import load_problems
    from domain_tokens.prompts import Renderer

    device, dtype = choose_device("auto")
    folder = Path(args.model_path)
    renderer = Renderer(load_tokenizer(folder))
    problems = load_problems(
        args.data, split="test", limit=args.questions, subset_seed=42, key="--data"
    ).items
    job = Job(
        model=str(folder.resolve()),
        converted="",
        prompts=[renderer.prompt([("user", problem.question)]) for problem in problems],
        eos=renderer.eos,
        new=args.max_new_tokens,
        slots=args.slots,
        threads=args.threads,
        cache_gib=1,
        device=device,
        dtype=str(dtype).removeprefix("torch."),
    )
    return replace(job, cache_gib=cache_gib(folder, job))


def cache_gib(folder: Path, job: Job) -> int:
    """Return the whole GiB that hold the keys and values of all slots at their longest."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    heads = getattr(config, "num_key_value_heads", None) or heads
    token_bytes = 2 * config.num_hidden_layers * heads * width * getattr(torch, job.dtype).itemsize
    return 1 + job.slots * job.longest * token_bytes // 2**30


def convert(name: str, model: Path, folder: Path) -> Path:
    """Return a model in a format of CONVERTERS, made only where it is not there for these weights.

    It is made under another name first: what was interrupted is not taken for a model.
    """
    made = folder / f"{name}-{file_digest(model / 'model.safetensors')[:12]}"
    if made.is_dir():
        return made
    begun = folder / f"{made.name}.unfinished"
    shutil.rmtree(begun, ignore_errors=True)
    words = {"python": sys.executable, "model": str(model), "folder": str(begun)}
    command = [word.format(**words) for word in shlex.split(CONVERTERS[name])]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    return begun.rename(made)


def environment(peer: str, python: str, threads: int) -> dict[str, str]:
    """Return a peer's environment: its library's own way to wait, a stated number of threads.

    vLLM's manual wants Intel's OpenMP loaded first, which its package brings.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS)}
    kept |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    openmp = Path(python).parent.parent / "lib" / "libiomp5.so"
    if peer == "vllm" and openmp.exists():
        kept.setdefault("LD_PRELOAD", str(openmp))
    return kept


def run(peer: str, job: Job, args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure a peer in a process of its own; raises CalledProcessError where it fails.

    Raises UserError where its library is not installed.
    """
    name = PEERS[peer].format
    if name and not PEERS[peer].library():
        raise UserError(PEERS[peer].missing())
    if name:
        made = convert(name, Path(job.model), Path(args.converted_dir or work))
        job = replace(job, converted=str(made.resolve()))
    python = args.vllm_python if peer == "vllm" else sys.executable
    (work / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    words = [HERE / "decoding_peers.py", peer, work / "job.json", work / "result.json"]
    subprocess.run(
        [python, *map(str, words)],
        check=True,
        capture_output=True,
        text=True,
        env=environment(peer, python, job.threads),
    )
    return json.loads((work / "result.json").read_text(encoding="utf-8"))


def table(measured: dict[str, list[dict]]) -> str:
    """Return medians, ratios and how many responses equal the first peer's, as Markdown."""
    first = next(iter(measured))
    lines = [
        f"| peer | useful tokens/s | ours is | peak memory, GB | equal to {first} |",
        "|---|---|---|---|---|",
    ]
    reference = measured[first][0]["responses"]
    for peer, rows in measured.items():
        speed = statistics.median(row["tokens_per_second"] for row in rows)
        memory = [row["peak_memory_bytes"] for row in rows if row["peak_memory_bytes"] is not None]
        gigabytes = f"{statistics.median(memory) / 1e9:.2f}" if memory else ""
        ratios = [
            mine["tokens_per_second"] / row["tokens_per_second"]
            for mine, row in zip(measured.get("ours", []), rows, strict=False)
        ]
        ratio = f"{statistics.median(ratios):.2f} ×" if ratios else ""
        pairs = zip(rows[0]["responses"], reference, strict=True)
        equal = f"{sum(a == b for a, b in pairs)} of {len(reference)}"
        what = f"{peer}: {PEERS[peer].what} ({rows[0]['library']})"
        lines.append(f"| {what} | {speed:.0f} | {ratio} | {gigabytes} | {equal} |")
    return "\n".join(lines)


def rounds(job: Job, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Return each peer's measurements, by turns; one that fails is told and left out."""
    measured: dict[str, list[dict]] = {peer: [] for peer in args.peers}
    with tempfile.TemporaryDirectory() as work:
        for number in range(args.repeats):
            for peer in args.peers:
                if peer not in measured or (peer in args.once and number):
                    continue
                try:
                    measured[peer].append(run(peer, job, args, Path(work)))
                except (OSError, UserError, subprocess.CalledProcessError) as error:
                    said = getattr(error, "stderr", None) or str(error)
                    print(f"{peer} failed: {said[-2000:].strip()}", file=sys.stderr)
                    del measured[peer]
                    continue
                print(f"{peer}: {measured[peer][-1]['tokens_per_second']:.1f} tokens/s", flush=True)
    return measured


def main(argv: list[str] | None = None) -> int:
    """Run the peers by turns and print the table, of those that did not fail."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--model-path", required=True, metavar="DIR")
    parser.add_argument("--data", required=True, metavar="FILE", help="GSM8K rows")
    parser.add_argument("--questions", type=int, default=192, metavar="N")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    parser.add_argument("--slots", type=int, default=64, metavar="N", help="of ours")
    parser.add_argument("--threads", type=int, default=job_cpus(), metavar="N", help="of all")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=USUAL)
    parser.add_argument(
        "--once", nargs="*", choices=PEERS, default=["hf1"], help="slow: in the first round only"
    )
    parser.add_argument("--converted-dir", metavar="DIR", help="keeps models in other formats")
    parser.add_argument("--vllm-python", metavar="FILE", default=sys.executable, help="runs vllm")
    parser.add_argument("--output-path", metavar="FILE", help="write all measurements as JSON")
    args = parser.parse_args(argv)
    if args.converted_dir:
        Path(args.converted_dir).mkdir(parents=True, exist_ok=True)
    job = render(args)
    measured = rounds(job, args)
    if not measured:
        return 1
    print(table(measured))
    if args.output_path:
        settings = {
            k: v for k, v in asdict(job).items() if k not in ("model", "converted", "prompts")
        }
        about = {
            "settings": {**settings, "questions": len(job.prompts)},
            "environment": run_environment(job.device, job.dtype),
            "code": code_identity(),
        }
        kept = {p: [{**r, "responses": None} for r in rows] for p, rows in measured.items()}
        what = {name: peer.what for name, peer in PEERS.items()}
        write_json(Path(args.output_path), {"measured": kept, "peers": what, **about})
    return 0 if set(args.peers) == set(measured) else 1


if __name__ == "__main__":
    sys.exit(run_script(main))
