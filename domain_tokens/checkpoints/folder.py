"""Load, save and verify a checkpoint folder in Hugging Face format."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens.checkpoints.hashes import weight_files
from domain_tokens.errors import UserError
from domain_tokens.modeling import fuse_activations
from domain_tokens.runs import (
    CARD_NAME,
    UNFINISHED_MARKER,
    read_json,
    read_sealed,
    umask,
)

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


def verify_folder(folder: Path) -> None:
    """Raise UserError where a folder is not a complete checkpoint, naming what is missing."""
    if not folder.is_dir():
        raise UserError(f"checkpoint folder {folder} not found; make one with scripts/make_base.py")
    if (folder / UNFINISHED_MARKER).exists():
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


def quiet_transformers() -> None:
    """Switch off what transformers prints while it loads and saves."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def short_error(error: Exception) -> str:
    """Return what a library's error says in one readable line."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
    return line if len(line) <= LONGEST_ERROR else f"{line[:LONGEST_ERROR]}…"


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load a checkpoint's tokenizer from disk, never from a hub and never with its own code.

    Raises UserError where there is none, or where it cannot spell a fact.
    """
    from transformers import AutoTokenizer

    quiet_transformers()
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        raise UserError(f"{folder}: no tokenizer in the folder; give --tokenizer to make_base.py")
    refuse_code(folder)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises plain Exception for a broken file
        raise UserError(f"{folder}: the tokenizer cannot be read: {short_error(error)}") from None
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

    quiet_transformers()
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
        raise UserError(f"{folder}: the weights cannot be read: {short_error(error)}") from None
    refuse_disagreement(model, info, folder)
    model.generation_config = _stopping(model, eos=_first_id(model, "eos_token_id"))
    fuse_activations(model)
    return model


def detach_from_file(model: "PreTrainedModel") -> None:
    """Copy out of its file what a loaded model still reads there, to the bit.

    safetensors maps the file, so that whoever writes into it later would change the model.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


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


def save_checkpoint(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path
) -> None:
    """Write model, tokenizer and a generation config that stops at EOS (HF format).

    All files get the permissions that the umask asks for: safetensors writes for its owner alone.
    """
    quiet_transformers()
    _settle(model.config, tokenizer)
    model.generation_config = _stopping(model, eos=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            os.chmod(path, 0o666 & ~umask())


def refuse_unsavable(model: Any, tokenizer: Any, folder: Path) -> None:
    """Raise UserError where a model could be trained but not saved: all but the weights is.

    Called before training: what fails at the end loses the run. The model is left as it is. A
    generation config with sampling flags was once refused by the library after the last step.
    """
    before = {name: getattr(model.config, name, None) for name in ("use_cache", "eos_token_id")}
    generation = model.generation_config
    try:
        save_checkpoint(_WithoutWeights(model), tokenizer, folder)  # ty: ignore[invalid-argument-type]
    except OSError:  # a full disk is no fault of the checkpoint
        raise
    except Exception as error:  # whatever a library refuses now it would refuse after training
        raise UserError(
            f"this checkpoint could not be saved after training ({_in_one_line(error)}); correct "
            "its config files (generation_config.json, config.json, tokenizer), or make the base "
            "again"
        ) from None
    finally:
        for name, value in before.items():
            setattr(model.config, name, value)
        model.generation_config = generation


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST_ERROR]


class _WithoutWeights:
    """A model for `save_checkpoint`, of which only the configs are written."""

    def __init__(self, model: Any):
        self.__dict__["_model"] = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)

    def save_pretrained(self, folder: Path, **options: Any) -> None:
        """Save as the model would, an empty file in place of the weights."""
        self._model.save_pretrained(folder, **{**options, "state_dict": {}})


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
        ids = getattr(config, name, None)
        ids = ids[0] if isinstance(ids, list) and ids else ids
        if isinstance(ids, int):
            return ids
    return None
