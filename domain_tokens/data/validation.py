"""Where a stage's validation rows come from: never from the rows that it trains on."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from domain_tokens.data.corpora import without_rows_of
from domain_tokens.data.examples import DataRow
from domain_tokens.data.sources import same_rows
from domain_tokens.errors import UserError

if TYPE_CHECKING:
    from domain_tokens.runs import DataSection, SFTConfig

VAL_KEY = "data.validation_source"
# What a stage validates on where the config names nothing: rows held out of its own training
# split, or the split "test" of its source.
UsualValidation = Literal["holdout", "test"]


def separate_validation(config: "SFTConfig", usual: UsualValidation) -> tuple[str, str] | None:
    """Return source and split of validation rows that are not of the training split, or None.

    None: none are wanted, they are held out of the training split, or there are none, because one
    file is every split. Raises UserError where the config names the training rows for validation.
    """
    data = config.data
    if config.training.max_val_samples == 0 or is_held_out(data, usual):
        return None
    split = data.validation_split or ("validation" if usual == "holdout" else usual)
    rows = data.validation_source or data.source, split
    if not same_rows(rows, (data.source, data.split), key=VAL_KEY):
        return rows
    named = data.validation_source is not None or data.validation_split == data.split
    if named or usual == "holdout":
        raise UserError(
            f"{VAL_KEY}: {rows[0]}, split {split!r}, is what is trained on; name other rows as "
            f"{VAL_KEY}, hold some out (data.holdout in the GSM8K stage; in the Tulu stage by "
            "leaving both validation keys out), or write training.max_val_samples=0"
        )
    return None


def is_held_out(data: "DataSection", usual: UsualValidation) -> bool:
    """Whether validation rows are drawn from the training split before anything is trained on.

    Raises UserError for data.holdout where the stage has no use for it.
    """
    if usual == "test":
        return data.holdout is not None
    if data.holdout is not None:
        raise UserError(
            "data.holdout is of the GSM8K stage; this one holds training.max_val_samples rows out: "
            "leave data.holdout out"
        )
    return data.validation_split is None and data.validation_source in (None, data.source)


def no_test_rows(data: "DataSection") -> str:
    """Return the line that says why there is no test loss."""
    return (
        f"validation: none: {data.source} is one file and trained on whole, so no test loss; name "
        f"test rows as {VAL_KEY}, or hold some out with data.holdout"
    )


def apart_from_training(
    validation: Sequence[DataRow], training: Sequence[DataRow]
) -> tuple[list[DataRow], Counter[str]]:
    """Return the validation rows that are not trained on, and the count of the others by reason.

    Raises UserError where all of them are trained on.
    """
    kept, known = without_rows_of(validation, training)
    if validation and not kept:
        raise UserError(
            f"{VAL_KEY}: all {known} validation rows are also training rows; name other rows, hold "
            "some out, or write training.max_val_samples=0"
        )
    return kept, +Counter(also_in_training=known)
