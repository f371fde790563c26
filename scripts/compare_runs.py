"""Compare the two arms item by item and say what may be said."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from domain_tokens.runs import Parser, in_repository, run_script

EXAMPLE = (
    "uv run python scripts/compare_runs.py --baseline-dir outputs/eval_baseline "
    "--mul-tokens-dir outputs/eval_mul_tokens --output-path outputs/comparison.json"
)
PLAN = "eval/configs/analysis_plan.yaml"
ROWS = "{:<31} {:>15} {:>15} {:>42} {:>9} {:>14}"
COLUMNS = "{:<41} {:>6} {:>21} {:>21} {:>23} {:>5} {:>5} {:>8}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    for flag, arm in (("--baseline-dir", "baseline"), ("--mul-tokens-dir", "mul_tokens")):
        parser.add_argument(
            flag,
            nargs="+",
            action="extend",
            required=True,
            metavar="DIR",
            help=f"evaluation folders of the {arm} arm, one per seed",
        )
    parser.add_argument(
        "--pilot-dir",
        nargs="+",
        action="extend",
        default=[],
        metavar="DIR",
        help="evaluation folders of one condition (A/A), whose noise gives the detectable effects",
    )
    parser.add_argument(
        "--plan",
        default=in_repository(PLAN),
        metavar="FILE",
        help=f"the frozen analysis plan (default: {PLAN})",
    )
    parser.add_argument("--output-path", metavar="FILE", help="write everything here as JSON")
    parser.add_argument("--report", metavar="FILE", help="write a page for the browser (HTML)")
    parser.add_argument(
        "--allow-diff",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help="permit, and record, a difference between the arms, as in decode.batch_size",
    )
    return parser.parse_args(argv)


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
            one, other = (_number(values[arm]) for arm in ("baseline", "mul_tokens"))
            print(f"  {evaluation} {name:<32} {one:>12} {other:>12}")
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
        one, other = difference["values"]
        print(f"note: permitted difference in {difference['key']}: {one} and {other}")
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
    from domain_tokens.comparison import bounds_in_words, in_words

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


def main(argv: list[str] | None = None) -> int:
    """Load, pair, refuse what is not alike, compare, print and write."""
    args = parse(argv)
    from domain_tokens.comparison import (
        ARMS,
        compare_runs,
        find_differences,
        load_pilot,
        load_run,
        pair_runs,
        write_report,
    )
    from domain_tokens.runs import (
        AnalysisPlan,
        Comparison,
        code_identity,
        load_config,
        refuse_unwritable,
        write_record,
    )

    for path in (args.output_path, args.report):
        refuse_unwritable(path)

    baseline, mul_tokens = (
        [load_run(Path(folder), condition=arm) for folder in folders]
        for arm, folders in zip(ARMS, (args.baseline_dir, args.mul_tokens_dir), strict=True)
    )
    pairs = pair_runs(baseline, mul_tokens)
    allowed = find_differences(pairs, args.allow_diff)
    plan = load_config(AnalysisPlan, args.plan, [])
    report = compare_runs(pairs, plan, load_pilot([Path(f) for f in args.pilot_dir]))
    report["allowed_differences"] = [asdict(difference) for difference in allowed]
    report["code"] = code_identity()
    print_report(report)
    if args.report:
        write_report(Path(args.report), report, pairs)
        print(f"\nreport: {args.report}")
    if args.output_path:
        Path(args.output_path).parent.mkdir(parents=True, exist_ok=True)
        write_record(Path(args.output_path), Comparison, report)
        print(f"written to {args.output_path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
