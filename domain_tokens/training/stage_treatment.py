"""Which treatment a stage trains under: its parent's, or a new one, drawn before the first step."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens.data import kept_json, load_problems, problem_messages
from domain_tokens.errors import UserError
from domain_tokens.merges import choose_merges
from domain_tokens.runs import CARD_NAME, Workspace, read_json
from domain_tokens.training.stage_data import stage_identity
from domain_tokens.treatments import (
    Treatment,
    count_occurrences,
    draw_half,
    record_in,
    record_of,
    refuse_other_treatment,
    treatment_from,
)

if TYPE_CHECKING:
    from domain_tokens.data import Prepared, StageData
    from domain_tokens.prompts import Message, Renderer
    from domain_tokens.runs import SFTConfig
    from domain_tokens.training.sft_stage import OpenStage
    from domain_tokens.training.stage_run import StageRun


def parents_treatment(run: "StageRun", card: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what a parent's run card says of its treatment, None for the baseline or nothing.

    Raises UserError where the config names another one.
    """
    if run.condition == "baseline":
        return None
    record = record_in(card)
    try:
        treatment_from(record)
    except ValueError as error:
        raise UserError(f"{run.model_path}: {error}") from None
    _refuse_other(record, run.config, run.model_path)
    return record


def _refuse_other(record: dict[str, Any] | None, config: "SFTConfig", folder: Path) -> None:
    data = config.data
    refuse_other_treatment(
        record, name=data.treatment, treated_facts=data.treated_facts, folder=folder
    )


def decide_treatment(stage: "OpenStage", renderer: "Renderer") -> dict[str, Any] | None:
    """Return the run card's record of a stage's treatment; None where nothing was ever treated.

    A half is drawn, and merges are chosen, from the training rows of the first stage that treats
    facts; renderer: encodes plain text. Raises UserError where none of the facts can be treated.
    """
    if stage.treatment is not None or not stage.inject:
        if stage.config.data.merges_source is not None:
            raise UserError(
                "data.merges_source is of the first stage that treats facts; this one has the "
                "treatment of its parent, or none: leave data.merges_source out"
            )
        return stage.treatment
    data, seed = stage.config.data, stage.config.training.seed
    name, which = data.treatment or "fact_token", data.treated_facts or "all"
    treatment, draw = Treatment(name), None
    identity = stage_identity(stage.run, stage.load, stage.parent)
    mode = data.injection_mode
    if which != "all":
        occurrences = kept_json(
            {"occurrences": identity},
            lambda: count_occurrences(_responses(stage.load, stage.config), mode=mode),
        )
        half_a, half_b = draw_half(occurrences, seed)
        treatment = Treatment(name, half_a if which == "half_a" else half_b)
        draw = seed, occurrences
    if name == "matched_merges":
        facts = sorted(treatment.facts)
        merges = kept_json(
            {"merges": facts, **identity},
            lambda: dict(
                choose_merges(
                    _merge_texts(stage.load, stage.config),
                    facts,
                    length=lambda text: len(renderer.encode(text)),
                    mode=mode,
                )
            ),
        )
        treatment = Treatment(name, treatment.facts, tuple(merges.items()))
    return record_of(treatment, treated_facts=which, draw=draw)


def _merge_texts(load: Callable[["SFTConfig"], "StageData"], config: "SFTConfig") -> Iterator[str]:
    """Yield the texts whose word sequences become merges: of data.merges_source, or the stage's."""
    data = config.data
    if data.merges_source is None:
        yield from _responses(load, config)
        return
    problems = load_problems(
        data.merges_source,
        split=data.merges_split,
        limit=None,
        subset_seed=data.subset_seed,
        key="data.merges_source",
    )
    yield from _assistant_turns(map(problem_messages, problems.items))


def _responses(load: Callable[["SFTConfig"], "StageData"], config: "SFTConfig") -> Iterator[str]:
    """Yield the assistant turns of a stage's training rows as they are rendered."""
    yield from _assistant_turns(row.messages for row in load(config).train)


def _assistant_turns(conversations: Iterable["Sequence[Message]"]) -> Iterator[str]:
    for messages in conversations:
        yield from (f" {text.strip()}" for role, text in messages if role == "assistant")


def treatment_in_words(record: dict[str, Any] | None) -> str:
    """Return what a person should know of a treatment before training, a line each; "" for none."""
    if record is None:
        return ""
    facts, draw = record["facts"], record["draw"]
    lines = [f"treatment: {record['name']} of {len(facts)} facts ({record['treated_facts']})"]
    if draw is not None:
        never = [fact for fact in facts if not draw["occurrences"][fact]]
        lines[0] += f", drawn from seed {draw['seed']}"
        if never:
            lines.append(
                f"note: in no row that the draw was made on: {len(never)} of them, as {never[0]}"
            )
    if record["name"] == "matched_merges" and len(record["meanings"]) < len(facts):
        lines.append(
            f"note: {len(record['meanings'])} of {len(facts)} facts have a word sequence that is "
            "as frequent; the others are not in the rows, or nothing is left for them"
        )
    return "\n".join(lines)


def refuse_without_facts(stage: "OpenStage", data: "Prepared", record: Any) -> None:
    """Raise UserError for a run of the treated arm that would be one of the baseline."""
    if not stage.inject or stage.run.allow_no_injection:
        return
    if stage.config.data.merges_source is not None:  # what a later stage writes; here by chance
        return
    if not any(example.facts for example in data.train):
        keys = stage.config.data
        named = f"treatment {record['name']} of {record['treated_facts']}" if record else ""
        raise UserError(
            f"condition mul_tokens, but no place that {named} could write is in the "
            f"{len(data.train)} training examples (data.injection_mode is "
            f"{keys.injection_mode}); give other or more data, or --allow-no-injection if that "
            "is meant"
        )


def refuse_other_run(workspace: Workspace, config: "SFTConfig", *, inject: bool) -> None:
    """Raise UserError where a finished folder treated facts otherwise than is now asked for."""
    results = read_json(workspace.final / workspace.results_name)
    tokens = results.get("injected_tokens")
    if tokens is not None and bool(tokens) != inject and not results.get("inject"):
        raise UserError(
            f"{workspace.final} was made with {tokens} fact tokens in its training text, now "
            f"inject is {inject}; give the same arguments, or another --output-dir"
        )
    if inject:
        record = record_in(read_json(workspace.final / CARD_NAME))
        _refuse_other(record, config, workspace.final)
