"""Lines that evaluations write: items, rationales, scores of cells."""

from typing import Literal

from domain_tokens.runs.results.record import NATS, SHA256, SHARE, Record, given, only, since

SAMPLED = "rationales were sampled"
BOTH = "fact rows are facts, of A1, by code that counts both routes"
Stop = Literal["eos", "length", "context"]


class Item(Record):
    """What every answered question says."""

    id: str = given("of the question")
    category: str = given("gsm8k, mul_table, mul_multidigit, addition, story")
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
    gold_facts: list[str] = since(
        "2026-11-26",
        "fact tokens of the gold solution, distinct, in the order of their ids",
    )
    first_wrong: FirstWrong | None = since("2026-11-26", "first wrong equation; null where correct")
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
    """A line of `arithmetic_items.jsonl` or `stories_items.jsonl`."""


class ArithmeticScore(Record):
    """A line of `arithmetic_scores.jsonl` or `stories_scores.jsonl`: a cell in one wording."""

    a: int = given("first factor, 1–9")
    b: int = given("second factor, 1–9")
    template: str = given("wording of the question")
    log_prob: float = given("log p of the product in digits + EOS", NATS)
    log_sum: float = given("log of the sum over the 36 products of the table", NATS)
    value: float = given("log_prob - log_sum", NATS)
    fact_mass: float = given("probability that the next token is any fact token", SHARE)
    both_log_prob: float = only(BOTH, "as log_prob, digits and fact tokens together", NATS)
    both_log_sum: float = only(BOTH, "as log_sum, digits and fact tokens together", NATS)
    both_value: float = only(BOTH, "both_log_prob - both_log_sum", NATS)


class PartialResponse(Record):
    """A line of `*_items.partial*.jsonl` after the first one (an `EvaluationIdentity`)."""

    id: str = given("of the item, or of a rationale as in `item#3`")
    token_ids: list[int] = given("of the response, without EOS")
    stop_reason: Stop = given("why it ended")
