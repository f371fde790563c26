"""The forward pass of a model that only reads: tokens in one row, few and large operations.

Decoding and scoring spend as much time between matrix products as in them if every rotation, norm
and residual is an operation of its own. GPT-2 and Llama are written out here with `prepacked`'s
products; every other architecture is called as transformers has it. N tokens, W width, H and K
heads of queries and of the cache, D size of a head.
"""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from domain_tokens.inference.cpu.packed_weights import fused_linear, most_likely, prepacked
from domain_tokens.modeling import Attend, fp32_logits, logits_of, packed_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What an activation multiplies x with: the logistic function of slope * (x + cubic * x^3).
GATES = {"silu": (1.0, 0.0)} | dict.fromkeys(
    ("gelu_new", "gelu_pytorch_tanh"), (2 * (2 / math.pi) ** 0.5, 0.044715)
)

# ids [N], their positions [N], what they attend to, which tokens to keep -> their hidden states
# [N or fewer, W] before the output layer
Body = Callable[[Any, torch.Tensor, torch.Tensor, Attend, torch.Tensor | None], torch.Tensor]


class PackedForward:
    """A model that reads tokens in one row; made by `reading`."""

    def __init__(self, model: "PreTrainedModel"):
        self._model: Any = model
        self._body = _own_body(model)
        self.device = model.device
        if model.device.type == "cpu":
            _kernels().use_threads(torch.get_num_threads())

    def __call__(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        attend: Attend,
        *,
        keep: torch.Tensor | None = None,
        greedy: bool = False,
    ) -> torch.Tensor:
        """Return logits, fp32 [N or fewer, V], of ids [N] at positions [N]; keep: of which tokens.

        greedy: return the most likely tokens instead, int64 [N or fewer].
        """
        if self._body is not None:
            return self.outputs(
                self._body(self._model, ids, positions, attend, keep), greedy=greedy
            )
        (logits,), _ = fp32_logits(
            self._model,
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=0 if keep is None else keep,
            attend=attend,
        )
        return logits.max(-1).indices if greedy else logits

    def logits(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        attend: Attend,
        *,
        keep: torch.Tensor,
        rows: int,
    ) -> Iterator[torch.Tensor]:
        """Yield the logits of tokens `keep` so many rows at a time, where the head allows that."""
        if self._body is None:
            yield from self(ids, positions, attend, keep=keep).split(rows)
        else:
            hidden = self._body(self._model, ids, positions, attend, keep)
            yield from (self.outputs(part) for part in hidden.split(rows))

    @property
    def supports_cuda_graphs(self) -> bool:
        """Whether `hidden` may be recorded as a CUDA graph: nothing in it waits for the GPU."""
        rotary = getattr(getattr(self._model, "model", None), "rotary_emb", None)
        looks = getattr(rotary, "rope_type", "default") in {"dynamic", "longrope"}  # at lengths
        return self.device.type == "cuda" and self._body is not None and not looks

    def hidden(self, ids: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Return the hidden states [N, W] before the output layer, if CUDA graphs are supported."""
        assert self._body is not None
        return self._body(self._model, ids, positions, attend, None)

    def outputs(self, hidden: torch.Tensor, *, greedy: bool = False) -> torch.Tensor:
        """Return logits, fp32 [N, V], or the most likely tokens [N] of hidden states [N, W]."""
        output = self._model.get_output_embeddings()
        if greedy and hidden.dtype == torch.float32:
            return most_likely(output, hidden)
        logits = logits_of(output, hidden)
        return logits.max(-1).indices if greedy else logits


@contextmanager
def packed_forward(model: "PreTrainedModel") -> Generator[PackedForward | None]:
    """Let a model read; yields None where its architecture cannot read tokens in one row.

    Meanwhile its weights lie as `prepacked` leaves them, and its own forward pass still works.
    """
    with prepacked(model), packed_tokens(model) as able:
        yield PackedForward(model) if able else None


def _own_body(model: Any) -> Body | None:
    """Return the forward pass that is written out here, if it is this model's."""
    config = model.config
    if type(model) is GPT2LMHeadModel:
        known = config.activation_function in GATES and not config.add_cross_attention
        return _gpt2 if known and not config.reorder_and_upcast_attn else None
    if type(model) is LlamaForCausalLM:
        return _llama if config.hidden_act in GATES else None
    return None


def _gpt2(
    model: Any,
    ids: torch.Tensor,
    positions: torch.Tensor,
    attend: Attend,
    keep: torch.Tensor | None,
) -> torch.Tensor:
    """Radford et al. 2019."""
    body = model.transformer
    activation = model.config.activation_function
    x = body.wte(ids) + body.wpe(positions)  # [N, W]
    for number, block in enumerate(body.h):
        attn, mlp = block.attn, block.mlp
        heads = attn.c_attn(block.ln_1(x)).view(len(x), 3, attn.num_heads, attn.head_dim)
        seen = attend(number, *heads.unbind(1), attn.scaling)
        seen = seen.reshape(x.shape)
        if block is body.h[-1] and keep is not None:
            x, seen = x[keep], seen[keep]
        x = attn.c_proj(seen).add_(x)
        x = mlp.c_proj(_gated(mlp.c_fc(block.ln_2(x)), activation)).add_(x)
    return body.ln_f(x)


def _llama(
    model: Any,
    ids: torch.Tensor,
    positions: torch.Tensor,
    attend: Attend,
    keep: torch.Tensor | None,
) -> torch.Tensor:
    """Touvron et al. 2023, with grouped key and value heads."""
    body = model.model
    activation = model.config.hidden_act
    count, shared = model.config.num_attention_heads, model.config.num_key_value_heads
    x = body.embed_tokens(ids)  # [N, W]
    cos, sin = body.rotary_emb(x, position_ids=positions[None])
    half = cos.shape[-1] // 2  # the other half repeats it
    turn = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
    for number, layer in enumerate(body.layers):
        attn, mlp = layer.self_attn, layer.mlp
        normed = _rms(layer.input_layernorm, x)
        heads = fused_linear((attn.q_proj, attn.k_proj, attn.v_proj), normed)
        heads = _rotated(heads.unflatten(-1, (-1, attn.head_dim)), turn, count + shared)
        seen = attend(number, *heads.split([count, shared, shared], 1), attn.scaling)
        seen = seen.flatten(1)
        if layer is body.layers[-1] and keep is not None:
            x, seen = x[keep], seen[keep]
        x = attn.o_proj(seen).add_(x)
        inner = fused_linear((mlp.gate_proj, mlp.up_proj), _rms(layer.post_attention_layernorm, x))
        x = mlp.down_proj(_gated(inner, activation, times=True)).add_(x)
    return _rms(body.norm, x)


def _gated(x: torch.Tensor, activation: str, *, times: bool = False) -> torch.Tensor:
    """Return an activation of x [N, W]; times: of its first half, times the second [N, W / 2]."""
    slope, cubic = GATES[activation]
    if _compiled(x):
        out = x.new_empty(len(x), x.shape[1] // (2 if times else 1))
        _kernels().gate(x.numpy(), np.float32(slope), np.float32(cubic), out.numpy())
        return out
    first, second = x.chunk(2, -1) if times else (x, 1)
    return (
        functional.gelu(first, approximate="tanh") if cubic else functional.silu(first)
    ) * second


def _rms(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """Zhang & Sennrich 2019; in fp32 inside, as transformers does it."""
    if _compiled(x):
        out = torch.empty_like(x)
        epsilon = np.float32(norm.variance_epsilon)
        _kernels().rms_norm(x.numpy(), norm.weight.detach().numpy(), epsilon, out.numpy())
        return out
    return functional.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


def _rotated(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], count: int) -> torch.Tensor:
    """Turn pairs (i, i + D / 2) of the first heads: x [N, heads, D], cos and sin [N, D / 2].

    Su et al. 2021, in the layout of transformers. x is not needed any more.
    """
    cos, sin = turn
    if _compiled(x):
        _kernels().rotate(x.numpy(), cos.numpy(), sin.numpy(), count)
        return x
    a, b = x[:, :count].chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([turned, x[:, count:]], 1)


def _compiled(x: torch.Tensor) -> bool:
    """Return whether numba does it: oneDNN's and torch's activations take many times as long."""
    return x.device.type == "cpu" and x.dtype == torch.float32


@cache
def _kernels() -> Any:
    from domain_tokens.inference.cpu import kernels

    return kernels
