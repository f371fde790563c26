"""Linear layers with weights in oneDNN's own layout, while a model only reads, on a CPU.

torch gives fp32 products to MKL, which rearranges the weights again for each of them; for the few
dozen rows of a decoding step that takes as long as the product. oneDNN takes weights that were
rearranged once; torch's compiler calls the same two operations when it freezes a graph.
"""

import platform
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP
from transformers.pytorch_utils import Conv1D

from domain_tokens.inference.cpu.int8_argmax import Int8Argmax, int8_available
from domain_tokens.modeling import (
    refuse_replaced,
    replace_forward,
    replaced_forward,
    restore_forward,
)

# Layers of a module that read the same input; other classes' own code would call them one by one.
FUSED_PROJECTIONS = {
    LlamaAttention: ("q_proj", "k_proj", "v_proj"),
    LlamaMLP: ("gate_proj", "up_proj"),
}


@contextmanager
def prepacked(model: torch.nn.Module) -> Generator[None]:
    """Let the linear layers of a model multiply with rearranged weights; not for training.

    Off an x86 CPU and in other types than float32 nothing happens. Meanwhile a layer's own weight
    is away, so that there is only one of it, unless another layer holds it, too. Where a model is
    packed already it stays so. Raises RuntimeError within `without_head`.
    """
    layers = _layers(model)
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.unpack)
        _pack(layers)
        yield


def prepack_(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model that from now on only reads, with its weights as `prepacked` leaves them."""
    model.eval()
    _pack(_layers(model))
    return model


def _pack(layers: "list[_Layer]") -> None:
    if not layers:
        return
    for layer in layers:
        layer.refuse_replaced()
    for layer in layers:
        layer.pack()


def fused_linear(layers: Sequence[Any], x: torch.Tensor) -> torch.Tensor:
    """Return the layers' products of x side by side, in one operation where they are packed so."""
    part = replaced_forward(layers[0])
    if isinstance(part, _Part):
        return part.whole(x)
    return torch.cat([layer(x) for layer in layers], -1)


def most_likely(output: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the token of the largest logit, int64 [N], of an output layer's x [N, W]."""
    own = replaced_forward(output)
    if isinstance(own, _Output) and own.has_int8_argmax:
        return own.most_likely(x)
    return output(x).max(-1).indices  # three times as fast as argmax on a CPU


class _Layer:
    """Linear layers, of torch or of GPT-2 (whose weight is transposed), in one packed weight.

    Several of them read the same input and share nothing with others. Whatever was made in
    inference mode could never be trained again, so neither of these is.
    """

    def __init__(self, *modules: Any, shared: bool = False):
        self._modules, self._shared = modules, shared
        self._packed: Any = None

    def refuse_replaced(self) -> None:
        """Raise RuntimeError where one of the layers computes something else already."""
        for module in self._modules:
            refuse_replaced(module)

    @torch.inference_mode(False)
    @torch.no_grad()
    def pack(self) -> None:
        """Rearrange the weight and let the layers use it."""
        plain = self.rearrange()
        for module, weight, end in zip(self._modules, plain, accumulate(self._sizes), strict=True):
            part = slice(end - len(weight), end)
            replace_forward(module, self if len(plain) == 1 else _Part(self, part))
            if not self._shared:
                module.weight.data = weight.new_empty(0)

    @torch.inference_mode(False)
    @torch.no_grad()
    def rearrange(self) -> list[torch.Tensor]:
        """Keep the weight in oneDNN's layout; return the layers' own, each [outputs, inputs]."""
        plain = [_plain(module) for module in self._modules]
        biases = [module.bias for module in self._modules if module.bias is not None]
        self._packed = torch.ops.mkldnn._reorder_linear_weight(_joined(plain))
        self._bias = _joined(biases) if biases else None
        self._sizes = [len(weight) for weight in plain]
        return plain

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")

    @torch.inference_mode(False)
    @torch.no_grad()
    def unpack(self) -> None:
        """Give the layers back what they had, to the bit."""
        if self._packed is not None and not self._shared:
            plain = self._packed.to_dense().split(self._sizes)
            for module, weight in zip(self._modules, plain, strict=True):
                transposed = isinstance(module, Conv1D)
                module.weight.data = weight.t().contiguous() if transposed else weight.clone()
        for module in self._modules:
            if isinstance(replaced_forward(module), _Layer | _Part):
                restore_forward(module)
        self._packed = None


class _Output(_Layer):
    """An output layer, which keeps its weight; packed or in integers when first asked."""

    def __init__(self, module: Any):
        super().__init__(module, shared=True)
        self._module, self._int8_argmax = module, None
        self.has_int8_argmax = int8_available() and module.bias is None

    def pack(self) -> None:
        """Stand in for the layer."""
        replace_forward(self._module, self)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return all logits."""
        if self._packed is None:
            self.rearrange()
        return super().__call__(x)

    def most_likely(self, x: torch.Tensor) -> torch.Tensor:
        """Return the token of the largest logit of each row."""
        if self._int8_argmax is None:
            self._int8_argmax = Int8Argmax(self._module.weight)
        return self._int8_argmax(x)

    def unpack(self) -> None:
        """Leave the layer as it was."""
        super().unpack()
        self._int8_argmax = None


class _Part:
    """A layer that is packed with others; called alone it computes theirs, too."""

    def __init__(self, whole: _Layer, which: slice):
        self.whole, self._which = whole, which

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        return self.whole(x)[..., self._which]


def _plain(module: Any) -> torch.Tensor:
    """Return a layer's weight, [outputs, inputs]."""
    return module.weight.t().contiguous() if isinstance(module, Conv1D) else module.weight.detach()


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return one below the other; a single one without a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _layers(model: torch.nn.Module) -> list[_Layer]:
    """Return the layers that can be packed and are not."""
    if platform.machine() not in {"x86_64", "AMD64"} or not torch.backends.mkldnn.is_available():
        return []
    holders = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    able = {
        module: None
        for module in model.modules()
        if type(module) in (torch.nn.Linear, Conv1D)
        and not isinstance(replaced_forward(module), _Layer | _Part)
        and (module.weight.device.type, module.weight.dtype) == ("cpu", torch.float32)
    }
    layers: list[_Layer] = []
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if output in able:
        layers.append(_Output(output))
        del able[output]
    for module in model.modules():
        fused = [getattr(module, name) for name in FUSED_PROJECTIONS.get(type(module), ())]
        if fused and all(x in able and holders[id(x.weight)] == 1 for x in fused):
            layers.append(_Layer(*fused))
            for x in fused:
                del able[x]
    return layers + [_Layer(module, shared=holders[id(module.weight)] > 1) for module in able]
