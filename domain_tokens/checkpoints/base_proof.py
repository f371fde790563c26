"""Prove that a base folder holds its source and nothing else; shares nothing with the import.

It reads the source's own files (safetensors, .bin, tokenizer.json, config.json) and the written
ones, and accounts for every tensor, config key and token: used, or left out for a stated reason.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from domain_tokens.checkpoints.account import FACT_NOISE, FACT_PAIRS, Account, Rows, fail, rows_of
from domain_tokens.checkpoints.folder import load_tokenizer
from domain_tokens.checkpoints.tokenizer_proof import (
    check_ends,
    prove_folder_tokenizer,
    spellings_of,
)
from domain_tokens.errors import UserError
from domain_tokens.runs import read_json

EMBEDDINGS = ("wte.weight", "embed_tokens.weight", "embed_in.weight", "word_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "lm_head.bias")
PREFIXES = ("", "transformer.", "model.", "gpt_neox.")  # a base model's checkpoint has none
# Config keys that say nothing about logits, or are compared by themselves.
FREE_KEYS = {
    *("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path"),
    *("use_cache", "vocab_size", "eos_token_id", "_attn_implementation_autoset"),
    *("gradient_checkpointing", "tokenizer_class", "torchscript", "use_bfloat16", "pruned_heads"),
    *("finetuning_task", "id2label", "label2id", "problem_type", "task_specific_params"),
    *("prefix", "sep_token_id", "transformers.js_config", "output_past"),
}


def source_weight_files(folder: Path) -> list[Path]:
    """Return the files that a folder's weights lie in: those of its index, or the single one."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return [folder / single]
        if index.is_file():
            return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    raise UserError(f"{folder} holds no model.safetensors and no pytorch_model.bin")


def file_tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor as fp32 or as the integers it is) of weight files; no code is run."""
    from safetensors import safe_open

    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as content:
                for name in content.keys():  # noqa: SIM118 (it is not a dict)
                    yield name, _plain(content.get_tensor(name))
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
            for name, tensor in content.items():
                if not isinstance(tensor, torch.Tensor):
                    raise UserError(f"{file}: {name} is no tensor; wanted a state dict")
                yield name, _plain(tensor)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def refuse_not_finite(folder: Path) -> None:
    """Raise UserError at the first tensor of a folder with a number that is NaN or infinite."""
    for name, tensor in file_tensors(source_weight_files(folder)):
        bad = int((~tensor.isfinite()).sum())
        if bad and not is_mask(name, tensor):
            raise UserError(
                f"{folder}: {bad} of {tensor.numel()} numbers of {name} are not finite; give an "
                "earlier checkpoint"
            )


def is_mask(name: str, tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is GPT-2's causal mask or its constant, by name, shape and values."""
    if name.endswith("attn.masked_bias"):
        return tensor.numel() == 1 and float(tensor) <= -1e4
    if not name.endswith("attn.bias") or tensor.dim() != 4 or tensor.shape[:2] != (1, 1):
        return False
    square = tensor[0, 0]
    return square.shape[0] == square.shape[1] and square.bool().equal(
        torch.ones_like(square, dtype=torch.bool).tril()
    )


def prove_weights(
    source: Path,
    written: Path,
    *,
    layout: Rows,
    spellings: list[list[int]],
    seed: int,
    fact_init: str,
) -> Account:
    """Compare the source's tensors with the written folder's, each once and by value.

    Embedding rows may be more in the written folder: the new ones must be what
    `vocabulary.extend_model` documents. Raises UserError at the first difference.
    """
    account = Account()
    saved = dict(file_tensors(source_weight_files(written)))
    tied = _tied(written)
    unseen = set(saved)
    embedding = next((name for name in saved if name.endswith(EMBEDDINGS)), None)
    extended = {}
    for name, tensor in file_tensors(source_weight_files(source)):
        if is_mask(name, tensor):
            account.left_out[name] = "a causal mask"
            continue
        if name.endswith("rotary_emb.inv_freq"):
            _check_frequencies(name, tensor, written)
            account.left_out[name] = "rotary frequencies, as the config gives them"
            continue
        target = _target(name, saved)
        if target is None and tied and name.endswith(HEADS) and embedding:
            if not saved[embedding][: len(tensor)].equal(tensor):
                fail(f"the config says tied, and {name} differs from {embedding}")
            account.left_out[name] = "tied to the embedding, and equal"
            continue
        if target is None:
            fail(f"{name} is not in it")
        if target not in unseen:
            fail(f"{name} is in the source twice")
        unseen.discard(target)
        account.tensors += 1
        values = saved[target]
        if target.endswith(EMBEDDINGS + HEADS) and len(values) != len(tensor):
            extended[target] = len(tensor)
            values = values[: len(tensor)]
        if values.shape != tensor.shape or not values.equal(tensor):
            fail(f"{target} has other values than the source's {name}")
    if unseen:
        fail(f"{min(unseen)} comes from nowhere")
    prove_rows(saved, extended, layout=layout, spellings=spellings, seed=seed, fact_init=fact_init)
    return account


def prove_rows(
    saved: dict[str, torch.Tensor],
    extended: dict[str, int],
    *,
    layout: Rows,
    spellings: list[list[int]],
    seed: int,
    fact_init: str,
) -> None:
    """Check the rows that were added: padding is the mean row, a fact what its rule says.

    saved: all written tensors. extended: name -> rows that the source had. fact_init: subtoken_mean
    (the mean of the fact's spelling), mean (of all base rows), or random (that, with the whole
    deviation instead of a tenth). The noise of the facts
    is drawn for the embedding first, then for an output layer, then for its bias.
    """
    generator = torch.Generator().manual_seed(seed)
    order = sorted(extended, key=lambda name: (name.endswith(HEADS), name.endswith("bias")))
    for name in order:
        matrix = saved[name] if saved[name].dim() == 2 else saved[name][:, None]
        if len(matrix) != layout.total:
            fail(f"{name} has {len(matrix)} rows, the tokenizer {layout.total} tokens")
        base = matrix[: layout.base_size].double()
        noise = torch.randn((len(FACT_PAIRS), matrix.shape[1]), generator=generator).double()
        middle = base.mean(dim=0)
        scale = base.std(dim=0) * (1 if fact_init == "random" else FACT_NOISE)
        for row in range(extended[name], layout.first_fact_id):
            _refuse_other_row(name, row, matrix[row], middle)
        for number, ids in enumerate(spellings):
            row = layout.first_fact_id + number
            near = base[ids].mean(dim=0) if fact_init == "subtoken_mean" else middle
            _refuse_other_row(name, row, matrix[row], near + scale * noise[number])
    for name, tensor in saved.items():
        if name.endswith(EMBEDDINGS) and len(tensor) != layout.total:
            fail(f"{name} has {len(tensor)} rows, the tokenizer {layout.total} tokens")


def _refuse_other_row(name: str, row: int, values: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.allclose(values.double(), expected, rtol=1e-4, atol=1e-6):
        fail(f"row {row} of {name} is not what new rows are made of")


def _target(name: str, saved: dict[str, torch.Tensor]) -> str | None:
    for prefix in PREFIXES:
        for candidate in (f"{prefix}{name}", name.removeprefix(prefix)):
            if candidate in saved:
                return candidate
    return None


def _tied(folder: Path) -> bool:
    config = read_json(folder / "config.json")
    return bool(config.get("tie_word_embeddings", True))


def _check_frequencies(name: str, tensor: torch.Tensor, folder: Path) -> None:
    config = read_json(folder / "config.json")
    base = (config.get("rope_parameters") or config).get("rope_theta", 10000.0)
    steps = torch.arange(len(tensor), dtype=torch.float64) / len(tensor)
    if not torch.allclose(tensor.double(), base**-steps, rtol=1e-3):
        fail(f"{name} is not what rope_theta {base} gives")


def prove_config(source: Path, written: Path, *, rows: int, eos: int) -> int:
    """Compare every key of the source's config.json with the written one; return how many.

    Keys that only the written file has must be what the library reads out of the source's file.
    """
    from transformers import AutoConfig

    before, after = (_leaves(read_json(f / "config.json")) for f in (source, written))
    read = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    renamed = {**type(read).attribute_map, "rope_theta": "rope_parameters.rope_theta"}
    reading = _leaves(json.loads(json.dumps(read.to_dict())))
    free = FREE_KEYS | _generation_keys()
    compared = 0
    for key, value in before.items():
        name = key.removeprefix("text_config.").split(".")[0]
        if name in free:
            continue
        target = _renamed(key, renamed, after)
        if target is None:
            if value in (None, [], {}):
                continue
            fail(f"config.json lacks {key}, which the source's has ({value!r})")
        if value is not None and after[target] != value and not _same_meaning(key, value, before):
            fail(f"config.json says {target} {after[target]!r}, the source {key} {value!r}")
        compared += 1
    for key in after.keys() - before.keys():
        name = key.removeprefix("text_config.").split(".")[0]
        if name not in free and (key not in reading or reading[key] != after[key]):
            fail(f"config.json says {key} {after[key]!r}, the source {reading.get(key)!r}")
        compared += name not in free
    for key in before.keys() & after.keys():
        resolved = before[key] is None and after[key] != reading.get(key)
        if resolved and key.split(".")[-1] not in free:
            fail(f"config.json says {key} {after[key]!r}, the source {reading.get(key)!r}")
    check_ends(after, rows=rows, eos=eos)
    return compared


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def _renamed(key: str, renamed: dict[str, str], after: dict[str, Any]) -> str | None:
    """Return the written file's name of a key; transformers 5 moved the rotary ones together."""
    last = key.split(".")[-1]
    within = "text_config." if key.startswith("text_config.") else ""
    rope = "rope_type" if last == "type" else last
    candidates = (
        key,
        within + renamed.get(last, last),
        f"{within}rope_parameters.{rope}" if "rope_scaling." in key else "",
        f"{within}rope_parameters.full_attention.{rope}" if "rope" in key else "",
        f"{within}rope_parameters.sliding_attention.rope_theta"
        if last == "rope_local_base_freq"
        else "",
    )
    return next((name for name in candidates if name in after), None)


def _same_meaning(key: str, value: Any, before: dict[str, Any]) -> bool:
    # Qwen 2 names a window that its own switch turns off; transformers then writes none.
    return key.endswith("sliding_window") and before.get("use_sliding_window") is False


def _generation_keys() -> set[str]:
    from transformers import GenerationConfig

    return set(GenerationConfig().to_dict()) - {"bos_token_id", "pad_token_id"}


def prove_folder(
    source: Path, tokenizer_source: Path, written: Path, *, seed: int, fact_init: str
) -> dict[str, Any]:
    """Prove a folder that was made from a folder; return what was compared, for the results."""
    tokenizer = load_tokenizer(written)
    layout = rows_of(tokenizer)
    weights = prove_weights(
        source,
        written,
        layout=layout,
        spellings=spellings_of(written),
        seed=seed,
        fact_init=fact_init,
    )
    weights.config_keys = prove_config(
        source, written, rows=layout.total, eos=int(tokenizer.eos_token_id or 0)
    )
    prove_folder_tokenizer(tokenizer_source, written, tokenizer, weights)
    return {"against": "the source's own files", **vars(weights)}
