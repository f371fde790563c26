"""What is reported as a test or validation loss is never of rows that were trained on."""

from pathlib import Path

import pytest

from domain_tokens.data.sources import file_hashes
from domain_tokens.errors import UserError
from domain_tokens.runs.config import SFTConfig, load_config
from domain_tokens.training.stage_data import source_files, stage_sources
from tests.conftest import ROOT, call, load_script
from tests.rows import chat_row, problem_row, write_jsonl

BASE = ("data.decontaminate_against=null", "training.max_length=256")


def config_of(stage: str, *overrides: str) -> SFTConfig:
    path = ROOT / f"sft/configs/{stage}.yaml"
    return load_config(SFTConfig, path, [*BASE, *overrides])


def loaded(stage: str, *overrides: str):
    """What a stage loads, after the check that it hashes the very rows that it reads."""
    script, config = load_script(f"sft/sft_{stage}.py"), config_of(stage, *overrides)
    data = script.load_data(config)
    reads = [key for key, _, _ in stage_sources(config, script.USUAL)]
    assert ("data.validation_source" in reads) == ("validation" in data.fingerprint)
    assert set(source_files(config, script.USUAL)) == {
        str(file)
        for key, source, split in stage_sources(config, script.USUAL)
        for file in file_hashes(source, split=split, key=key)
    }
    return data


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Forty training rows and twelve others, of both kinds, as files and as a folder's splits."""
    for name, make in (("chat", lambda n: chat_row(f"Say {n}")), ("gsm8k", problem_row)):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "train.jsonl", [make(n) for n in range(40)])
        for split in ("test", "validation"):
            write_jsonl(tmp_path / name / f"{split}.jsonl", [make(n) for n in range(100, 112)])
    return tmp_path


def contents(rows):
    return {row.messages for row in rows}


def test_one_file_is_no_test_data(files: Path):
    """The README's `data.source=FILE` reported the loss of all 40 training rows as a test loss."""
    data = loaded("gsm8k", f"data.source={files / 'gsm8k/train.jsonl'}")
    assert (len(data.train), data.validation, data.eval_split) == (40, [], None)
    assert [note for note in data.notes if note.startswith("validation: none")]


@pytest.mark.parametrize("stage", ["gsm8k", "tulu"])
@pytest.mark.parametrize(
    "asked",
    [
        ["data.validation_source={0}/train.jsonl", "data.validation_split=test"],
        ["data.validation_source={0}/./train.jsonl"],
        ["data.source={0}", "data.validation_split=train"],
        ["data.source={0}", "data.validation_source={0}/train.jsonl"],
    ],
)
def test_training_rows_named_for_validation_are_refused(files: Path, stage: str, asked: list[str]):
    folder = files / ("chat" if stage == "tulu" else "gsm8k")
    words = [f"data.source={folder / 'train.jsonl'}", *(w.format(folder) for w in asked)]
    with pytest.raises(UserError, match="is what is trained on; name other rows") as caught:
        loaded(stage, *words)
    assert "\n" not in str(caught.value)


def test_a_split_of_one_file_is_refused_in_the_chat_stage(files: Path):
    file = files / "chat/train.jsonl"
    with pytest.raises(UserError, match="is what is trained on"):
        loaded("tulu", f"data.source={file}", "data.validation_split=validation")


@pytest.mark.parametrize(
    ("stage", "words", "split"),
    [
        ("gsm8k", ["data.source={0}"], "test"),
        ("gsm8k", ["data.source={0}", "data.validation_split=validation"], "validation"),
        ("gsm8k", ["data.source={0}/train.jsonl", "data.validation_source={0}"], "test"),
        ("gsm8k", ["data.source={0}/train.jsonl", "data.validation_source={0}/test.jsonl"], "test"),
        ("tulu", ["data.source={0}", "data.validation_split=test"], "validation"),
        ("tulu", ["data.source={0}", "data.validation_source={0}/test.jsonl"], "validation"),
        ("tulu", ["data.source={0}/train.jsonl", "data.validation_source={0}"], "validation"),
    ],
)
def test_another_source_or_split_is_read(files: Path, stage: str, words: list[str], split: str):
    """The chat stage ignored `validation_split` of its own source and held training rows out."""
    folder = files / ("chat" if stage == "tulu" else "gsm8k")
    data = loaded(stage, *(word.format(folder) for word in words))
    assert (len(data.train), len(data.validation), data.eval_split) == (40, 12, split)
    assert not contents(data.train) & contents(data.validation)
    assert not data.validation_dropped


@pytest.mark.parametrize(
    ("stage", "words", "split", "held"),
    [
        ("tulu", [], "validation", 4),
        ("tulu", ["training.max_val_samples=3"], "validation", 3),
        ("gsm8k", ["data.holdout=7"], "holdout", 7),
    ],
)
def test_held_out_rows_are_not_trained_on(files: Path, stage, words, split, held):
    file = files / ("chat" if stage == "tulu" else "gsm8k") / "train.jsonl"
    data = loaded(stage, f"data.source={file}", *words)
    assert (len(data.train), len(data.validation)) == (40 - held, held)
    assert not contents(data.train) & contents(data.validation)
    assert data.eval_split == split


@pytest.mark.parametrize("stage", ["gsm8k", "tulu"])
def test_rows_in_both_files_are_counted_and_left_out(files: Path, stage: str):
    """Under other ids, and with other space around, they are the same rows."""
    make = (lambda n: chat_row(f" Say {n}\n")) if stage == "tulu" else problem_row
    folder = files / ("chat" if stage == "tulu" else "gsm8k")
    rows = [make(n) | {"id": n} for n in range(35, 45)]
    other = write_jsonl(files / "other.jsonl", rows)
    words = [f"data.source={folder / 'train.jsonl'}", f"data.validation_source={other}"]
    data = loaded(stage, *words)
    assert (len(data.validation), data.validation_dropped) == (5, {"also_in_training": 5})
    assert len(data.train) == 40
    write_jsonl(files / "other.jsonl", rows[:5])
    with pytest.raises(UserError, match="all 5 validation rows are also training rows"):
        loaded(stage, *words)


@pytest.mark.parametrize("stage", ["gsm8k", "tulu"])
def test_no_validation_where_none_is_wanted(files: Path, stage: str):
    folder = files / ("chat" if stage == "tulu" else "gsm8k")
    (folder / "test.jsonl").unlink()
    data = loaded(stage, f"data.source={folder}", "training.max_val_samples=0")
    assert (data.validation, data.eval_split, data.notes) == ([], None, [])
    assert len(data.train) == 40


def test_the_chat_stage_refuses_a_key_that_it_would_ignore(files: Path):
    with pytest.raises(UserError, match=r"data\.holdout is of the GSM8K stage"):
        loaded("tulu", f"data.source={files / 'chat/train.jsonl'}", "data.holdout=3")


def test_irregular_validation_rows_are_counted(files: Path):
    rows = [problem_row(200), {"question": "Why?"}, problem_row(200), problem_row(201)]
    other = write_jsonl(files / "other.jsonl", rows)
    source = files / "gsm8k/train.jsonl"
    data = loaded("gsm8k", f"data.source={source}", f"data.validation_source={other}")
    assert data.validation_dropped == {"no_answer": 1, "duplicate": 1}
    assert any("1 no_answer (row 2), 1 duplicate" in note for note in data.notes)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A random base of two layers."""
    folder = tmp_path_factory.mktemp("base") / "hf_baseline"
    words = ["--from", "tiny", "--condition", "baseline", "--output-dir", folder]
    assert call("scripts/make_base.py", *words) == 0
    return folder


def stage(base: Path, output: Path, name: str, *overrides: str) -> int:
    words = ["--model-path", base, "--output-dir", output, "--condition", "baseline"]
    sets = [word for override in (*BASE, *overrides) for word in ("--set", override)]
    return call(f"sft/sft_{name}.py", *words, *sets, "--dry-run")


def test_dropped_validation_rows_are_said(base: Path, files: Path, tmp_path: Path, capsys):
    """All validation rows were dropped, and the run said 'validation loss -'."""
    bad = [chat_row(f"Spell {n}") for n in range(105, 110)]
    for row in bad:
        row["messages"][1]["content"] = ""
    some = write_jsonl(files / "some.jsonl", [*bad, chat_row("Spell it")])
    source = f"data.source={files / 'chat/train.jsonl'}"
    words = (source, f"data.validation_source={some}")
    assert stage(base, tmp_path / "out", "tulu", *words) == 0
    assert "validation: 5 dropped (empty_turn), 1 left" in capsys.readouterr().out
    write_jsonl(files / "some.jsonl", bad)
    assert stage(base, tmp_path / "out", "tulu", *words) == 2
    shown = capsys.readouterr().err
    assert "validation: 5 dropped (empty_turn), none is left; see data.validation_source" in shown
    assert shown.count("\n") == 1


def test_irregular_rows_and_no_test_loss_are_said(base: Path, tmp_path: Path, capsys):
    rows = [problem_row(n) for n in range(20)]
    file = write_jsonl(tmp_path / "train.jsonl", [*rows[:9], {"question": "Why?"}, *rows[9:]])
    assert stage(base, tmp_path / "out", "gsm8k", f"data.source={file}") == 0
    shown = capsys.readouterr().out
    assert "1 of 21 rows left out: 1 no_answer (row 10)" in shown
    assert "validation: none" in shown
    assert "20 examples (0 truncated; dropped: 1 no_answer)" in shown
