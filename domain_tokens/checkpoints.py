"""Load, save and verify a checkpoint folder in Hugging Face format."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens import run_card
from domain_tokens.errors import UserError
from domain_tokens.outputs import MARKER
from domain_tokens.run_card import CARD_NAME, formats, hash_files, read_json, read_sealed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    return {file.name: run_card.file_digest(file) for file in (*weights, *indexes, *others)}


def hashes(folder: Path) -> dict[str, str]:
    """Return the three hashes of a checkpoint, each file read once.

    weights; tokenizer (tokenizer.json alone; left out where there is none); model: all files that
    decide logits and decoding, byte for byte. None depends on where the folder lies.
    """
    return _hashes(folder, file_digests(folder))


def _hashes(folder: Path, digests: dict[str, str]) -> dict[str, str]:
    names = {file.name for file in weight_files(folder)}
    found = {"weights": run_card.hash_digests({n: d for n, d in digests.items() if n in names})}
    if TOKENIZER in digests:
        found["tokenizer"] = run_card.hash_digests({TOKENIZER: digests[TOKENIZER]})
    return {**found, "model": run_card.hash_digests(digests)}


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 that identifies a checkpoint's weights; UserError where it has none."""
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} holds no weights (*.safetensors or pytorch_model*.bin)")
    return hash_files(files)


def tokenizer_hash(folder: Path) -> str:
    """Return the SHA-256 of the tokenizer's own file."""
    return hash_files([folder / TOKENIZER])


def model_hash(folder: Path) -> str:
    """Return the SHA-256 of all that decides logits and decoding; UserError without weights."""
    return hashes(folder)["model"]


def architecture(folder: Path) -> dict[str, Any]:
    """Return what config.json says of the model, without what differs between equal models."""
    config = read_json(folder / "config.json")
    return {key: value for key, value in config.items() if key not in VOLATILE}


def changed_file(folder: Path, digests: dict[str, str]) -> str | None:
    """Return the first file of a folder that is there and is not what was recorded, or None.

    digests: SHA-256 by name, as the run card's `files` has them.
    """
    for name, digest in digests.items():
        path = folder / name
        if path.is_file() and run_card.file_digest(path) != digest:
            return name
    return None


def description(folder: Path) -> dict[str, Any]:
    """Return what a run card says of its folder: the hashes, and `files`, each file's SHA-256.

    `files` are all that the checkpoint is, and the logs of its run.
    """
    digests = file_digests(folder)
    logs = [folder / name for name in LOGS if (folder / name).is_file()]
    return {
        **_hashes(folder, digests),
        "files": {**digests, **{file.name: run_card.file_digest(file) for file in logs}},
    }


def refuse_changed(folder: Path, card: dict[str, Any], found: dict[str, str]) -> None:
    """Raise UserError where a folder is not what its run card says, naming the file if it can.

    found: its `hashes`. What an older card does not record is passed over.
    """
    for key, value in found.items():
        if key in card and card[key] != value:
            file = changed_file(folder, card.get("files") or {})
            raise UserError(
                f"{folder}: {file or f'the {key}'} is not that of its run card ({key} is "
                f"{value[:12]}, the card says {str(card[key])[:12]}); restore it or make it again"
            )


def verify_folder(folder: Path) -> None:
    """Raise UserError where a folder is not a complete checkpoint, naming what is missing."""
    if not folder.is_dir():
        raise UserError(f"checkpoint folder {folder} not found; make one with scripts/make_base.py")
    if (folder / MARKER).exists():
        raise UserError(f"{folder} is unfinished; finish its run with --resume first")
    missing = [n for n in ("config.json", "tokenizer.json") if not (folder / n).is_file()]
    if not weight_files(folder):
        missing.append("model.safetensors")
    if missing:
        raise UserError(f"{folder} is not a complete checkpoint: {', '.join(missing)} missing")


def read_card(folder: Path) -> dict[str, Any] | None:
    """Return a checkpoint's run card, or None for a base folder made elsewhere.

    Raises UserError where its seal is not that of its content.
    """
    path = folder / CARD_NAME
    return read_sealed(path) if path.exists() else None


def check_parent(folder: Path, *, condition: str, cross_base: bool) -> dict[str, Any]:
    """Verify a parent checkpoint for a stage and return what identifies it.

    Raises UserError where it is incomplete, written by another prompt format, or of the other arm
    without cross_base.
    """
    verify_folder(folder)
    card = read_card(folder)
    found = hashes(folder)
    parent = {
        "path": str(folder),
        **found,
        "condition": card["condition"] if card else None,
        "stage": card["stage"] if card else None,
        "card": card is not None,
        "card_hash": hash_files([folder / CARD_NAME]) if card else None,
        "cross_base": bool(card and card.get("cross_base")),
    }
    parent["base"] = (card or {}).get("base") or parent["weights"]  # a base is its own base
    if card is None:
        return parent
    prompt = card["formats"]["prompt"]
    if card["stage"] != "base" and prompt != formats()["prompt"]:
        raise UserError(
            f"{folder} was trained with prompt format {prompt}, this code writes "
            f"{formats()['prompt']}; train it again"
        )
    refuse_changed(folder, card, found)
    if card["condition"] != condition and not cross_base:
        raise UserError(
            f"{folder} is a {card['condition']} checkpoint and --condition is {condition}; "
            "give the other folder, or --cross-base if a base × SFT factorial is meant"
        )
    return parent


def link(folder: Path) -> dict[str, Any]:
    """Return what a base records of the folder that it was made from: path, hashes, its card's."""
    card = folder / CARD_NAME
    recorded = {"path": str(folder), **hashes(folder)}
    return {**recorded, "card_hash": hash_files([card]) if card.exists() else None}


def quiet() -> None:
    """Switch off what transformers prints while it loads and saves."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load a checkpoint's tokenizer from disk, never from a hub."""
    from transformers import AutoTokenizer

    quiet()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return tokenizer
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: the tokenizer cannot be read: {error}") from None


def load_model(folder: Path, *, dtype: "torch.dtype") -> "PreTrainedModel":
    """Load a checkpoint's model in a stated number type, all tensors accounted for."""
    from transformers import AutoModelForCausalLM

    quiet()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        model, info = loaded
    except Exception as error:  # safetensors raises its own class for a truncated file
        raise UserError(f"{folder}: the weights cannot be read: {error}") from None
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise UserError(f"{folder}: weights and config disagree at {wrong[0]}; export it again")
    fuse_activations(model)
    return model


def fuse_activations(model: "PreTrainedModel") -> None:
    """Put torch's fused tanh GELU where transformers writes the same function as seven operations.

    GPT-2's checkpoints name it gelu_new; config and results stay what they are (to 1e-6).
    """
    from torch.nn import GELU
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, GELU(approximate="tanh"))


def save(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write model, tokenizer and a generation config that stops at EOS (HF format)."""
    quiet()
    model.config.use_cache = True  # Trainer switches it off; a reader of the folder wants it on
    model.config.eos_token_id = tokenizer.eos_token_id
    generation = model.generation_config
    if generation is not None:
        generation.eos_token_id = tokenizer.eos_token_id
        generation.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
