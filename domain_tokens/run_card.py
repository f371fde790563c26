"""Provenance: what a checkpoint or a result was made from, and writing it all or not at all."""

import hashlib
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from domain_tokens.errors import UserError

CARD_NAME = "run_card.json"
ROOT = Path(__file__).parents[1]
CODE_FOLDERS = ("domain_tokens", "sft", "eval", "scripts", "sample")
LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


def umask() -> int:
    """Return the permissions that this process withholds from the files it makes."""
    current = os.umask(0o077)  # it can only be read by setting it
    os.umask(current)
    return current


def write_json(path: Path, tree: Any) -> None:
    """Write JSON so that the file is there whole or not at all (temporary file, fsync, rename)."""
    try:
        text = json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        where = next(_not_finite(tree, path.name))
        raise UserError(f"{where} is not a finite number, so {path} was not written") from None
    write_text(path, text)


def _not_finite(tree: Any, place: str) -> Iterator[str]:
    """Yield where NaN or infinity stand in a tree that is to be JSON."""
    if isinstance(tree, float) and not math.isfinite(tree):
        yield place
    parts: Iterable[tuple[Any, Any]] = tree.items() if isinstance(tree, dict) else ()
    if isinstance(tree, list | tuple):
        parts = enumerate(tree)
    for key, value in parts:
        yield from _not_finite(value, f"{place}.{key}")


def write_text(path: Path, text: str) -> None:
    """Write a text file by atomic rename; raises UserError where the folder cannot be written."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise UserError(f"cannot write {path}: {error.strerror}; mend that first") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises UserError that names the file where it is absent or broken."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds {type(tree).__name__}; wanted a JSON object")
    return tree


def hash_files(files: Iterable[Path]) -> str:
    """Return the SHA-256 over the names and contents of files, in order of name."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.name):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def hash_json(tree: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


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


def environment(device: str, dtype: str) -> dict[str, Any]:
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


def formats() -> dict[str, str]:
    """Return the versions of the rules that decide what tokens and verdicts mean."""
    from domain_tokens.answers import ANSWERS_VERSION
    from domain_tokens.injection import INJECTOR_VERSION
    from domain_tokens.prompts import PROMPT_VERSION

    return {"prompt": PROMPT_VERSION, "injector": INJECTOR_VERSION, "answers": ANSWERS_VERSION}
