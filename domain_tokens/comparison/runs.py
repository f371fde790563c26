"""Evaluation folders: loaded, verified, paired, and told apart by their lineage."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_tokens.errors import UserError
from domain_tokens.evaluation import OlderError, verify_results
from domain_tokens.runs import (
    EVALUATION_LINES,
    EVALUATION_RESULTS,
    check_record,
    check_records,
    hash_files,
    read_lines,
    read_sealed,
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
    "stories": (
        ("accuracy", "correct"),
        ("accuracy_expression_credited", "correct_credited"),
    ),
}
# Those whose accuracies are tested for the verdict; stories are exploratory.
TESTED = ("gsm8k", "arithmetic")


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
        raise UserError(
            f"{folder} mixes evaluations of two checkpoints; evaluate one of them again"
        )
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
    names = Counter(name for run in runs for name in lineages_of(run))
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
    notices = [check_record(results, EVALUATION_RESULTS[name], tree)]
    metrics, card = tree["metrics"], tree["card"]
    items = _read_items(path)
    notices += [check_records(path, EVALUATION_LINES[name]["items"], items.values())]
    for endpoint, verdict, ids in endpoints_of(list(items.values()), name):
        counted = sum(items[i][verdict] for i in ids) / len(ids)
        claimed = _claimed(metrics, endpoint)
        if claimed is not None and not math.isclose(claimed, counted, abs_tol=1e-9):
            raise UserError(
                f"{results} says {endpoint} {claimed}, its items say {counted}; they are not of "
                "one run: evaluate again"
            )
    notices += _verify(results, tree, list(items.values()))
    told = tuple(notice for notice in notices if notice)
    return Evaluation(results, metrics, card, items, hash_files([results, path]), told)


def _verify(results: Path, tree: dict[str, Any], items: Sequence[dict[str, Any]]) -> tuple:
    """Check results against all their lines; return what there is to say of an older version."""
    try:
        return tuple(verify_results(results, tree, items))
    except OlderError as older:
        return (str(older),)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(
            f"{results}: not as an evaluation writes it ({type(error).__name__}: {error}); "
            "evaluate that checkpoint again"
        ) from None


def _claimed(metrics: dict[str, Any], endpoint: str) -> float | None:
    if "." not in endpoint:
        return metrics.get(endpoint)
    category, _, name = endpoint.partition(".")
    return metrics.get("category_accuracies", {}).get(category, {}).get(name)


def _read_items(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} not found; evaluate that checkpoint again")
    items: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(read_lines(path), start=1):
        if "id" not in item:
            raise UserError(f"{path} line {number} has no id; evaluate again")
        if item["id"] in items:
            raise UserError(f"{path} has item {item['id']} twice; evaluate again")
        items[item["id"]] = item
    if not items:
        raise UserError(f"{path} has no items; evaluate again")
    return items


def lineage_clusters(pairs: Sequence[tuple["Run", "Run"]]) -> list[list[int]]:
    """Return the pairs' numbers, those together that share a trained ancestor or weights."""
    groups: list[tuple[set[str], list[int]]] = []
    for number, pair in enumerate(pairs):
        names = set().union(*(lineages_of(run) for run in pair))
        joined = [group for group in groups if group[0] & names]
        for group in joined:
            groups.remove(group)
            names |= group[0]
        members = sorted([number, *(m for group in joined for m in group[1])])
        groups.append((names, members))
    return sorted(members for _, members in groups)


def lineages_of(run: "Run") -> set[str]:
    """Return the weights of a checkpoint and of all trained stages before it.

    Runs with any of them in common are no independent lineages. Bases are not trained stages.
    """
    training = run.card["training"] or {}
    parents = [training.get("parent") or {}, *(training.get("ancestors") or ())]
    trained = [p for p in parents if p.get("stage") not in (None, "base")]
    return {str(run.card["weights"]), *(str(parent["weights"]) for parent in trained)}


def same_base(runs: Sequence["Run"]) -> bool | None:
    """Return whether all runs start from one base, or None where the cards do not tell."""
    bases = set()
    for run in runs:
        training = run.card["training"] or {"stage": "base"}
        bases.add(run.card["weights"] if training["stage"] == "base" else training.get("base"))
    return None if None in bases else len(bases) == 1
