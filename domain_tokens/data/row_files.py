"""Rows of one file after the other: JSON Lines, JSON, parquet, Arrow and GSM8K-Aug's text lines.

The text formats may be packed by gzip.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from domain_tokens.data.rationales import split_line
from domain_tokens.errors import UserError

ROWS_PER_BATCH = 1000
# How a file begins that is packed or is text of another encoding.
MAGIC = {
    b"\x1f\x8b": "is gzip: call it .jsonl.gz or .json.gz",
    b"\x28\xb5\x2f\xfd": "is Zstandard, which is not read here: unpack it with zstd -d",
    b"BZh": "is bzip2, which is not read here: unpack it with bunzip2 -k",
    b"\xfd7zXZ": "is xz, which is not read here: unpack it with xz -dk",
    b"PK\x03\x04": "is a zip archive, which is not read here: unpack it with unzip",
    b"PAR1": "is a parquet file: call it .parquet",
    b"ARROW1": "is an Arrow file: call it .arrow",
    b"\xff\xfe\x00\x00": "is UTF-32; save it as UTF-8",
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
}


def suffix_of(path: Path) -> str:
    """Return what says how a file is read, as in .jsonl or .jsonl.gz."""
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def rows_of_files(paths: Iterable[Path], key: str) -> Iterator[dict]:
    """Read the rows of files one at a time; raises UserError that names file and line."""
    readers: dict[str, Callable[[Path, str], Iterator[dict]]] = {
        ".jsonl": _jsonl_rows,
        ".json": _json_rows,
        ".txt": _text_rows,
        ".parquet": _parquet_rows,
        ".arrow": _arrow_rows,
    }
    for path in paths:
        try:
            yield from readers[suffix_of(path).removesuffix(".gz")](path, key)
        except (EOFError, zlib.error) as error:
            raise UserError(
                f"{key}: {path} seems cut off ({first_line(error)}); complete the download"
            ) from error
        except OSError as error:
            raise UserError(f"{key}: {path} cannot be read ({error.strerror or error})") from error


def _open(path: Path, key: str) -> IO[bytes]:
    """Open a text file, packed or not, as bytes; refuse other formats and encodings by name."""
    file: Any = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115
    head = file.read(8)
    file.seek(0)
    what = next((words for magic, words in MAGIC.items() if head.startswith(magic)), None)
    if what is None and b"\0" in head[:4]:
        what = "is UTF-16 or UTF-32; save it as UTF-8"
    if what is not None:
        file.close()
        raise UserError(f"{key}: {path} {what}")
    return file


def _jsonl_rows(path: Path, key: str) -> Iterator[dict]:
    # Bytes, because text mode would hide which line is not UTF-8.
    first = True
    with _open(path, key) as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            where = f"{key}: {path}, line {number}"
            if first and line.lstrip().startswith(b"["):
                raise UserError(f"{where}: it is one JSON list: call it .json")
            first = False
            try:
                row = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: {_what(error)}; {_advice(line, error)}") from error
            if not isinstance(row, dict):
                raise UserError(f"{where}: got {kind_of(row)}; wanted a JSON object: fix that line")
            yield row


def _text_rows(path: Path, key: str) -> Iterator[dict]:
    """Yield a row per line, so that a row's number is its line's; see `split_line`."""
    blank = 0  # lines that may be the file's last ones, which are none
    with _open(path, key) as lines:
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not text.strip():
                blank += 1
                continue
            yield from [split_line("")] * blank
            blank = 0
            try:
                yield split_line(text.decode().rstrip("\r\n"))
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{key}: {path}, line {number}: not UTF-8 ({error}); save the file as UTF-8"
                ) from error


def _what(error: Exception) -> str:
    return f"not {'UTF-8' if isinstance(error, UnicodeDecodeError) else 'valid JSON'} ({error})"


def _advice(line: bytes, error: Exception) -> str:
    """Say what is probably wrong with a line that is no JSON."""
    if not line.endswith(b"\n"):
        return "it is the last line and has no end: the file seems cut off, copy it again"
    if isinstance(error, UnicodeDecodeError):
        return "save the file as UTF-8"
    if line.strip() == b"{":
        return "an object must not span several lines: write each on one line"
    return "wanted one JSON object per line: fix that line"


def _json_rows(path: Path, key: str) -> Iterator[dict]:
    where = f"{key}: {path}"
    with _open(path, key) as file:
        content = file.read()
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {_what(error)}; {_json_advice(content, error)}") from error
    if not isinstance(rows, list):
        keys = f" with the keys {', '.join(list(rows)[:8])}" if isinstance(rows, dict) else ""
        raise UserError(
            f"{where}: got {kind_of(rows)}{keys}; wanted a list of objects: put the rows in [ ]"
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{where}, row {number}: got {kind_of(row)}; wanted an object: fix it")
        yield row


def _json_advice(content: bytes, error: Exception) -> str:
    """Say what is probably wrong with a file that is no JSON."""
    if isinstance(error, UnicodeDecodeError):
        return "save it as UTF-8"
    if isinstance(error, json.JSONDecodeError):
        start = content.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
        if error.msg == "Extra data" and start == b"{":
            return "it holds one JSON object per line: call it .jsonl"
        if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated"):
            return "the file seems cut off, copy it again"
    return "wanted a list of objects: fix that place"


def _parquet_rows(path: Path, key: str) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_PER_BATCH):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{key}: {path} is not a readable parquet file ({first_line(error)}); fetch it again"
        ) from error


def _arrow_rows(path: Path, key: str) -> Iterator[dict]:
    """Read Arrow's stream format, which `save_to_disk` writes, or its file format."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as mapped:
            if mapped.read(6) == b"ARROW1":
                file = pyarrow.ipc.open_file(mapped)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
            else:
                mapped.seek(0)
                batches = iter(pyarrow.ipc.open_stream(mapped))
            for batch in batches:
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{key}: {path} is not a readable Arrow file ({first_line(error)}); copy it again"
        ) from error


def kind_of(value: Any) -> str:
    """Say in a word or two what a JSON value is."""
    if value is None:
        return "missing or null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "no text")


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]
