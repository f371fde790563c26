"""What an output may hold before, during and after a run: one table for stages and evaluations."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from domain_tokens.errors import UserError
from domain_tokens.runs.files import read_json, write_json
from domain_tokens.runs.older_names import sections_today
from domain_tokens.runs.provenance import CARD_NAME

UNFINISHED_MARKER = "unfinished.json"
PLANNED, COMMIT = "planned", "commit"
EXTRA = (PLANNED, COMMIT)  # what a marker holds besides the identity
LOCK = ".lock"

_held: list[FileLock] = []


def lock_output(path: Path) -> None:
    """Take the lock of an output until `release_locks` or the end of the process, however it ends.

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


class State(StrEnum):
    """What stands where a run is to write."""

    EMPTY = "empty"
    UNFINISHED = "unfinished"
    FINISHED = "finished"
    FOREIGN = "foreign"


class Step(StrEnum):
    """What a run may do there."""

    START = "start"
    CONTINUE = "continue"
    REPLACE = "replace"  # what is finished stays until the new results are whole
    NOTHING = "nothing"  # it is already finished


@dataclass(frozen=True, slots=True)
class ExistingOutput:
    """An output as it was found: how errors name it, its state, and what identifies its run.

    stranger: the first file of another kind. identity: {} where no run has begun. say: the error
    for another run's output, from this, the identity now and the keys that differ.
    """

    title: str
    results_name: str
    state: State
    identity: dict
    say: Callable[["ExistingOutput", dict, list[str]], str]
    stranger: str = ""


def decide(existing: ExistingOutput, identity: dict, *, resume: bool, overwrite: bool) -> Step:
    """Return what a run may do with an output (the table of design §4); nothing is touched.

    A finished output is not refused for its code (`other_code` names it), nor for a key that was
    not recorded when it was made. Raises UserError where the run may not begin.
    """
    match existing.state:
        case State.EMPTY:
            return Step.START
        case State.FOREIGN:
            raise UserError(
                f"{existing.title} holds files of another kind ({existing.stranger}); "
                "give an empty or a new --output-dir"
            )
        case State.UNFINISHED:
            if resume:
                _refuse_another_run(existing, existing.identity, identity)
                return Step.CONTINUE
            if overwrite:
                return Step.START
            raise UserError(
                f"{existing.title} is unfinished; --resume continues it, --overwrite restarts it"
            )
    if overwrite:
        return Step.REPLACE
    if resume:
        recorded = {key: value for key, value in existing.identity.items() if key != "code"}
        _refuse_another_run(existing, recorded, _known(identity, recorded))
        return Step.NOTHING
    raise UserError(
        f"{existing.title} already holds {existing.results_name}; --overwrite replaces it"
    )


def refuse_changed(title: object, before: State, now: State) -> None:
    """Raise UserError where an output is no longer what was decided on; asked under its lock."""
    if now is not before:
        raise UserError(
            f"{title} was {before} and is {now}: another process wrote to it meanwhile; look at it"
        )


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where a run writes (work) and where it ends (final); they differ while one is replaced.

    resuming: files of an earlier segment are there. finished: nothing is left to do. note: what a
    reader of a finished folder should know, or "". found: the state of `final` that was decided on.
    """

    work: Path
    final: Path
    results_name: str
    resuming: bool
    finished: bool
    identity: dict
    note: str = ""
    initial_state: State = State.EMPTY

    def begin(self, planned: dict | None = None, *, commit: str | None = None) -> None:
        """Make the folder, lock it and mark it unfinished; called once all input was found good.

        planned: what the data were found to give, which has to be the same for a resumed segment,
        too. Raises UserError where it is not. commit: of the code, for whoever has to go back to
        it.
        """
        make_folder(self.work)
        lock_output(self.work / LOCK)
        refuse_changed(self.final, self.initial_state, _look(self.final, self.results_name)[0])
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
            _replace_folder(self.work, self.final)


def make_folder(folder: Path) -> None:
    """Make a folder for results; raises UserError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; name another folder") from None


def open_workspace(
    output_dir: Path, results_name: str, identity: dict, *, resume: bool, overwrite: bool
) -> Workspace:
    """Decide whether a run may start in a folder; see `decide`.

    Nothing is touched, but for a run that was killed in its last steps: they are taken.

    identity: what must be the same for a resumed segment (config, seed, condition, parent, code).
    Raises UserError for a folder that is in use, of another kind, or of another run.
    """
    final = output_dir
    refuse_file(final)
    work = final.with_name(f".{final.name}.replacing")
    _finish_replacement(final, work, results_name)
    existing = _find(final, results_name)
    step = decide(existing, identity, resume=resume, overwrite=overwrite)
    if step is Step.NOTHING:
        note = other_code(existing.identity.get("code"), identity.get("code"))
        return Workspace(final, final, results_name, False, True, identity, note)
    folder = work if step is Step.REPLACE else final
    resuming = step is Step.CONTINUE
    space = Workspace(
        folder, final, results_name, resuming, False, identity, initial_state=existing.state
    )
    if resuming and (final / results_name).exists():  # killed between its last two steps
        space.complete()
        return Workspace(final, final, results_name, False, True, identity)
    return space


def refuse_file(folder: Path) -> None:
    """Raise UserError where a file stands in the way of a folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; wanted a folder for the results")


def _finish_replacement(final: Path, work: Path, results_name: str) -> None:
    """Put things in order where a run was killed while its folder was being replaced."""
    old = final.with_name(f".{final.name}.old")
    whole = (work / results_name).exists() and not (work / UNFINISHED_MARKER).exists()
    if old.exists():
        if not final.exists():
            (work if whole else old).rename(final)
        if old.exists():
            shutil.rmtree(old)
    elif whole and final.exists():
        _replace_folder(work, final)


def _replace_folder(work: Path, final: Path) -> None:
    """Replace a finished folder by the new one; a kill in between is put in order later."""
    old = final.with_name(f".{final.name}.old")
    final.rename(old)
    work.rename(final)
    shutil.rmtree(old)


def _find(folder: Path, results_name: str) -> ExistingOutput:
    state, stranger = _look(folder, results_name)
    identity = {}
    if state is State.UNFINISHED:
        identity = read_json(folder / UNFINISHED_MARKER)
    elif state is State.FINISHED and (folder / CARD_NAME).exists():
        identity = read_json(folder / CARD_NAME)["identity"]
    if isinstance(identity.get("config"), dict):
        identity = {**identity, "config": sections_today(identity["config"])}
    return ExistingOutput(str(folder), results_name, state, identity, _say_another_run, stranger)


def _look(folder: Path, results_name: str) -> tuple[State, str]:
    """Return the state of a folder, and the first file of another kind or ""."""
    files = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    own = [name for name in files if not name.startswith(".")]
    if not own:  # but for a lock, or what a write that was killed left
        return State.EMPTY, ""
    if UNFINISHED_MARKER in own:
        return State.UNFINISHED, ""
    return (State.FINISHED, "") if results_name in own else (State.FOREIGN, own[0])


def other_code(before: str | None, now: str | None) -> str:
    """Return what to say of the code that made a finished output; "" where it is this one."""
    if now is None or before == now:
        return ""
    if before is None:
        return " (made before the code that trains was recorded)"
    return f" (made by other code: {before[:12]}, this is {now[:12]})"


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


def _refuse_another_run(existing: ExistingOutput, before: dict, now: dict) -> None:
    a, b = _leaves(before), _leaves(now)
    keys = [k for k in sorted(a.keys() | b.keys()) if k.split(".")[0] not in EXTRA]
    differing = [key for key in keys if a.get(key) != b.get(key)]
    if differing:
        differing.sort(key=lambda key: key == "code")  # arguments are named before code
        raise UserError(existing.say(existing, now, differing))


def _say_another_run(existing: ExistingOutput, now: dict, differing: list[str]) -> str:
    key = differing[0]
    before, after = _leaves(existing.identity).get(key), _leaves(now).get(key)
    if key != "code":
        return (
            f"{existing.title} was made with {key} {before!r}, now it is {after!r}; "
            "give the same arguments, or another --output-dir"
        )
    commit = existing.identity.get(COMMIT)
    where = f" (commit {commit[:12]})" if commit else ""
    return (
        f"{existing.title} was begun by other code{where}: what decides data and training is "
        f"{str(before)[:12]}, now it is {str(after)[:12]}; go back to "
        "that code to continue, or give another --output-dir"
    )
