"""What evaluations write: items and other lines, metrics, and the card within the results."""

from typing import Any, Literal

from domain_tokens.runs.config import GSM8KSection, ProbeSection
from domain_tokens.runs.results.card import card_model
from domain_tokens.runs.results.lines import (
    BOTH,
    SAMPLED,
    ArithmeticItem,
    ArithmeticScore,
    GSM8KItem,
    GSM8KRationales,
    ItemScores,
)
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
    attribution: dict[str, int] = since(
        "2026-11-26", "wrong answers by `first_wrong.kind`", "items"
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
    a1_both_routes: float = only(BOTH, "A1, digits and fact tokens together", NATS)
    a1_both_routes_grid: Grid = only(BOTH, "the same of each cell", NATS)


class StoriesMetrics(Metrics):
    """`metrics` of `stories_results.json`."""

    accuracy: float = given("share of the stories that are strictly right", SHARE)
    accuracy_interval_95: Interval = given("Wilson's interval", SHARE)
    accuracy_expression_credited: float = given(
        "the same, expressions and fact tokens credited", SHARE
    )
    best_constant_answer: str = given("most frequent gold answer")
    best_constant_accuracy: float = given("what always giving it scores", SHARE)
    matched_floor: float = given("accuracy expected of these answers in random order", SHARE)
    matched_floor_p: float = given("p of accuracy against that order", SHARE)
    larger_number_accuracy: float = given("what always giving the larger number scores", SHARE)
    story_grid: Grid = given("accuracy of each cell a×b as [a - 1][b - 1]", SHARE)
    a2: float = given("A2: mean over the cells", NATS)
    a2_grid: Grid = given("A2 of each cell a×b as [a - 1][b - 1]", NATS)
    a2_chance: float = given("A2 of a model that takes all 36 products for equally likely", NATS)
    a2_floor: float = given("A2 of a model that is blind to the numbers", NATS)
    fact_mass: float = given("mean probability of a fact token at once", SHARE)


# --- the card and the file --------------------------------------------------------------------


class Reading(Record):
    """How the items were read from their data."""

    source: str = given("file, folder or hub id")
    split: str = given("split")
    limit: int | None = given("items at most, drawn by hash; null for all", "items")
    subset_seed: int = given("that they are drawn from")
    rationale: str = only("it is not full", "as in data.rationale")


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
    sampler: str = only(SAMPLED, "version of the noise that they are sampled with")
    greedy: bool = given("whether the answers that are scored were decoded greedily")
    calculator: Literal["facts", "all"] | None = since(
        "2026-11-26", "which results were forced while decoding"
    )
    forbid_fact_tokens: bool = since("2026-11-26", "whether fact tokens could not be decoded")


class ProbeDecode(ProbeSection):
    """Settings of the config, resolved."""

    greedy: bool = given("whether the answers that are scored were decoded greedily")
    forbid_fact_tokens: bool = since("2026-11-26", "whether fact tokens could not be decoded")


class EvaluationFormats(Formats):
    """Versions of the rules, of reading responses, too."""

    attribution: str = since("2026-11-26", "of what the first wrong step is")


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
    formats: EvaluationFormats = given("versions of the rules")
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


class StoriesCard(EvaluationCard):
    """`card` of `stories_results.json`."""

    stage: Literal["stories"] = given("what was asked")
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


class StoriesResults(Results):
    """`stories_results.json`."""

    metrics: StoriesMetrics = given("the numbers")
    card: StoriesCard = given("run card")
    scores: BoundFile = given("the lines of A2")


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
    "stories": StoriesResults,
}
EVALUATION_CARDS: dict[str, type[EvaluationCard]] = {
    "gsm8k": GSM8KCard,
    "arithmetic": ArithmeticCard,
    "stories": StoriesCard,
}
EVALUATION_LINES: dict[str, dict[str, type[Record]]] = {
    "gsm8k": {"items": GSM8KItem, "rationales": GSM8KRationales},
    "arithmetic": {"items": ArithmeticItem, "scores": ArithmeticScore},
    "stories": {"items": ArithmeticItem, "scores": ArithmeticScore},
}
# Models that are config sections with more keys.
CONFIGURED = (GSM8KDecode, ProbeDecode)
