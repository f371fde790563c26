"""Provenance: which code, which libraries, which machine and which formats made a result."""

import hashlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

CARD_NAME = "run_card.json"
ROOT = Path(__file__).parents[2]
CODE_FOLDERS = ("domain_tokens", "sft", "eval", "scripts", "sample")
LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


def code_identity() -> dict[str, Any]:
    """Return the commit, whether the tree is dirty, and a hash of the code folders as they are."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    sources = [f for folder in CODE_FOLDERS for f in (ROOT / folder).rglob("*.py") if f.is_file()]
    digest = hashlib.sha256()
    for file in sorted(sources):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    status = git("status", "--porcelain", "--", *CODE_FOLDERS)
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "tree": digest.hexdigest(),
    }


def run_environment(device: str, dtype: str) -> dict[str, Any]:
    """Return versions, device and number type of this run."""
    import torch

    name = torch.cuda.get_device_name(0) if device == "cuda" else platform.processor() or "cpu"
    return {
        "python": platform.python_version(),
        "libraries": {library: version(library) for library in LIBRARIES},
        "device_type": device,
        "device_name": name,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
    }


def format_versions() -> dict[str, str]:
    """Return the versions of the rules that decide what tokens and verdicts mean."""
    from domain_tokens.answers import ANSWERS_VERSION
    from domain_tokens.injection import INJECTOR_VERSION
    from domain_tokens.prompts import PROMPT_VERSION

    return {"prompt": PROMPT_VERSION, "injector": INJECTOR_VERSION, "answers": ANSWERS_VERSION}
