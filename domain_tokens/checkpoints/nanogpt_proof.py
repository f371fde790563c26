"""The proof of a nanoGPT export: the checkpoint file against the finished folder, read from disk.

Nothing here is imported from the conversion (design rule 12): the file is opened, named and
computed here once more, from what a GPT-2 is. A tensor of the file that the computation does not
touch, a tensor of the folder or a key of its config that is not expected, and any differing value
are errors. What logits cannot see (rows that no sampled token reaches, values too small to matter)
the comparison of values does; what values cannot see (how they are put together), the logits do.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from domain_tokens.errors import UserError

TOLERANCE = 1e-9  # largest difference of float64 logits, of the largest logit (or of 1)
ROW_TOLERANCE = 1e-6  # of new rows (means in fp32), of their column's root mean square
# Whole parts of a key that torch.compile, DDP, FSDP and activation checkpointing put there.
WRAPPER = re.compile(
    r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
GPT2_TOKENS, EOS, FACT_COUNT = 50_257, 50_256, 45
FACT_NOISE = 0.1  # of a column's standard deviation, as vocabulary.py documents it
# Keys of config.json that no logit of the language model depends on.
UNREAD_KEYS = {
    "initializer_range": "new weights only",
    "pad_token_id": "padding is masked",
    "summary_activation": "classification head",
    "summary_first_dropout": "classification head",
    "summary_proj_to_labels": "classification head",
    "summary_type": "classification head",
    "summary_use_proj": "classification head",
    "transformers_version": "who wrote it",
    "use_cache": "speed only",
}


@dataclass(slots=True)
class Original:
    """The file's own tensors by nanoGPT's names, what it states, and which tensors were used."""

    source: Path
    tensors: dict[str, torch.Tensor]
    stated: dict[str, Any]
    used: set[str] = field(default_factory=set)

    def take(self, name: str) -> torch.Tensor:
        """Return a tensor in float64 (exact for every narrower type) and count it as used."""
        if name not in self.tensors:
            raise UserError(
                f"{self.source}: no tensor {name}; wanted all of a GPT-2: copy it again"
            )
        self.used.add(name)
        return self.tensors[name].detach().double()

    def take_if_there(self, name: str) -> torch.Tensor | None:
        """Return a tensor, or None where the file has no such."""
        return self.take(name) if name in self.tensors else None


class _Attributes:
    """Receives a pickled config's attributes; has none of its class's code."""


def prove_export(source: Path, folder: Path, *, activation: str, seed: int) -> dict[str, Any]:
    """Return what was compared between a nanoGPT file and the folder exported from it.

    activation: "gelu" or "gelu_pytorch_tanh", which no such file states. seed: of new fact rows.
    Raises UserError at the first difference, with the tensor or key by name.
    """
    original = read_original(source)
    config = compare_config(original, folder, activation=activation)
    values = compare_values(original, folder, seed=seed)
    logits = compare_logits(original, folder, activation=activation)
    return {**account_for_file(original), **config, **values, **logits}


def read_original(source: Path) -> Original:
    """Read a checkpoint's tensors and stated sizes; raises UserError for two of one name."""
    needed = torch.serialization.get_unsafe_globals_in_checkpoint(source)
    allowed: list[Any] = [(_Attributes, name) for name in needed if name.endswith("Config")]
    with torch.serialization.safe_globals(allowed):
        content = torch.load(source, map_location="cpu", weights_only=True)
    stated = content["model_args"] if "model_args" in content else content["config"]
    stated = stated if isinstance(stated, dict) else stated.__dict__
    tensors: dict[str, torch.Tensor] = {}
    for key, value in content["model"].items():
        name = WRAPPER.sub("", key)
        if name in tensors or not torch.is_tensor(value):
            raise UserError(f"{source}: {key} is no tensor, or one of two; wanted one per name")
        tensors[name] = value
    return Original(source, tensors, dict(stated))


def _fault(original: Original, what: str) -> UserError:
    return UserError(
        f"the export of {original.source} is not the same model: {what}; nothing was written, "
        "report this with the file's shapes"
    )


# --- config.json ------------------------------------------------------------------------------


def compare_config(original: Original, folder: Path, *, activation: str) -> dict[str, int]:
    """Compare every key of config.json with what the file states or a GPT-2 is."""
    config = json.loads((folder / "config.json").read_text())
    stated = original.stated
    head, wte = original.tensors.get("lm_head.weight"), original.tensors["transformer.wte.weight"]
    expected = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "dtype": "float32",
        "n_layer": stated["n_layer"],
        "n_head": stated["n_head"],
        "n_embd": stated["n_embd"],
        "n_inner": None,
        "n_positions": stated["block_size"],
        "vocab_size": _total_rows(len(wte)),
        "activation_function": activation,
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "tie_word_embeddings": head is None or torch.equal(head, wte),
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": EOS,
        "eos_token_id": EOS,
    }
    for key in sorted(expected.keys() | config.keys() - UNREAD_KEYS.keys()):
        got, value = config.get(key, "nothing"), expected.get(key, "no such key")
        if type(got) is not type(value) or got != value:  # True is not 1 here
            what = f"config.json has {key} {got!r}, wanted {value!r}"
            raise _fault(original, what)
    unread = config.keys() & UNREAD_KEYS.keys()
    return {"config_keys_compared": len(expected), "config_keys_unread": len(unread)}


# --- values -----------------------------------------------------------------------------------


def compare_values(original: Original, folder: Path, *, seed: int) -> dict[str, int]:
    """Compare every value of the folder's weights with the file's, bit for bit but for the layout.

    Rows that the file has not are compared with the rule that makes them, to rounding.
    """
    from safetensors import safe_open

    expected = _expected_names(original)
    generator = torch.Generator().manual_seed(seed)
    file_of: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".bin", ".pt", ".pth", ".h5", ".msgpack"):
            raise _fault(original, f"the folder has {path.name}, wanted safetensors alone")
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (no mapping)
                    if name in file_of:
                        raise _fault(original, f"{name} is stored twice")
                    file_of[name] = path
    for name in sorted(expected ^ file_of.keys()):
        where = "the folder" if name in file_of else "the file"
        raise _fault(original, f"{name} is only in {where}")
    counts = {"folder_tensors": len(file_of), "values_compared": 0, "new_rows_compared": 0}
    # wte comes before lm_head: their new rows draw from one generator, in this order
    for name in sorted(file_of, key=lambda name: (name == "lm_head.weight", name)):
        with safe_open(file_of[name], "pt") as weights:
            got = weights.get_tensor(name)
        if got.dtype != torch.float32:
            raise _fault(original, f"{name} is {got.dtype}, wanted torch.float32")
        stored = _in_gpt2_layout(original, name)
        if name in ("transformer.wte.weight", "lm_head.weight"):
            rows = len(stored)
            new = _new_rows(got[:GPT2_TOKENS], rows, folder, generator)
            if len(got) != rows + len(new):
                what = f"{name} has {len(got)} rows, wanted {rows} and {len(new)} new ones"
                raise _fault(original, what)
            _compare_new_rows(original, name, got, new)
            counts["new_rows_compared"] += len(new)
            got = got[:rows]
        if got.shape != stored.shape:
            what = f"{name} is {tuple(got.shape)}, wanted {tuple(stored.shape)}"
            raise _fault(original, what)
        same = got.to(stored.dtype) == stored
        if not same.all():
            what = f"{name} differs in {int((~same).sum()):,} of {same.numel():,} values"
            raise _fault(original, what)
        counts["values_compared"] += same.numel()
    return counts


def _expected_names(original: Original) -> set[str]:
    """The names of the folder's tensors: the file's, and a bias (of zeros) for every projection
    and layer norm of a file without biases; no head where it is tied."""
    masks = {name for name in original.tensors if _is_mask_name(name)}
    names = original.tensors.keys() - masks
    head = original.tensors.get("lm_head.weight")
    if head is not None and torch.equal(head, original.tensors["transformer.wte.weight"]):
        names -= {"lm_head.weight"}
    embeddings = ("transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight")
    biased = {n for n in names if n.endswith(".weight") and n not in embeddings}
    return names | {n[: -len("weight")] + "bias" for n in biased}


def _in_gpt2_layout(original: Original, name: str) -> torch.Tensor:
    """What the folder should hold under a name: GPT-2's Conv1D keeps [in, out]."""
    if name not in original.tensors:
        return torch.zeros(original.tensors[name[: -len("bias")] + "weight"].shape[0])
    tensor = original.tensors[name].detach()
    wide = tensor.double() if tensor.dtype == torch.float64 else tensor.float()
    return wide.T if ".h." in name and wide.dim() == 2 else wide


def _total_rows(rows: int) -> int:
    """Rows of the extended vocabulary: padded to a multiple of 64, then the facts."""
    padded = 64 * math.ceil(GPT2_TOKENS / 64)
    if rows == padded + FACT_COUNT:
        return rows
    return 64 * math.ceil(max(rows, GPT2_TOKENS) / 64) + FACT_COUNT


def _new_rows(
    base: torch.Tensor, rows: int, folder: Path, generator: torch.Generator
) -> torch.Tensor:
    """What the rows from `rows` on should be [new, W]: the mean of GPT-2's rows for padding; for a
    fact the mean of the rows that spell a*b=c, and noise."""
    from tokenizers import Tokenizer

    total = _total_rows(rows)
    if total == rows:
        return base[:0].double()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    exact = base.double()
    facts = []
    for a in range(1, 10):
        for b in range(a, 10):
            spelled = tokenizer.encode(f"{a}*{b}={a * b}", add_special_tokens=False).ids
            facts.append(exact[spelled].mean(0))
    noise = torch.randn((FACT_COUNT, base.shape[1]), generator=generator).double()
    facts = torch.stack(facts) + FACT_NOISE * exact.std(0) * noise
    padding = exact.mean(0).expand(total - FACT_COUNT - rows, -1)
    return torch.cat([padding, facts])


def _compare_new_rows(original: Original, name: str, got: torch.Tensor, new: torch.Tensor) -> None:
    """Compare the last rows of a matrix with what they should be, to fp32's rounding."""
    if not len(new):
        return
    distance = (got[-len(new) :].double() - new).abs()
    scale = got[:GPT2_TOKENS].double().square().mean(0).sqrt()
    wrong = ~(distance <= ROW_TOLERANCE * scale)
    if wrong.any():
        row = len(got) - len(new) + int(wrong.any(1).nonzero()[0])
        raise _fault(original, f"{name} differs in row {row}, which the export added")


# --- logits -----------------------------------------------------------------------------------


@torch.no_grad()
def compare_logits(original: Original, folder: Path, *, activation: str) -> dict[str, Any]:
    """Compare the logits of transformers' model of the folder with the file's own, in float64.

    One row of random tokens as long as the context, so that every position is reached.
    """
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float64,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        for name in sorted(map(str, info[kind])):
            raise _fault(original, f"transformers reports {name} among {kind}")
    rows = len(original.tensors["transformer.wte.weight"])
    length = len(original.tensors["transformer.wpe.weight"])
    ids = torch.randint(rows, (length,), generator=torch.Generator().manual_seed(length))
    theirs = model.eval()(input_ids=ids[None], use_cache=False).logits[0, :, :rows]  # [T, V]
    hidden = _hidden(original, ids, activation)
    head = original.tensors.get("lm_head.weight")
    tied = head is None or torch.equal(head, original.tensors["transformer.wte.weight"])
    head = original.take("transformer.wte.weight" if tied else "lm_head.weight")
    largest, difference = 0.0, 0.0
    for part, their_part in zip(
        hidden.split(64), theirs.split(64), strict=True
    ):  # 64 × V at a time
        ours = part @ head.T
        largest = max(largest, float(ours.abs().max()))
        gap = float((ours - their_part).abs().max())
        difference = max(difference, gap if math.isfinite(gap) else math.inf)
    limit = TOLERANCE * max(1.0, largest)
    if not difference <= limit:
        what = f"its logits differ by {difference:.3g}, wanted at most {limit:.3g}"
        raise _fault(original, what)
    return {
        "logit_positions": length,
        "logit_columns": rows,
        "logit_dtype": "float64",
        "largest_logit": largest,
        "largest_logit_difference": difference,
        "tolerance": limit,
    }


def _hidden(original: Original, ids: torch.Tensor, activation: str) -> torch.Tensor:
    """The normalised last states [T, W] of GPT-2 for ids [T], from nn.Linear's tensors [out, in].

    T tokens, H heads, W width, D = W / H.
    """
    heads, length = original.stated["n_head"], len(ids)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        y = torch.einsum("ti,oi->to", x, original.take(f"{name}.weight"))
        bias = original.take_if_there(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        bias = original.take_if_there(f"{name}.bias")
        y = y * original.take(f"{name}.weight")
        return y if bias is None else y + bias

    later = torch.arange(length)[None, :] > torch.arange(length)[:, None]  # [T, T]
    x = original.take("transformer.wte.weight")[ids] + original.take("transformer.wpe.weight")
    for layer in range(original.stated["n_layer"]):
        block = f"transformer.h.{layer}"
        query, key, value = (
            part.reshape(length, heads, -1)  # [T, H, D]
            for part in linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").chunk(3, -1)
        )
        scores = torch.einsum("thd,shd->hts", query, key) / math.sqrt(query.shape[-1])
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        mixed = torch.einsum("hts,shd->thd", weights, value).reshape(length, -1)
        x = x + linear(mixed, f"{block}.attn.c_proj")
        inner = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        inner = functional.gelu(inner, approximate="none" if activation == "gelu" else "tanh")
        x = x + linear(inner, f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f")


# --- every tensor of the file -----------------------------------------------------------------


def _is_mask_name(name: str) -> bool:
    """Whether a name is that of the causal mask itself; attn.c_attn.bias is a weight."""
    parts = name.split(".")
    return (
        len(parts) == 5
        and parts[:2] == ["transformer", "h"]
        and parts[3] == "attn"
        and parts[4] in ("bias", "masked_bias")
    )


def account_for_file(original: Original) -> dict[str, int]:
    """Account for every tensor of the file: computed with, a mask, or the tied head."""
    masks, tied = 0, 0
    size = original.stated["block_size"]
    for name in sorted(original.tensors.keys() - original.used):
        tensor = original.tensors[name]
        if name == "lm_head.weight":
            tied += 1  # equal to wte, or it would have been computed with
            continue
        if _is_mask_name(name) and int(name.split(".")[2]) < original.stated["n_layer"]:
            if name.endswith("masked_bias"):
                good = tensor.dim() == 0 and float(tensor) <= -1e4
            else:
                good = tuple(tensor.shape) == (1, 1, size, size) and bool(
                    (tensor.float() == torch.tril(torch.ones(size, size))).all()
                )
            if good:
                masks += 1
                continue
        raise UserError(
            f"{original.source}: {name} {tuple(tensor.shape)} takes no part in a GPT-2; wanted "
            "every tensor to be used: this is another model, nothing was written"
        )
    return {
        "file_tensors": len(original.tensors),
        "file_tensors_used": len(original.used),
        "file_masks": masks,
        "file_tied_heads": tied,
    }
