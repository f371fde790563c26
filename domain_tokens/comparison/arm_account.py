"""Each arm by itself: its endpoints, what training cost, where answers go wrong, its ceiling."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from domain_tokens.comparison.arms import CALCULATORS, Arms, pair_arms
from domain_tokens.comparison.lineage_files import STAGE_RESULTS, lineage, stage_files
from domain_tokens.comparison.runs import Run, endpoints_of
from domain_tokens.comparison.values import ENDPOINTS, item_values
from domain_tokens.statistics import wilson_interval

COUNTS = ("tokens", "supervised_tokens", "injected_examples", "injected_tokens")


def account_of_arms(arms: Arms) -> dict[str, Any]:
    """Return each arm as plain data, by name; means are over seeds."""
    return {
        name: {
            "seeds": [run.seed for run in runs],
            "runs": [
                {
                    "seed": run.seed,
                    "folder": str(run.folder),
                    "weights": run.card["weights"],
                    "files": {e: evaluation.files for e, evaluation in run.evaluations.items()},
                }
                for run in runs
            ],
            "endpoints": dict(_endpoints(runs)),
            "accuracies": list(_accuracies(runs)),
            "counts": dict(_counts(runs)),
            "attribution": _attribution(runs),
        }
        for name, runs in arms.items()
    }


def _endpoints(runs: Sequence[Run]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the endpoints that all runs have: mean over seeds, and by seed."""
    for endpoint in ENDPOINTS:
        by_seed = {}
        for run in runs:
            evaluation = run.evaluations.get(endpoint.evaluation)
            values = item_values(evaluation, endpoint.name) if evaluation else None
            if not values:
                break
            by_seed[str(run.seed)] = math.fsum(values.values()) / len(values)
        else:
            mean = math.fsum(by_seed.values()) / len(by_seed)
            yield endpoint.name, {"unit": endpoint.unit, "mean": mean, "by_seed": by_seed}


def _accuracies(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Yield the accuracies of evaluations that all runs have, with each seed's Wilson interval."""
    names = [n for n in runs[0].evaluations if all(n in run.evaluations for run in runs)]
    for name in names:
        rows: dict[str, dict[str, Any]] = {}
        for run in runs:
            items = run.evaluations[name].items
            for endpoint, verdict, ids in endpoints_of(list(items.values()), name):
                right = sum(bool(items[key][verdict]) for key in ids)
                row = rows.setdefault(endpoint, {"evaluation": name, "endpoint": endpoint})
                row.setdefault("by_seed", {})[str(run.seed)] = {
                    "accuracy": right / len(ids),
                    "correct": right,
                    "total": len(ids),
                    "interval_95": list(wilson_interval(right, len(ids))),
                }
        for row in rows.values():
            values = [seed["accuracy"] for seed in row["by_seed"].values()]
            yield {**row, "mean": math.fsum(values) / len(values)}


def _counts(runs: Sequence[Run]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (stage, counts of the first seed) as far as the training folders are there."""
    chain = list(lineage(runs[0]))
    for stage in STAGE_RESULTS:
        files = stage_files(chain, stage)
        if files:
            results = files["results"]
            counts = {key: results.get(key) for key in COUNTS}
            counts["examples"] = results.get("total_train_samples")
            yield stage, {**counts, "flops": _flops(results)}


def _flops(results: dict[str, Any]) -> float | None:
    """Return the matmul FLOPs of a stage, or None where its rate was not known."""
    if results.get("flops") is not None:
        return results["flops"]
    mfu, peak, seconds = (results.get(key) for key in ("mfu", "peak_flops_used", "train_runtime"))
    return None if mfu is None or peak is None or seconds is None else mfu * peak * seconds


def _attribution(runs: Sequence[Run]) -> dict[str, int] | None:
    """Return how many wrong answers of all seeds went wrong first in which kind of equation."""
    total: Counter[str] = Counter()
    for run in runs:
        evaluation = run.evaluations.get("gsm8k")
        counts = evaluation.metrics.get("attribution") if evaluation else None
        if counts is None:
            return None
        total.update(counts)
    return dict(total)


def ceilings(arms: Arms) -> list[dict[str, Any]]:
    """Return, for each arm that was decoded with a calculator too, both accuracies.

    They are of the same checkpoints and questions, means over seeds (0–1).
    """
    rows = []
    for calculator, suffix in CALCULATORS.items():
        for name in [name for name in arms if name + suffix in arms]:
            pairs = pair_arms(arms[name], arms[name + suffix])
            pairs = [pair for pair in pairs if all("gsm8k" in run.evaluations for run in pair)]
            if not pairs:
                continue
            runs = [[pair[i].evaluations["gsm8k"] for pair in pairs] for i in (0, 1)]
            means = [
                math.fsum(item["correct"] for e in side for item in e.items.values())
                / sum(len(e.items) for e in side)
                for side in runs
            ]
            rows.append(
                {
                    "arm": name,
                    "calculator": calculator,
                    "seeds": [pair[0].seed for pair in pairs],
                    "accuracy": means[0],
                    "with_calculator": means[1],
                }
            )
    return rows
