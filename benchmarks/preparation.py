"""Data preparation: rows/s and memory of this repository next to the seed's way, at growing sizes.

Real chat rows are repeated under new ids until there are enough. Each measurement is a process of
its own. ours: decontaminated, injected, tokenised, fingerprinted, written; again: the same data a
second time; decontaminate: that part alone, on one core; seed: one process, no injection, no
decontamination, every row padded to the length limit by datasets.map.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from domain_tokens.runs import (
    Parser,
    code_identity,
    run_environment,
    run_script,
    usable_cpus,
    write_json,
)

EXAMPLE = (
    "uv run python benchmarks/preparation.py --model-path outputs/hf_mul_tokens_10b "
    "--data ../shared/data/chat/train.jsonl --test ../shared/data/gsm8k/test.jsonl --rows 200000"
)
WAYS = ("ours", "again", "decontaminate", "seed")
MAX_LENGTH = 1024


def enlarge(data: Path, count: int, folder: Path) -> Path:
    """Write `count` rows that repeat those of a file under new ids; return the file."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    file = folder / f"rows_{count}.jsonl"
    if not file.exists():
        with file.open("w", encoding="utf-8") as sink:
            for i in range(count):
                sink.write(json.dumps({**rows[i % len(rows)], "id": f"row {i}"}) + "\n")
    return file


def ours(args: argparse.Namespace, file: Path) -> int:
    """Prepare as sft_tulu.py does; return the number of examples."""
    from domain_tokens.checkpoints import load_tokenizer
    from domain_tokens.data import (
        StageData,
        load_conversations,
        load_problems,
        prepare_examples,
        source_identity,
    )
    from domain_tokens.prompts import Renderer
    from domain_tokens.treatments import FACT_TOKENS

    def load() -> StageData:
        loaded = load_conversations(str(file), split="train", limit=None, subset_seed=42)
        test = load_problems(args.test, split="test", limit=None, subset_seed=42)
        questions = [problem.question for problem in test.items]
        fingerprint = {"train": loaded.fingerprint}
        return StageData(loaded.items, [], "validation", fingerprint, test_questions=questions)

    renderer = Renderer(load_tokenizer(Path(args.model_path)), treatment=FACT_TOKENS)
    identity = source_identity(str(file), split="train")
    prepared = prepare_examples(load, renderer, max_length=MAX_LENGTH, identity=identity)
    return len(prepared.train)


def decontaminate(args: argparse.Namespace, file: Path) -> int:
    """Look every row up in the index of test questions; return the number of rows."""
    from domain_tokens.data import Decontaminator, find_repeat, load_conversations, load_problems

    rows = load_conversations(str(file), split="train", limit=None, subset_seed=42).items
    test = load_problems(args.test, split="test", limit=None, subset_seed=42)
    start = time.perf_counter()
    finder = Decontaminator([problem.question for problem in test.items])
    repeats = sum(find_repeat(finder, row) is not None for row in rows)
    seconds = time.perf_counter() - start
    print(f"{len(rows)} rows × {len(test.items)} questions: {seconds:.1f} s, {repeats} repeats")
    return len(rows)


def seed(args: argparse.Namespace, file: Path) -> int:
    """Tokenise as the lab note's recipe does; return the number of rows."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(args.model_path, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.eos_token

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        turns = (f"{m['role'].capitalize()}: {m['content'].strip()}" for m in row["messages"])
        text = "\n".join(turns) + tokenizer.eos_token
        return dict(tokenizer(text, truncation=True, padding="max_length", max_length=MAX_LENGTH))

    rows: Any = load_dataset("json", data_files=str(file), split="train")
    return len(rows.map(encode, remove_columns=rows.column_names))


def measure(args: argparse.Namespace, way: str, file: Path) -> dict[str, float]:
    """Run one way here; return rows, seconds and the peak memory of all its processes."""
    start = time.perf_counter()
    count = {"ours": ours, "again": ours, "decontaminate": decontaminate, "seed": seed}[way](
        args, file
    )
    seconds = time.perf_counter() - start
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "rows": count,
        "seconds": seconds,
        # ru_maxrss of the children is that of the largest one.
        "peak_memory_bytes": 1024 * (own + workers * usable_cpus()),
    }


def main(argv: list[str] | None = None) -> int:
    """Run every way at every size and print the table."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--model-path", required=True, metavar="DIR", help="for its tokenizer")
    parser.add_argument("--data", required=True, metavar="FILE", help="chat rows, JSONL")
    parser.add_argument("--test", required=True, metavar="FILE", help="GSM8K test rows, JSONL")
    parser.add_argument("--rows", type=int, nargs="+", default=[12_500, 50_000, 200_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--way", choices=WAYS, help="measure this one here and print JSON")
    parser.add_argument("--work-dir", metavar="DIR", help="where the rows are written")
    parser.add_argument("--output-path", metavar="FILE", help="write all measurements as JSON")
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    if args.way:
        file = enlarge(Path(args.data), args.rows[0], Path(args.work_dir))
        print("RESULT " + json.dumps(measure(args, args.way, file)))
        return 0
    results = []
    print("| way | rows | seconds | rows/s | peak memory, GB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for rows in args.rows:
            enlarge(Path(args.data), rows, Path(folder))
            for way in args.ways:
                more = ["--way", way, "--rows", str(rows), "--work-dir", folder]
                done = subprocess.run(
                    [sys.executable, __file__, *words, *more],
                    capture_output=True,
                    text=True,
                    env=os.environ | {"HF_HOME": folder},
                )
                lines = done.stdout.splitlines()
                if done.returncode:
                    print(f"{way} failed: {done.stderr[-2000:]}", file=sys.stderr)
                    return 1
                for line in lines:
                    if line.startswith("RESULT "):
                        results.append({"way": way, **json.loads(line.removeprefix("RESULT "))})
                    elif "repeats" in line:
                        print(line)
                row = results[-1]
                print(
                    f"| {way} | {rows:,} | {row['seconds']:.1f} | {rows / row['seconds']:,.0f} | "
                    f"{row['peak_memory_bytes'] / 1e9:.1f} |",
                    flush=True,
                )
    if args.output_path:
        about = {"environment": run_environment("cpu", "-"), "code": code_identity()}
        write_json(Path(args.output_path), {"found": results, **about})
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
