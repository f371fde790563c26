"""Linear layers with weights in oneDNN's own layout, while a model only reads, on a CPU.

torch gives fp32 products to MKL, which rearranges the weights anew for each of them; for the few
dozen rows of a decoding step that takes as long as the product. oneDNN takes weights that were
rearranged once; torch's compiler calls the same two operations when it freezes a graph.
"""

import platform
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def prepacked(model: torch.nn.Module) -> Generator[None]:
    """Let the linear layers of a model multiply with rearranged weights; not for training.

    Off an x86 CPU and in other types than float32 nothing happens. Meanwhile a layer's own weight
    is away, so that there is only one of it, unless another layer holds it, too. Where a model is
    packed already it stays so.
    """
    layers = _layers(model)
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.unpack)
        _pack(model, layers)
        yield


def for_good(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return a model that from now on only reads, with its weights as `prepacked` leaves them."""
    model.eval()
    _pack(model, _layers(model))
    return model


def _pack(model: torch.nn.Module, layers: "list[_Layer]") -> None:
    for layer in layers:
        layer.pack()
    if layers:
        _leave_files(model)


def plus(layer: Any, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return layer(x) + other, in one operation where the layer is packed."""
    packed = vars(layer).get("forward")
    return packed.joined(x, other, "add") if isinstance(packed, _Layer) else layer(x) + other


def times(layer: Any, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return layer(x) * other, in one operation where the layer is packed."""
    packed = vars(layer).get("forward")
    return packed.joined(x, other, "mul") if isinstance(packed, _Layer) else layer(x) * other


@torch.inference_mode(False)
@torch.no_grad()
def _leave_files(model: torch.nn.Module) -> None:
    """Copy what is left: tensors that were read from a file are windows of all of it."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


class _Layer:
    """A linear layer, of torch or of GPT-2 (whose weight is transposed), and its packed weight.

    Whatever was made in inference mode could never be trained again, so neither of these is.
    """

    def __init__(self, module: Any, *, shared: bool):
        self._module, self._shared = module, shared
        self._packed: Any = None

    @torch.inference_mode(False)
    @torch.no_grad()
    def pack(self) -> None:
        """Rearrange the weight and let the layer use it."""
        weight = self._module.weight
        plain = weight.t().contiguous() if isinstance(self._module, Conv1D) else weight.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain)
        self._bias = self._module.bias
        self._module.forward = self
        if not self._shared:
            weight.data = weight.new_empty(0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")

    def joined(self, x: torch.Tensor, other: torch.Tensor, how: str) -> torch.Tensor:
        """Return the product plus ("add") or times ("mul") another tensor."""
        product = torch.ops.mkldnn._linear_pointwise.binary
        return product(x, other, self._packed, self._bias, how)

    @torch.inference_mode(False)
    @torch.no_grad()
    def unpack(self) -> None:
        """Give the layer back what it had, to the bit."""
        if self._packed is None:
            return
        if not self._shared:
            plain = self._packed.to_dense()
            transposed = isinstance(self._module, Conv1D)
            self._module.weight.data = plain.t().contiguous() if transposed else plain
        del self._module.forward, self._packed


def _layers(model: torch.nn.Module) -> list[_Layer]:
    """Return the layers that can be packed and are not."""
    if platform.machine() not in {"x86_64", "AMD64"} or not torch.backends.mkldnn.is_available():
        return []
    holders = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    return [
        _Layer(module, shared=holders[id(module.weight)] > 1)
        for module in model.modules()
        if type(module) in (torch.nn.Linear, Conv1D)
        and "forward" not in vars(module)
        and (module.weight.device.type, module.weight.dtype) == ("cpu", torch.float32)
    ]
