"""Compare arms item by item and say what may be said."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from domain_tokens.errors import UserError
from domain_tokens.runs import Parser, in_repository, run_script

EXAMPLE = (
    "uv run python scripts/compare_runs.py --baseline-dir outputs/eval_baseline "
    "--mul-tokens-dir outputs/eval_mul_tokens --output-path outputs/comparison.json"
)
PLAN = "eval/configs/analysis_plan.yaml"
ARMS_PLAN = "eval/configs/half_tables.yaml"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    for flag, arm in (("--baseline-dir", "baseline"), ("--mul-tokens-dir", "mul_tokens")):
        parser.add_argument(
            flag,
            nargs="+",
            action="extend",
            default=[],
            metavar="DIR",
            help=f"evaluation folders of the {arm} arm, one per seed",
        )
    parser.add_argument(
        "--arm",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME=DIR", "DIR"),
        help="an arm of a study with several, as in half_a=outputs/eval_a_seed_1; give it again "
        "for the next (NAME+calculator: the same runs, decoded with a calculator)",
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
        metavar="FILE",
        help=f"the frozen analysis plan (default: {PLAN}, with --arm {ARMS_PLAN})",
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


def arm_folders(args: argparse.Namespace) -> dict[str, list[Path]]:
    """Return the folders of each arm by name; the two older flags are baseline and fact_token."""
    folders: dict[str, list[Path]] = {}
    if args.baseline_dir:
        folders["baseline"] = [Path(folder) for folder in args.baseline_dir]
    if args.mul_tokens_dir:
        folders["fact_token"] = [Path(folder) for folder in args.mul_tokens_dir]
    for first, *more in args.arm:
        name, equals, folder = first.partition("=")
        if not (name and equals and folder):
            raise UserError(f"--arm {first}: wanted NAME=DIR, as in half_a=outputs/eval_half_a")
        if any("=" in word and not Path(word).exists() for word in more):
            raise UserError(f"--arm {' '.join([first, *more])}: give --arm again for the next arm")
        folders.setdefault(name, []).extend(Path(path) for path in (folder, *more))
    return folders


def compare_two(args: argparse.Namespace, plan: Any) -> tuple[dict[str, Any], Any]:
    """Load, pair, refuse what is not alike and compare baseline with mul_tokens."""
    from domain_tokens.comparison import (
        ARMS,
        SEED_FLAGS,
        compare_runs,
        find_differences,
        load_pilot,
        load_run,
        pair_runs,
        refuse_other_arm,
    )

    baseline, mul_tokens = (
        [load_run(Path(folder), condition=arm) for folder in folders]
        for arm, folders in zip(ARMS, (args.baseline_dir, args.mul_tokens_dir), strict=True)
    )
    pairs = pair_runs(baseline, mul_tokens)
    for pair in pairs:
        for arm, run in zip(ARMS, pair, strict=True):
            refuse_other_arm(run, SEED_FLAGS[arm])
    allowed = find_differences(pairs, args.allow_diff)
    report = compare_runs(pairs, plan, load_pilot([Path(f) for f in args.pilot_dir]))
    return report | {"allowed_differences": [asdict(difference) for difference in allowed]}, pairs


def compare_several(args: argparse.Namespace, plan: Any) -> tuple[dict[str, Any], Any]:
    """Load the arms, refuse what is not alike, and compare them as the plan says."""
    from domain_tokens.comparison import compare_arms, find_arm_differences, load_arms, load_pilot
    from domain_tokens.treatments import draw_half

    arms = load_arms(arm_folders(args))
    allowed = find_arm_differences(arms, args.allow_diff)
    pilot = load_pilot([Path(folder) for folder in args.pilot_dir])
    report = compare_arms(arms, plan, draw_half, pilot)
    return report | {"allowed_differences": [asdict(difference) for difference in allowed]}, arms


def refuse_incomplete(args: argparse.Namespace, *, several: bool) -> None:
    """Raise UserError where there are not two arms, or the plan is for two and there are more."""
    flags: Sequence[tuple[str, list[str]]] = (
        ("--baseline-dir", args.baseline_dir),
        ("--mul-tokens-dir", args.mul_tokens_dir),
    )
    missing = [flag for flag, folders in flags if not folders]
    if not several and args.arm:
        raise UserError(
            f"{args.plan} names no contrasts; with --arm give a plan such as {ARMS_PLAN}"
        )
    if not several and missing:
        raise UserError(f"{missing[0]} is missing; give it, or the arms as --arm NAME=DIR")
    if several and len(arm_folders(args)) < 2:
        raise UserError("fewer than two arms; give them as --arm NAME=DIR")


def main(argv: list[str] | None = None) -> int:
    """Choose the plan, compare, print and write."""
    args = parse(argv)
    from domain_tokens.comparison import (
        print_arms,
        print_report,
        write_arms_report,
        write_report,
    )
    from domain_tokens.runs import (
        ArmsPlan,
        Comparison,
        Study,
        code_identity,
        load_plan,
        refuse_unwritable,
        write_record,
    )

    for path in (args.output_path, args.report):
        refuse_unwritable(path)
    plan = load_plan(args.plan or in_repository(ARMS_PLAN if args.arm else PLAN))
    several = isinstance(plan, ArmsPlan)
    refuse_incomplete(args, several=several)
    report, runs = (compare_several if several else compare_two)(args, plan)
    report["code"] = code_identity()
    (print_arms if several else print_report)(report)
    if args.report:
        (write_arms_report if several else write_report)(Path(args.report), report, runs)
        print(f"\nreport: {args.report}")
    if args.output_path:
        Path(args.output_path).parent.mkdir(parents=True, exist_ok=True)
        write_record(Path(args.output_path), Study if several else Comparison, report)
        print(f"written to {args.output_path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
