"""What an SFT stage writes: results, a line of its log, and the rows that it dropped."""

from domain_tokens.runs.config import SFTConfig
from domain_tokens.runs.results.parts import Condition, FactRows
from domain_tokens.runs.results.record import (
    NATS,
    SHA256,
    SHARE,
    Record,
    given,
    since,
)

# Of the results of a stage: what is not known before the last step.
MEASURED = (
    *("train_loss", "train_runtime", "train_samples_per_second", "tokens_per_second"),
    *("peak_memory_bytes", "flops", "mfu", "peak_flops_used"),
    *("eval_loss", "eval_bits_per_byte", "eval_eligible_bits_per_byte"),
)


class StageNumbers(Record):
    """What a stage counted and measured; a card repeats it."""

    condition: Condition = given("arm")
    seed: int = given("seed")
    dataset: str = given("data.source")
    total_train_samples: int = given("examples trained on, per epoch", "examples")
    total_val_samples: int = given("examples of the final loss", "examples")
    optimizer_steps: int = given("optimizer steps of all epochs", "steps")
    tokens: int = given("tokens of all epochs", "tokens")
    supervised_tokens: int = given("tokens that carry loss, of all epochs", "tokens")
    dropped: dict[str, int] = given("training rows that were dropped, by reason", "rows")
    validation_dropped: dict[str, int] = since(
        "2026-11-26", "validation rows that were dropped, by reason", "rows"
    )
    irregular_rows: dict[str, list[int]] = since(
        "2026-11-26", "1-based numbers of training rows that could not be read, by reason"
    )
    solutions_without_equations: int | None = since(
        "2026-11-26",
        "solutions without an equation; null where data.rationale is full",
        "rows",
    )
    untreated_places: int = since("2026-11-26", "matches that were left as text", "matches")
    truncated: int = given("examples that lost their last exchanges", "examples")
    inject: bool = since("2026-11-26", "whether facts became fact tokens")
    injected_examples: int = since("2026-11-24", "examples with a fact token", "examples")
    injected_tokens: int = since("2026-11-24", "fact tokens in the examples", "tokens")
    injected_example_share: float = since(
        "2026-11-26", "share of the examples with a fact token", SHARE, absent="as injection_rate"
    )
    injection_rate: float = given("the same by its older name, for who reads it", SHARE)
    source_composition: dict[str, int] = given("examples by sub-corpus", "examples")
    order_digest: str = given("hash of the example ids in the order of training", SHA256)
    eval_split: str | None = given("split of the final loss: test, holdout, …; null without one")
    fact_rows: FactRows = since("2026-11-26", "how the fact rows began")
    train_loss: float = given("mean over the optimizer steps", NATS)
    train_runtime: float = given("training, all segments of a resumed run", "seconds")
    train_samples_per_second: float = given("examples of all epochs", "examples/second")
    tokens_per_second: float = given("tokens of all epochs", "tokens/second")
    peak_memory_bytes: int = given("of the GPU, or of the process on a CPU", "bytes")
    flops: float = since("2026-11-26", "of the training", "FLOP")
    mfu: float | None = given("share of the device's peak rate; null if unknown", SHARE)
    peak_flops_used: float | None = given("peak rate that mfu refers to", "FLOP/second")
    eval_loss: float | None = given("per supervised token, after the last step", NATS)
    eval_bits_per_byte: float | None = given("of the text outside the facts", "bits/byte")
    eval_eligible_bits_per_byte: float | None = since(
        "2026-11-24", "of the facts' text", "bits/byte"
    )


class StageResults(StageNumbers):
    """`tulu_sft_results.json` and `sft_results.json`."""

    config: SFTConfig = given("resolved config but for the tracking")
    seal: str = since("2026-11-26", "hash of all other keys, against accidents", SHA256)


class TrainLogLine(Record):
    """A line of `train_log.jsonl`, at every logging step."""

    step: int = given("optimizer steps done", "steps")
    steps: int = given("optimizer steps of the run", "steps")
    loss: float = given("mean since the line before", NATS)
    learning_rate: float | None = given("of this step", "per step")
    grad_norm: float | None = given("of this step, before clipping", "L2 norm")
    tokens_per_second: float = given("since the line before", "tokens/second")
    seconds: float = given("training so far, all segments", "seconds")


class RepeatedRow(Record):
    """A training row that repeats a test question."""

    id: str = given("of the row")
    row: int = given("1-based number in its source")
    source: str = given("its sub-corpus")
    question_index: int = given("0-based number of the test question")
    coverage: float = given("share of the question's words that the turn repeats", SHARE)
    role: str = given("who speaks the turn")
    text: str = given("first 200 characters of the turn")


class Decontaminated(Record):
    """`decontaminated.json`, where rows were dropped."""

    dropped: list[RepeatedRow] = given("rows that repeat a test question")
    seal: str = since("2026-11-26", "hash of all other keys, against accidents", SHA256)
