"""Files written whole or not at all, sealed, read with errors that name them, and hashed."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from domain_tokens.errors import UserError

SEAL = "seal"


def umask() -> int:
    """Return the permissions that this process withholds from the files it makes."""
    current = os.umask(0o077)  # it can only be read by setting it
    os.umask(current)
    return current


def write_json(path: Path, tree: Any) -> None:
    """Write JSON so that the file is there whole or not at all (temporary file, fsync, rename).

    A tree that was sealed is sealed again, so that no program writes a seal of other content.
    """
    if isinstance(tree, dict) and SEAL in tree:
        tree = sealed(tree)
    try:
        text = json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        where = next(_not_finite(tree, path.name))
        raise UserError(f"{where} is not a finite number, so {path} was not written") from None
    write_text(path, text)


def _not_finite(tree: Any, path: str) -> Iterator[str]:
    """Yield where NaN or infinity stand in a tree that is to be JSON."""
    if isinstance(tree, float) and not math.isfinite(tree):
        yield path
    parts: Iterable[tuple[Any, Any]] = tree.items() if isinstance(tree, dict) else ()
    if isinstance(tree, list | tuple):
        parts = enumerate(tree)
    for key, value in parts:
        yield from _not_finite(value, f"{path}.{key}")


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
        raise UserError(f"cannot write {path}: {error.strerror}; fix that first") from None


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


def seal(tree: dict[str, Any]) -> str:
    """Return the SHA-256 of all of a JSON object but its own seal.

    It catches what was changed by accident in any leaf, paths and times too. Whoever changes a file
    on purpose can compute it again: no proof may rest on it.
    """
    rest = {key: value for key, value in tree.items() if key != SEAL}
    return hash_json(json.loads(json.dumps(rest)))  # as it is read back


def sealed(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its seal."""
    return {**{key: value for key, value in tree.items() if key != SEAL}, SEAL: seal(tree)}


def check_seal(path: Path, tree: dict[str, Any]) -> bool:
    """Return whether a file has a seal; raises UserError where it is not that of its content."""
    if SEAL not in tree:
        return False
    if tree[SEAL] != seal(tree):
        raise UserError(
            f"{path} was changed after it was written: its seal is not that of its content; "
            "restore the file, or make it again"
        )
    return True


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a JSON object and check its seal, if it has one (files of older versions have none)."""
    tree = read_json(path)
    check_seal(path, tree)
    return tree


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file of objects; raises UserError that names the file and line."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    rows = []
    for number, line in enumerate(lines if lines != [""] else [], start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is not a JSON object")
        rows.append(row)
    return rows


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(files: Iterable[Path]) -> str:
    """Return the SHA-256 over the names and contents of files, in order of name."""
    return hash_digests({file.name: file_digest(file) for file in files})


def hash_digests(digests: dict[str, str]) -> str:
    """Return what `hash_files` does, from the digests of files by name."""
    digest = hashlib.sha256()
    for name in sorted(digests):
        digest.update(name.encode() + b"\0" + bytes.fromhex(digests[name]))
    return digest.hexdigest()


def hash_json(tree: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
