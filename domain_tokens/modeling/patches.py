"""What we change in a transformers model: each a context manager or a function of its own.

Whoever lets a layer compute something else does so through `replace_forward`, which refuses a
second one. So `without_head` and packed weights (inference/cpu) exclude each other, both of which
take the output layer; packed tokens go with either. Dropout and activations are changed once and
stay so.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def replace_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> None:
    """Let a layer compute something else until `restore_forward`.

    Raises RuntimeError where another change of ours does so already: undoing one of the two would
    undo the other, too.
    """
    refuse_replaced(module)
    module.forward = forward


def replaced_forward(module: torch.nn.Module) -> Callable[..., Any] | None:
    """Return what a layer computes instead of its own forward pass, None where it is its own."""
    return vars(module).get("forward")


def refuse_replaced(module: torch.nn.Module) -> None:
    """Raise RuntimeError where a layer computes something else already."""
    replacement = replaced_forward(module)
    if replacement is not None:
        name = getattr(replacement, "__qualname__", type(replacement).__name__)
        raise RuntimeError(
            f"the forward pass of {module} is replaced already (by {name}); end that before"
        )


def restore_forward(module: torch.nn.Module) -> None:
    """Let a layer compute what its class says."""
    vars(module).pop("forward", None)


def without_dropout(model: "PreTrainedModel") -> None:
    """Set every dropout of a model to 0, in its config, too."""
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


# Architectures whose logits are the output layer's alone: no scaling, no capping after it.
PLAIN_HEADS = {"gpt2", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"}


def plain_head(model: Any) -> torch.nn.Linear | None:
    """Return the output layer where the logits are its alone and have no bias, else None."""
    head = model.get_output_embeddings()
    plain = model.config.model_type in PLAIN_HEADS and isinstance(head, torch.nn.Linear)
    return head if plain and head.bias is None else None


@contextmanager
def without_head(model: Any) -> Generator[torch.nn.Linear | None]:
    """Let the model return the hidden states that its output layer would get, as its logits.

    So the loss can be computed in chunks after a wrapped (DDP) forward pass. Yields the layer, or
    None where the architecture does more after it; then nothing is changed. Raises RuntimeError
    within itself and where the layer is packed: neither is meant for a model that trains.
    """
    head = plain_head(model)
    if head is None:
        yield None
        return
    replace_forward(head, _unchanged)
    try:
        yield head
    finally:
        restore_forward(head)


def _unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


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
