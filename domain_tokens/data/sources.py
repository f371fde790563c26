"""Rows of a local file, a local folder or a hub data set, whatever their format.

What a row has to hold is for `corpora.py` to say, not for this file.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from domain_tokens.data.row_files import ROWS_PER_BATCH, first_line, rows_of_files, suffix_of
from domain_tokens.errors import UserError
from domain_tokens.runs import hash_files

SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow", ".txt", ".jsonl.gz", ".json.gz", ".txt.gz")
WANTED = "a .jsonl, .json, .parquet, .arrow or .txt file (the text formats also as .gz)"
# A hub data set that has several configs and of which the study means one.
HUB_CONFIGS = {"openai/gsm8k": "main"}
HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")
HUB_TIMEOUT = 5.0  # seconds
# train-00000-of-00002, and with the hash that older versions of datasets appended
SHARD = re.compile(r"-(?P<index>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?$")
UNPACK = {".zst": "zstd -d", ".bz2": "bunzip2 -k", ".xz": "xz -dk", ".zip": "unzip"}


def read_rows(source: str, *, split: str, key: str = "data.source") -> Iterator[dict]:
    """Read the rows of a local file, a local folder or a hub data set, one at a time.

    source: a file of one of SUFFIXES, which *is* the split; a folder with `{split}` in one of them
    or in shards, also under `data/`; a folder of `save_to_disk`; or a hub id `owner/name[:config]`.
    What looks like a path is never asked of the hub.
    key: the config key that names the source, for the messages.
    Raises UserError: at once for a source that is absent, while reading for a malformed line.
    """
    if _is_local(source):
        return rows_of_files(_local_files(Path(source).expanduser(), split=split, key=key), key)
    name, config = _hub_name(source, key)
    return _table_rows(_hub_table(name, config, split=split, key=key))


def source_identity(source: str, *, split: str, key: str = "data.source") -> dict[str, str]:
    """Return what tells a source's content apart: hashes of local files, a hub table's fingerprint.

    Raises UserError for a source that is absent.
    """
    if _is_local(source):
        return file_hashes(source, split=split, key=key)
    name, config = _hub_name(source, key)
    table = _hub_table(name, config, split=split, key=key)
    return {f"{name}:{config}:{split}": table._fingerprint}


def file_hashes(source: str, *, split: str, key: str = "data.source") -> dict[str, str]:
    """Return the SHA-256 of each file that a local source is read from; of a hub id, nothing."""
    path = Path(source).expanduser()
    files = _local_files(path, split=split, key=key) if path.exists() else []
    return {str(file): hash_files([file]) for file in files}


def same_rows(first: tuple[str, str], second: tuple[str, str], *, key: str) -> bool:
    """Whether two (source, split) pairs share a file, or are one split of one hub data set.

    A single file is every split. key: the config key that names the first. Raises UserError where
    one is absent.
    """
    rows = []
    for source, split in (first, second):
        if _is_local(source):
            files = _local_files(Path(source).expanduser(), split=split, key=key)
            rows.append({file.resolve() for file in files})
        else:
            rows.append({(*_hub_name(source, key), split)})
    return not rows[0].isdisjoint(rows[1])


def label_of(source: str) -> str:
    """Return a name for a source that is the same on every machine: no folders above the file."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source


# --- which files --------------------------------------------------------------------------------


def _is_local(source: str) -> bool:
    path = Path(source).expanduser()
    looks = source.startswith((".", "/", "~")) or suffix_of(path) in SUFFIXES
    return path.exists() or looks


def _local_files(path: Path, *, split: str, key: str) -> list[Path]:
    if not path.exists():
        raise UserError(
            f"{key}: looked for {path.absolute()} and found nothing; "
            f"wanted {WANTED}, or a folder that holds them"
        )
    if path.is_file():
        _check_suffix(path, key)
        return [path]
    for folder in (path, path / split):
        saved = _saved_to_disk(folder, key)
        if saved:
            return saved
    for folder in (path, path / "data"):
        files = [folder / (split + suffix) for suffix in SUFFIXES]
        files = [file for file in files if file.is_file()]
        shards = _shards(folder, split)
        if len(files) + len(shards) > 1:
            names = ", ".join(f.name for f in [*files, *(group[0] for group in shards)])
            raise UserError(
                f"{key}: {folder} holds split {split!r} more than once ({names}); "
                "wanted one: name the file that is meant"
            )
        for group in shards:
            _check_shards(group, key)
        if files or shards:
            return files or shards[0]
    raise UserError(
        f"{key}: looked in {path} and {path / 'data'} for split {split!r} as {split}.jsonl, "
        f"{split}.json, {split}.txt, {split}.parquet or {split}-*.parquet and found none; name the "
        "file itself"
    )


def _check_suffix(path: Path, key: str) -> None:
    if suffix_of(path) in SUFFIXES:
        return
    unpack = UNPACK.get(path.suffix)
    how = f"unpack it with {unpack} {path.name}" if unpack else "rename it after its format"
    raise UserError(
        f"{key}: {path} ends in {path.suffix!r}; wanted {', '.join(SUFFIXES)}: {how}, or convert it"
    )


def _saved_to_disk(folder: Path, key: str) -> list[Path]:
    """Return the files of a folder that `Dataset.save_to_disk` wrote; none of another folder."""
    state = folder / "state.json"
    if not state.is_file() or not (folder / "dataset_info.json").is_file():
        return []
    try:
        names = [entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{key}: {state} is not what save_to_disk writes ({error!r})") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise UserError(
            f"{key}: {folder} lacks {missing[0] if missing else 'every file'}, one of {len(names)} "
            "that its state.json names; complete the copy"
        )
    return [folder / name for name in names]


def _shards(folder: Path, split: str) -> list[list[Path]]:
    """Return the files of a split that is in parts, in order, a list per format."""
    groups = []
    for suffix in SUFFIXES:
        files = sorted(folder.glob(f"{split}-*{suffix}"))
        if suffix != ".parquet":  # parquet parts may have any name after the split's
            files = [file for file in files if SHARD.search(file.name.removesuffix(suffix))]
        if files:
            groups.append(files)
    return groups


def _check_shards(shards: Sequence[Path], key: str) -> None:
    """Refuse half a download: the shards' own names say how many there should be."""
    named = [SHARD.search(file.name.removesuffix(suffix_of(file))) for file in shards]
    matches = [match for match in named if match]
    if not matches:
        return
    count = max(int(match["count"]) for match in matches)
    numbers = sorted(int(match["index"]) for match in matches)
    if len(matches) != len(shards) or numbers != list(range(count)):
        raise UserError(
            f"{key}: {shards[0].parent} holds {len(shards)} shards like {shards[0].name}; "
            f"wanted {count}, one of each number: complete the download, or move away what is "
            "not part of it"
        )


# --- the hub ------------------------------------------------------------------------------------


def _hub_name(source: str, key: str) -> tuple[str, str | None]:
    """Return the name and the config of a hub id; raises UserError where it is none."""
    hub = HUB_ID.fullmatch(source)
    if hub is None:
        raise UserError(
            f"{key}: {source!r} is neither an existing file or folder (looked for "
            f"{Path(source).expanduser().absolute()}) nor a hub id; wanted a path or "
            "owner/name[:config]"
        )
    return hub["name"], hub["config"] or HUB_CONFIGS.get(hub["name"])


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
            f"({first_line(error)}); wanted owner/name[:config] with this split, or a local file"
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
    except Exception:  # the session's HTTP library, and so the class, varies by version
        return False
    return reply.status_code < 500
