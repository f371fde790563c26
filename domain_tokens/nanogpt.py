"""nanoGPT checkpoints: read without running code, convert to GPT-2, and prove the conversion.

Two public shapes are known: `model` + `model_args` (nanoGPT) and `model` + `config` + `step`
(build-nanogpt), where `config` is a dict or a pickled dataclass. The activation is in neither file.
"""

import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional

from domain_tokens.errors import UserError

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

Activation = Literal["gelu", "gelu_pytorch_tanh"]

TOLERANCE = 1e-4  # largest difference of logits in fp32
PREFIXES = ("_orig_mod.", "module.")
# nn.Linear holds [out, in], GPT-2's Conv1D [in, out]: these four are transposed, the square
# attn.c_proj, which no shape check can tell, among them.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASKS = ("attn.bias", "attn.masked_bias")
KINDS = ("model_args", "config")
RESAVE = (
    "save it again where it was trained, as torch.save({'model': model.state_dict(), "
    "'model_args': {'n_layer': …, 'n_head': …, 'n_embd': …, 'block_size': …, 'vocab_size': …, "
    "'bias': …}}, F)"
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Raw tensors by their nanoGPT names, without prefixes and masks, and the model's shape."""

    tensors: dict[str, torch.Tensor]
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    kind: Literal["model_args", "config"]

    @property
    def usual_activation(self) -> Activation:
        """The activation of the code that writes such files: nanoGPT's exact GELU, or tanh."""
        return "gelu" if self.kind == "model_args" else "gelu_pytorch_tanh"


class _InertConfig:
    """Stands in for a pickled config class: takes its attributes and has no behaviour."""


def load(path: Path) -> Checkpoint:
    """Read a checkpoint without running code from it.

    Raises UserError for a file that is no checkpoint of a known shape, holds more than tensors,
    plain values and one config object, or lacks a tensor.
    """
    if not path.is_file():
        raise UserError(f"{path} not found; wanted a nanoGPT checkpoint, as in ckpt.pt")
    try:
        content = _unpickle(path)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{path} is not a readable checkpoint ({first}); copy it anew") from None
    kinds = [key for key in KINDS if isinstance(content, dict) and key in content]
    if not kinds or not isinstance(content.get("model"), dict):
        keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} holds {keys}; wanted model with model_args or with config")
    kind = "model_args" if "model_args" in kinds else "config"
    shape = content[kind]
    shape = vars(shape) if isinstance(shape, _InertConfig) else shape
    if not isinstance(shape, dict):
        raise UserError(f"{path}: {kind} is a {type(shape).__name__}; wanted names and values")
    return _checked(path, content["model"], shape, kind)


def _unpickle(path: Path) -> Any:
    asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    configs = [name for name in asked if name.rpartition(".")[2].endswith("Config")]
    others = sorted(set(asked) - set(configs))
    if others or len(configs) > 1:
        raise UserError(
            f"{path} asks for {', '.join(others or configs)} to be run or made while it is read, "
            f"which is refused; wanted tensors and plain values: {RESAVE}"
        )
    stand_ins: list[Any] = [(_InertConfig, name) for name in configs]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True)


def _checked(path: Path, state: dict, shape: dict, kind: Any) -> Checkpoint:
    tensors = {}
    for name, tensor in state.items():
        for prefix in PREFIXES * 2:  # torch.compile within DDP writes both
            name = name.removeprefix(prefix)
        if not name.endswith(MASKS):
            tensors[name] = tensor.float()
    numbers = {}
    for key in ("n_layer", "n_head", "n_embd", "block_size"):
        if not isinstance(shape.get(key), int):
            raise UserError(f"{path}: {kind} has no whole number {key}; {RESAVE}")
        numbers[key] = shape[key]
    missing = sorted(_wanted(numbers["n_layer"]) - tensors.keys())
    if missing:
        raise UserError(f"{path} lacks {missing[0]} ({len(missing)} tensors in all); copy it anew")
    unknown = sorted(tensors.keys() - _wanted(numbers["n_layer"]) - _optional(numbers["n_layer"]))
    if unknown:
        raise UserError(f"{path} holds {unknown[0]}, which no nanoGPT has; wanted a GPT-2 shape")
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(f"{path}: {broken[0]} is not finite; export an earlier checkpoint")
    rows = tensors["transformer.wte.weight"].shape[0]
    return Checkpoint(tensors=tensors, vocab_size=rows, kind=kind, **numbers)


def _wanted(layers: int) -> set[str]:
    names = {"transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight"}
    parts = (*TRANSPOSED, "ln_1.weight", "ln_2.weight")
    return names | {f"transformer.h.{i}.{part}" for i in range(layers) for part in parts}


def _optional(layers: int) -> set[str]:
    biases = {name.removesuffix("weight") + "bias" for name in _wanted(layers)}
    return biases | {"lm_head.weight"}


def to_gpt2(checkpoint: Checkpoint, *, activation: Activation) -> "GPT2LMHeadModel":
    """Return the checkpoint as GPT-2 in Hugging Face's layout, fp32; biases it lacks are zero."""
    from transformers import GPT2Config, GPT2LMHeadModel

    head = checkpoint.tensors.get("lm_head.weight")
    tied = head is None or head.equal(checkpoint.tensors["transformer.wte.weight"])
    config = GPT2Config(
        n_layer=checkpoint.n_layer,
        n_head=checkpoint.n_head,
        n_embd=checkpoint.n_embd,
        n_positions=checkpoint.block_size,
        vocab_size=checkpoint.vocab_size,
        activation_function=activation,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=tied,
    )
    model = GPT2LMHeadModel(config)
    state = {name: torch.zeros_like(t) for name, t in model.state_dict().items() if "bias" in name}
    for name, tensor in checkpoint.tensors.items():
        state[name] = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
    state.setdefault("lm_head.weight", checkpoint.tensors["transformer.wte.weight"])
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def raw_logits(
    checkpoint: Checkpoint, ids: torch.Tensor, *, activation: Activation
) -> torch.Tensor:
    """Return the logits [B, T, V] of raw nanoGPT tensors for ids [B, T], fp32.

    Written from the model's definition alone: it shares nothing with the conversion above, so that
    one cannot hide the other's mistakes. B rows, T tokens, H heads, W width, V vocabulary.
    """
    raw, heads = checkpoint.tensors, checkpoint.n_head
    size = ids.shape[1]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        y = x @ raw[f"{name}.weight"].transpose(0, 1)
        return y + raw[f"{name}.bias"] if f"{name}.bias" in raw else y

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        y = y * raw[f"{name}.weight"]
        return y + raw[f"{name}.bias"] if f"{name}.bias" in raw else y

    future = torch.ones(size, size, dtype=torch.bool).triu(1)
    x = raw["transformer.wte.weight"][ids] + raw["transformer.wpe.weight"][:size]  # [B, T, W]
    for layer in range(checkpoint.n_layer):
        block = f"transformer.h.{layer}"
        mixed = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, H, T, W / H]
            for part in mixed.chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.c_proj")
        hidden = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        hidden = functional.gelu(hidden, approximate="none" if activation == "gelu" else "tanh")
        x = x + linear(hidden, f"{block}.mlp.c_proj")
    x = norm(x, "transformer.ln_f")
    head = raw.get("lm_head.weight", raw["transformer.wte.weight"])
    return x @ head.transpose(0, 1)


@torch.no_grad()
def largest_difference(
    checkpoint: Checkpoint, model: Any, *, activation: Activation, seed: int = 0
) -> float:
    """Return max |Δ logit| between the raw tensors and a model, over random tokens of its rows.

    Rows that the model has beyond the checkpoint's vocabulary are not compared.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(checkpoint.block_size, 128)
    ids = torch.randint(checkpoint.vocab_size, (2, size), generator=generator)
    ours = model(input_ids=ids, use_cache=False).logits[..., : checkpoint.vocab_size]
    return float((ours.float() - raw_logits(checkpoint, ids, activation=activation)).abs().max())
