"""What has to be the same in both arms, and what cards do not record."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from domain_tokens.comparison.runs import Evaluation, Run
from domain_tokens.errors import UserError
from domain_tokens.runs import as_written_today, hash_json, key_today, with_later_keys
from domain_tokens.treatments import TOKENLESS

FORMATS = ("formats.prompt", "formats.injector", "formats.answers")
SETTING = ("code.tree", "environment.device_type", "environment.dtype")
# Where data lie says nothing about what they are; their fingerprints are compared.
PATHS = (
    "data.source",
    "reading.source",
    "training.config.data.source",
    "training.config.data.validation_source",
)
CALCULATOR = "decode.calculator"
# Of sampled rationales, which say nothing of greedy answers.
SAMPLED = ("decode.num_rationales", "decode.rationale_seed", "decode.sampler")
SETTING_PARTS = ("code", "environment")
# What a config asked for; `arms.arm_of` says that each run was treated as its arm is called.
CONFIG_TREATMENT = (
    "data.treatment",
    "data.treated_facts",
    "data.merges_source",
    "data.merges_split",
)
BASE = {"stage": "base"}  # the record of a base without a card
ANCESTORS = "ancestors."  # begins the keys of stages before the last one
# Differ from one replicate to the next, as do seed and order of each ancestor.
SEEDED = ("seed", "training.order_digest", "training.fact_rows.seed", "decode.rationale_seed")


@dataclass(frozen=True, slots=True)
class Difference:
    """A must-equal key whose values differ between two folders."""

    key: str
    folders: tuple[str, str]
    values: tuple[Any, Any]


def must_equal(card: dict[str, Any]) -> dict[str, Any]:
    """Return, by dotted key, what has to be the same in both arms (design §2, rule 10).

    Paths, times, parents and injection counts are no part of it. Raises KeyError, naming the key,
    for a card that lacks one.
    """
    training = card["training"]
    flat = {key: _at(card, key) for key in ("stage", "tokenizer", *FORMATS, *SETTING)}
    flat["seed"] = training["seed"] if training else card["seed"]
    flat["formats.attribution"] = card["formats"].get("attribution")  # none in older cards
    flat |= flatten(card["data"], "data")
    flat |= flatten(as_written_today(card["decode"]), "decode")
    flat["training.stage"] = training["stage"] if training else "base"
    if flat["training.stage"] != "base":
        for key in ("order_digest", *FORMATS, *SETTING):
            flat[f"training.{key}"] = _at(training, key)
        flat["training.parent.stage"] = training["parent"]["stage"] or "base"
        flat |= flatten(training.get("fact_rows"), "training.fact_rows")  # None in older cards
        flat |= flatten(with_later_keys(training["config"]), "training.config")
        flat |= flatten(training["data"], "training.data")
        del flat["training.config.training.seed"]  # it is the key `seed`
        against = "training.config.data.decontaminate_against"  # a path: only whether, not where
        flat[against] = flat[against] is not None
        flat |= _of_ancestors(training)
    return {key: value for key, value in flat.items() if not _is_left_out(key)}


def _is_left_out(key: str) -> bool:
    """Return whether a key says where data lie, or is the treatment as a config asked for it."""
    return key in PATHS or key.endswith(CONFIG_TREATMENT)


def trained_stages(training: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, record) of the trained stages of a training card, the last one first.

    Stages before the last are named as in `ancestors.tulu_sft`; bases are none of them.
    """
    if training["stage"] != "base":
        yield "training", training
    names: Counter[str] = Counter()
    for record in training.get("ancestors") or ():
        if record["stage"] != "base":
            names[record["stage"]] += 1
            number = names[record["stage"]]
            yield f"ancestors.{record['stage']}" + (f"_{number}" if number > 1 else ""), record


def _stages_of(run: Run) -> list[tuple[str, dict[str, Any]]]:
    return list(trained_stages(run.card["training"] or BASE))


def _of_ancestors(training: dict[str, Any]) -> dict[str, Any]:
    """Return what has to be the same of the stages before the last one, by dotted key."""
    flat: dict[str, Any] = {}
    for name, record in trained_stages(training):
        if name == "training":
            continue
        keys = ("seed", "tokenizer", "order_digest", "formats", "config", "data", *SETTING_PARTS)
        recorded = {key: record[key] for key in keys if key in record}
        if "config" in recorded:
            recorded["config"] = with_later_keys(recorded["config"])
        flat |= flatten(recorded, name)
        flat.pop(f"{name}.config.training.seed", None)  # it is the stage's `seed`
        against = f"{name}.config.data.decontaminate_against"
        if against in flat:
            flat[against] = flat[against] is not None
        for key in ("source", "validation_source"):
            flat.pop(f"{name}.config.data.{key}", None)
    return flat


def _is_seeded(key: str) -> bool:
    """Return whether a key differs from one replicate to the next."""
    of_ancestor = key.startswith(ANCESTORS) and key.split(".")[2:] in (["seed"], ["order_digest"])
    return key in SEEDED or of_ancestor


def find_differences(
    pairs: Sequence[tuple[Run, Run]], allowed: Sequence[str], *, by_design: Sequence[str] = ()
) -> list[Difference]:
    """Return the permitted differences; raise UserError for any other, with both values.

    Arms are compared within each pair, and each pair with the first but for what a seed decides.
    Stages before the last one are compared wherever two cards record them. allowed: keys, or the
    beginning of keys up to a dot; by_design: keys that are not compared.
    """
    differences: list[Difference] = []
    known: set[str] = set()
    for a, b, compared in _comparisons(pairs):
        for name in a.evaluations.keys() & b.evaluations.keys():
            evaluations = [run.evaluations[name] for run in (a, b)]
            cards = _with_recorded([_must_equal(e) for e in evaluations], evaluations)
            known.update(*cards)
            recorded = all(_records_ancestors(evaluation.card) for evaluation in evaluations)
            folders = (str(a.folder), str(b.folder))
            differences += [
                Difference(key, folders, (cards[0].get(key), cards[1].get(key)))
                for key in {**cards[0], **cards[1]}
                if cards[0].get(key) != cards[1].get(key)
                and compared(key)
                and key not in by_design
                and (recorded or not key.startswith(ANCESTORS))
            ]
    allowed = [key_today(key) for key in allowed]
    runs = [run for pair in pairs for run in pair]
    injected = [fault for run in runs for fault in injection_faults(run)]
    stages = [name for run in runs for name, _ in _stages_of(run)]
    known.update(f"{name}.{key}" for name in stages for key in ("inject", "treatment"))
    for key in allowed:
        if not any(_covers(key, k) for k in known):
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"keys: {', '.join(sorted(known))}"
            raise UserError(f"--allow-diff {key}: no such key is compared; {hint}")
    refused = [d for d in differences if not any(_covers(key, d.key) for key in allowed)]
    if refused:
        listed = {
            d.key: f"{d.key} ({_short(d.values[0])} and {_short(d.values[1])})" for d in refused
        }
        raise UserError(
            f"{' and '.join(refused[0].folders)} differ in {'; '.join(listed.values())}: "
            "run both arms alike, or permit it with --allow-diff KEY"
        )
    for key, difference in injected:
        if not any(_covers(k, key) for k in allowed):
            raise UserError(
                f"{difference.folders[0]}: {key} is {difference.values[0]}, wanted "
                f"{difference.values[1]}; train it again, or permit it with --allow-diff {key}"
            )
    differences += [difference for _, difference in injected]
    return list({(d.key, d.folders): d for d in differences}.values())


def _comparisons(
    pairs: Sequence[tuple[Run, Run]],
) -> Iterator[tuple[Run, Run, Callable[[str], bool]]]:
    """Yield which runs are compared, and in which keys."""
    first = pairs[0][0]
    recording = [run for pair in pairs for run in pair if _records_ancestors(run.card)]
    for baseline, mul_tokens in pairs:
        yield baseline, mul_tokens, lambda key: True
        yield first, baseline, lambda key: not _is_seeded(key)
    for run in recording[1:]:  # where the first run records nothing, others still may
        yield recording[0], run, lambda key: key.startswith(ANCESTORS) and not _is_seeded(key)


def _records_ancestors(card: dict[str, Any]) -> bool:
    """Return whether a card says how the parent of its checkpoint was trained, if it was."""
    training = card["training"]
    if not training or training["stage"] == "base":
        return True
    trained = (training.get("parent") or {}).get("stage") not in (None, "base")
    if not trained:
        return True
    return "ancestors" in training and all("config" in r for _, r in trained_stages(training))


def injection_faults(run: Run) -> Iterator[tuple[str, Difference]]:
    """Yield (key, what was found and wanted) where a stage did not treat facts as its arm says.

    Stages whose card is from before this was recorded are passed over.
    """
    folders = (str(run.folder), str(run.folder))
    for evaluation in run.evaluations.values():
        training: dict[str, Any] = evaluation.card["training"] or BASE
        for name, record in trained_stages(training):
            if (treatment := record.get("treatment")) not in (None, training.get("treatment")):
                key, got = f"{name}.treatment", _treatment_in_words(treatment)
                expected = f"{_treatment_in_words(training.get('treatment'))}, as in the last stage"
                yield key, Difference(key, folders, (got, expected))
            if "inject" not in record:
                continue
            key, count = f"{name}.inject", record["injected_tokens"]
            treated = record["condition"] == "mul_tokens"
            got = f"{record['inject']} with {count} fact tokens"
            some = bool(count) or (training.get("treatment") or {}).get("name") in TOKENLESS
            if treated and not (record["inject"] and some):
                expected = "True with some, as condition mul_tokens says"
            elif not treated and (record["inject"] or count):
                expected = "False with none, as condition baseline says"
            else:
                continue
            yield key, Difference(key, folders, (got, expected))


def _treatment_in_words(record: Any) -> str:
    if not isinstance(record, dict):
        return repr(record)
    return f"{record.get('name')} of {record.get('treated_facts')} ({hash_json(record)[:8]})"


def unrecorded_in_cards(runs: Sequence[Run]) -> Iterator[str]:
    """Yield, in words, what is not recorded in the cards of runs, so that it was not compared."""
    folders = [str(run.folder) for run in runs if not _records_ancestors(run.card)]
    if folders:
        yield (
            f"{', '.join(folders)} {'do' if len(folders) > 1 else 'does'} not say how the parent "
            "was trained: only the last stage is compared."
        )
    folders = [
        str(run.folder)
        for run in runs
        if any("inject" not in record for _, record in _stages_of(run))
    ]
    if folders:
        yield (
            f"{', '.join(folders)} {'do' if len(folders) > 1 else 'does'} not say whether fact "
            "tokens were written in every stage: that is not checked."
        )


def _must_equal(evaluation: Evaluation) -> dict[str, Any]:
    try:
        return must_equal(evaluation.card)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{evaluation.results}: its card lacks {error}; evaluate that checkpoint again"
        ) from None


def _with_recorded(
    cards: list[dict[str, Any]], evaluations: Sequence[Evaluation]
) -> list[dict[str, Any]]:
    """Add what cards of older versions lack, where both have it.

    That is config.json's keys, the shape of the model, and how the items were read from their data.
    """
    for name in ("architecture", "reading"):
        recorded = [evaluation.card.get(name) for evaluation in evaluations]
        if None not in recorded:
            cards = [c | flatten(t, name) for c, t in zip(cards, recorded, strict=True)]
    return [{k: value for k, value in card.items() if not _is_left_out(k)} for card in cards]


def _at(tree: dict[str, Any], key: str) -> Any:
    node: Any = tree
    for part in key.split("."):
        node = node[part]
    return node


def flatten(tree: Any, prefix: str) -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted key, every key beginning with prefix."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}")
    return flat


def _covers(allowed: str, key: str) -> bool:
    return key == allowed or key.startswith(f"{allowed}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:13]}…"
