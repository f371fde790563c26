"""What a stage trains on: its sources, rendered or found where an earlier run kept them."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens.data import (
    VAL_KEY,
    file_hashes,
    load_questions,
    separate_validation,
    source_identity,
)
from domain_tokens.errors import UserError
from domain_tokens.runs import PACKAGE, code_hash

if TYPE_CHECKING:
    from domain_tokens.checkpoints import VerifiedParent
    from domain_tokens.data import DataReport, Prepared, StageData, UsualValidation
    from domain_tokens.prompts import Renderer
    from domain_tokens.runs import DataSection, SFTConfig
    from domain_tokens.training.stage_run import StageRun


def stage_sources(config: "SFTConfig", usual: "UsualValidation") -> list[tuple[str, str, str]]:
    """Return config key, source and split of everything that a stage reads.

    usual: what the stage validates on where the config names nothing.
    """
    data = config.data
    sources = [("data.source", data.source, data.split)]
    validation = separate_validation(config, usual)
    if validation is not None:
        sources.append((VAL_KEY, *validation))
    if data.decontaminate_against is not None:
        questions = data.decontaminate_against, data.decontaminate_split
        sources.append(("data.decontaminate_against", *questions))
    if data.merges_source is not None:
        sources.append(("data.merges_source", data.merges_source, data.merges_split))
    return sources


def source_files(config: "SFTConfig", usual: "UsualValidation") -> dict[str, str]:
    """Return path and SHA-256 of all local files that a stage reads."""
    files = {}
    for key, source, split in stage_sources(config, usual):
        files |= file_hashes(source, split=split, key=key)
    return files


def test_questions(data: "DataSection") -> list[str]:
    """Return the questions that no training row may repeat; none where the config says null."""
    if data.decontaminate_against is None:
        return []
    return load_questions(
        data.decontaminate_against,
        split=data.decontaminate_split,
        key="data.decontaminate_against",
    )


def refuse_unsuited(config: "SFTConfig", usual: "UsualValidation", *, inject: bool) -> None:
    """Raise UserError for a setting that this stage, or this arm, has no use for.

    usual: what the stage validates on where the config names nothing. inject: whether its text gets
    fact tokens.
    """
    if usual == "holdout" and config.data.rationale != "full":
        raise UserError(
            f"data.rationale={config.data.rationale} is of the GSM8K stage; chat rows have no "
            "calculator annotations: leave data.rationale out"
        )
    if config.training.train == "fact_rows" and not inject:
        raise UserError(
            "training.train=fact_rows, and no fact token is in the training text: the rows could "
            "only learn not to be said; train the arm that has them, or all rows"
        )


def _loading_code(load: Callable) -> str:
    """Return the hash of the code that decides what a stage's examples are."""
    alone = [Path(__file__), PACKAGE / "runs" / "config.py", Path(inspect.getfile(load))]
    return code_hash([PACKAGE / "data" / "prepared.py"], alone=alone)


def stage_identity(
    run: "StageRun", load: Callable[["SFTConfig"], "StageData"], parent: "VerifiedParent"
) -> dict[str, Any]:
    """Return what tells a stage's rows, tokenizer and settings apart, whatever the treatment."""
    config, settings = run.config, run.config.training
    limits = ("max_length", "max_train_samples", "max_val_samples", "loss_on")
    return {
        "sources": [
            source_identity(source, split=split, key=key)
            for key, source, split in stage_sources(config, run.usual_validation)
        ],
        "data": config.data.model_dump(exclude={"treatment", "treated_facts"}),
        "training": {name: getattr(settings, name) for name in limits},
        "tokenizer": parent.hashes["tokenizer"],
        "kind": load.__module__,
        "code": _loading_code(load),
    }


def prepare_stage(
    run: "StageRun",
    load: Callable[["SFTConfig"], "StageData"],
    renderer: "Renderer",
    *,
    parent: "VerifiedParent",
    treatment: dict[str, Any] | None,
) -> "Prepared":
    """Render what a stage trains on, or find it where an earlier run of the same data kept it.

    parent: as verified. treatment: what the renderer writes, as the run card records it.
    """
    from domain_tokens.data import prepare_examples

    config = run.config
    refuse_unsuited(config, run.usual_validation, inject=run.inject)
    identity = {**stage_identity(run, load, parent), "treatment": treatment}
    prepared = prepare_examples(
        lambda: load(config), renderer, max_length=config.training.max_length, identity=identity
    )
    if not prepared.train:
        dropped = prepared.account.dropped
        raise UserError(f"no training example is left (dropped: {dropped}); see data.source")
    if not prepared.validation and prepared.account.eval_split is not None:
        raise UserError(
            f"{_validation_drops(prepared.account)}, none is left; see {VAL_KEY}, or write "
            "training.max_val_samples=0"
        )
    return prepared


def _validation_drops(account: "DataReport") -> str:
    lost = account.validation_dropped
    reasons = ", ".join(f"{n} {reason}" if len(lost) > 1 else reason for reason, n in lost.items())
    return f"validation: {sum(lost.values())} dropped ({reasons or 'there were no rows'})"
