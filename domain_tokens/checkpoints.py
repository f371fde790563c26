"""Load, save and verify a checkpoint folder in Hugging Face format."""

import copy
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens import run_card
from domain_tokens.errors import UserError
from domain_tokens.outputs import MARKER
from domain_tokens.run_card import (
    CARD_NAME,
    formats,
    hash_files,
    read_json,
    read_sealed,
    umask,
)

# What a stage's run card says of how it was trained, which its descendants' cards repeat.
ANCESTRY = (
    *("stage", "condition", "seed", "weights", "tokenizer", "config", "data", "order_digest"),
    *("formats", "inject", "injected_examples", "injected_tokens", "cross_base"),
)
SETTING = {"code": ("tree",), "environment": ("device_type", "dtype")}

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

# Any one of these sets makes a tokenizer; without one transformers builds an empty one in silence.
TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("tokenizer.model",),
    ("spiece.model",),
    ("vocab.txt",),
)
SPELLING = "6*9=54"  # what every tokenizer here must be able to spell
LONGEST_ERROR = 200  # characters of a library's message that are worth a person's time

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
                f"{folder}: {file or f'the {key}'} {'is not that' if file else 'are not those'} of "
                f"its run card ({key} is {value[:12]}, the card says {str(card[key])[:12]}); "
                "restore it or make it again"
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
    refuse_code(folder)


def refuse_code(folder: Path) -> None:
    """Raise UserError where a checkpoint asks for code of its own to be run (`auto_map`)."""
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and read_json(folder / name).get("auto_map"):
            raise UserError(
                f"{folder}: {name} asks for code that comes with the checkpoint (auto_map), which "
                "is never run here; give a checkpoint of a model that transformers itself knows"
            )


def refuse_other_models(folder: Path) -> None:
    """Raise UserError where a folder holds no full-precision causal LM, by its own config.json."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    refuse_code(folder)
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds an adapter (adapter_config.json); merge it into its model")
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{folder}: config.json names no model_type; wanted one, as in llama")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.get("is_encoder_decoder"):
        raise UserError(f"{folder}: {kind} is no causal LM; wanted one, as in gpt2 or llama")
    if config.get("quantization_config"):
        raise UserError(
            f"{folder}: the weights are quantized (quantization_config); give the checkpoint that "
            "they were made from"
        )


def read_card(folder: Path) -> dict[str, Any] | None:
    """Return a checkpoint's run card, or None for a base folder made elsewhere.

    Raises UserError where its seal is not that of its content.
    """
    path = folder / CARD_NAME
    return read_sealed(path) if path.exists() else None


def ancestors(card: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a run card and those of its parents say of each stage, nearest first.

    A card from before this was recorded names its parent's stage and weights only.
    """
    stage: dict[str, Any] = {"stage": "base"} | {k: card[k] for k in ANCESTRY if k in card}
    for part, keys in SETTING.items():
        if part in card:
            stage[part] = {key: card[part][key] for key in keys}
    older, parent = card.get("ancestors"), card.get("parent")
    if older is None and parent and stage["stage"] != "base":
        older = [{"stage": parent.get("stage") or "base", "weights": parent["weights"]}]
    return [stage, *(older or [])]


def check_parent(folder: Path, *, condition: str, cross_base: bool) -> dict[str, Any]:
    """Verify a parent checkpoint for a stage and return what identifies it.

    `ancestors` tells, nearest first, how the checkpoint and those before it were trained. Raises
    UserError where it is incomplete, written by another prompt format, or of the other arm without
    cross_base.
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
    parent["ancestors"] = ancestors(card or {"weights": parent["weights"]})
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


def short(error: Exception) -> str:
    """Return what a library's error says in one readable line."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
    return line if len(line) <= LONGEST_ERROR else f"{line[:LONGEST_ERROR]}…"


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load a checkpoint's tokenizer from disk, never from a hub and never with its own code.

    Raises UserError where there is none, or where it cannot spell a fact.
    """
    from transformers import AutoTokenizer

    quiet()
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        raise UserError(f"{folder}: no tokenizer in the folder; give --tokenizer to make_base.py")
    refuse_code(folder)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises plain Exception for a broken file
        raise UserError(f"{folder}: the tokenizer cannot be read: {short(error)}") from None
    refuse_empty_tokenizer(tokenizer, folder)
    return tokenizer


def refuse_empty_tokenizer(tokenizer: "PreTrainedTokenizerBase", source: object) -> None:
    """Raise UserError where a tokenizer has no pieces for `6*9=54`, as one without a file has."""
    ids = tokenizer.encode(SPELLING, add_special_tokens=False)
    if not ids or tokenizer.unk_token_id in ids:
        raise UserError(
            f"{source}: the tokenizer ({len(tokenizer):,} tokens) encodes {SPELLING!r} as {ids}; "
            "wanted one that can spell it: give the model's own with --tokenizer"
        )


def require_extended(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Raise UserError where a checkpoint lacks the fact tokens or has another number of rows."""
    from domain_tokens.vocabulary import layout_of

    try:
        layout = layout_of(tokenizer)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None
    config = read_json(folder / "config.json")
    rows = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    if rows != layout.total:
        raise UserError(
            f"{folder}: the model has {rows} rows, the tokenizer {layout.total} tokens; make the "
            "folder with scripts/make_base.py"
        )


def load_model(folder: Path, *, dtype: "torch.dtype") -> "PreTrainedModel":
    """Load a checkpoint's model in a stated number type, all tensors accounted for.

    Its generation config says where to stop and nothing else: decoding is this project's own, and
    transformers refuses to save some of what it has loaded (a temperature without do_sample).
    """
    from transformers import AutoModelForCausalLM

    quiet()
    refuse_other_models(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        model, info = loaded
    except Exception as error:  # safetensors raises its own class for a truncated file
        raise UserError(f"{folder}: the weights cannot be read: {short(error)}") from None
    refuse_disagreement(model, info, folder)
    model.generation_config = _stopping(model, eos=_first_id(model, "eos_token_id"))
    fuse_activations(model)
    return model


def refuse_disagreement(model: "PreTrainedModel", info: dict[str, Any], source: object) -> None:
    """Raise UserError where weights and config disagree: by what transformers says of its loading.

    A missing tensor would be drawn at random, an unexpected one dropped, and a head that differs
    from the embedding left untied against the config's word.
    """
    reasons = (("missing_keys", "not in the weights"), ("unexpected_keys", "not in the model"))
    for key, reason in (*reasons, ("mismatched_keys", "of another shape")):
        names = sorted(n if isinstance(n, str) else n[0] for n in info[key])
        if names:
            raise UserError(
                f"{source}: weights and config disagree at {names[0]} ({reason}, {len(names)} in "
                "all); copy or export it again"
            )
    head = model.get_output_embeddings()
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    if tied and head is not None and head.weight is not model.get_input_embeddings().weight:
        raise UserError(
            f"{source}: weights and config disagree at the output layer: by the config it is the "
            "embedding (tie_word_embeddings), by the weights another one; set it to false if the "
            "weights are right"
        )


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
    """Write model, tokenizer and a generation config that stops at EOS (HF format).

    All files get the permissions that the umask asks for: safetensors writes for its owner alone.
    """
    quiet()
    _settle(model.config, tokenizer)
    model.generation_config = _stopping(model, eos=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            os.chmod(path, 0o666 & ~umask())


def prove_savable(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise UserError where `save` could not write the configs; weights are not tried.

    Called before training: what fails at the end loses the run. The model is left as it is.
    """
    config = copy.deepcopy(model.config)
    _settle(config, tokenizer)
    try:
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            _stopping(model, eos=tokenizer.eos_token_id).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except Exception as error:  # whatever a library refuses now it would refuse after training
        raise UserError(f"the model's configs cannot be saved: {short(error)}") from None


def _settle(config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
    config.use_cache = True  # Trainer switches it off; a reader of the folder wants it on
    config.eos_token_id = tokenizer.eos_token_id


def _stopping(model: "PreTrainedModel", *, eos: int | None) -> "GenerationConfig":
    from transformers import GenerationConfig

    bos = _first_id(model, "bos_token_id")
    return GenerationConfig(bos_token_id=bos, eos_token_id=eos, pad_token_id=eos)


def _first_id(model: "PreTrainedModel", name: str) -> int | None:
    """Return one of a model's special ids; some name several ends of text."""
    for config in (model.generation_config, model.config.get_text_config()):
        found = getattr(config, name, None)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int):
            return found
    return None
