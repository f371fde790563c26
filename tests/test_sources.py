"""Where rows come from: files, folders, shards, save_to_disk and the hub, which no test asks."""

import gzip
import json
import shutil
from pathlib import Path

import datasets
import datasets.config
import datasets.exceptions
import pytest

from domain_tokens.data.corpora import load_questions
from domain_tokens.data.sources import SUFFIXES, file_hashes, read_rows, same_rows
from domain_tokens.errors import UserError
from tests.conftest import ROOT, plant
from tests.rows import chat_row, conversations, message_of, problem_row, problems, write_jsonl

ANY_ROWS = [suffix for suffix in SUFFIXES if not suffix.startswith(".txt")]  # text: problems


def write_parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_arrow(path: Path, rows: list[dict]) -> None:
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)


def write(file: Path, rows: list[dict]) -> None:
    """Write rows in the format that a file's name says."""
    name = file.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        write_parquet(file, rows)
    elif name.endswith(".arrow"):
        write_arrow(file, rows)
    else:
        lines = "\n".join(json.dumps(row) for row in rows)
        text = json.dumps(rows) if name.endswith(".json") else lines
        packed = file.name.endswith(".gz")
        file.write_bytes(gzip.compress(text.encode(), mtime=0) if packed else text.encode())


@pytest.mark.parametrize("suffix", ANY_ROWS)
@pytest.mark.parametrize("place", ["file", "folder", "data"])
def test_every_format_and_place_gives_the_same_rows(tmp_path: Path, suffix: str, place: str):
    rows = [chat_row("one", id="a", source="s"), chat_row("two × 2", id="b", source="t")]
    folder = tmp_path / "data" if place == "data" else tmp_path
    folder.mkdir(exist_ok=True)
    file = folder / f"train{suffix}"
    write(file, rows)
    source = file if place == "file" else tmp_path
    assert list(read_rows(str(source), split="train")) == rows
    assert list(file_hashes(str(source), split="train")) == [str(file)]


@pytest.mark.parametrize("saved", ["one split", "all splits"])
def test_a_folder_of_save_to_disk_is_read_and_must_be_complete(tmp_path: Path, saved: str):
    rows = [chat_row(str(number), id=str(number)) for number in range(6)]
    table = datasets.Dataset.from_list(rows)
    folder = tmp_path / "saved"
    if saved == "one split":
        table.save_to_disk(folder, num_shards=2)
    else:
        datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(
            folder, num_shards={"train": 2, "test": 1}
        )
        assert list(read_rows(str(folder), split="test")) == rows[:1]
    assert list(read_rows(str(folder), split="train")) == rows
    next(folder.rglob("data-00001-of-00002.arrow")).unlink()
    assert "lacks data-00001-of-00002.arrow, one of 2" in message_of(folder)


@pytest.mark.parametrize("suffix", ANY_ROWS)
@pytest.mark.parametrize("appended", ["", "-0123abcd"])
def test_shards_are_read_in_order_and_must_be_complete(tmp_path: Path, suffix: str, appended: str):
    """Names of older versions of datasets end in a hash: half a download passed as whole."""
    rows = [chat_row(str(number), id=str(number)) for number in range(4)]
    one, two = (tmp_path / f"train-{at:05}-of-00002{appended}{suffix}" for at in range(2))
    write(two, rows[2:])
    write(tmp_path / f"test-00000-of-00001{suffix}", rows[:1])
    assert "holds 1 shards" in message_of(tmp_path)
    write(one, rows[:2])
    assert list(read_rows(str(tmp_path), split="train")) == rows
    write(tmp_path / f"train-00001-of-00002-ffff{suffix}", rows[:1])  # of another download
    assert "wanted 2, one of each number" in message_of(tmp_path)


def test_a_split_that_stands_twice_in_a_folder_is_refused(tmp_path: Path):
    write_jsonl(tmp_path / "train.jsonl", [chat_row("a")])
    (tmp_path / "train.json").write_text("[]")
    assert "train.jsonl, train.json" in message_of(tmp_path)


def test_jsonl_skips_blank_lines_and_a_byte_order_mark(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    text = json.dumps(chat_row("line\u2028separator"), ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\n  \n" + text.encode())
    assert [row["messages"][0]["content"] for row in read_rows(str(file), split="-")] == [
        "line\u2028separator"
    ] * 2


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"messages": [}', "not valid JSON"),
        (b'{"messages": "\xff"}', "not UTF-8 ('utf-8' codec"),
        (b"[" * 100_000, "not valid JSON"),
        (b"9" * 5000, "not valid JSON"),
        (b"[1, 2]", "got a list; wanted a JSON object"),
        (b"null", "got missing or null; wanted a JSON object"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, line: bytes, why: str):
    file = tmp_path / "rows.jsonl"
    good = json.dumps(chat_row("fine")).encode()
    file.write_bytes(good + b"\n\n" + line + b"\n" + good + b"\n")
    message = message_of(file)
    assert f"{file}, line 3: {why}" in message
    assert message.endswith(("fix that line", "save the file as UTF-8"))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("rows.json", b'{"a": 1}\n{"a": 2}', "call it .jsonl"),
        ("rows.json", b'{"a": 1}', "got an object with the keys a; wanted a list"),
        ("rows.json", b'[{"a": 1}, {"a', "seems cut off"),
        ("rows.json", b'[{"a": 1}, {"a": }]', "fix that place"),
        ("rows.jsonl", b'[{"a": 1}]', "line 1: it is one JSON list: call it .json"),
        ("rows.jsonl", b'\xef\xbb\xbf\n[\n{"a": 1}\n]', "it is one JSON list: call it .json"),
        ("rows.jsonl", b'{\n"a": 1\n}\n', "write each on one line"),
        ("rows.jsonl", b'{"a": 1}\n{"a": ', "line 2: not valid JSON"),
        ("rows.jsonl", b'{"a": 1}\n{"a": ', "the file seems cut off"),
        ("rows.jsonl", b'{"a": 1}\n{"a": "\xc3', "line 2: not UTF-8"),
        ("rows.jsonl", b'{"a": 1}\n{"a": "\xc3', "the file seems cut off"),
        ("rows.jsonl", '{"a": 1}'.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("rows.jsonl", '{"a": 1}'.encode("utf-16-le"), "is UTF-16 or UTF-32"),
        ("rows.json", '[{"a": 1}]'.encode("utf-16-be"), "is UTF-16 or UTF-32"),
        ("rows.json", '[{"a": 1}]'.encode("utf-32"), "is UTF-32; save it as UTF-8"),
        ("rows.jsonl", gzip.compress(b'{"a": 1}', mtime=0), "is gzip: call it .jsonl.gz"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}' * 99, mtime=0)[:-9], "seems cut off"),
        ("rows.jsonl.gz", b'{"a": 1}', "Not a gzipped file"),
        ("rows.jsonl.zst", b"\x28\xb5\x2f\xfd", "unpack it with zstd -d rows.jsonl.zst"),
        ("rows.jsonl", b"\x28\xb5\x2f\xfd", "is Zstandard"),
        ("rows.arrow", b"nothing", "not a readable Arrow file"),
        ("rows.json", b"[3]", "row 1: got a number"),
        ("rows.parquet", b"PAR0", "not a readable parquet file"),
        ("rows.csv", b"a,b", "ends in '.csv'"),
        ("rows.jsonl", b"\n\n", "holds no rows"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, why: str):
    file = tmp_path / name
    file.write_bytes(content)
    assert why in message_of(file)


def test_no_message_advises_to_delete():
    """'Delete that line' went for a JSON list in one line, too: to delete it was to delete all."""
    for path in (ROOT / "domain_tokens" / "data").glob("*.py"):
        words = path.read_text(encoding="utf-8")
        assert "delete that line" not in words, path
        assert "delete the row" not in words, path


def test_same_rows_sees_through_names(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [chat_row(split)])
    (tmp_path / "link.jsonl").symlink_to("train.jsonl")
    train = ("train.jsonl", "train")
    for other in (
        ("./train.jsonl", "test"),
        (str(tmp_path / "train.jsonl"), "-"),
        ("link.jsonl", "test"),
        (str(tmp_path), "train"),
    ):
        assert same_rows(other, train, key="-"), other
    for other in (("test.jsonl", "train"), (str(tmp_path), "test"), ("a/b", "train")):
        assert not same_rows(other, train, key="-"), other
    hub = ("openai/gsm8k", "test")
    assert same_rows(("openai/gsm8k:main", "test"), hub, key="-")
    assert not same_rows(("openai/gsm8k", "train"), hub, key="-")
    with pytest.raises(UserError, match="found nothing"):
        same_rows(("none.jsonl", "train"), train, key="-")


def test_every_row_of_what_must_not_be_repeated_needs_a_question(tmp_path: Path):
    rows = [problem_row(1), {"answer": "#### 2"}]
    with pytest.raises(UserError, match="row 2: `question` is missing"):
        load_questions(write_jsonl(tmp_path / "test.jsonl", rows), split="test", key="k")
    assert load_questions(write_jsonl(tmp_path / "t.jsonl", rows[:1]), split="test", key="k") == [
        rows[0]["question"]
    ]


def test_a_missing_path_is_never_asked_of_the_hub(tmp_path: Path, monkeypatch):
    plant(
        monkeypatch,
        "domain_tokens.data.sources._hub_table",
        lambda *_, **__: pytest.fail("asked the hub"),
    )
    monkeypatch.chdir(tmp_path)
    for source in ("./owner/name", "~/no/such", "/no/such", "owner/rows.jsonl", "../a/b", "word"):
        assert "looked for" in message_of(source, key="data.validation_source")
    assert "for split 'train'" in message_of(tmp_path)
    # A folder that has the name of a hub data set is the folder.
    (tmp_path / "owner" / "name").mkdir(parents=True)
    shutil.copy(write_jsonl(tmp_path / "train.jsonl", [chat_row("a")]), tmp_path / "owner/name")
    assert len(conversations("owner/name").items) == 1


# --- the hub, which no test asks ------------------------------------------------------------------


def test_the_hub_is_asked_for_the_named_config(monkeypatch):
    asked = []
    table = datasets.Dataset.from_list([problem_row(number) for number in range(3)])

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    plant(monkeypatch, "domain_tokens.data.sources._hub_answers", lambda: True)
    assert list(read_rows("openai/gsm8k", split="test")) == table.to_list()
    list(read_rows("openai/gsm8k:socratic", split="train"))
    list(read_rows("allenai/tulu-3-sft-mixture", split="train"))
    assert asked == [
        ("openai/gsm8k", "main", "test"),
        ("openai/gsm8k", "socratic", "train"),
        ("allenai/tulu-3-sft-mixture", None, "train"),
    ]
    assert problems("openai/gsm8k").source_composition == {"openai/gsm8k": 3}


def test_an_unreachable_hub_is_one_line_that_names_the_key(monkeypatch, tmp_path: Path, capfd):
    plant(monkeypatch, "domain_tokens.data.sources._hub_answers", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    before = datasets.config.HF_HUB_OFFLINE
    message = message_of("no-such-owner/no-such-set", key="data.decontaminate_against")
    assert "could not be reached" in message
    assert "--set data.decontaminate_against=PATH" in message
    assert before == datasets.config.HF_HUB_OFFLINE
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ValueError('Unknown split "dev".\nShould be "train".'), '(Unknown split "dev".); wanted'),
        (datasets.exceptions.DatasetNotFoundError("no such set"), "(no such set); wanted"),
        (FileNotFoundError("LocalEntryNotFoundError: a proxy said 403"), "could not be reached"),
        (ConnectionError("cut off"), "could not be reached"),
    ],
)
def test_what_the_hub_refuses_is_bad_input(monkeypatch, error: Exception, why: str):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    plant(monkeypatch, "domain_tokens.data.sources._hub_answers", lambda: True)
    assert why in message_of("owner/name")
