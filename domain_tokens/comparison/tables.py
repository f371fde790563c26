"""Comparisons as tables on the console."""

from collections.abc import Iterator
from typing import Any

from domain_tokens.comparison.values import PRIMARIES
from domain_tokens.comparison.words import bounds_in_words, in_words

ROWS = "{:<31} {:>15} {:>15} {:>42} {:>9} {:>14}"
COLUMNS = "{:<41} {:>6} {:>21} {:>21} {:>23} {:>5} {:>5} {:>8}"
CONTRASTS = "{:<41} {:>15} {:>15} {:>42} {:>9} {:>14}"


def print_pair(pair: dict[str, Any]) -> None:
    """Print the table of one pair of checkpoints: percentages with 95 % intervals."""
    print(
        f"seed {pair['seed']}: {pair['baseline']['folder']} against {pair['mul_tokens']['folder']}"
    )
    print(COLUMNS.format("", "items", "baseline %", "mul_tokens %", "delta, points", "b", "c", "p"))
    for row in pair["endpoints"]:
        shown = [_percent(row[arm]) for arm in ("baseline", "mul_tokens")]
        low, high = (100 * bound for bound in row["delta_interval_95"])
        delta = f"{100 * row['delta']:+.2f} [{low:+.2f}, {high:+.2f}]"
        counts = (row["only_baseline_right"], row["only_mul_tokens_right"])
        name = f"{row['evaluation'].replace('arithmetic', 'probes')} {row['endpoint']}"
        name = name.replace("_expression_credited", ", credited")
        print(COLUMNS.format(name, row["total"], *shown, delta, *counts, f"{row['mcnemar_p']:.3g}"))
    for evaluation, floor in pair["best_constant"].items():
        print(f"  {evaluation}: always answering {floor['answer']} scores {floor['accuracy']:.2%}")
    for evaluation, metrics in pair["metrics"].items():
        for name, values in metrics.items():
            a, b = (_number(values[arm]) for arm in ("baseline", "mul_tokens"))
            print(f"  {evaluation} {name:<32} {a:>12} {b:>12}")
    print()


def _percent(arm: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in arm["interval_95"])
    return f"{100 * arm['accuracy']:.2f} [{low:.2f}, {high:.2f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def print_report(report: dict[str, Any]) -> None:
    """Print every pair, what is permitted to differ, mean deltas of several seeds, verdicts."""
    for pair in report["pairs"]:
        print_pair(pair)
    print_analysis(report["analysis"])
    print(
        "b, c: items that only baseline, only mul_tokens has right; p: exact McNemar, exploratory"
    )
    for notice in report["notices"]:
        print(f"note: {notice}")
    for name in report["not_compared"]:
        print(f"note: {name} results are not in all folders and were not compared")
    for difference in report["allowed_differences"]:
        a, b = difference["values"]
        print(f"note: permitted difference in {difference['key']}: {a} and {b}")
    if len(report["pairs"]) > 1:
        print("\nmean delta over seeds, points")
        for row in report["mean_deltas"]:
            deltas = ", ".join(f"{100 * delta:+.2f}" for delta in row["deltas"])
            name = f"{row['evaluation']} {row['endpoint']}"
            print(f"  {name:<55} {100 * row['mean_delta']:+.2f}  ({deltas})")
    print("\nVerdict")
    for verdict in report["verdicts"]:
        print(f"  {verdict}")


def print_analysis(analysis: dict[str, Any]) -> None:
    """Print the endpoints over seeds: delta, interval, p, and what could have been detected."""
    frozen = analysis["plan"]["hash"][:12]
    print(f"\n{analysis['clusters']} independent lineages per arm; analysis plan {frozen}")
    print(ROWS.format("", "baseline", "mul_tokens", "delta", "p (Holm)", "detectable"))
    for row in analysis["endpoints"]:
        unit = row["unit"]
        delta = (
            f"{in_words(row['delta'], unit)} {bounds_in_words(row)} {100 * row['confidence']:g} %"
        )
        arms = [
            in_words(row[arm], unit, sign=False) if arm in row else ""
            for arm in ("baseline", "mul_tokens")
        ]
        adjusted = row.get("p_holm")
        p = "-" if row["p"] is None else f"{row['p'] if adjusted is None else adjusted:.3g}"
        least = row.get("detectable")
        name = row["endpoint"] + (" (primary)" if row["role"] == "primary" else "")
        print(
            ROWS.format(
                name, *arms, delta, p, "-" if least is None else in_words(least, unit, sign=False)
            )
        )


def print_arms(report: dict[str, Any]) -> None:
    """Print what each arm has, the contrasts of the plan, and the verdicts."""
    print(f"analysis plan {report['plan']['hash'][:12]}")
    for name, arm in report["arms"].items():
        print(f"{name}: {', '.join(run['folder'] for run in arm['runs'])}")
        for endpoint, estimate in arm["endpoints"].items():
            print(f"  {endpoint:<32} {in_words(estimate['mean'], estimate['unit'], sign=False)}")
        for row in arm["accuracies"]:
            print(f"  {row['evaluation'] + ' ' + row['endpoint']:<55} {100 * row['mean']:.2f} %")
        for stage, counts in arm["counts"].items():
            shown = (f"{key} {_number(value)}" for key, value in counts.items())
            print(f"  {stage}: {', '.join(shown)}")
        if arm["attribution"]:
            shown = (f"{kind} {count}" for kind, count in arm["attribution"].items())
            print(f"  first wrong equation: {', '.join(shown)}")
    print(CONTRASTS.format("", "first", "second", "delta", "p (Holm)", "detectable"))
    for line in _contrast_lines(report):
        print(line)
    for notice in report["notices"]:
        print(f"note: {notice}")
    for difference in report["allowed_differences"]:
        a, b = difference["values"]
        print(f"note: permitted difference in {difference['key']}: {a} and {b}")
    print("\nVerdict")
    for verdict in report["verdicts"]:
        print(f"  {verdict}")


def _contrast_lines(report: dict[str, Any]) -> Iterator[str]:
    half = report["half_table"]
    for contrast in [*([half] if half else []), *report["contrasts"]]:
        for row in contrast["endpoints"]:
            unit, least = row["unit"], row["detectable"]
            sides = ("with_token", "without_token") if "with_token" in row else ("first", "second")
            p = row["p"] if row["p_holm"] is None else row["p_holm"]
            role = contrast["role"] if row["endpoint"] in PRIMARIES else "exploratory"
            yield CONTRASTS.format(
                f"{contrast['name']}, {row['endpoint']} ({role})",
                *(in_words(row[side], unit, sign=False) for side in sides),
                f"{in_words(row['delta'], unit)} {bounds_in_words(row)} "
                f"{100 * row['confidence']:g} %",
                "-" if p is None else f"{p:.3g}",
                "-" if least is None else in_words(least, unit, sign=False),
            )
