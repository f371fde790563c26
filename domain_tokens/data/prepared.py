"""Conversations to rendered examples, on all cores, kept for the next run that wants the same.

The key of what is kept holds the data, the tokenizer, every setting that decides what is rendered
and the code that renders, so that a stale result cannot be served.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
from filelock import FileLock, Timeout
from tqdm import tqdm

from domain_tokens.data.decontamination import Decontaminator, find_repeat
from domain_tokens.data.examples import Conversation
from domain_tokens.errors import UserError
from domain_tokens.prompts import Example, Renderer
from domain_tokens.runs import (
    code_hash,
    format_versions,
    hash_json,
    job_cpus,
    read_json,
    write_json,
)

CHUNK = 250  # conversations that a worker gets at a time
POOL_FROM = 4000  # conversations; below, starting workers costs more than they save
SCHEMA = pa.schema(
    {
        "id": pa.large_string(),
        "input_ids": pa.large_list(pa.int32()),
        "token_roles": pa.large_list(pa.uint8()),
        "facts": pa.int32(),
        "text_bytes": pa.int64(),
        "match_bytes": pa.int64(),
        "truncated": pa.bool_(),
        "untreated": pa.int32(),
    }
)


@dataclass(frozen=True, slots=True)
class StageData:
    """What a stage was given to train and validate on, before it is decontaminated and rendered.

    eval_split says where the validation rows are from, None that there are none; test_questions are
    what no training row may repeat; dropped and validation_dropped count what was left out so far,
    by reason; irregular holds the row numbers of what could not be read; notes are lines to show;
    no_equations counts training problems of which only the answer is left as rationale (None: the
    whole rationale is kept).
    """

    train: list[Conversation]
    validation: list[Conversation]
    eval_split: str | None
    fingerprint: dict[str, str]
    dropped: Counter[str] = field(default_factory=Counter)
    validation_dropped: Counter[str] = field(default_factory=Counter)
    irregular: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    test_questions: list[str] = field(default_factory=list)
    no_equations: int | None = None


@dataclass(frozen=True, slots=True)
class DataReport:
    """What became of the rows: drops by reason, those that repeat a test question, the sources.

    irregular: why training rows could not be read -> their 1-based numbers. notes: lines to show.
    no_equations: as StageData's.
    """

    eval_split: str | None
    fingerprint: dict[str, str]
    dropped: dict[str, int]
    validation_dropped: dict[str, int]
    irregular: dict[str, list[int]]
    notes: list[str]
    listed_drops: list[dict[str, Any]]
    source_composition: dict[str, int]
    no_equations: int | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rendered examples and the account of what they were made from."""

    train: "Examples"
    validation: "Examples"
    account: DataReport


class Examples(Sequence[Example]):
    """Rendered examples in an Arrow table, which may be a file that is mapped, not read."""

    def __init__(self, table: pa.Table):
        """Wrap a table of SCHEMA."""
        self._columns = {name: _whole(table[name]) for name in SCHEMA.names}
        self._ids: list[str] = self._columns["id"].to_pylist()
        self._row_offsets = self._columns["input_ids"].offsets.to_numpy()
        self._tokens = self._columns["input_ids"].values.to_numpy()
        self._roles = self._columns["token_roles"].values.to_numpy()

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = index % len(self)
        span = slice(self._row_offsets[row], self._row_offsets[row + 1])
        numbers = (self._columns[name][row].as_py() for name in SCHEMA.names[3:])
        return Example(self._ids[row], self._tokens[span], self._roles[span], *numbers)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def table_of(examples: Iterable[Example]) -> pa.Table:
    """Return examples as a table of SCHEMA."""
    rows = list(examples)
    columns = [[getattr(row, f.name) for row in rows] for f in SCHEMA]
    arrays = [pa.array(values, f.type) for values, f in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


@dataclass(frozen=True, slots=True)
class _RenderChunk:
    """What a worker does to a chunk of conversations."""

    renderer: Renderer
    max_length: int
    finder: Decontaminator | None

    def __call__(self, rows: list[Conversation]) -> tuple[pa.Table, Counter, list[dict]]:
        """Return the table of kept examples, drops by reason, and rows that repeat a question."""
        kept: list[Example] = []
        dropped: Counter = Counter()
        listed: list[dict] = []
        for row in rows:
            repeat = find_repeat(self.finder, row) if self.finder else None
            if repeat:
                dropped["repeats_test_question"] += 1
                listed.append(repeat)
                continue
            example = self.renderer.example(row.id, row.messages, max_length=self.max_length)
            if isinstance(example, str):
                dropped[example] += 1
            else:
                kept.append(example)
        return table_of(kept), dropped, listed


_work: _RenderChunk | None = None  # of this worker process


def _begin(work: _RenderChunk) -> None:
    global _work
    _work = work


def _do(rows: list[Conversation]) -> tuple[pa.Table, Counter, list[dict]]:
    assert _work is not None
    return _work(rows)


def _done(
    work: _RenderChunk, rows: Sequence[Conversation], name: str
) -> Iterator[tuple[pa.Table, Counter, list[dict]]]:
    """Yield the chunks' results in order, from worker processes where there are many rows."""
    chunks = [list(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
    cores = job_cpus()
    with tqdm(total=len(rows), desc=f"render {name}", delay=2, disable=None) as bar:
        if len(rows) < POOL_FROM or cores == 1:
            for chunk in chunks:
                yield work(chunk)
                bar.update(len(chunk))
            return
        # Started afresh: a fork of a process that runs threads may hang.
        context = get_context("spawn")
        with ProcessPoolExecutor(cores, context, initializer=_begin, initargs=(work,)) as pool:
            try:
                for chunk, result in zip(chunks, pool.map(_do, chunks), strict=True):
                    yield result
                    bar.update(len(chunk))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def render_table(
    renderer: Renderer,
    rows: Sequence[Conversation],
    *,
    max_length: int,
    test_questions: Sequence[str] = (),
    name: str = "train",
) -> tuple[pa.Table, Counter, list[dict]]:
    """Return the table of rendered examples in the order of rows, drops by reason, and repeats.

    test_questions: a row of which a turn repeats one is dropped and listed.
    """
    work = _RenderChunk(
        renderer, max_length, Decontaminator(test_questions) if test_questions else None
    )
    tables, dropped, listed = [table_of([])], Counter(), []
    for table, drops, repeats in _done(work, rows, name):
        tables.append(table)
        dropped += drops
        listed += repeats
    return pa.concat_tables(tables), dropped, listed


def prepare_examples(
    load: Callable[[], StageData],
    renderer: Renderer,
    *,
    max_length: int,
    identity: dict[str, Any],
) -> Prepared:
    """Return rendered examples: what an earlier run kept under the same key, or made now.

    load: reads the data; not called where the examples are there. identity: what tells the data,
    the tokenizer and the settings apart. Raises UserError where load does, or where nothing can be
    kept.
    """
    file = cache_folder() / f"{cache_key(identity)}.arrow"
    _make(file.parent)
    with _alone(file.with_suffix(".lock")):
        prepared = _read(file)
        if prepared is None:
            _write(file, *_tables(load(), renderer, max_length))
            prepared = _read(file)
            assert prepared is not None, file
        else:
            print(f"prepared data: {file}", flush=True)
    return prepared


def kept_json(identity: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what an earlier run kept under the same key, or make and keep it."""
    file = cache_folder() / f"{cache_key(identity)}.json"
    _make(file.parent)
    with _alone(file.with_suffix(".lock")):
        if not file.is_file():
            write_json(file, make())
        return read_json(file)


def cache_key(identity: dict[str, Any]) -> str:
    """Return the key under which examples are kept: a hash of identity and of the code."""
    code = code_hash([Path(__file__)])
    tree = {"identity": identity, "formats": format_versions(), "code": code}
    return hash_json(tree)[:32]


def cache_folder() -> Path:
    """Return where prepared data are kept: next to the caches of Hugging Face (HF_HOME)."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "domain_tokens"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
    except OSError as error:
        raise UserError(
            f"prepared data cannot be kept in {folder} ({error.strerror}); set HF_HOME to a folder "
            "that can be written"
        ) from None


@contextmanager
def _alone(path: Path) -> Generator[None]:
    """Hold a lock: of several processes that want the same data one prepares it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        print("waiting for another process that prepares the same data", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _tables(
    data: StageData, renderer: Renderer, max_length: int
) -> tuple[pa.Table, pa.Table, DataReport]:
    train, dropped, listed = render_table(
        renderer, data.train, max_length=max_length, test_questions=data.test_questions
    )
    validation, lost, _ = render_table(
        renderer.with_all_loss(), data.validation, max_length=max_length, name="validation"
    )
    sources = {row.id: row.source for row in data.train}
    composition = Counter(sources[i] for i in train["id"].to_pylist())
    account = DataReport(
        data.eval_split,
        data.fingerprint,
        dict(dropped + data.dropped),
        dict(lost + data.validation_dropped),
        data.irregular,
        data.notes,
        listed,
        dict(composition.most_common()),
        data.no_equations,
    )
    return train, validation, account


def _write(file: Path, train: pa.Table, validation: pa.Table, account: DataReport) -> None:
    """Write both tables as one Arrow file, whole or not at all."""
    note = {"train": train.num_rows, **asdict(account)}
    whole = pa.concat_tables([train, validation]).combine_chunks()
    whole = whole.replace_schema_metadata({"account": json.dumps(note)})
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
            writer.write_table(whole)
        os.replace(partial, file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _read(file: Path) -> Prepared | None:
    """Return what a file holds; None where there is none, or none that can be read."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        note = json.loads((table.schema.metadata or {})[b"account"])
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    count = note.pop("train")
    account = DataReport(**{f.name: note[f.name] for f in fields(DataReport)})
    train, validation = table.slice(0, count), table.slice(count)
    return Prepared(Examples(train), Examples(validation), account)
