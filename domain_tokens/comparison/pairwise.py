"""Two arms side by side: pair their evaluations, refuse unequal ones, compare item by item."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from domain_tokens.comparison.claims import PairVerdict, Statement
from domain_tokens.comparison.must_equal import unrecorded_in_cards
from domain_tokens.comparison.over_seeds import analyse
from domain_tokens.comparison.runs import ACCURACIES, ARMS, TESTED, Evaluation, Run, endpoints_of
from domain_tokens.comparison.words import pair_sentence, pairs_sentence
from domain_tokens.errors import UserError
from domain_tokens.runs import AnalysisPlan
from domain_tokens.statistics import (
    best_constant,
    holm,
    mcnemar_exact,
    paired_difference_interval,
    wilson_interval,
)


def compare_runs(
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
    headlines = [row for of_pair in compared for row in of_pair["endpoints"] if row["headline"]]
    # The family is every evaluation of every pair; one that is missing counts as p = 1.
    missing = len(pairs) * len(TESTED) - len(headlines)
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
        "untold": list(unrecorded_in_cards(runs)),
        "analysis": analyse(pairs, plan, pilot),
    }
    of_pairs = list(_verdicts(report, plan.alpha))
    report["verdicts"] = [*report["analysis"]["verdicts"], *(s.text for s in of_pairs)]
    report["statements"] = [
        *report["analysis"]["statements"],
        *(s.as_data() for s in of_pairs),
    ]
    return report


def _compare_pair(pair: tuple[Run, Run], names: Sequence[str]) -> dict[str, Any]:
    endpoints, metrics, floors = [], {}, {}
    for name in names:
        a, b = (run.evaluations[name] for run in pair)
        refuse_unpaired(a, b)
        items = [a.items[key] for key in sorted(a.items)]  # whatever the order of the file
        for index, (endpoint, verdict, ids) in enumerate(endpoints_of(items, name)):
            right = [([bool(e.items[i][verdict]) for i in ids]) for e in (a, b)]
            tested = index == 0 and name in TESTED
            row = {"evaluation": name, "endpoint": endpoint, "headline": tested}
            endpoints.append(row | _compare_items(*right))
        metrics[name] = _plain_metrics(a.metrics, b.metrics)
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


def refuse_unpaired(a: Evaluation, b: Evaluation) -> None:
    """Raise UserError where two evaluations are not of the same items, prompts and golds."""
    where = f"{a.results} and {b.results}"
    alone = sorted(a.items.keys() ^ b.items.keys())
    if alone:
        raise UserError(
            f"{where} are not of the same items: {len(alone)} are in one only ({alone[0]}); "
            "evaluate both arms on the same data"
        )
    for key in ("prompt_hash", "gold"):
        bad = [i for i, item in a.items.items() if item[key] != b.items[i][key]]
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
        deltas = [of_pair["endpoints"][index]["delta"] for of_pair in compared]
        rows.append(
            {
                "evaluation": row["evaluation"],
                "endpoint": row["endpoint"],
                "deltas": deltas,
                "mean_delta": math.fsum(deltas) / len(deltas),
            }
        )
    return rows


def _verdicts(report: dict[str, Any], alpha: float) -> Iterator[Statement]:
    """Yield what may be said of the accuracies of each pair, and what the reader has to know."""
    pairs = report["pairs"]
    headlines = [[row for row in pair["endpoints"] if row["headline"]] for pair in pairs]
    for rows in zip(*headlines, strict=True):
        name = f"{rows[0]['evaluation']} {rows[0]['endpoint']}"
        verdicts = [_verdict(pair, row, alpha) for pair, row in zip(pairs, rows, strict=True)]
        if len(pairs) == 1:
            yield Statement(pair_sentence(verdicts[0]), name, tuple(verdicts))
        else:
            yield Statement(pairs_sentence(name, verdicts), verdicts=tuple(verdicts))
    yield from map(Statement, report["untold"])
    if report["cross_base"]:
        yield Statement(
            "A base × SFT factorial (--cross-base): the arm of the base is not that of the SFT in "
            f"{', '.join(report['cross_base'])}."
        )


def _verdict(pair: dict[str, Any], row: dict[str, Any], alpha: float) -> PairVerdict:
    b, c = row["only_baseline_right"], row["only_mul_tokens_right"]
    floor = pair["best_constant"][row["evaluation"]]
    differ = row["mcnemar_p_holm"] < alpha
    return PairVerdict(
        evaluation=row["evaluation"],
        endpoint=row["endpoint"],
        seed=pair["seed"],
        claim="differ" if differ else "not_detected",
        higher=ARMS[c > b] if differ else None,
        only_baseline_right=b,
        only_mul_tokens_right=c,
        p=row["mcnemar_p"],
        p_holm=row["mcnemar_p_holm"],
        uninformative=all(row[arm]["interval_95"][0] <= floor["accuracy"] for arm in ARMS),
        floor_answer=floor["answer"],
        floor_accuracy=floor["accuracy"],
    )
