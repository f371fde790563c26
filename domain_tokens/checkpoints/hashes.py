"""The hashes that identify a checkpoint: weights, tokenizer, and all that decides its logits."""

from pathlib import Path
from typing import Any

from domain_tokens.errors import UserError
from domain_tokens.runs import file_digest, hash_digests, hash_files, read_json

TOKENIZER = "tokenizer.json"
# Next to the weights and their index, whatever transformers reads to load, encode and decode.
DECISIVE_FILES = (
    "config.json",
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
LOGS = ("train_log.jsonl", "decontaminated.json")  # of a run, recorded next to what it made
VOLATILE = ("transformers_version", "_name_or_path")  # of config.json: they decide no logit


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint folder, in order of name.

    Safetensors, or pytorch_model*.bin where there are only those, as transformers loads them.
    """
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def file_digests(folder: Path) -> dict[str, str]:
    """Return name and SHA-256 of every file that decides logits and decoding.

    Raises UserError for a folder without weights, whose hash would be that of nothing.
    """
    weights = weight_files(folder)
    if not weights:
        raise UserError(f"{folder} holds no weights (*.safetensors or pytorch_model*.bin)")
    indexes = sorted(folder.glob("*.index.json"))
    others = [folder / name for name in DECISIVE_FILES if (folder / name).is_file()]
    return {file.name: file_digest(file) for file in (*weights, *indexes, *others)}


def checkpoint_hashes(folder: Path) -> dict[str, str]:
    """Return the three hashes of a checkpoint, each file read once.

    weights; tokenizer (tokenizer.json alone; left out where there is none); model: all files that
    decide logits and decoding, byte for byte. None depends on where the folder lies.
    """
    return _hashes(folder, file_digests(folder))


def _hashes(folder: Path, digests: dict[str, str]) -> dict[str, str]:
    names = {file.name for file in weight_files(folder)}
    hashes = {"weights": hash_digests({n: d for n, d in digests.items() if n in names})}
    if TOKENIZER in digests:
        hashes["tokenizer"] = hash_digests({TOKENIZER: digests[TOKENIZER]})
    return {**hashes, "model": hash_digests(digests)}


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 that identifies a checkpoint's weights; UserError where it has none."""
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} holds no weights (*.safetensors or pytorch_model*.bin)")
    return hash_files(files)


def architecture_of(folder: Path) -> dict[str, Any]:
    """Return what config.json says of the model, without what differs between equal models."""
    config = read_json(folder / "config.json")
    return {key: value for key, value in config.items() if key not in VOLATILE}


def changed_file(folder: Path, digests: dict[str, str]) -> str | None:
    """Return the first file of a folder that is there and is not what was recorded, or None.

    digests: SHA-256 by name, as the run card's `files` has them.
    """
    for name, digest in digests.items():
        path = folder / name
        if path.is_file() and file_digest(path) != digest:
            return name
    return None


def hashes_and_files(folder: Path) -> dict[str, Any]:
    """Return what a run card says of its folder: the hashes, and `files`, each file's SHA-256.

    `files` are all that the checkpoint is, and the logs of its run.
    """
    digests = file_digests(folder)
    logs = [folder / name for name in LOGS if (folder / name).is_file()]
    return {
        **_hashes(folder, digests),
        "files": {**digests, **{file.name: file_digest(file) for file in logs}},
    }


def refuse_changed(folder: Path, card: dict[str, Any], hashes: dict[str, str]) -> None:
    """Raise UserError where a folder is not what its run card says, naming the file if it can.

    found: its `hashes`. What an older card does not record is passed over.
    """
    for key, value in hashes.items():
        if key in card and card[key] != value:
            file = changed_file(folder, card.get("files") or {})
            raise UserError(
                f"{folder}: {file or f'the {key}'} {'is not that' if file else 'are not those'} of "
                f"its run card ({key} is {value[:12]}, the card says {str(card[key])[:12]}); "
                "restore it or make it again"
            )


def refuse_changed_while_read(folder: Path, verified: dict[str, str]) -> None:
    """Raise UserError where a folder's hashes are no longer those that were verified.

    Called after a checkpoint was loaded: what came between the two is not what was verified.
    """
    now = checkpoint_hashes(folder)
    for key, value in verified.items():
        if now.get(key) != value:
            raise UserError(
                f"{folder} changed while it was read ({key} was {value[:12]}, is now "
                f"{str(now.get(key))[:12]}); let no other process write there and start again"
            )
