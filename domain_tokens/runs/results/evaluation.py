"""What evaluations write: items and other lines, metrics, and the card within the results."""

from typing import Any, Literal

from domain_tokens.runs.config import GSM8KSection, ProbeSection
from domain_tokens.runs.results.card import card_model
from domain_tokens.runs.results.parts import (
    Code,
    Condition,
    Environment,
    Formats,
    Hashes,
)
from domain_tokens.runs.results.record import (
    NATS,
    SHA256,
    SHARE,
    Grid,
    Interval,
    Record,
    copied,
    given,
    only,
    since,
)

SAMPLED = "rationales were sampled"
Stop = Literal["eos", "length", "context"]

# --- lines ------------------------------------------------------------------------------------


class Item(Record):
    """What every answered question says."""

    id: str = given("of the question")
    category: str = given("gsm8k, mul_table, mul_multidigit, addition")
    prompt: str = given("the question as text")
    prompt_hash: str = given("hash of the prompt's token ids", SHA256)
    response: str = given("greedy response; fact tokens read `<MUL_6_9_54>`")
    token_ids: list[int] = since("2026-11-24", "of the response, without EOS")
    fact_spans: list[list[int]] = since(
        "2026-11-24", "[start, end) of each fact token in the response", "characters"
    )
    stop_reason: Stop = given("eos, length (max_new_tokens) or context")
    gold: str = given("right answer as a number")
    mul_tokens: int = since("2026-11-24", "fact tokens of the response, by id", "tokens")
    mul_tokens_correct: int = since(
        "2026-11-24", "of these, facts that belong in the answer", "tokens"
    )
    mul_tokens_valid: int = since("2026-11-24", "of these, facts right where they stand", "tokens")
    reserved_tokens: int = since("2026-11-24", "padding tokens of the response, by id", "tokens")
    strict: str | None = since("2026-11-26", "number that strict reading finds")
    credited: str | None = since("2026-11-26", "the same, expressions and fact tokens credited")
    correct: bool = given("whether strict equals gold")
    correct_credited: bool = given("whether credited equals gold")


class FirstWrong(Record):
    """The first wrong equation of a wrong answer."""

    kind: Literal["table_fact", "product", "sum", "difference", "quotient", "none"] = given(
        "what it is of; none: every equation is right, the set-up is not"
    )
    equation: str | None = given("as written; null for none")


class ItemScores(Record):
    """G1, G2 and their variants, of an item or as a mean over items."""

    g1: float = only(SAMPLED, "probability of the gold answer after the own rationales", SHARE)
    g1_half: float = only(SAMPLED, "the same over the first half of the rationales", SHARE)
    g1_log: float = only(SAMPLED, "log of g1", NATS)
    g1_log_half: float = only(SAMPLED, "log of g1_half", NATS)
    g2: float = only(SAMPLED, "log p of gold among gold and 16 distractors, no rationale", NATS)


class GSM8KItem(Item, ItemScores):
    """A line of `gsm8k_items.jsonl`."""

    flexible: str | None = since("2026-11-26", "last number of the response")
    correct_flexible: bool = given("whether flexible equals gold")
    applicable: bool = since("2026-11-24", "whether the gold solution uses a fact")
    gold_facts: list[str] = only(
        "written by code that knows half tables",
        "fact tokens of the gold solution, distinct, in the order of their ids",
    )
    first_wrong: FirstWrong | None = only(
        "written by code that attributes", "first wrong equation; null where correct"
    )
    forced_cuts: int = only(SAMPLED, "rationales that never came to `####`", "rationales")
    g1_log_probs: list[float] = only(SAMPLED, "log p of gold after each rationale", NATS)
    g2_log_probs: list[float] = only(
        SAMPLED, "without a rationale: log p of gold, then of the 16 distractors", NATS
    )
    rationales_sha256: str = only(SAMPLED, "hash of the rationales' token ids", SHA256)


class GSM8KRationales(Record):
    """A line of `gsm8k_rationales.jsonl`: the K sampled rationales of one item."""

    id: str = given("of the item")
    token_ids: list[list[int]] = given("of each rationale, without EOS")
    stop_reasons: list[Stop] = given("why each ended")


class ArithmeticItem(Item):
    """A line of `arithmetic_items.jsonl`."""


class ArithmeticScore(Record):
    """A line of `arithmetic_scores.jsonl`: one cell of the 9×9 table in one wording."""

    a: int = given("first factor, 1–9")
    b: int = given("second factor, 1–9")
    template: str = given("wording of the question")
    log_prob: float = given("log p of the product in digits + EOS", NATS)
    log_sum: float = given("log of the sum over the 36 products of the table", NATS)
    value: float = given("log_prob - log_sum", NATS)
    fact_mass: float = given("probability that the next token is any fact token", SHARE)
    both_routes: float = only(
        "written by code that knows both routes",
        "as value, digits and fact token of each product counted together",
        NATS,
    )


class PartialResponse(Record):
    """A line of `*_items.partial*.jsonl` after the first one (an `EvaluationIdentity`)."""

    id: str = given("of the item, or of a rationale as in `item#3`")
    token_ids: list[int] = given("of the response, without EOS")
    stop: Stop = given("why it ended")


# --- metrics ----------------------------------------------------------------------------------


class Speed(Record):
    """What was measured of the greedy answers."""

    samples_per_second: float = given("responses", "responses/second")
    tokens_per_second: float = given("tokens of the responses", "tokens/second")
    seconds: float = since("2026-11-24", "greedy decoding alone", "seconds")


class Metrics(Speed):
    """What every evaluation says."""

    condition: Condition = given("arm")
    model_path: str = given("folder of the checkpoint, as given")
    correct: int = given("items that are strictly right", "items")
    total: int = given("items", "items")
    stop_rate: float = given("share of the responses that ended by EOS", SHARE)
    run_on_rate: float = given("share of the responses with a line `User:` of their own", SHARE)
    avg_response_tokens: float = given("mean length of a response", "tokens")
    mul_token_count: int = given("fact tokens of all responses", "tokens")
    mul_tokens_per_response: float = given("their mean", "tokens")
    mul_token_correct_rate: float | None = since(
        "2026-11-24", "share of these that belong in the answer; null without any", SHARE
    )
    mul_token_valid_rate: float | None = since(
        "2026-11-24", "share of these that are right where they stand; null without any", SHARE
    )
    reserved_token_count: int = given("padding tokens of all responses", "tokens")


class GSM8KMetrics(Metrics, ItemScores):
    """`metrics` of `gsm8k_results.json`; g1 … g2 are means over items."""

    accuracy: float = given("share of the items that are strictly right", SHARE)
    accuracy_interval_95: Interval = given("Wilson's interval", SHARE)
    accuracy_expression_credited: float = given(
        "the same, expressions and fact tokens credited", SHARE
    )
    accuracy_flexible: float = given("share whose last number is right", SHARE)
    training_mode_answer: str = since("2026-11-24", "most frequent answer of the training data")
    training_mode_accuracy: float = since("2026-11-24", "what always giving it scores", SHARE)
    best_constant_answer: str = since("2026-11-24", "most frequent gold answer")
    best_constant_accuracy: float = given("what always giving it scores", SHARE)
    matched_floor: float = since(
        "2026-11-24", "accuracy expected of these answers in random order", SHARE
    )
    matched_floor_p: float = since("2026-11-24", "p of accuracy against that order", SHARE)
    g1_rationales: int = only(SAMPLED, "K, rationales per item", "rationales")
    g1_forced_cut_share: float = only(SAMPLED, "share of rationales without `####`", SHARE)
    attribution: dict[str, int] = only(
        "written by code that attributes", "wrong answers by `first_wrong.kind`", "items"
    )


class CategoryAccuracy(Record):
    """One category of probes."""

    accuracy: float = given("share that is strictly right", SHARE)
    correct: int = given("probes that are strictly right", "items")
    total: int = given("probes", "items")


class ArithmeticMetrics(Metrics):
    """`metrics` of `arithmetic_results.json`."""

    overall_accuracy: float = given("share of all probes that are strictly right", SHARE)
    overall_accuracy_interval_95: Interval = given("Wilson's interval", SHARE)
    overall_accuracy_expression_credited: float = given(
        "the same, expressions and fact tokens credited", SHARE
    )
    category_accuracies: dict[str, CategoryAccuracy] = given("by category")
    table_grid: list[list[float | bool]] = given(
        "accuracy of each cell a×b as [a - 1][b - 1]; before 2026-11-24 whether it was right", SHARE
    )
    a1: float = since("2026-11-24", "A1: mean over the cells", NATS)
    a1_grid: Grid = since("2026-11-24", "A1 of each cell a×b as [a - 1][b - 1]", NATS)
    fact_mass: float = since("2026-11-24", "mean probability of a fact token at once", SHARE)
    a1_both_routes: float = only(
        "written by code that knows both routes",
        "A1 with digits and fact token of each product counted together",
        NATS,
    )
    a1_both_routes_grid: Grid = only(
        "written by code that knows both routes", "the same of each cell", NATS
    )


# --- the card and the file --------------------------------------------------------------------


class Reading(Record):
    """How the items were read from their data."""

    source: str = given("file, folder or hub id")
    split: str = given("split")
    limit: int | None = given("items at most, drawn by hash; null for all", "items")
    subset_seed: int = given("that they are drawn from")


class GSM8KData(Record):
    """What was asked."""

    source: str = given("file, folder or hub id")
    test: str = given("fingerprint of the rows", SHA256)
    dropped: dict[str, int] = only("rows were dropped", "rows by reason", "rows")


class ProbesData(Record):
    """What was asked."""

    probes: str = given("hash of questions and answers", SHA256)


class GSM8KDecode(GSM8KSection):
    """Settings of the config, resolved."""

    frequent_answers: list[str] = since("2026-11-24", "training answers, most frequent first")
    rationale_seed: int = since("2026-11-24", "that rationales are sampled from")
    greedy: bool = given("whether the answers that are scored were decoded greedily")
    calculator: Literal["facts", "all"] | None = only(
        "written by code that knows a calculator", "which results were forced while decoding"
    )
    forbid_fact_tokens: bool = only(
        "written by code that can forbid them", "whether fact tokens could not be decoded"
    )


class ProbeDecode(ProbeSection):
    """Settings of the config, resolved."""

    greedy: bool = given("whether the answers that are scored were decoded greedily")
    forbid_fact_tokens: bool = only(
        "written by code that can forbid them", "whether fact tokens could not be decoded"
    )


class EvaluatedCheckpoint(Record):
    """The folder under test."""

    path: str = given("where it lay")


class EvaluationCard(Hashes):
    """`card` of the results of every evaluation."""

    command: str = since("2026-11-24", "what a person would type to do the same again")
    condition: Condition = given("arm")
    seed: int | None = given("training seed of the checkpoint; null without a card")
    model_path: str = given("folder of the checkpoint, as given")
    architecture: dict[str, Any] = since("2026-11-26", "config.json without versions and paths")
    training: dict[str, Any] | None = copied(
        card_model, "run card of the checkpoint; null for a base without one"
    )
    parent: EvaluatedCheckpoint = given("checkpoint under test")
    formats: Formats = given("versions of the rules")
    sources: dict[str, str] = since("2026-11-24", "hash of each local data file by path", SHA256)
    reading: Reading | None = since("2026-11-26", "how the items were read; null for probes")
    code: Code = given("code that decoded and scored")
    environment: Environment = given("machine that decoded")


class GSM8KCard(EvaluationCard):
    """`card` of `gsm8k_results.json`."""

    stage: Literal["gsm8k"] = given("what was asked")
    data: GSM8KData = given("the questions")
    decode: GSM8KDecode = given("decoding and scoring")


class ArithmeticCard(EvaluationCard):
    """`card` of `arithmetic_results.json`."""

    stage: Literal["arithmetic"] = given("what was asked")
    data: ProbesData = given("the questions")
    decode: ProbeDecode = given("decoding and scoring")


class BoundFile(Record):
    """A file of lines that belongs to the results."""

    file: str = given("its name")
    sha256: str = given("hash of the file", SHA256)
    count: int = given("its lines", "lines")


class Results(Record):
    """What the results of every evaluation bind."""

    items: BoundFile = since("2026-11-26", "the items", absent="only accuracies can be checked")
    seal: str = since("2026-11-26", "hash of all other keys, against accidents", SHA256)


class GSM8KResults(Results):
    """`gsm8k_results.json`."""

    metrics: GSM8KMetrics = given("the numbers")
    examples: list[GSM8KItem] = given("the first 50 items")
    card: GSM8KCard = given("run card")
    rationales: BoundFile = only(SAMPLED, "the rationales")


class ArithmeticResults(Results):
    """`arithmetic_results.json`."""

    metrics: ArithmeticMetrics = given("the numbers")
    card: ArithmeticCard = given("run card")
    scores: BoundFile = since("2026-11-26", "the lines of A1")


class EvaluationIdentity(Record):
    """First line of `*_items.partial*.jsonl`: what has to be the same for a resumed evaluation."""

    stage: str = given("as in the card")
    condition: Condition = given("as in the card")
    weights: str = given("as in the card", SHA256)
    model: str | None = given("as in the card; null for a card of an older version", SHA256)
    formats: Formats = given("as in the card")
    data: dict[str, Any] = given("as in the card")
    decode: dict[str, Any] = given("as in the card")
    code: str = given("hash of the code that decodes", SHA256)


# Evaluation -> the model of its results, and of its lines by kind.
EVALUATION_RESULTS: dict[str, type[Results]] = {
    "gsm8k": GSM8KResults,
    "arithmetic": ArithmeticResults,
}
EVALUATION_CARDS: dict[str, type[EvaluationCard]] = {
    "gsm8k": GSM8KCard,
    "arithmetic": ArithmeticCard,
}
EVALUATION_LINES: dict[str, dict[str, type[Record]]] = {
    "gsm8k": {"items": GSM8KItem, "rationales": GSM8KRationales},
    "arithmetic": {"items": ArithmeticItem, "scores": ArithmeticScore},
}
# Models that are config sections with more keys.
CONFIGURED = (GSM8KDecode, ProbeDecode)
