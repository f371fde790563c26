"""What an output folder may hold before, during and after a run."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from domain_tokens.errors import UserError
from domain_tokens.runs.files import read_json, write_json
from domain_tokens.runs.run_card import CARD_NAME

UNFINISHED_MARKER = "unfinished.json"
PLANNED, COMMIT = "planned", "commit"
EXTRA = (PLANNED, COMMIT)  # what a marker holds besides the identity
LOCK = ".lock"

_held: list[FileLock] = []


def lock_output(path: Path) -> None:
    """Take the lock of an output until `let_go` or the end of the process, however it ends.

    Raises UserError where another process has it.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another process is writing to {path.parent}; wait for it, or give a new --output-dir"
        ) from None
    _held.append(lock)


def release_locks() -> None:
    """Release all locks that this process holds."""
    while _held:
        _held.pop().release()


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where a run writes (work) and where it ends (final); they differ while one is replaced.

    resuming: files of an earlier leg are there. finished: nothing is left to do. note: what a
    reader of a finished folder should know, or "".
    """

    work: Path
    final: Path
    results_name: str
    resuming: bool
    finished: bool
    identity: dict
    note: str = ""

    def begin(self, planned: dict | None = None, *, commit: str | None = None) -> None:
        """Make the folder, lock it and mark it unfinished; called once all input was found good.

        planned: what the data were found to give, which has to be the same for a resumed leg, too.
        Raises UserError where it is not. commit: of the code, for whoever has to go back to it.
        """
        make_folder(self.work)
        lock_output(self.work / LOCK)
        if self.resuming:
            before = read_json(self.work / UNFINISHED_MARKER).get(PLANNED) or {}
            for key in sorted(before.keys() & (planned or {}).keys()):
                if before[key] != (planned or {})[key]:
                    raise UserError(
                        f"{self.final} was begun with {key} {before[key]!r}, the same arguments "
                        f"now give {(planned or {})[key]!r}: the data or the machine changed; "
                        "restore them to continue, or give a new --output-dir"
                    )
            return
        if _state(self.work, self.results_name) not in ("empty", "unfinished"):
            raise UserError(f"{self.work} was finished by another process meanwhile; look at it")
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        marker = {**self.identity, PLANNED: planned or {}, COMMIT: commit}
        write_json(self.work / UNFINISHED_MARKER, marker)

    def complete(self) -> None:
        """Take the marker away and, where a finished folder is replaced, put the new one there.

        Called when the results are written; what only a resumed run needs goes as well.
        """
        shutil.rmtree(self.work / "checkpoints", ignore_errors=True)
        for path in self.work.glob(".*"):  # the lock, and what a killed write left
            path.unlink()
        (self.work / UNFINISHED_MARKER).unlink()
        if self.work != self.final:
            old = self.final.with_name(f".{self.final.name}.old")
            self.final.rename(old)
            self.work.rename(self.final)
            shutil.rmtree(old)


def make_folder(folder: Path) -> None:
    """Make a folder for results; raises UserError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; name another folder") from None


def open_workspace(
    output_dir: str, results_name: str, identity: dict, *, resume: bool, overwrite: bool
) -> Workspace:
    """Decide whether a run may start in a folder (the table of design §4).

    Nothing is touched, but for a replacement that was killed while it took its place.

    identity: what must be the same for a resumed leg (config, seed, condition, parent, code).
    A finished folder is not refused for its code, which `note` then names, nor for a key that was
    not recorded when it was made. Raises UserError for a folder that is in use, of another kind, or
    of another run.
    """
    final = Path(output_dir)
    if final.exists() and not final.is_dir():
        raise UserError(f"{final} is a file; wanted a folder for the results")
    work = final.with_name(f".{final.name}.replacing")
    _finish_replacement(final, work, results_name)
    state = _state(final, results_name)
    if state == "foreign":
        raise UserError(f"{final} holds files of another kind; give an empty or a new --output-dir")
    work = work if state == "finished" else final
    if state == "finished" and not overwrite:
        if resume:
            before = read_json(final / CARD_NAME)["identity"]
            recorded = {key: before[key] for key in before if key != "code"}
            _refuse_another_run(recorded, _known(identity, recorded), final)
            note = _other_code(before, identity)
            return Workspace(final, final, results_name, False, True, identity, note)
        raise UserError(f"{final} already holds {results_name}; --overwrite replaces it")
    if state == "unfinished" and not (resume or overwrite):
        raise UserError(f"{final} is unfinished; --resume continues it, --overwrite restarts it")
    resuming = state == "unfinished" and resume
    if resuming:
        _refuse_another_run(read_json(work / UNFINISHED_MARKER), identity, final)
    space = Workspace(work, final, results_name, resuming, False, identity)
    if resuming and (work / results_name).exists():  # killed between its last two steps
        space.complete()
        return Workspace(final, final, results_name, False, True, identity)
    return space


def _finish_replacement(final: Path, work: Path, results_name: str) -> None:
    """Put things in order where a run was killed while its folder was being replaced."""
    old = final.with_name(f".{final.name}.old")
    if not old.exists():
        return
    if not final.exists():
        whole = (work / results_name).exists() and not (work / UNFINISHED_MARKER).exists()
        (work if whole else old).rename(final)
    if old.exists():
        shutil.rmtree(old)


def _state(folder: Path, results_name: str) -> str:
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return "empty"  # but for a lock, or what a write that was killed left
    if (folder / UNFINISHED_MARKER).exists():
        return "unfinished"
    return "finished" if (folder / results_name).exists() else "foreign"


def _other_code(before: dict, now: dict) -> str:
    """Return what to say of the code that made a finished folder; "" where it is this one."""
    if "code" not in now or before.get("code") == now["code"]:
        return ""
    if "code" not in before:
        return " (made before the code that trains was recorded)"
    return f" (made by other code: {before['code'][:12]}, this is {now['code'][:12]})"


def _known(now: dict, before: dict) -> dict:
    """Return what is in both: a finished folder cannot know a key that is newer than it."""
    return {
        key: _known(value, before[key])
        if isinstance(value, dict) and isinstance(before[key], dict)
        else value
        for key, value in now.items()
        if key in before
    }


def _leaves(tree: dict, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        leaves |= _leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return leaves


def _refuse_another_run(before: dict, now: dict, folder: Path) -> None:
    one, other = _leaves(before), _leaves(now)
    keys = [k for k in sorted(one.keys() | other.keys()) if k.split(".")[0] not in EXTRA]
    differing = [key for key in keys if one.get(key) != other.get(key)]
    arguments = [key for key in differing if key != "code"]
    if arguments:
        key = arguments[0]
        raise UserError(
            f"{folder} was made with {key} {one.get(key)!r}, now it is {other.get(key)!r}; "
            "give the same arguments, or another --output-dir"
        )
    if differing:
        where = f" (commit {before[COMMIT][:12]})" if before.get(COMMIT) else ""
        raise UserError(
            f"{folder} was begun by other code{where}: what decides data and training is "
            f"{str(one.get('code'))[:12]}, now it is {str(other.get('code'))[:12]}; go back to "
            "that code to continue, or give another --output-dir"
        )
