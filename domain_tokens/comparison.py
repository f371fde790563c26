"""Two arms side by side: pair their evaluations, refuse unequal ones, compare item by item."""

import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from domain_tokens import verification
from domain_tokens.analysis import analyse, lineage
from domain_tokens.config import AnalysisPlan
from domain_tokens.errors import UserError
from domain_tokens.run_card import hash_files, read_sealed
from domain_tokens.statistics import (
    best_constant,
    holm,
    mcnemar_exact,
    paired_difference_interval,
    wilson_interval,
)

ARMS = ("baseline", "mul_tokens")
# Evaluation -> (accuracy's name in the metrics, verdict's name in an item); the first is tested
# for the verdict, the others are shown.
ACCURACIES = {
    "gsm8k": (
        ("accuracy", "correct"),
        ("accuracy_flexible", "correct_flexible"),
        ("accuracy_expression_credited", "correct_credited"),
    ),
    "arithmetic": (
        ("overall_accuracy", "correct"),
        ("overall_accuracy_expression_credited", "correct_credited"),
    ),
}
FORMATS = ("formats.prompt", "formats.injector", "formats.answers")
SETTING = ("code.tree", "environment.device_type", "environment.dtype")
# Where data lie says nothing about what they are; their fingerprints are compared.
PATHS = (
    "data.source",
    "reading.source",
    "training.config.data.source",
    "training.config.data.validation_source",
)
SETTING_PARTS = ("code", "environment")
BASE = {"stage": "base"}  # the record of a base without a card
ANCESTORS = "ancestors."  # begins the keys of stages before the last one
# Differ from one replicate to the next, as do seed and order of each ancestor.
SEEDED = ("seed", "training.order_digest", "training.fact_rows.seed", "decode.rationale_seed")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of one checkpoint: its metrics, its run card and its items by id."""

    results: Path
    metrics: dict[str, Any]
    card: dict[str, Any]
    items: dict[str, dict[str, Any]]
    files: str
    notices: tuple[str, ...] = ()  # what could not be checked, as of an older version's results


@dataclass(frozen=True, slots=True)
class Run:
    """An evaluation folder: one checkpoint, with the training seed of its lineage."""

    folder: Path
    seed: Any
    evaluations: dict[str, Evaluation]

    @property
    def card(self) -> dict[str, Any]:
        """The run card of either evaluation; what they say of the checkpoint is the same."""
        return next(iter(self.evaluations.values())).card


@dataclass(frozen=True, slots=True)
class Difference:
    """A must-equal key whose values differ between two folders."""

    key: str
    folders: tuple[str, str]
    values: tuple[Any, Any]


def load_run(folder: Path, *, condition: str | None) -> Run:
    """Load what an evaluation folder holds, of either condition where none is wanted.

    Raises UserError where nothing finished is there, the folder is of the other arm, it mixes
    checkpoints, or the results do not follow from the items.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} not found; wanted a folder that an evaluation script wrote")
    names = [name for name in ACCURACIES if (folder / f"{name}_results.json").exists()]
    if not names:
        raise UserError(
            f"{folder} holds neither gsm8k_results.json nor arithmetic_results.json; "
            "run eval/run_gsm8k.py or eval/run_arithmetic_probes.py first"
        )
    evaluations = {name: _load_evaluation(folder, name) for name in names}
    for evaluation in evaluations.values():
        card = evaluation.card
        trained = card["training"]["condition"] if card["training"] else condition
        got = card["condition"] if card["condition"] != condition else trained
        if condition is not None and got != condition:
            raise UserError(
                f"{evaluation.results} is of condition {got} and was given as {condition}; "
                "are the folders swapped?"
            )
    cards = [evaluation.card for evaluation in evaluations.values()]
    if len({card["weights"] for card in cards}) > 1:
        raise UserError(f"{folder} mixes evaluations of two checkpoints; evaluate one of them anew")
    training = cards[0]["training"]
    seed = training["seed"] if training else cards[0]["seed"]
    return Run(folder, seed, evaluations)


def load_pilot(folders: Sequence[Path]) -> list[Run]:
    """Load the A/A runs of one condition; none for no folders.

    Raises UserError for a single folder, two conditions, or runs that are not independent.
    """
    runs = [load_run(folder, condition=None) for folder in folders]
    if len(runs) == 1:
        raise UserError("--pilot-dir names one folder; wanted at least two runs of one condition")
    if len({run.card["condition"] for run in runs}) > 1:
        raise UserError("--pilot-dir mixes both conditions; an A/A pilot has runs of one only")
    names = Counter(name for run in runs for name in lineage(run))
    shared = [name for name, count in names.items() if count > 1]
    if shared:
        raise UserError(
            f"--pilot-dir holds runs that share a trained ancestor or their weights "
            f"({shared[0][:12]}); they are one run, not several"
        )
    return runs


def pair_runs(baseline: Sequence[Run], mul_tokens: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Pair the runs of two arms by seed, in the order of the baseline's folders.

    One run per arm is a pair whatever the seeds (a difference of seeds is then refused by its
    key). Raises UserError for a seed that is there twice or in one arm only.
    """
    if len(baseline) == len(mul_tokens) == 1:
        return [(baseline[0], mul_tokens[0])]
    for arm, runs in zip(ARMS, (baseline, mul_tokens), strict=True):
        seed, count = Counter(run.seed for run in runs).most_common(1)[0]
        if count > 1:
            folders = ", ".join(str(run.folder) for run in runs if run.seed == seed)
            raise UserError(f"{arm} has seed {seed} {count} times ({folders}); give each seed once")
    by_seed = {run.seed: run for run in mul_tokens}
    alone = {run.seed for run in baseline} ^ by_seed.keys()
    if alone:
        raise UserError(
            f"seeds cannot be paired: baseline has {[r.seed for r in baseline]}, mul_tokens has "
            f"{[r.seed for r in mul_tokens]}; give the same seeds in both arms"
        )
    return [(run, by_seed[run.seed]) for run in baseline]


def must_equal(card: dict[str, Any]) -> dict[str, Any]:
    """Return, by dotted key, what has to be the same in both arms (design §2, rule 10).

    Paths, times, parents and injection counts are no part of it. Raises KeyError, naming the key,
    for a card that lacks one.
    """
    training = card["training"]
    flat = {key: _at(card, key) for key in ("stage", "tokenizer", *FORMATS, *SETTING)}
    flat["seed"] = training["seed"] if training else card["seed"]
    flat |= flatten(card["data"], "data") | flatten(card["decode"], "decode")
    flat["training.stage"] = training["stage"] if training else "base"
    if flat["training.stage"] != "base":
        for key in ("order_digest", *FORMATS, *SETTING):
            flat[f"training.{key}"] = _at(training, key)
        flat["training.parent.stage"] = training["parent"]["stage"] or "base"
        flat |= flatten(training.get("fact_rows"), "training.fact_rows")  # None in older cards
        flat |= flatten(training["config"], "training.config")
        flat |= flatten(training["data"], "training.data")
        del flat["training.config.training.seed"]  # it is the key `seed`
        against = "training.config.data.decontaminate_against"  # a path: only whether, not where
        flat[against] = flat[against] is not None
        flat |= _of_ancestors(training)
    return {key: value for key, value in flat.items() if key not in PATHS}


def stages(training: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
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
    return list(stages(run.card["training"] or BASE))


def _of_ancestors(training: dict[str, Any]) -> dict[str, Any]:
    """Return what has to be the same of the stages before the last one, by dotted key."""
    flat: dict[str, Any] = {}
    for name, record in stages(training):
        if name == "training":
            continue
        keys = ("seed", "tokenizer", "order_digest", "formats", "config", "data", *SETTING_PARTS)
        flat |= flatten({key: record[key] for key in keys if key in record}, name)
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


def differences(pairs: Sequence[tuple[Run, Run]], allowed: Sequence[str]) -> list[Difference]:
    """Return the permitted differences; raise UserError for any other, with both values.

    Arms are compared within each pair, and each pair with the first but for what a seed decides.
    Stages before the last one are compared wherever two cards record them. allowed: keys, or the
    beginning of keys up to a dot.
    """
    found: list[Difference] = []
    known: set[str] = set()
    for one, other, compared in _comparisons(pairs):
        for name in one.evaluations.keys() & other.evaluations.keys():
            evaluations = [run.evaluations[name] for run in (one, other)]
            cards = _with_recorded([_must_equal(e) for e in evaluations], evaluations)
            known.update(*cards)
            told = all(_tells_ancestors(evaluation.card) for evaluation in evaluations)
            folders = (str(one.folder), str(other.folder))
            found += [
                Difference(key, folders, (cards[0].get(key), cards[1].get(key)))
                for key in {**cards[0], **cards[1]}
                if cards[0].get(key) != cards[1].get(key)
                and compared(key)
                and (told or not key.startswith(ANCESTORS))
            ]
    runs = [run for pair in pairs for run in pair]
    injected = [fault for run in runs for fault in injection_faults(run)]
    known.update(f"{name}.inject" for run in runs for name, _ in _stages_of(run))
    for key in allowed:
        if not any(_covers(key, k) for k in known):
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"keys: {', '.join(sorted(known))}"
            raise UserError(f"--allow-diff {key}: no such key is compared; {hint}")
    refused = [d for d in found if not any(_covers(key, d.key) for key in allowed)]
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
    found += [difference for _, difference in injected]
    return list({(d.key, d.folders): d for d in found}.values())


def _comparisons(
    pairs: Sequence[tuple[Run, Run]],
) -> Iterator[tuple[Run, Run, Callable[[str], bool]]]:
    """Yield which runs are compared, and in which keys."""
    first = pairs[0][0]
    telling = [run for pair in pairs for run in pair if _tells_ancestors(run.card)]
    for baseline, mul_tokens in pairs:
        yield baseline, mul_tokens, lambda key: True
        yield first, baseline, lambda key: not _is_seeded(key)
    for run in telling[1:]:  # where the first run tells nothing, others still may
        yield telling[0], run, lambda key: key.startswith(ANCESTORS) and not _is_seeded(key)


def _tells_ancestors(card: dict[str, Any]) -> bool:
    """Return whether a card says how the parent of its checkpoint was trained, if it was."""
    training = card["training"]
    if not training or training["stage"] == "base":
        return True
    trained = (training.get("parent") or {}).get("stage") not in (None, "base")
    if not trained:
        return True
    return "ancestors" in training and all("config" in r for _, r in stages(training))


def injection_faults(run: Run) -> Iterator[tuple[str, Difference]]:
    """Yield (key, what was found and wanted) where a stage did not treat facts as its arm says.

    Stages whose card is from before this was recorded are passed over.
    """
    for evaluation in run.evaluations.values():
        for name, record in stages(evaluation.card["training"] or BASE):
            if "inject" not in record:
                continue
            key, count = f"{name}.inject", record["injected_tokens"]
            treated = record["condition"] == "mul_tokens"
            got = f"{record['inject']} with {count} fact tokens"
            if treated and not (record["inject"] and count):
                wanted = "True with some, as condition mul_tokens says"
            elif not treated and (record["inject"] or count):
                wanted = "False with none, as condition baseline says"
            else:
                continue
            yield key, Difference(key, (str(run.folder), str(run.folder)), (got, wanted))


def untold(runs: Sequence[Run]) -> Iterator[str]:
    """Yield, in words, what the cards of runs do not tell, so that it was not compared."""
    folders = [str(run.folder) for run in runs if not _tells_ancestors(run.card)]
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


def compare(
    pairs: Sequence[tuple[Run, Run]], plan: AnalysisPlan, pilot: Sequence[Run] = ()
) -> dict[str, Any]:
    """Return the whole comparison as plain data: per pair, mean deltas over pairs, verdicts.

    All rates and deltas (mul_tokens - baseline) are fractions 0–1, log-probabilities in nats.
    pilot: runs of one condition, for the detectable effects. Raises UserError where item ids,
    prompts or golds of a pair differ, or no evaluation is in all folders.
    """
    runs = [run for pair in pairs for run in pair]
    names = [name for name in ACCURACIES if all(name in run.evaluations for run in runs)]
    left_out = sorted({name for run in runs for name in run.evaluations} - set(names))
    if not names:
        raise UserError("no evaluation is in all of these folders; run the same one in both arms")
    compared = [_compare_pair(pair, names) for pair in pairs]
    headlines = [row for one in compared for row in one["endpoints"] if row["headline"]]
    # The family is every evaluation of every pair; one that is missing counts as p = 1.
    missing = len(pairs) * len(ACCURACIES) - len(headlines)
    adjusted = holm([*(row["mcnemar_p"] for row in headlines), *[1.0] * missing])
    for row, p in zip(headlines, adjusted, strict=False):
        row["mcnemar_p_holm"] = p
    report: dict[str, Any] = {
        "evaluations": names,
        "not_compared": left_out,
        "notices": [n for run in runs for e in run.evaluations.values() for n in e.notices],
        "pairs": compared,
        "mean_deltas": _mean_deltas(compared),
        "cross_base": [str(r.folder) for r in runs if (r.card["training"] or {}).get("cross_base")],
        "untold": list(untold(runs)),
        "analysis": analyse(pairs, plan, pilot),
    }
    report["verdicts"] = [*report["analysis"]["verdicts"], *_verdicts(report, plan.alpha)]
    return report


def endpoints_of(items: Sequence[dict[str, Any]], name: str) -> Iterator[tuple[str, str, list]]:
    """Yield (endpoint, verdict's name in an item, ids of its items) of one evaluation."""
    for endpoint, verdict in ACCURACIES[name]:
        yield endpoint, verdict, [item["id"] for item in items]
    if name == "arithmetic":
        for category in dict.fromkeys(item["category"] for item in items):
            ids = [item["id"] for item in items if item["category"] == category]
            yield f"{category}.accuracy", "correct", ids
            yield f"{category}.accuracy_expression_credited", "correct_credited", ids


def _load_evaluation(folder: Path, name: str) -> Evaluation:
    results, path = folder / f"{name}_results.json", folder / f"{name}_items.jsonl"
    tree = read_sealed(results)
    try:
        metrics, card = tree["metrics"], tree["card"]
        missing = [k for k in ("condition", "weights", "training", "seed") if k not in card]
    except (KeyError, TypeError):
        missing = ["metrics and card"]
    if missing:
        raise UserError(f"{results} has no {missing[0]}; evaluate that checkpoint again")
    items = _read_items(path)
    for endpoint, verdict, ids in endpoints_of(list(items.values()), name):
        counted = sum(items[i][verdict] for i in ids) / len(ids)
        claimed = _claimed(metrics, endpoint)
        if claimed is not None and not math.isclose(claimed, counted, abs_tol=1e-9):
            raise UserError(
                f"{results} says {endpoint} {claimed}, its items say {counted}; they are not of "
                "one run: evaluate again"
            )
    notices = _verify(results, tree, list(items.values()))
    return Evaluation(results, metrics, card, items, hash_files([results, path]), notices)


def _verify(results: Path, tree: dict[str, Any], items: Sequence[dict[str, Any]]) -> tuple:
    """Check results against all their lines; return what there is to say of an older version."""
    try:
        verification.verify_results(results, tree, items)
    except verification.OlderError as older:
        return (str(older),)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(
            f"{results}: not as an evaluation writes it ({type(error).__name__}: {error}); "
            "evaluate that checkpoint again"
        ) from None
    return ()


def _claimed(metrics: dict[str, Any], endpoint: str) -> float | None:
    if "." not in endpoint:
        return metrics.get(endpoint)
    category, _, name = endpoint.partition(".")
    return metrics.get("category_accuracies", {}).get(category, {}).get(name)


def _read_items(path: Path) -> dict[str, dict[str, Any]]:
    name = path.name.removesuffix("_items.jsonl")
    wanted = {"id", "prompt_hash", "gold", *(verdict for _, verdict in ACCURACIES[name])}
    if name == "arithmetic":
        wanted.add("category")
    items: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} not found; evaluate that checkpoint again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        try:
            item = json.loads(line)
            missing = sorted(wanted - item.keys())
        except (ValueError, AttributeError):
            raise UserError(f"{path} line {number} is not a JSON object; evaluate again") from None
        if missing:
            raise UserError(f"{path} line {number} has no {missing[0]}; evaluate again")
        if item["id"] in items:
            raise UserError(f"{path} has item {item['id']} twice; evaluate again")
        items[item["id"]] = item
    if not items:
        raise UserError(f"{path} has no items; evaluate again")
    return items


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
        told = [evaluation.card.get(name) for evaluation in evaluations]
        if None not in told:
            cards = [c | flatten(t, name) for c, t in zip(cards, told, strict=True)]
    return [{key: value for key, value in card.items() if key not in PATHS} for card in cards]


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


def _compare_pair(pair: tuple[Run, Run], names: Sequence[str]) -> dict[str, Any]:
    endpoints, metrics, floors = [], {}, {}
    for name in names:
        one, other = (run.evaluations[name] for run in pair)
        _refuse_unpaired(one, other)
        items = [one.items[key] for key in sorted(one.items)]  # whatever the order of the file
        for index, (endpoint, verdict, ids) in enumerate(endpoints_of(items, name)):
            right = [([bool(e.items[i][verdict]) for i in ids]) for e in (one, other)]
            row = {"evaluation": name, "endpoint": endpoint, "headline": index == 0}
            endpoints.append(row | _compare_items(*right))
        metrics[name] = _plain_metrics(one.metrics, other.metrics)
        floors[name] = asdict(best_constant([item["gold"] for item in items]))
    return {
        "seed": pair[0].seed,
        **{
            arm: {
                "folder": str(run.folder),
                "weights": run.card["weights"],
                "files": {name: run.evaluations[name].files for name in names},
            }
            for arm, run in zip(ARMS, pair, strict=True)
        },
        "endpoints": endpoints,
        "metrics": metrics,
        "best_constant": floors,
    }


def _refuse_unpaired(one: Evaluation, other: Evaluation) -> None:
    where = f"{one.results} and {other.results}"
    alone = sorted(one.items.keys() ^ other.items.keys())
    if alone:
        raise UserError(
            f"{where} are not of the same items: {len(alone)} are in one only ({alone[0]}); "
            "evaluate both arms on the same data"
        )
    for key in ("prompt_hash", "gold"):
        bad = [i for i, item in one.items.items() if item[key] != other.items[i][key]]
        if bad:
            raise UserError(
                f"{where} have another {key} for {len(bad)} items ({bad[0]}); evaluate both arms "
                "with the same code, tokenizer and data"
            )


def _compare_items(baseline: list[bool], mul_tokens: list[bool]) -> dict[str, Any]:
    """Compare two verdicts per item; the lists are in the same order of items."""
    counts = Counter(zip(baseline, mul_tokens, strict=True))
    both, neither = counts[True, True], counts[False, False]
    b, c = counts[True, False], counts[False, True]
    total = len(baseline)
    arms = {
        arm: {
            "accuracy": sum(right) / total,
            "correct": sum(right),
            "interval_95": list(wilson_interval(sum(right), total)),
        }
        for arm, right in zip(ARMS, (baseline, mul_tokens), strict=True)
    }
    return {
        "total": total,
        **arms,
        "delta": (c - b) / total,
        "delta_interval_95": list(paired_difference_interval(both, b, c, neither=neither)),
        "only_baseline_right": b,
        "only_mul_tokens_right": c,
        "mcnemar_p": mcnemar_exact(b, c),
    }


def _plain_metrics(baseline: dict, mul_tokens: dict) -> dict[str, dict[str, float | None]]:
    """Return the numbers of both arms that no item-wise test goes with; speed is left out."""
    tested = {endpoint for group in ACCURACIES.values() for endpoint, _ in group}
    shown: dict[str, dict[str, float | None]] = {}
    for name in {**baseline, **mul_tokens}:
        values = [_number(metrics.get(name)) for metrics in (baseline, mul_tokens)]
        known = (
            name in tested | {"correct", "total"}
            or name.endswith("_per_second")
            or name == "seconds"
        )
        if not known and values != [None, None]:
            shown[name] = dict(zip(ARMS, values, strict=True))
    return shown


def _number(value: object) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def _mean_deltas(compared: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, per endpoint, the deltas of all seeds and their mean; no p: seeds are few."""
    rows = []
    for index, row in enumerate(compared[0]["endpoints"]):
        deltas = [one["endpoints"][index]["delta"] for one in compared]
        rows.append(
            {
                "evaluation": row["evaluation"],
                "endpoint": row["endpoint"],
                "deltas": deltas,
                "mean_delta": math.fsum(deltas) / len(deltas),
            }
        )
    return rows


def _verdicts(report: dict[str, Any], alpha: float) -> Iterator[str]:
    """Yield what may be said of the accuracies of each pair, and what the reader has to know."""
    pairs = report["pairs"]
    headlines = [[row for row in one["endpoints"] if row["headline"]] for one in pairs]
    for rows in zip(*headlines, strict=True):
        name = f"{rows[0]['evaluation']} {rows[0]['endpoint']}"
        if len(pairs) == 1:
            floor = pairs[0]["best_constant"][rows[0]["evaluation"]]
            yield f"{name}: {_verdict(rows[0], floor, alpha)}"
            continue
        seeds = ", ".join(f"{row['mcnemar_p_holm']:.2g}" for row in rows)
        yield (
            f"{name}, exact McNemar p of each pair after Holm: {seeds}. Each compares two "
            "checkpoints on these items; this says nothing about the method."
        )
    yield from report["untold"]
    if report["cross_base"]:
        yield (
            "A base × SFT factorial (--cross-base): the arm of the base is not that of the SFT in "
            f"{', '.join(report['cross_base'])}."
        )


def _verdict(row: dict[str, Any], floor: dict[str, Any], alpha: float) -> str:
    b, c, p = row["only_baseline_right"], row["only_mul_tokens_right"], row["mcnemar_p_holm"]
    evidence = f"(only baseline right {b}, only mul_tokens right {c}, exact McNemar p {p:.3g}"
    if row["mcnemar_p_holm"] != row["mcnemar_p"]:
        evidence += f" after Holm, {row['mcnemar_p']:.3g} before"
    if p < alpha:
        words = f"These two checkpoints differ on these items, {ARMS[c > b]} is higher {evidence})"
    else:
        words = f"No difference detected on these items {evidence})"
    words += "; this says nothing about the method."
    if all(row[arm]["interval_95"][0] <= floor["accuracy"] for arm in ARMS):
        words += (
            " Accuracy is uninformative here: neither interval lies above what always answering "
            f"{floor['answer']} scores ({floor['accuracy']:.2%})."
        )
    return words
