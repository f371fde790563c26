"""What an output folder allows: the table of the design, row by row."""

import json
from pathlib import Path
from typing import Any

import pytest

from domain_tokens.errors import UserError
from domain_tokens.evaluation.checkpoint import evaluation_identity
from domain_tokens.evaluation.responses import Answers
from domain_tokens.inference import Response
from domain_tokens.runs.files import write_json
from domain_tokens.runs.output_folder import UNFINISHED_MARKER, open_workspace, release_locks
from domain_tokens.runs.provenance import CARD_NAME
from domain_tokens.runs.results.evaluation import EVALUATION_LINES, EVALUATION_RESULTS
from domain_tokens.runs.results.record import Record
from tests.conftest import tree

IDENTITY = {"condition": "baseline", "config": {"a": 1}}
RESULTS = "results.json"


def make(folder, state):
    """Bring a folder into a state of the table."""
    if state == "absent":
        return
    folder.mkdir()
    if state == "foreign":
        (folder / "thesis.tex").write_text("mine")
    if state == "unfinished":
        write_json(folder / UNFINISHED_MARKER, IDENTITY)
        (folder / "train_log.jsonl").write_text("old")
    if state == "finished":
        write_json(folder / CARD_NAME, {"identity": IDENTITY})
        write_json(folder / RESULTS, {"run": "old"})


def run(folder, *, resume=False, overwrite=False, identity=IDENTITY):
    """A run in miniature; returns what it found, or "refused"."""
    try:
        space = open_workspace(folder, RESULTS, identity, resume=resume, overwrite=overwrite)
    except UserError:
        return "refused"
    if space.finished:
        return "already finished"
    space.begin()
    outcome = "continued" if (space.work / "train_log.jsonl").exists() else "started"
    assert (space.work / UNFINISHED_MARKER).exists()
    write_json(space.work / CARD_NAME, {"identity": identity})
    write_json(space.work / RESULTS, {"run": "new"})
    space.complete()
    release_locks()
    return outcome


@pytest.mark.parametrize(
    ("state", "plain", "resume", "overwrite"),
    [
        ("absent", "started", "started", "started"),
        ("empty", "started", "started", "started"),
        ("unfinished", "refused", "continued", "started"),
        ("finished", "refused", "already finished", "started"),
        ("foreign", "refused", "refused", "refused"),
    ],
)
def test_the_table(tmp_path, state, plain, resume, overwrite):
    for flags, expected in (({}, plain), ({"resume": 1}, resume), ({"overwrite": 1}, overwrite)):
        folder = tmp_path / "".join(["run", *flags])
        make(folder, state)
        before = tree(tmp_path)
        assert run(folder, **flags) == expected
        if expected in ("refused", "already finished"):
            assert tree(tmp_path) == before
        else:
            assert {RESULTS, CARD_NAME} <= {p.name for p in folder.iterdir()}
            assert not (folder / UNFINISHED_MARKER).exists()
            assert "new" in (folder / RESULTS).read_text()


def test_a_finished_folder_stays_until_its_replacement_is_whole(tmp_path):
    folder = tmp_path / "run"
    make(folder, "finished")
    before = tree(folder)
    space = open_workspace(folder, RESULTS, IDENTITY, resume=False, overwrite=True)
    space.begin()
    (space.work / "model").write_text("half")
    assert tree(folder) == before
    release_locks()  # as a kill does
    assert run(folder, overwrite=True) == "started"  # what the killed replacement left is gone
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_another_runs_folder_is_not_continued(tmp_path, state):
    """A segment with another learning rate would have been spliced in without a word."""
    folder = tmp_path / "run"
    make(folder, state)
    before = tree(folder)
    assert run(folder, resume=True, identity=IDENTITY | {"config": {"a": 2}}) == "refused"
    assert tree(folder) == before


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    assert run(tmp_path / "run", overwrite=True) == "refused"


def test_a_whole_replacement_that_was_killed_before_its_renames_is_put_in_place(tmp_path):
    """--overwrite then refused for ever ("finished by another process"), --resume kept the old."""
    make(tmp_path / "run", "finished")
    make(tmp_path / ".run.replacing", "finished")
    write_json(tmp_path / ".run.replacing" / RESULTS, {"run": "new"})
    assert run(tmp_path / "run", resume=True) == "already finished"
    assert "new" in (tmp_path / "run" / RESULTS).read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    make(tmp_path / ".run.replacing", "finished")
    assert run(tmp_path / "run", overwrite=True) == "started"


@pytest.mark.parametrize("whole", [True, False])
def test_a_replacement_that_was_killed_half_way_is_put_in_order(tmp_path, whole):
    """Between two renames neither result stood at its place, and a new run would have begun."""
    make(tmp_path / ".run.old", "finished")
    make(tmp_path / ".run.replacing", "finished")
    if whole:
        write_json(tmp_path / ".run.replacing" / RESULTS, {"run": "new"})
    else:
        write_json(tmp_path / ".run.replacing" / UNFINISHED_MARKER, IDENTITY)
    assert run(tmp_path / "run", resume=True) == "already finished"
    assert ("new" if whole else "old") in (tmp_path / "run" / RESULTS).read_text()
    assert not (tmp_path / ".run.old").exists()


def test_a_run_that_was_killed_before_its_last_step_is_finished_by_resume(tmp_path):
    folder = tmp_path / "run"
    make(folder, "finished")
    write_json(folder / UNFINISHED_MARKER, IDENTITY)
    (folder / "checkpoints").mkdir()
    assert run(folder, resume=True) == "already finished"
    assert sorted(p.name for p in folder.iterdir()) == sorted([CARD_NAME, RESULTS])


def test_what_a_killed_write_left_is_no_file_of_another_kind(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".unfinished.json.x7").write_text("{")
    assert run(folder) == "started"
    assert not any(p.name.startswith(".") for p in folder.iterdir())


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    folder = tmp_path / "run"
    arguments = {"resume": False, "overwrite": False}
    first, second = (open_workspace(folder, RESULTS, IDENTITY, **arguments) for _ in "12")
    first.begin()
    before = tree(folder)
    with pytest.raises(UserError, match="another process is writing"):
        second.begin()
    assert tree(folder) == before
    release_locks()


def test_what_another_process_began_meanwhile_is_not_removed(tmp_path):
    """Both saw an empty folder; one began and was killed, and the other one removed its files."""
    folder = tmp_path / "run"
    arguments = {"resume": False, "overwrite": False}
    first, second = (open_workspace(folder, RESULTS, IDENTITY, **arguments) for _ in "12")
    first.begin()
    (folder / "train_log.jsonl").write_text("first")
    release_locks()  # as a kill does
    with pytest.raises(UserError, match="another process wrote to it meanwhile"):
        second.begin()
    assert (folder / "train_log.jsonl").read_text() == "first"
    release_locks()


class Line(Record):
    """An item in miniature."""

    id: str
    word: str


class Results(Record):
    """Results in miniature."""

    word: Any
    card: dict[str, Any]
    items: dict[str, Any]
    seal: str


@pytest.fixture(autouse=True)
def small_records(monkeypatch):
    """What a folder allows does not depend on what is written there."""
    monkeypatch.setitem(EVALUATION_LINES, "gsm8k", {"items": Line})
    monkeypatch.setitem(EVALUATION_RESULTS, "gsm8k", Results)


CARD = {"stage": "gsm8k", "condition": "baseline", "decode": {"max_new_tokens": 6}}


class KilledError(RuntimeError):
    """Stands for a kill."""


def answers(folder, *, resume=False, overwrite=False, card=CARD, name="gsm8k"):
    """An evaluation's output that was opened, or "refused", or "already finished"."""
    output = Answers(folder, name, evaluation_identity(card))
    try:
        return output if output.open(resume=resume, overwrite=overwrite) else "already finished"
    except UserError:
        return "refused"


def evaluate(folder, word="new", **flags):
    """An evaluation in miniature; returns what it found."""
    output = answers(folder, **flags)
    if isinstance(output, str):
        return output
    outcome = "continued" if output.begin() else "started"
    output.append("q1", Response([1], "eos"))
    output.finish([{"id": "q1", "word": word}], {"word": word, "card": CARD}, more={})
    release_locks()
    return outcome


def make_evaluation(folder, state):
    """Bring a folder of evaluations into a state of the table."""
    if state in ("unfinished", "finished"):
        assert evaluate(folder, word="old") == "started"
    if state == "unfinished":
        for path in folder.iterdir():
            path.unlink()
        output = answers(folder)
        output.begin()
        output.append("q0", Response([0], "eos"))
        release_locks()
        (folder / ".gsm8k_lock").unlink(missing_ok=True)
    if state not in ("absent", "unfinished", "finished"):
        folder.mkdir()
    if state == "foreign":
        (folder / "thesis.tex").write_text("mine")
    if state == "the other evaluation":
        (folder / "arithmetic_results.json").write_text("{}")


def whole(folder):
    """The word of the results of a folder, whose items are those that the results name."""
    results = json.loads((folder / "gsm8k_results.json").read_text())
    (line,) = (folder / "gsm8k_items.jsonl").read_text().splitlines()
    assert json.loads(line)["word"] == results["word"]
    return results["word"]


@pytest.mark.parametrize(
    ("state", "plain", "resume", "overwrite"),
    [
        ("absent", "started", "started", "started"),
        ("empty", "started", "started", "started"),
        ("the other evaluation", "started", "started", "started"),
        ("unfinished", "refused", "continued", "started"),
        ("finished", "refused", "already finished", "started"),
        ("foreign", "refused", "refused", "refused"),
    ],
)
def test_the_table_for_an_evaluation(tmp_path, state, plain, resume, overwrite):
    for flags, expected in (({}, plain), ({"resume": 1}, resume), ({"overwrite": 1}, overwrite)):
        folder = tmp_path / "".join(["eval", *flags])
        make_evaluation(folder, state)
        before = tree(tmp_path)
        assert evaluate(folder, **flags) == expected
        if expected in ("refused", "already finished"):
            assert tree(tmp_path) == before
        else:
            assert whole(folder) == "new"
            own = {p.name for p in folder.iterdir()} - {"arithmetic_results.json"}
            assert own == {"gsm8k_results.json", "gsm8k_items.jsonl"}


def test_results_that_are_replaced_never_stand_beside_new_items(tmp_path, monkeypatch):
    """Killed between items and results, the old results named items that were gone.

    --resume then said "already finished", and no comparison took the folder any more.
    """
    for moment in range(6):
        folder = tmp_path / f"eval{moment}"
        make_evaluation(folder, "finished")
        changes = []

        def dying(honest, changes=changes, moment=moment):
            def change(path, *args, **more):
                changes.append(path)
                if len(changes) == moment + 1:
                    raise KilledError
                return honest(path, *args, **more)

            return change

        output = answers(folder, overwrite=True)
        output.begin()
        output.append("q1", Response([1], "eos"))
        with monkeypatch.context() as patch:
            for name in ("unlink", "rename"):
                patch.setattr(Path, name, dying(getattr(Path, name)))
            with pytest.raises(KilledError):
                output.finish([{"id": "q1", "word": "new"}], {"word": "new", "card": CARD}, more={})
        release_locks()
        if (folder / "gsm8k_results.json").exists():
            assert whole(folder) == ("old" if moment == 0 else "new")
            assert evaluate(folder, resume=True) == "already finished"
        else:
            assert evaluate(folder, resume=True) == "continued"
            assert whole(folder) == "new"
        assert sorted(p.name for p in folder.iterdir()) == [
            "gsm8k_items.jsonl",
            "gsm8k_results.json",
        ]


def test_results_that_cannot_be_written_keep_the_old_ones(tmp_path):
    folder = tmp_path / "eval"
    make_evaluation(folder, "finished")
    output = answers(folder, overwrite=True)
    output.begin()
    with pytest.raises(UserError, match="not a finite number"):
        output.finish([{"id": "q1", "word": "new"}], {"word": float("nan"), "card": CARD}, more={})
    release_locks()
    assert whole(folder) == "old"


def test_an_evaluation_that_another_process_finished_meanwhile_is_not_replaced(tmp_path):
    """Both saw an empty folder; the slower one replaced finished results without --overwrite."""
    folder = tmp_path / "eval"
    slower = answers(folder)
    assert evaluate(folder, word="first") == "started"
    with pytest.raises(UserError, match="another process wrote to it meanwhile"):
        slower.begin()
    release_locks()
    assert whole(folder) == "first"


def test_an_evaluation_under_replacement_is_left_to_its_process(tmp_path):
    """--resume finds finished results and partial files that a live process is writing."""
    folder = tmp_path / "eval"
    make_evaluation(folder, "finished")
    answers(folder, overwrite=True).begin()
    assert answers(folder, resume=True) == "already finished"
    assert (folder / "gsm8k_items.partial.jsonl").exists()
    release_locks()


def test_finished_results_of_other_code_are_said_to_be(tmp_path):
    """Stages said by which code a finished folder was made, evaluations did not."""
    folder = tmp_path / "eval"
    make_evaluation(folder, "finished")
    results = json.loads((folder / "gsm8k_results.json").read_text())
    write_json(
        folder / "gsm8k_results.json",
        {**results, "card": {**CARD, "code": {"tree": "f" * 64}}},
    )
    output = Answers(folder, "gsm8k", evaluation_identity(CARD))
    assert not output.open(resume=True, overwrite=False)
    assert "made by other code: ffffffffffff" in output.note
