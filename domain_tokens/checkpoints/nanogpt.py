"""nanoGPT checkpoints: read without running code, refuse what is no GPT-2, convert the rest.

Two public shapes are known: `model` + `model_args` (nanoGPT) and `model` + `config` + `step`
(build-nanogpt), where `config` is a dict or a pickled dataclass. The activation is in neither file.
nanogpt_proof.py checks the result and imports nothing from here.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from domain_tokens.errors import UserError

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

Activation = Literal["gelu", "gelu_pytorch_tanh"]

# Left in a key, at any depth, by torch.compile, DDP, FSDP and activation checkpointing.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# nn.Linear holds [out, in], GPT-2's Conv1D [in, out]: these four are transposed, the square
# attn.c_proj, which no shape check can tell, among them.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# The shapes of the same in nn.Linear: [out, in], in multiples of n_embd.
LINEAR = {"attn.c_attn": (3, 1), "attn.c_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}
# Buffers with the whole of their names: attn.c_attn.bias ends in attn.bias, too, and is a weight.
MASK = re.compile(r"transformer\.h\.(\d+)\.attn\.(bias|masked_bias)")
KINDS = ("model_args", "config")
SIZES = ("n_layer", "n_head", "n_embd", "block_size")
# Ways to compute the same function, whatever their value, and what acts in training only.
HARMLESS = {
    "flash", "use_flash", "flash_attn", "use_flash_attn", "flash_attention", "use_flash_attention",
    "enable_flash_attention", "dropout", "attn_dropout", "resid_dropout", "embd_dropout",
}  # fmt: skip
STATED = {*SIZES, "vocab_size", "bias"}
# Off for these is not plain GPT-2: it has positions, layer norms, a tied head, scaled scores, …
GPT2_HAS = re.compile(
    r"pos(?!t)|causal|layer_?norm|pre_?(norm|ln)|mlp|att(n|ention)|resid|skip|tie|tying|^scale|scaled"
)
GPT2_TOKENS = 50_257
FACT_ROWS = 50_349  # of a base that this project has already extended
MAX_PADDED = 51_200  # 50,257 padded to a multiple of 1,024, the largest in use
RESAVE = (
    "save it again where it was trained, as torch.save({'model': model.state_dict(), "
    "'model_args': {'n_layer': …, 'n_head': …, 'n_embd': …, 'block_size': …, 'vocab_size': …, "
    "'bias': …}}, F)"
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors in fp32 by their nanoGPT names, without prefixes and masks, and the model's shape.

    notes: lines that whoever exports it should read.
    """

    tensors: dict[str, torch.Tensor]
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    kind: Literal["model_args", "config"]
    notes: tuple[str, ...] = ()

    @property
    def usual_activation(self) -> Activation:
        """The activation of the code that writes such files: nanoGPT's exact GELU, or tanh."""
        return "gelu" if self.kind == "model_args" else "gelu_pytorch_tanh"


class _InertConfig:
    """Stands in for a pickled config class: takes its attributes and has no behaviour."""


def load_nanogpt(path: Path) -> Checkpoint:
    """Read a checkpoint without running code from it.

    Raises UserError for a file that is no checkpoint of a known shape, holds more than tensors,
    plain values and one config object, states what no GPT-2 has, or whose tensors are not, by name,
    shape and value, those of the model that it states.
    """
    if not path.is_file():
        raise UserError(f"{path} not found; wanted a nanoGPT checkpoint, as in ckpt.pt")
    try:
        content = _unpickle(path)
    except UserError:
        raise
    except Exception as error:  # damaged bytes end in almost any class
        first = str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"{path} is not a readable checkpoint ({first}); copy it again") from None
    kinds = [key for key in KINDS if isinstance(content, dict) and key in content]
    if not kinds or not isinstance(content.get("model"), dict):
        keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} holds {keys}; wanted model with model_args or with config")
    kind: Any = "model_args" if "model_args" in kinds else "config"
    stated = content[kind]
    stated = vars(stated) if isinstance(stated, _InertConfig) else stated
    if not isinstance(stated, dict):
        raise UserError(f"{path}: {kind} is a {type(stated).__name__}; wanted names and values")
    said = f"{path}: {kind}"
    off = _check_stated(said, stated)
    tensors, masks = _named_tensors(path, content["model"])
    _check_names(path, kind, stated, tensors)
    _check_shapes(path, kind, stated, tensors)
    for name, mask in masks.items():
        _check_mask(path, name, mask, stated)
    tensors = {name: _float32(path, name, tensor) for name, tensor in tensors.items()}
    wte, head = tensors["transformer.wte.weight"], tensors.get("lm_head.weight")
    notes = [f"{kind} has {key} {stated[key]}: taken for an extension that is off" for key in off]
    if head is not None and not head.equal(wte):
        notes.append("lm_head differs from wte: exported as an output layer of its own")
    sizes = {key: stated[key] for key in SIZES}
    return Checkpoint(
        tensors=tensors, vocab_size=wte.shape[0], kind=kind, notes=tuple(notes), **sizes
    )


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


def _check_stated(said: str, stated: dict) -> list[str]:
    """Raise UserError for a key or value that no GPT-2 has; return the extensions that are off.

    Forks add keys (`use_relu`, `window_size`, …), and their tensors often fit GPT-2's, so nothing
    but the key tells. An unknown key is refused, except where its value is False or None and its
    name is not that of a part which GPT-2 has: `use_rmsnorm: False` is plain GPT-2,
    `use_pos_embeddings: False` is not. 0, "" and the like are values, not switches: refused.
    """
    for key in SIZES:
        size = stated.get(key)
        if type(size) is not int or size < 1:
            got = f"{key} {size!r}" if key in stated else f"no {key}"
            raise UserError(f"{said} has {got}; wanted a whole number from 1 on: {RESAVE}")
    if stated["n_embd"] % stated["n_head"]:
        raise UserError(
            f"{said} has n_embd {stated['n_embd']} and n_head {stated['n_head']}; wanted an n_head "
            "that divides it: give the numbers of the training run"
        )
    for key, kind in (("vocab_size", int), ("bias", bool)):
        if stated.get(key) is not None and type(stated[key]) is not kind:
            expected = "a whole number" if kind is int else "True or False"
            raise UserError(f"{said} has {key} {stated[key]!r}; wanted {expected}: {RESAVE}")
    off = []
    for key in sorted(stated.keys() - STATED - HARMLESS, key=str):
        value = stated[key]
        if (value is None or value is False) and not GPT2_HAS.search(str(key).lower()):
            off.append(key)
            continue
        known = ", ".join((*SIZES, "vocab_size", "bias", "dropout"))
        raise UserError(
            f"{said} says {key} {value!r}, which no GPT-2 has; wanted only {known}: it cannot be "
            "exported as GPT-2, give a checkpoint of plain nanoGPT"
        )
    return off


def _named_tensors(path: Path, state: dict) -> tuple[dict, dict]:
    """Return tensors and causal masks by their nanoGPT names, wrappers' names taken off."""
    tensors, masks, origins = {}, {}, {}
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"{path}: model holds {key!r}, a {type(tensor).__name__}; wanted names and tensors "
                f"alone: {RESAVE}"
            )
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in origins:
            raise UserError(
                f"{path} holds both {origins[name]} and {key}, two tensors of one name ({name}); "
                f"wanted one: {RESAVE}"
            )
        origins[name] = key
        (masks if MASK.fullmatch(name) else tensors)[name] = tensor
    return tensors, masks


def _check_names(path: Path, kind: str, stated: dict, tensors: dict) -> None:
    """Raise UserError where a tensor is missing, of a layer too many, or unknown; so for biases."""
    layers = stated["n_layer"]
    weights = _weights(min(layers, len(tensors)))  # n_layer may be any number
    missing = sorted(weights - tensors.keys())
    if missing:
        raise UserError(
            f"{path} lacks {missing[0]} ({len(missing)} tensors in all); wanted those of {layers} "
            f"layers, as {kind} says: copy it again, or give the numbers of the training run"
        )
    biases = {
        name.removesuffix("weight") + "bias"
        for name in weights
        if not name.endswith(("wte.weight", "wpe.weight"))
    }
    for name in sorted(tensors.keys() - weights - biases - {"lm_head.weight"}):
        layer = re.match(r"transformer\.h\.(\d+)\.", name)
        if layer and int(layer[1]) >= layers:
            raise UserError(
                f"{path} holds {name}, of layer {layer[1]}; wanted layers 0 to {layers - 1}, as "
                f"{kind} says n_layer {layers}: give the numbers of the training run"
            )
        raise UserError(f"{path} holds {name}, which no nanoGPT has; wanted a GPT-2's tensors")
    there, absent = sorted(biases & tensors.keys()), sorted(biases - tensors.keys())
    if there and stated.get("bias") is False:
        raise UserError(f"{path} holds {there[0]}; wanted no biases, as {kind} says bias False")
    if absent and (there or stated.get("bias")):
        reason = f"{kind} says bias True" if stated.get("bias") else f"{there[0]} is there"
        raise UserError(
            f"{path} lacks {absent[0]} ({len(absent)} of {len(biases)} biases); wanted all, as "
            f"{reason}: copy it again"
        )


def _weights(layers: int) -> set[str]:
    names = {"transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight"}
    parts = (*LINEAR, "ln_1", "ln_2")
    return names | {f"transformer.h.{i}.{part}.weight" for i in range(layers) for part in parts}


def _check_shapes(path: Path, kind: str, stated: dict, tensors: dict) -> None:
    """Raise UserError where a shape is not the one that the stated sizes make, or the vocabulary
    is not GPT-2's."""
    width, block = stated["n_embd"], stated["block_size"]
    wte, wpe = tensors["transformer.wte.weight"], tensors["transformer.wpe.weight"]
    rows = wte.shape[0] if wte.dim() else 0
    if wpe.dim() == 2 and wpe.shape[0] != block:
        raise UserError(
            f"{path}: {kind} says block_size {block}, wpe has {wpe.shape[0]} rows; wanted as many: "
            "give the numbers of the training run"
        )
    for name in sorted(tensors):
        module, _, part = name.rpartition(".")
        factors = [sizes for end, sizes in LINEAR.items() if module.endswith(end)]
        expected: tuple = (width,)  # layer norms
        if name in ("transformer.wte.weight", "lm_head.weight"):
            expected = (rows, width)
        elif name == "transformer.wpe.weight":
            expected = (block, width)
        elif factors:
            expected = tuple(width * n for n in factors[0][: 2 if part == "weight" else 1])
        if tuple(tensors[name].shape) != expected:
            raise UserError(
                f"{path}: {name} is {tuple(tensors[name].shape)}; wanted {expected}, as {kind} "
                f"says n_embd {width}: give the numbers of the training run"
            )
    # Which tokenizer made 50,257 rows or more is in no file; a padded GPT-2 has one of these sizes.
    padded = GPT2_TOKENS <= rows <= 50_304 or (rows % 64 == 0 and GPT2_TOKENS < rows <= MAX_PADDED)
    if not padded and rows != FACT_ROWS:
        raise UserError(
            f"{path} was trained with another tokenizer ({rows:,} tokens); only GPT-2's is "
            f"supported: {GPT2_TOKENS:,} rows, or these padded to a multiple of 64"
        )
    if stated.get("vocab_size") not in (None, rows):
        raise UserError(
            f"{path}: {kind} says vocab_size {stated['vocab_size']}, wte has {rows} rows; wanted "
            "as many: give the numbers of the training run"
        )


def _check_mask(path: Path, name: str, mask: torch.Tensor, stated: dict) -> None:
    """Raise UserError for a buffer that is not the causal mask whose name it has."""
    size, layer = stated["block_size"], MASK.fullmatch(name)
    assert layer is not None, name
    if int(layer[1]) >= stated["n_layer"]:
        raise UserError(
            f"{path} holds {name}, of layer {layer[1]}; wanted layers 0 to {stated['n_layer'] - 1}"
        )
    values = mask.float()
    if layer[2] == "masked_bias":
        if values.dim() or not values <= -1e4:
            raise UserError(
                f"{path}: {name} is not what GPT-2 puts where attention is masked; got "
                f"{tuple(mask.shape)} {values.flatten()[:1].tolist()}, wanted one number, -1e4 or "
                "less: this is another kind of attention"
            )
    elif tuple(mask.shape) != (1, 1, size, size):
        raise UserError(
            f"{path}: {name} is {tuple(mask.shape)}; wanted a causal mask (1, 1, {size}, {size}), "
            "as block_size says: give the numbers of the training run"
        )
    elif not values[0, 0].equal(torch.ones(size, size).tril()):
        raise UserError(
            f"{path}: {name} is not the causal mask; wanted ones up to the diagonal and zeros "
            "beyond: this is another kind of attention"
        )


def _float32(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in fp32 with the same values; raises UserError where there is no such."""
    kind = str(tensor.dtype).removeprefix("torch.")
    floats = ("float32", "float16", "bfloat16", "float64")
    if kind not in floats or tensor.is_meta or tensor.layout != torch.strided:
        got = "without values" if tensor.is_meta else f"{tensor.layout} {kind}"
        raise UserError(
            f"{path}: {name} is {got}; wanted dense float32, bfloat16 or float16: {RESAVE}"
        )
    values = tensor.detach().float()
    if not values.isfinite().all():
        raise UserError(f"{path}: {name} is not finite; export an earlier checkpoint")
    if not values.to(tensor.dtype).equal(tensor):
        raise UserError(f"{path}: {name} is float64 and fp32 cannot hold its values; {RESAVE}")
    return values


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
