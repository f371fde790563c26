"""Run the whole experiment by one command: base, SFT, evaluations and comparison of all arms."""

import argparse
import sys
import time
from typing import TYPE_CHECKING

from domain_tokens import experiment
from domain_tokens.errors import UserError
from domain_tokens.runs import CONDITIONS, COUNT, SEED, Number, Parser, run_script

if TYPE_CHECKING:
    from domain_tokens.experiment import Experiment, Planned

EXAMPLE = "uv run python scripts/run_experiment.py --profile demo"
CORPUS_SEED = 42
RATE = Number(float, 1e-12, 1)
LIMIT = Number(int, 0, 2**31 - 1)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    add = parser.add_argument
    add(
        "--profile",
        choices=tuple(experiment.PROFILES),
        default="demo",
        help="demo: a tiny model on generated data, in minutes, offline; laptop: a small "
        "pretrained model on GSM8K, overnight; full: the study (demo)",
    )
    add("--output-root", default="outputs", metavar="DIR", help="(outputs)")
    add("--seeds", type=SEED, nargs="+", metavar="N", help="default: the configs' 42; laptop: 1-5")
    add(
        "--learning-rates",
        type=RATE,
        nargs="+",
        metavar="X",
        help="of both SFT stages; each has a comparison of its own (default: the configs')",
    )
    _add_what_is_compared(parser)
    add(
        "--set",
        action="append",
        default=[],
        metavar="STAGE.KEY=VALUE",
        dest="overrides",
        help="override one key of a kind of stage, as in --set gsm8k.training.num_epochs=3",
    )
    add(
        "--jobs",
        type=COUNT,
        metavar="N",
        help="N lineages side by side, a process and a log file each; one that fails stops "
        "no other (default: one process runs everything; laptop: 1)",
    )
    add("--only", nargs="+", metavar="LINEAGE", help="as in half_a_seed_1; no comparison")
    add("--child", action="store_true", help=argparse.SUPPRESS)  # started by --jobs
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="print the commands only")
    only.add_argument("--corpora-only", action="store_true", help="write the demo's corpora, stop")
    args = parser.parse_args(argv)
    refuse_misuse(args)
    return args


def _add_what_is_compared(parser: argparse.ArgumentParser) -> None:
    """Add what says which arms there are, from what base, on which data."""
    add = parser.add_argument
    add("--design", choices=experiment.DESIGNS, help="(two-arms; laptop: half-tables)")
    add(
        "--treatments",
        nargs="*",
        choices=experiment.CONTROLS,
        metavar="NAME",
        help=f"control arms: {', '.join(experiment.CONTROLS)} (none; laptop: operands generic)",
    )
    add(
        "--without",
        nargs="+",
        choices=experiment.EXTRA,
        default=[],
        metavar="NAME",
        help="evaluations of laptop that no primary endpoint needs, to leave out: "
        + ", ".join(experiment.EXTRA),
    )
    add("--from", dest="base", metavar="DIR|F.gguf|HUB_ID", help="what laptop's base is made from")
    add("--source", metavar="DIR|HUB_ID", help="laptop: train.jsonl and test.jsonl (openai/gsm8k)")
    add(
        "--max-samples", type=LIMIT, metavar="N", help="GSM8K test items (all; laptop: 500); 0: all"
    )


def refuse_misuse(args: argparse.Namespace) -> None:
    """Raise UserError for arguments that are fine one by one and make no sense as they stand."""
    for name in ("seeds", "learning_rates"):
        given = getattr(args, name) or []
        twice = next((value for value in given if given.count(value) > 1), None)
        if twice is not None:
            raise UserError(f"--{name.replace('_', '-')} names {twice} twice; wanted each once")
    if args.corpora_only and args.profile != "demo":
        raise UserError(f"--corpora-only with --profile {args.profile}; only the demo has corpora")


def plan_of(args: argparse.Namespace) -> "Experiment":
    """Return the plan that the arguments ask for."""
    options = experiment.Options(
        design=args.design,
        treatments=args.treatments,
        base=args.base,
        data=args.source,
        max_samples=args.max_samples,
        overrides=args.overrides,
        without=args.without,
    )
    plan = experiment.Experiment(
        args.profile, args.output_root, args.seeds, args.learning_rates, options
    )
    experiment.refuse_bad_overrides(plan.layout)
    return plan


def prepare(plan: "Experiment") -> None:
    """Write the demo's corpora; raise UserError where the bases of the study are not there."""
    if plan.profile.name == "demo":
        from domain_tokens.data import write_demo_corpora

        written = write_demo_corpora(plan.layout.data, seed=CORPUS_SEED)
        print(f"demo corpora: {plan.layout.data}{'' if written else ' (already there)'}")
    for condition in CONDITIONS if not plan.profile.makes_base else ():
        if not plan.layout.base(condition).is_dir():
            raise UserError(
                f"{plan.layout.base(condition)} not found; put the {condition} base checkpoint "
                "there, or make one with scripts/make_base.py"
            )


def main(argv: list[str] | None = None) -> int:
    """Run what is not finished yet, then check and compare the final checkpoints."""
    args = parse(argv)
    plan = plan_of(args)
    lineages = experiment.chosen_lineages(plan, args.only)
    stages = [s for line in lineages for s in line.stages] if args.only else [*plan.stages()]
    every = experiment.planned([plan.base_lineage(), *plan.lineages()])
    jobs = plan.profile.jobs if args.jobs is None else args.jobs
    if args.dry_run:
        print(*stages, *([] if args.only else [plan.check(), *plan.comparisons()]), sep="\n")
        if plan.profile.name == "laptop":
            asked = experiment.planned(lineages)
            print(f"\n{experiment.expected_time(plan, asked, jobs=jobs or 1)}")
        return 0
    if args.child:
        experiment.end_with_parent()
    start, done = time.perf_counter(), _finished(every)
    prepare(plan)
    if args.corpora_only:
        return 0
    if jobs is None or args.child:
        experiment.run_here(plan, stages, jobs=jobs or 1)
    else:
        words = sys.argv[1:] if argv is None else argv
        experiment.run_apart(plan, lineages, words, jobs=jobs)
    if args.only:
        return 0
    comparisons = [stage.finished for stage in plan.comparisons()]
    if _finished(every) == done and all(file.is_file() for file in comparisons):
        files = ", ".join(map(str, comparisons))
        print(f"\neverything is finished, nothing was done; the comparison is {files}")
        return 0
    status = experiment.compare_arms(plan)
    if not status:
        print(f"\nfinished in {time.perf_counter() - start:.0f} s")
    return status


def _finished(stages: "list[Planned]") -> int:
    return sum(stage.finished.is_file() for stage in stages)


if __name__ == "__main__":
    sys.exit(run_script(main))
