"""Evaluate a checkpoint on arithmetic probes: the table, two-digit products, additions."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from domain_tokens import evaluation, runs
from domain_tokens.evaluation import probes
from domain_tokens.runs import (
    SEED,
    Parser,
    add_evaluation_arguments,
    add_forbidding_argument,
    overrides_of,
    run_script,
)

EXAMPLE = (
    "uv run python eval/run_arithmetic_probes.py --model-path outputs/sft_gsm8k_baseline "
    "--output-dir outputs/eval_baseline --condition baseline"
)
FLAGS = {
    "batch_size": "evaluation.batch_size",
    "max_new_tokens": "evaluation.max_new_tokens",
    "seed": "evaluation.seed",
    "suite": "evaluation.suite",
    "forbid_fact_tokens": "evaluation.forbid_fact_tokens",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--seed", type=SEED, help="which probes are sampled")
    parser.add_argument("--suite", choices=("seed", "full"), help="281 probes, or all there are")
    add_forbidding_argument(parser)
    add_evaluation_arguments(parser, "eval/configs/arithmetic_probes.yaml")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Answer the probes, score them, write items and results."""
    args = parse(argv)
    config = runs.load_config(runs.ProbeEvalConfig, args.config, overrides_of(args, FLAGS))
    settings = config.evaluation
    subject = evaluation.load_for_evaluation(
        Path(args.model_path), condition=args.condition, precision=settings.precision
    )
    chosen = list(probes(settings))
    data = {"probes": evaluation.probes_fingerprint(chosen)}
    decode = {**settings.model_dump(), "greedy": True}
    card = evaluation.evaluation_card(args, subject, stage="arithmetic", decode=decode, data=data)
    output = evaluation.Answers(args.output_dir, "arithmetic", evaluation.evaluation_identity(card))
    if not output.open(resume=args.resume, overwrite=args.overwrite):
        print(f"{output.results} is already finished{output.note}")
        return 0
    questions = evaluation.probe_questions(subject, chosen, forced_start=settings.forced_start)
    evaluation.refuse_long_questions(subject, questions, settings.max_new_tokens)
    evaluation.refuse_broken_weights(subject, questions)
    start = time.perf_counter()
    responses = evaluation.answer_questions(subject, questions, output, settings)
    seconds = time.perf_counter() - start
    items = []
    for (_, _, gold), question, response in zip(chosen, questions, responses, strict=True):
        right = evaluation.facts_with_product(subject, gold)
        line = evaluation.item_of(subject, question, response, right=right)
        items.append({**line, **evaluation.probe_verdicts(line["gold"], line["response"])})
    scores = evaluation.table_scores(subject, forced_start=settings.forced_start)
    shown: dict[str, Any] = {
        "condition": args.condition,
        "model_path": args.model_path,
        **evaluation.arithmetic_metrics(items, scores),
        **evaluation.decoding_speed(items, seconds),
    }
    output.finish(items, {"metrics": shown, "card": card}, more={"scores": scores})
    table = shown["category_accuracies"]["mul_table"]
    print(
        f"probes {args.condition}: {shown['overall_accuracy']:.1%} of {len(items)}, "
        f"table {table['correct']}/{table['total']}; results in {output.results}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
