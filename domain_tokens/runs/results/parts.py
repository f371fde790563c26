"""What several files say in the same words: code, machine, rules, fact rows, treatment, hashes."""

from typing import Any, Literal

from domain_tokens.runs.results.record import SHA256, Record, given, since

Condition = Literal["baseline", "mul_tokens"]
Evaluated = Literal["gsm8k", "arithmetic", "stories"]


class Code(Record):
    """The code that made a result."""

    commit: str | None = given("git commit, null outside a repository")
    dirty: bool | None = given("whether the code folders had uncommitted changes")
    tree: str = given("hash of all .py files of the code folders as they were", SHA256)


class CodeTree(Record):
    """Of an ancestor's code."""

    tree: str = given("as `code.tree` of its own card", SHA256)


class Environment(Record):
    """The machine and the libraries."""

    python: str = given("version of Python")
    libraries: dict[str, str] = given("version by library")
    device_type: str = given("cpu or cuda")
    device_name: str = given("processor or GPU")
    dtype: str = given("number type of the forward pass, as in float32, bfloat16")
    threads: int = given("threads that torch computes with", "threads")


class Setting(Record):
    """Of an ancestor's environment."""

    device_type: str = given("as in its own card")
    dtype: str = given("as in its own card")


class Formats(Record):
    """Versions of the rules that decide what tokens and verdicts mean."""

    prompt: str = given("of the prompt format")
    injector: str = given("of what counts as a fact")
    answers: str = given("of how answers are read")


class FactRows(Record):
    """How the 45 fact rows of a run began."""

    rule: str | None = given("in words; null where no card tells")
    seed: int | None = given("that they were drawn from; null where the base's were left alone")


class TreatmentRecord(Record):
    """What was written where a fact stood in training text."""

    name: str = given("as in data.treatment: fact_token, generic, operands, …")
    version: str = given("of the rule of this treatment")
    treated_facts: Literal["all", "half_a", "half_b"] = given("which facts were treated")
    facts: list[str] = given("treated facts as fact tokens, in the order of their ids")
    draw: dict[str, Any] | None = given(
        "how the half was drawn: {seed, occurrences by fact token}; null for all"
    )
    meanings: dict[str, str] = given("fact token -> what its row stands for in this treatment")


class Hashes(Record):
    """What identifies a checkpoint."""

    weights: str = given("hash of the weight files", SHA256)
    tokenizer: str = given("hash of tokenizer.json", SHA256)
    model: str = since("2026-11-26", "hash of all that decides logits and decoding", SHA256)
