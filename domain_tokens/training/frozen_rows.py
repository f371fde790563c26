"""What of a model trains: all of it, only the 45 fact rows, or all but them.

Frozen are a whole parameter, or rows of one: the fact rows lie in the matrices that have a row per
token, and tied embeddings are one of these.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from domain_tokens.vocabulary import FACTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from domain_tokens.runs import TrainedRows


class KeepRows(TrainerCallback):
    """Puts frozen rows back after every optimizer step, to the bit: weight decay moves them.

    Their gradient is zero already, so that clipping counts only what trains.
    """

    def __init__(self, rows: list[tuple[torch.nn.Parameter, slice]]):
        self._rows = rows
        self._kept: list[torch.Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the rows as they begin; those of a checkpoint to resume from are the same."""
        self._kept = [weight.detach()[rows].clone() for weight, rows in self._rows]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put them back."""
        for (weight, rows), kept in zip(self._rows, self._kept, strict=True):
            weight[rows] = kept


@contextmanager
def frozen_rows(model: "PreTrainedModel", train: "TrainedRows") -> Generator[KeepRows | None]:
    """Freeze all that is not to be trained; yield what Trainer has to call, None where all trains.

    Afterwards every parameter takes gradients again, as it did before.
    """
    if train == "all":
        yield None
        return
    matrices = vocabulary_parameters(model)
    first = len(matrices[0]) - len(FACTS)  # the facts are the last rows
    frozen = slice(0, first) if train == "fact_rows" else slice(first, None)
    whole = [] if train == "all_but_fact_rows" else _without(model, matrices)
    before = [(weight, weight.requires_grad) for weight in whole]
    hooks = [weight.register_hook(_without_gradient(frozen)) for weight in matrices]
    try:
        for weight in whole:
            weight.requires_grad_(False)
        yield KeepRows([(weight, frozen) for weight in matrices])
    finally:
        for hook in hooks:
            hook.remove()
        for weight, required in before:
            weight.requires_grad_(required)


def vocabulary_parameters(model: "PreTrainedModel") -> list[torch.nn.Parameter]:
    """Return what has a row per token: embeddings, an output matrix of its own, and its bias."""
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    parameters = [inputs.weight]
    if outputs is not None and outputs.weight is not inputs.weight:
        parameters.append(outputs.weight)
    if getattr(outputs, "bias", None) is not None:
        parameters.append(outputs.bias)
    assert len({len(weight) for weight in parameters}) == 1, [weight.shape for weight in parameters]
    return parameters


def _without(
    model: "PreTrainedModel", matrices: list[torch.nn.Parameter]
) -> list[torch.nn.Parameter]:
    known = {id(weight) for weight in matrices}
    return [weight for weight in model.parameters() if id(weight) not in known]


def _without_gradient(frozen: slice) -> Callable[[torch.Tensor], torch.Tensor]:
    def masked(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[frozen] = 0
        return gradient

    return masked
