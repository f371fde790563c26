"""Whether a folder can take what a run will write there."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from domain_tokens.errors import UserError


def existing_parent(path: Path) -> Path:
    """Return the nearest folder above or at a path that is there."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def trial_folder(folder: Path) -> tempfile.TemporaryDirectory:
    """Make a folder that goes again, where another one is or will be.

    Raises UserError where nothing can be made there; a disk that is full remains an OSError.
    """
    parent = existing_parent(folder)
    try:
        return tempfile.TemporaryDirectory(dir=parent, prefix=".preflight.")
    except OSError as error:
        raise UserError(
            f"cannot make {folder}: {error.strerror} in {parent}; name another folder"
        ) from None


def refuse_full_disk(folder: Path, size: int, what: str) -> None:
    """Raise UserError where a disk has less free space than a run will take, in bytes."""
    parent = existing_parent(folder)
    free = shutil.disk_usage(parent).free
    if free < size:
        raise UserError(
            f"{parent} has {free / 2**30:.2f} GiB of free space, {folder.name} needs "
            f"{size / 2**30:.2f} GiB ({what}); make room, or name an --output-dir elsewhere"
        )


def refuse_not_json(path: Path, tree: Any) -> None:
    """Raise UserError where results could not be written as JSON."""
    try:
        json.dumps(tree, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: what is to be recorded is not JSON: {error}") from None


def refuse_unwritable(path: str | None) -> None:
    """Raise UserError where a file could not be written at the end of a run; None is no file."""
    if path is None:
        return
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{target} is a folder; wanted the name of a file")
    trial_folder(target.parent).cleanup()
    if not existing_parent(target.parent).is_dir():
        raise UserError(f"{existing_parent(target.parent)} is a file; wanted a folder")
