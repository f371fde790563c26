"""Tulu-3, GSM8K or any JSONL or parquet file: load, subset, decontaminate, fingerprint.

How messages become token ids is for `prompts.py` to say, not for this file.
"""

import hashlib
import heapq
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from domain_tokens.errors import UserError
from domain_tokens.run_card import hash_files

ROLES = ("system", "user", "assistant")
SUFFIXES = (".jsonl", ".json", ".parquet")
# A hub data set that has several configs and of which the study means one.
HUB_CONFIGS = {"openai/gsm8k": "main"}
HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")
HUB_TIMEOUT = 5.0  # seconds
SHARD_COUNT = re.compile(r"-of-0*(\d+)$")
WORD = re.compile(r"\w+")
ROWS_PER_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat example; `messages` are (role, content) pairs and `source` names its sub-corpus.

    row: its 1-based position in the source (0: none), for messages only.
    """

    id: str
    messages: tuple[tuple[str, str], ...]
    source: str
    row: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Problem:
    """A GSM8K row; the answer is the worked solution that ends in `#### n`.

    row: its 1-based position in the source (0: none), for messages only.
    """

    id: str
    question: str
    answer: str
    row: int = field(default=0, compare=False)


Example = TypeVar("Example", Conversation, Problem)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Example]):
    """The examples that were kept, sorted by rank, and what is needed to account for the others.

    total_rows: rows read, duplicates included. duplicates: rows dropped for a repeated id.
    fingerprint: hex SHA-256 of the kept ids and their content, whatever the file order.
    source_composition: kept examples per sub-corpus, largest first.
    """

    items: list[Example]
    total_rows: int
    duplicates: int
    fingerprint: str
    source_composition: dict[str, int]


# --- order and identity ---------------------------------------------------------------------------


def rank(seed: int | str, example_id: str) -> int:
    """Place an example in a seeded order that depends on nothing but the seed and its id.

    Returns an integer in [0, 2**64); smaller comes first.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}\n{example_id}".encode(), digest_size=8).digest())


def order(ids: Sequence[str], *, seed: int, epoch: int) -> list[int]:
    """Shuffle an epoch: the positions in `ids`, in the order in which they are trained on."""
    epoch_seed = f"{seed}:{epoch}"
    return sorted(range(len(ids)), key=lambda at: (rank(epoch_seed, ids[at]), ids[at]))


def digest(ids: Iterable[str]) -> str:
    """Hash a sequence of ids, order included; hex SHA-256."""
    total = hashlib.sha256()
    for example_id in ids:
        # JSON quotes each id, so that ["a", "b"] and ["ab"] cannot run together.
        total.update(_canonical(example_id))
    return total.hexdigest()


def hold_out(
    items: Sequence[Example], *, count: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split off the `count` examples of smallest rank; both parts keep the order of `items`.

    Raises UserError if nothing would be left.
    """
    if count and count >= len(items):
        raise UserError(
            f"a hold-out of {count} examples was asked of {len(items)}; wanted fewer than "
            f"{len(items)}: lower data.holdout or allow more training examples"
        )
    chosen = heapq.nsmallest(count, ((rank(seed, item.id), item.id) for item in items))
    held_ids = {example_id for _, example_id in chosen}
    kept = [item for item in items if item.id not in held_ids]
    return kept, [item for item in items if item.id in held_ids]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _fingerprint(items: Iterable[Example]) -> str:
    total = hashlib.sha256()
    for item in sorted(items, key=lambda item: item.id):
        total.update(_canonical(_identity(item)) + b"\n")
    return total.hexdigest()


def _ordered(item: Conversation | Problem) -> tuple:
    return (*_identity(item), item.source if isinstance(item, Conversation) else "")


def _identity(item: Conversation | Problem) -> tuple:
    """What makes two examples the same; the label of the sub-corpus does not belong to it."""
    if isinstance(item, Conversation):
        return item.id, item.messages
    return item.id, item.question, item.answer


# --- rows from files and from the hub -------------------------------------------------------------


def read_rows(source: str, *, split: str, key: str = "data.source") -> Iterator[dict]:
    """Read the rows of a local file, a local folder or a hub data set, one at a time.

    source: a .jsonl, .json (a list) or .parquet file, which *is* the split; a folder with
    `{split}.jsonl|.json|.parquet` or shards `{split}-*.parquet`, also under `data/`; or a hub id
    `owner/name[:config]`. What looks like a path is never asked of the hub.
    key: the config key that names the source, for the messages.
    Raises UserError: at once for a source that is absent, while reading for a malformed line.
    """
    path = Path(source).expanduser()
    if path.exists() or source.startswith((".", "/", "~")) or path.suffix in SUFFIXES:
        return _rows_of_files(_local_files(path, split=split, key=key), key)
    hub = HUB_ID.fullmatch(source)
    if hub is None:
        raise UserError(
            f"{key}: {source!r} is neither an existing file or folder (looked for "
            f"{path.absolute()}) nor a hub id; wanted a path or owner/name[:config]"
        )
    name = hub["name"]
    config = hub["config"] or HUB_CONFIGS.get(name)
    return _table_rows(_hub_table(name, config, split=split, key=key))


def _local_files(path: Path, *, split: str, key: str) -> list[Path]:
    if not path.exists():
        raise UserError(
            f"{key}: looked for {path.absolute()} and found nothing; "
            "wanted a .jsonl, .json or .parquet file, or a folder that holds them"
        )
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(
                f"{key}: {path} ends in {path.suffix!r}; wanted {', '.join(SUFFIXES)}: "
                "rename it after its format, or convert it"
            )
        return [path]
    for folder in (path, path / "data"):
        found = [folder / (split + suffix) for suffix in SUFFIXES]
        found = [file for file in found if file.is_file()]
        shards = sorted(folder.glob(f"{split}-*.parquet"))
        if len(found) + bool(shards) > 1:
            names = ", ".join(file.name for file in found + shards[:1])
            raise UserError(
                f"{key}: {folder} holds split {split!r} more than once ({names}); "
                "wanted one: name the file that is meant"
            )
        if shards:
            _check_shards(shards, key)
        if found or shards:
            return found or shards
    raise UserError(
        f"{key}: looked in {path} and {path / 'data'} for split {split!r} as {split}.jsonl, "
        f"{split}.json, {split}.parquet or {split}-*.parquet and found none; name the file itself"
    )


def source_identity(source: str, *, split: str, key: str = "data.source") -> dict[str, str]:
    """Return what tells a source's content apart: hashes of local files, a hub table's fingerprint.

    Raises UserError for a source that is absent.
    """
    files = file_hashes(source, split=split, key=key)
    hub = None if files else HUB_ID.fullmatch(source)
    if hub is None:
        return files
    config = hub["config"] or HUB_CONFIGS.get(hub["name"])
    table = _hub_table(hub["name"], config, split=split, key=key)
    return {f"{hub['name']}:{config}:{split}": table._fingerprint}


def file_hashes(source: str, *, split: str, key: str = "data.source") -> dict[str, str]:
    """Return the SHA-256 of each file that a local source is read from; of a hub id, nothing."""
    path = Path(source).expanduser()
    files = _local_files(path, split=split, key=key) if path.exists() else []
    return {str(file): hash_files([file]) for file in files}


def _check_shards(shards: Sequence[Path], key: str) -> None:
    """Refuse half a download: the shards' own names say how many there should be."""
    counts = {int(found[1]) for file in shards if (found := SHARD_COUNT.search(file.stem))}
    if counts and counts != {len(shards)}:
        raise UserError(
            f"{key}: {shards[0].parent} holds {len(shards)} shards like {shards[0].name}; "
            f"wanted {max(counts)}: complete the download"
        )


def _rows_of_files(paths: Iterable[Path], key: str) -> Iterator[dict]:
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    for path in paths:
        try:
            yield from readers[path.suffix](path, key)
        except OSError as error:
            raise UserError(f"{key}: {path} cannot be read ({error.strerror or error})") from error


def _jsonl_rows(path: Path, key: str) -> Iterator[dict]:
    # Bytes, because text mode would hide which line is not UTF-8.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{key}: {path}, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{where}: not valid JSON ({error}); "
                    "wanted one JSON object per line: mend or delete that line"
                ) from error
            if not isinstance(row, dict):
                raise UserError(
                    f"{where}: got {_kind(row)}; wanted a JSON object: mend or delete that line"
                )
            yield row


def _json_rows(path: Path, key: str) -> Iterator[dict]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{key}: {path}: not valid JSON ({error}); wanted a list of objects: "
            "mend it, or call it .jsonl if it holds one object per line"
        ) from error
    if not isinstance(rows, list):
        raise UserError(
            f"{key}: {path}: got {_kind(rows)}; wanted a list of objects: put the rows in [ ]"
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{key}: {path}, row {number}: got {_kind(row)}; wanted an object: mend it"
            )
        yield row


def _parquet_rows(path: Path, key: str) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_PER_BATCH):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{key}: {path} is not a readable parquet file ({_first_line(error)}); fetch it again"
        ) from error


def _hub_table(name: str, config: str | None, *, split: str, key: str) -> Any:
    import datasets.config
    import datasets.exceptions

    online = _hub_answers()
    was_offline = datasets.config.HF_HUB_OFFLINE
    try:
        # load_dataset retries an absent network for half a minute; told that it is offline, it goes
        # straight to its cache.
        datasets.config.HF_HUB_OFFLINE = was_offline or not online
        return datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # A plain FileNotFoundError is what is left of a request that a proxy refused; a data set
        # that the hub does not have raises a class of its own.
        if isinstance(error, ConnectionError) or type(error) is FileNotFoundError:
            raise UserError(
                f"the Hugging Face hub could not be reached for {name!r}, which is not cached "
                f"here; point {key} to a local .jsonl, .json or .parquet file (--set {key}=PATH)"
            ) from error
        raise UserError(
            f"{key}: {name!r} (config {config!r}, split {split!r}) could not be loaded "
            f"({_first_line(error)}); wanted owner/name[:config] with this split, or a local file"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline


def _table_rows(table: Any) -> Iterator[dict]:
    for batch in table.with_format("arrow").iter(ROWS_PER_BATCH):
        yield from batch.to_pylist()


def _hub_answers() -> bool:
    """Whether the hub replies within seconds; a refusal is a reply, a failing gateway is none."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        reply = get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # the HTTP library behind the session, and so the class, varies by version
        return False
    return reply.status_code < 500


# --- rows to examples -----------------------------------------------------------------------------


def load_conversations(
    source: str,
    *,
    split: str,
    limit: int | None,
    subset_seed: int,
    key: str = "data.source",
) -> Loaded[Conversation]:
    """Load chat rows {messages: [{role, content}, …], id?, source?} and draw a subset by hash.

    limit: how many examples to keep at most; None keeps all. Memory grows with the limit, not with
    the corpus (but for the ids). A row without `source` counts under the file's or hub id's name.
    An empty list of messages passes: dropping what cannot be rendered is the renderer's to count.
    Raises UserError for an unreadable source or a row of another shape.
    """
    label = _label(source)
    return _collect(
        read_rows(source, split=split, key=key),
        lambda row, where: _conversation(row, where, label),
        where=f"{key}: {source}",
        limit=limit,
        seed=subset_seed,
        label=label,
    )


def load_problems(
    source: str,
    *,
    split: str,
    limit: int | None,
    subset_seed: int,
    key: str = "data.source",
) -> Loaded[Problem]:
    """Load GSM8K rows {question, answer, id?} and draw a subset by hash, as load_conversations."""
    return _collect(
        read_rows(source, split=split, key=key),
        _problem,
        where=f"{key}: {source}",
        limit=limit,
        seed=subset_seed,
        label=_label(source),
    )


def problem_messages(problem: Problem) -> tuple[tuple[str, str], ...]:
    """Turn a GSM8K row into the (role, content) messages of a conversation."""
    return ("user", problem.question), ("assistant", problem.answer)


def _label(source: str) -> str:
    """A name for a source that is the same on every machine: no folders above the file."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source


def _collect(
    rows: Iterable[dict],
    build: Callable[[dict, str], Example],
    *,
    where: str,
    limit: int | None,
    seed: int,
    label: str,
) -> Loaded[Example]:
    """Keep the `limit` examples of smallest (rank, id), in one pass and whatever the row order."""
    seen: set[str] = set()
    chosen: dict[str, Example] = {}
    worst_first: list[tuple[int, str]] = []  # (-rank, id), so that the heap's top is the next to go
    total = duplicates = 0
    for total, row in enumerate(
        tqdm(rows, desc=f"reading {label}", unit=" rows", delay=2, disable=None), 1
    ):
        item = replace(build(row, f"{where}, row {total}"), row=total)
        if item.id in seen:
            duplicates += 1
            # Of two contents under one id the same one must win in every file order.
            if item.id in chosen:
                chosen[item.id] = min(chosen[item.id], item, key=_ordered)
            continue
        seen.add(item.id)
        chosen[item.id] = item
        heapq.heappush(worst_first, (-rank(seed, item.id), item.id))
        if limit is not None and len(chosen) > limit:
            del chosen[heapq.heappop(worst_first)[1]]
    if not total:
        raise UserError(f"{where} holds no rows; wanted at least one example")
    items = [chosen[example_id] for _, example_id in sorted((-key, i) for key, i in worst_first)]
    names = Counter(item.source if isinstance(item, Conversation) else label for item in items)
    return Loaded(items, total, duplicates, _fingerprint(items), dict(names.most_common()))


def _conversation(row: dict, where: str, label: str) -> Conversation:
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise UserError(
            f"{where}: `messages` is {_kind(messages)}; "
            "wanted a list of {role, content}: mend or delete the row"
        )
    pairs = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            got = message.get("role") if isinstance(message, dict) else message
            raise UserError(
                f"{where}: message {number} has role {_shown(got)}; "
                f"wanted {{role, content}} with role {', '.join(ROLES)}: mend or delete the row"
            )
        content = _text(message, "content", f"{where}: message {number}")
        pairs.append((message["role"], content))
    source = label if row.get("source") is None else _text(row, "source", where)
    return Conversation(_example_id(row, pairs, where), tuple(pairs), source)


def _problem(row: dict, where: str) -> Problem:
    question, answer = _text(row, "question", where), _text(row, "answer", where)
    content = {"question": question, "answer": answer}
    return Problem(_example_id(row, content, where), question, answer)


def _text(row: dict, name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise UserError(
            f"{where}: `{name}` is {_kind(value)}; wanted a string: mend or delete the row"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, UTF-8 cannot
        raise UserError(
            f"{where}: `{name}` holds half a surrogate pair at character {error.start}; "
            "wanted text that UTF-8 can hold: mend or delete the row"
        ) from error
    return value


def _example_id(row: dict, content: Any, where: str) -> str:
    given = row.get("id")
    if given is None:
        return hashlib.sha256(_canonical(content)).hexdigest()[:16]
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    if given == "":
        raise UserError(f"{where}: `id` is empty; wanted a name, or no `id` at all for all rows")
    return _text(row, "id", where)


def _kind(value: Any) -> str:
    if value is None:
        return "missing or null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "no text")


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) and len(value) < 40 else _kind(value)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# --- decontamination ------------------------------------------------------------------------------


class Decontaminator:
    """Finds texts that repeat more than half of a test question, by shared runs of words.

    Words are casefolded runs of letters and digits: layout and punctuation do not hide a copy.
    A question shorter than `ngram` words is compared whole; one without any word never matches.
    """

    def __init__(self, questions: Sequence[str], *, ngram: int = 8) -> None:
        assert ngram > 0, f"ngram is {ngram}"
        self._words = [0] * len(questions)
        # words per run -> run -> where it stands: (question, first word)
        self._runs: dict[int, dict[tuple[str, ...], list[tuple[int, int]]]] = {}
        for question, text in enumerate(questions):
            words = _words(text)
            self._words[question] = len(words)
            if not words:
                continue
            width = min(ngram, len(words))
            places = self._runs.setdefault(width, {})
            for first, run in enumerate(_word_runs(words, width)):
                places.setdefault(run, []).append((question, first))

    def match(self, text: str) -> tuple[int, float] | None:
        """Name the question that `text` covers best, if it covers more than half of its words.

        Returns (question index, covered share in (0.5, 1]), the lower index at a tie, or None.
        """
        words = _words(text)
        covered: dict[int, set[int]] = {}
        for width, places in self._runs.items():
            # zip and filter stay in C: almost no run of an innocent text is in the index.
            for run in set(filter(places.__contains__, _word_runs(words, width))):
                for question, first in places[run]:
                    covered.setdefault(question, set()).update(range(first, first + width))
        shares = [
            (len(hit) / self._words[question], -question) for question, hit in covered.items()
        ]
        share, question = max(shares, default=(0.0, 0))
        return (-question, share) if share > 0.5 else None


def find_repeat(finder: Decontaminator, conversation: Conversation) -> dict[str, Any] | None:
    """Return what is to be listed of a conversation whose user turn repeats a question, or None.

    That is {id, source, question_index, coverage, user_text}, with the first 200 characters of the
    user turn that covers most.
    """
    turns = [content for role, content in conversation.messages if role == "user"]
    matches = [(found, turn) for turn in turns if (found := finder.match(turn))]
    if not matches:
        return None
    (question, share), turn = max(matches, key=lambda match: match[0][1])
    return {
        "id": conversation.id,
        "source": conversation.source,
        "question_index": question,
        "coverage": share,
        "user_text": turn[:200],
    }


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _word_runs(words: list[str], width: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[first:] for first in range(width)), strict=False)
