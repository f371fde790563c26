"""Run cards of bases and SFT stages: what a checkpoint was made from, by what, and how."""

from typing import Any, Literal

from domain_tokens.runs.config import SFTConfig
from domain_tokens.runs.provenance import CARD_NAME as CARD_NAME
from domain_tokens.runs.results.bases import (
    BaseOutcome,
    ExportMade,
    ExportReport,
    MadeFrom,
    MakeBaseResults,
)
from domain_tokens.runs.results.parts import (
    Code,
    CodeTree,
    Condition,
    Environment,
    FactRows,
    Formats,
    Hashes,
    Setting,
    TreatmentRecord,
)
from domain_tokens.runs.results.record import SHA256, Record, given, only, since
from domain_tokens.runs.results.training import StageNumbers


class ParentLink(Record):
    """The folder that a base was made from."""

    path: str = given("where it lay")
    weights: str = given("hash of its weight files", SHA256)
    tokenizer: str = only("it has a tokenizer.json", "hash of tokenizer.json", SHA256)
    model: str = since("2026-11-26", "hash of all that decides logits and decoding", SHA256)
    card_hash: str | None = since("2026-11-24", "hash of its run card, null without one", SHA256)


class StageParent(ParentLink):
    """The checkpoint that a stage began with, as verified before training."""

    condition: Condition | None = given("of its card")
    stage: str | None = given("base, tulu_sft or sft; null without a card")
    card: bool = given("whether it has a run card")
    cross_base: bool = since("2026-11-24", "whether its arm is another one than its base's")
    base: str = given("weights of the base of the whole lineage", SHA256)


class Ancestor(Record):
    """How one stage before this one was trained, as far as its own card says it."""

    stage: str = given("base, tulu_sft or sft")
    weights: str = given("hash of its weight files", SHA256)
    condition: Condition = only("its card has it", "arm")
    seed: int = only("its card has it", "seed")
    tokenizer: str = only("its card has it", "hash of tokenizer.json", SHA256)
    config: SFTConfig = only("it is an SFT stage", "resolved config but for the tracking")
    data: dict[str, str] = only("it is an SFT stage", "fingerprint by split", SHA256)
    order_digest: str = only("it is an SFT stage", "hash of the example order", SHA256)
    formats: Formats = only("its card has it", "versions of the rules")
    inject: bool = only("it is an SFT stage", "whether facts became fact tokens")
    injected_examples: int = only("it is an SFT stage", "examples with a fact token", "examples")
    injected_tokens: int = only("it is an SFT stage", "fact tokens in its training text", "tokens")
    cross_base: bool = only("it is an SFT stage", "as in its card")
    treatment: TreatmentRecord | None = only("its card has it", "as in its card")
    code: CodeTree = only("its card has it", "code that made it")
    environment: Setting = only("its card has it", "machine that made it")


class Card(Hashes):
    """What every run card of a checkpoint holds."""

    stage: Literal["base", "tulu_sft", "sft"] = given("what made the checkpoint")
    condition: Condition = given("arm")
    seed: int = given("of weights, fact rows and order")
    command: str = since("2026-11-24", "what a person would type to do the same again")
    files: dict[str, str] = since("2026-11-26", "SHA-256 of each file by name, logs too", SHA256)
    formats: Formats = given("versions of the rules")
    code: Code = given("code that made it")
    environment: Environment = given("machine that made it")
    seal: str = since("2026-11-26", "hash of all other keys, against accidents", SHA256)


class StageIdentity(Record):
    """What has to be the same for a stage that is resumed."""

    condition: Condition = given("arm")
    config: SFTConfig = given("resolved config but for the tracking")
    parent_weights: str = given("of the parent", SHA256)
    formats: Formats = given("versions of the rules")
    inject: bool = since("2026-11-26", "whether facts become fact tokens", absent="as it is now")
    code: str = since("2026-11-26", "hash of the code that decides data and training", SHA256)


class StageCard(Card):
    """`run_card.json` of an SFT stage."""

    config: SFTConfig = given("resolved config but for the tracking")
    inject: bool = since("2026-11-26", "whether facts became fact tokens")
    injection_mode: str = since(
        "2026-11-26", "products or equations, as in data.injection_mode (once weak or strict)"
    )
    injected_examples: int = since("2026-11-24", "training examples with a fact token", "examples")
    injected_tokens: int = since("2026-11-24", "fact tokens in the training text", "tokens")
    treatment: TreatmentRecord | None = since(
        "2026-11-26",
        "what was written where a fact stood; null without injection",
        absent="fact_token of all 45 where `inject` is true",
    )
    parent: StageParent = given("checkpoint that the stage began with")
    ancestors: list[Ancestor] = since("2026-11-26", "stages before this one, nearest first")
    base: str = given("weights of the base of the whole lineage", SHA256)
    cross_base: bool = given("whether parent or base are of the other arm")
    identity: StageIdentity = given("what has to be the same for a resumed segment")
    data: dict[str, str] = given("fingerprint of the rows by split", SHA256)
    sources: dict[str, str] = since("2026-11-24", "hash of each local data file by path", SHA256)
    order_digest: str = given("hash of the example ids in the order of training", SHA256)
    fact_rows: FactRows = since("2026-11-26", "how the fact rows began")
    results: StageNumbers = since("2026-11-26", "the results file but for its config")


class BaseCard(Card):
    """`run_card.json` of every base."""

    source: str = given("what it was made from, as given")
    parent: ParentLink | None = given("folder that it was made from; null for a file, id or shape")
    identity: dict[str, Any] = given("what has to be the same for a resumed run: its arguments")


class MakeBaseCard(BaseCard, MadeFrom):
    """`run_card.json` of a base by make_base.py."""

    results: MakeBaseResults = since("2026-11-26", "the results file but for its seal")


class ExportCard(BaseCard, ExportMade):
    """`run_card.json` of a base by export_nanogpt.py."""

    results: ExportReport = since("2026-11-26", "the results file but for its seal")


def card_model(card: dict[str, Any]) -> type[Card]:
    """Return the model of a checkpoint's run card."""
    return base_models(card)[0] if card.get("stage") == "base" else StageCard


# Of a stage's card: what is not known before the last step.
AFTER_TRAINING = ("weights", "tokenizer", "model", "files", "results", "seal")


def base_models(made: dict[str, Any]) -> tuple[type[BaseCard], type[BaseOutcome]]:
    """Return the models of a base's run card and results, from what either says."""
    exported = "checkpoint_sha256" in made
    return (ExportCard, ExportReport) if exported else (MakeBaseCard, MakeBaseResults)


class StageMarker(StageIdentity):
    """`unfinished.json` of an SFT stage that is under way."""

    planned: dict[str, Any] = since("2026-11-26", "what a resumed segment has to find again")
    commit: str | None = since("2026-11-26", "git commit that began it")
