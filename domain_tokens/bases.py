"""How a base checkpoint ends: extended, saved, with a run card, its results last."""

from typing import Any

from domain_tokens import checkpoints, run_card, vocabulary
from domain_tokens.errors import UserError
from domain_tokens.outputs import Workspace


def extend_and_save(model: Any, tokenizer: Any, workspace: Workspace, *, seed: int) -> dict:
    """Give model and tokenizer the padding and fact tokens, save both, return what was made.

    Raises UserError where the model's rows and the tokenizer do not belong together.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    try:
        layout = vocabulary.extend_tokenizer(tokenizer, model_vocab_size=rows)
        vocabulary.extend_model(model, layout, tokenizer, seed=seed)
    except ValueError as error:
        raise UserError(str(error)) from None
    checkpoints.save(model, tokenizer, workspace.work)
    kept = rows == layout.total
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": layout.total,
        "first_fact_id": layout.first_fact_id,
        "fact_rows": "the source's" if kept else "mean of the rows of a*b=c + noise",
    }


def finish(
    workspace: Workspace,
    *,
    condition: str,
    seed: int,
    source: str,
    parent: dict[str, Any] | None,
    made: dict[str, Any],
) -> None:
    """Write the run card and, last of all, the results.

    parent: path and weights of a base this one was made from. made: goes into card and results.
    """
    work = workspace.work
    card = {
        "stage": "base",
        "condition": condition,
        "seed": seed,
        "source": source,
        **checkpoints.description(work),
        "parent": parent,
        **made,
        "identity": workspace.identity,
        "formats": run_card.formats(),
        "code": run_card.code_identity(),
        "environment": run_card.environment("cpu", "float32"),
    }
    results = {"condition": condition, "source": source, "weights": card["weights"], **made}
    run_card.write_json(work / run_card.CARD_NAME, run_card.sealed({**card, "results": results}))
    run_card.write_json(work / workspace.results_name, run_card.sealed(results))
    workspace.complete()
