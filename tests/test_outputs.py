"""What an output folder allows: the table of the design, row by row."""

import pytest

from domain_tokens.errors import UserError
from domain_tokens.runs.files import write_json
from domain_tokens.runs.output_folder import UNFINISHED_MARKER, open_workspace, release_locks
from domain_tokens.runs.run_card import CARD_NAME
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
        space = open_workspace(str(folder), RESULTS, identity, resume=resume, overwrite=overwrite)
    except UserError:
        return "refused"
    if space.finished:
        return "already finished"
    space.begin()
    found = "continued" if (space.work / "train_log.jsonl").exists() else "started"
    assert (space.work / UNFINISHED_MARKER).exists()
    write_json(space.work / CARD_NAME, {"identity": identity})
    write_json(space.work / RESULTS, {"run": "new"})
    space.complete()
    release_locks()
    return found


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
    for flags, wanted in (({}, plain), ({"resume": 1}, resume), ({"overwrite": 1}, overwrite)):
        folder = tmp_path / "".join(["run", *flags])
        make(folder, state)
        before = tree(tmp_path)
        assert run(folder, **flags) == wanted
        if wanted in ("refused", "already finished"):
            assert tree(tmp_path) == before
        else:
            assert {RESULTS, CARD_NAME} <= {p.name for p in folder.iterdir()}
            assert not (folder / UNFINISHED_MARKER).exists()
            assert "new" in (folder / RESULTS).read_text()


def test_a_finished_folder_stays_until_its_replacement_is_whole(tmp_path):
    folder = tmp_path / "run"
    make(folder, "finished")
    before = tree(folder)
    space = open_workspace(str(folder), RESULTS, IDENTITY, resume=False, overwrite=True)
    space.begin()
    (space.work / "model").write_text("half")
    assert tree(folder) == before
    release_locks()  # as a kill does
    assert run(folder, overwrite=True) == "started"  # what the killed replacement left is gone
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_another_runs_folder_is_not_continued(tmp_path, state):
    """A leg with another learning rate would have been spliced in without a word."""
    folder = tmp_path / "run"
    make(folder, state)
    before = tree(folder)
    assert run(folder, resume=True, identity=IDENTITY | {"config": {"a": 2}}) == "refused"
    assert tree(folder) == before


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    assert run(tmp_path / "run", overwrite=True) == "refused"


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
    first, second = (open_workspace(str(folder), RESULTS, IDENTITY, **arguments) for _ in "12")
    first.begin()
    before = tree(folder)
    with pytest.raises(UserError, match="another process is writing"):
        second.begin()
    assert tree(folder) == before
    release_locks()
