"""What an output folder may hold before, during and after a run."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from domain_tokens.errors import UserError
from domain_tokens.run_card import CARD_NAME, read_json, write_json

MARKER = "unfinished.json"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where a run writes (work) and where it ends (final); they differ while one is replaced.

    resuming: files of an earlier leg are there. finished: nothing is left to do.
    """

    work: Path
    final: Path
    results_name: str
    resuming: bool
    finished: bool
    identity: dict

    def begin(self) -> None:
        """Make the folder and mark it unfinished; called once all input was found good."""
        if self.resuming:
            return
        if (self.work / MARKER).exists():
            shutil.rmtree(self.work)
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make {self.work}: {error.strerror}; name another folder"
            ) from None
        write_json(self.work / MARKER, self.identity)

    def complete(self) -> None:
        """Take the marker away and, where a finished folder is replaced, put the new one there."""
        (self.work / MARKER).unlink()
        if self.work != self.final:
            old = self.final.with_name(f".{self.final.name}.old")
            self.final.rename(old)
            self.work.rename(self.final)
            shutil.rmtree(old)


def open_workspace(
    output_dir: str, results_name: str, identity: dict, *, resume: bool, overwrite: bool
) -> Workspace:
    """Decide whether a run may start in a folder, touching nothing (the table of design §4).

    identity: what must be the same for a resumed leg (config, seed, condition, parent). Raises
    UserError for a folder that is in use, of another kind, or of another run.
    """
    final = Path(output_dir)
    if final.exists() and not final.is_dir():
        raise UserError(f"{final} is a file; wanted a folder for the results")
    state = _state(final, results_name)
    if state == "foreign":
        raise UserError(f"{final} holds files of another kind; give an empty or a new --output-dir")
    work = final.with_name(f".{final.name}.replacing") if state == "finished" else final
    if state == "finished" and not overwrite:
        if resume:
            _refuse_another_run(read_json(final / CARD_NAME)["identity"], identity, final)
            return Workspace(final, final, results_name, False, True, identity)
        raise UserError(f"{final} already holds {results_name}; --overwrite replaces it")
    if state == "unfinished" and not (resume or overwrite):
        raise UserError(f"{final} is unfinished; --resume continues it, --overwrite restarts it")
    resuming = state == "unfinished" and resume
    if resuming:
        _refuse_another_run(read_json(work / MARKER), identity, final)
    return Workspace(work, final, results_name, resuming, False, identity)


def _state(folder: Path, results_name: str) -> str:
    if not folder.exists() or not any(folder.iterdir()):
        return "empty"
    if (folder / MARKER).exists():
        return "unfinished"
    return "finished" if (folder / results_name).exists() else "foreign"


def _refuse_another_run(before: dict, now: dict, folder: Path) -> None:
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        key = differing[0]
        raise UserError(
            f"{folder} was made with {key} {before.get(key)!r}, now it is {now.get(key)!r}; "
            "give the same arguments, or --overwrite to start anew"
        )
