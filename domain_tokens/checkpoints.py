"""Load, save and verify a checkpoint folder in Hugging Face format."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens.errors import UserError
from domain_tokens.outputs import MARKER
from domain_tokens.run_card import CARD_NAME, formats, hash_files, read_json

# What a stage's run card says of how it was trained, which its descendants' cards repeat.
ANCESTRY = (
    *("stage", "condition", "seed", "weights", "tokenizer", "config", "data", "order_digest"),
    *("formats", "inject", "injected_examples", "injected_tokens", "cross_base"),
)
SETTING = {"code": ("tree",), "environment": ("device_type", "dtype")}

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder, in order of name."""
    return sorted(folder.glob("*.safetensors"))


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 that identifies a checkpoint's weights."""
    return hash_files(weight_files(folder))


def tokenizer_hash(folder: Path) -> str:
    """Return the SHA-256 of the tokenizer's own file."""
    return hash_files([folder / "tokenizer.json"])


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
    """Return a checkpoint's run card, or None for a base folder made elsewhere."""
    path = folder / CARD_NAME
    return read_json(path) if path.exists() else None


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
    parent = {
        "path": str(folder),
        "weights": weights_hash(folder),
        "tokenizer": tokenizer_hash(folder),
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
    if card["weights"] != parent["weights"]:
        raise UserError(f"{folder}: the weights are not those of its run card; make it again")
    if card["condition"] != condition and not cross_base:
        raise UserError(
            f"{folder} is a {card['condition']} checkpoint and --condition is {condition}; "
            "give the other folder, or --cross-base if a base × SFT factorial is meant"
        )
    return parent


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
