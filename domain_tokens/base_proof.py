"""Prove that a base folder holds its source and nothing else; shares nothing with the import.

It reads the source's own files (safetensors, .bin, tokenizer.json, config.json) and the written
ones, and accounts for every tensor, config key and token: used, or left out for a stated reason.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from domain_tokens import checkpoints
from domain_tokens.errors import UserError
from domain_tokens.run_card import read_json
from domain_tokens.vocabulary import FACT_PAIRS, NOISE_SCALE, Layout, layout_of

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


@dataclass
class Account:
    """What was compared: goes into the results; left_out maps what was not used to its reason."""

    tensors: int = 0
    config_keys: int = 0
    tokens: int = 0
    merges: int = 0
    texts: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def fail(what: str) -> NoReturn:
    """Raise the UserError of a folder that is not what it was made from."""
    raise UserError(f"the written folder is not its source: {what}; nothing was kept, report this")


def weight_files(folder: Path) -> list[Path]:
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
    for name, tensor in file_tensors(weight_files(folder)):
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
    source: Path, written: Path, *, layout: Layout, spellings: list[list[int]], seed: int
) -> Account:
    """Compare the source's tensors with the written folder's, each once and by value.

    Embedding rows may be more in the written folder: the new ones must be what
    `vocabulary.extend_model` documents. Raises UserError at the first difference.
    """
    account = Account()
    saved = dict(file_tensors(weight_files(written)))
    tied = _tied(written)
    unseen = set(saved)
    embedding = next((name for name in saved if name.endswith(EMBEDDINGS)), None)
    extended = {}
    for name, tensor in file_tensors(weight_files(source)):
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
        found = saved[target]
        if target.endswith(EMBEDDINGS + HEADS) and len(found) != len(tensor):
            extended[target] = len(tensor)
            found = found[: len(tensor)]
        if found.shape != tensor.shape or not found.equal(tensor):
            fail(f"{target} has other values than the source's {name}")
    if unseen:
        fail(f"{min(unseen)} comes from nowhere")
    prove_rows(saved, extended, layout=layout, spellings=spellings, seed=seed)
    return account


def prove_rows(
    saved: dict[str, torch.Tensor],
    extended: dict[str, int],
    *,
    layout: Layout,
    spellings: list[list[int]],
    seed: int,
) -> None:
    """Check the rows that were added: padding is the mean row, a fact the mean of its spelling.

    saved: all written tensors. extended: name -> rows that the source had. The noise of the facts
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
        scale = NOISE_SCALE * base.std(dim=0)
        for row in range(extended[name], layout.padded_size):
            _refuse_other_row(name, row, matrix[row], base.mean(dim=0))
        for number, ids in enumerate(spellings):
            row = layout.first_fact_id + number
            _refuse_other_row(name, row, matrix[row], base[ids].mean(dim=0) + scale * noise[number])
    for name, tensor in saved.items():
        if name.endswith(EMBEDDINGS) and len(tensor) != layout.total:
            fail(f"{name} has {len(tensor)} rows, the tokenizer {layout.total} tokens")


def _refuse_other_row(name: str, row: int, found: torch.Tensor, wanted: torch.Tensor) -> None:
    if not torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-6):
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


def check_ends(config: dict[str, Any], *, rows: int, eos: int) -> None:
    """Check the keys that an import may change: the number of rows and where to stop."""
    for key, wanted in (("vocab_size", rows), ("eos_token_id", eos)):
        found = [v for k, v in config.items() if k in (key, f"text_config.{key}")]
        if not found or found[-1] != wanted:
            fail(f"config.json says {key} {found}, wanted {wanted}")
    if not isinstance(config.get("architectures"), list) or not all(
        "CausalLM" in str(name) or "LMHead" in str(name) for name in config["architectures"]
    ):
        fail(f"config.json says architectures {config.get('architectures')}")


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


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


def probe_texts(*, seed: int = 0) -> list[str]:
    """Return texts that tell tokenizers apart: digits, spaces, line ends, scripts, contractions."""
    texts = [
        *("6*9=54", "6 × 9 = 54", "\n\n1.", "1234567", "3.14159", "$1,204.50", "x2y3", "1st 2nd"),
        *("User: What is 6 times 9?\nAssistant: 54", "#### 72", "<<48/2=24>>24", "a\tb\r\nc"),
        *("  two  spaces ", "trailing   ", "\n", "\n \n", "don't we'll I'M THEY'RE", "it’s"),
        *("Élan naïve café", "e\u0301 combining", "日本語のテキスト", "Привет, мир", "½ ² ① Ⅷ ٣"),
        *(
            "👩🏽‍🚀 ok",
            "def f(x):\n    return x ** 2  # ok",
            "{'a': [1, 2]}",
            "http://a.b/c?d=1&e=2",
        ),
        *("ALLCAPS CamelCase snake_case", "......!!!???", "“quoted”—dash…", "\u00a0nbsp\u200bzero"),
    ]
    generator = random.Random(seed)
    pieces = [*"0123456789", *" \n\t.,;:!?()+-*/=$%#'\"_<>|", *"aeinorstAEINORST", "é", "ß", "中"]
    pieces += [" the", " and", "ing", "'s", "'re", "  ", "\n\n", " 12", " 7", "\r\n", "²", "😀"]
    for _ in range(200):
        texts.append("".join(generator.choices(pieces, k=generator.randint(1, 24))))
    return texts


def prove_tokenizer(source: Path, written: Path, tokenizer: Any, account: Account) -> None:
    """Compare vocabulary, merges, the ids of probe texts and what begins a text.

    tokenizer: the written folder's, as a stage loads it. Raises UserError at a difference.
    """
    from tokenizers import Tokenizer

    layout = layout_of(tokenizer)
    ours = read_json(written / "tokenizer.json")
    theirs = _source_tokenizer(source)
    plain, file = (Tokenizer.from_str(json.dumps(tree)) for tree in (theirs, ours))
    known = {token: i for token, i in _vocabulary(ours).items() if i not in layout.reserved_ids}
    wanted = {token: i for token, i in _vocabulary(theirs).items() if i not in layout.reserved_ids}
    if known != wanted:
        token = min(known.items() ^ wanted.items())[0]
        fail(f"tokenizer.json has token {token!r} at {known.get(token)}, not {wanted.get(token)}")
    account.tokens = len(known)
    merges = [_merges(tree) for tree in (ours, theirs)]
    if merges[0] != merges[1]:
        fail(f"tokenizer.json has {len(merges[0])} merges, not the source's {len(merges[1])}")
    account.merges = len(merges[0])
    for text in [*probe_texts(), *(f"a {entry['content']} b" for entry in theirs["added_tokens"])]:
        if any(name in text for name in ("<MUL_", "<|padding_")):
            continue
        wanted_ids = plain.encode(text, add_special_tokens=False).ids
        refuse_other_ids(tokenizer, file, text, wanted_ids)
        account.texts += 1
    if tokenizer.encode("") != plain.encode("").ids:
        fail("a text begins with other tokens than the source's tokenizer.json puts there")


def refuse_other_ids(loaded: Any, file: Any, text: str, wanted: list[int]) -> None:
    """Fail where a text's ids are not the wanted ones, as a stage loads the tokenizer or as the
    written tokenizer.json alone says: transformers takes some splitters from its own classes.
    """
    for found in (
        loaded.encode(text, add_special_tokens=False),
        file.encode(text, add_special_tokens=False).ids,
    ):
        if found != wanted:
            fail(f"the tokenizer reads {text!r} as {found}, the source's as {wanted}")


def _source_tokenizer(folder: Path) -> dict[str, Any]:
    if (folder / "tokenizer.json").is_file():
        return read_json(folder / "tokenizer.json")
    if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise UserError(
            f"{folder} has no tokenizer.json, against which the import could be proved; save it "
            "with one, or give --tokenizer DIR"
        )
    # GPT-2's two files, from before tokenizer.json: the splitter is GPT-2's by definition.
    vocabulary = read_json(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    ends = [token for token in ("<|endoftext|>",) if token in vocabulary]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": vocabulary[token], "content": token, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for token in ends
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


def _vocabulary(tree: dict[str, Any]) -> dict[str, int]:
    vocabulary = tree["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [piece, score] in order of id
        vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    return {**vocabulary, **{entry["content"]: entry["id"] for entry in tree["added_tokens"]}}


def _merges(tree: dict[str, Any]) -> list[tuple[str, ...]]:
    merges = tree["model"].get("merges") or []
    return [tuple(m.split(" ") if isinstance(m, str) else m) for m in merges]


def prove_folder(
    source: Path, tokenizer_source: Path, written: Path, *, seed: int
) -> dict[str, Any]:
    """Prove a folder that was made from a folder; return what was compared, for the results."""
    tokenizer = checkpoints.load_tokenizer(written)
    layout = layout_of(tokenizer)
    weights = prove_weights(
        source,
        written,
        layout=layout,
        spellings=spellings_of(written),
        seed=seed,
    )
    weights.config_keys = prove_config(
        source, written, rows=layout.total, eos=int(tokenizer.eos_token_id or 0)
    )
    prove_tokenizer(tokenizer_source, written, tokenizer, weights)
    return {"against": "the source's own files", **vars(weights)}


def spellings_of(written: Path) -> list[list[int]]:
    """Return the ids of `a*b=c` for every fact, read with the written tokenizer.json alone."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(written / "tokenizer.json"))
    return [plain.encode(f"{a}*{b}={a * b}", add_special_tokens=False).ids for a, b in FACT_PAIRS]
