"""Evaluate a checkpoint on arithmetic probes: the table, two-digit products, additions."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from domain_tokens import answers
from domain_tokens.command_line import SEED, Parser, add_evaluation_arguments, overrides_of, run
from domain_tokens.probes import TABLE, probes

EXAMPLE = (
    "uv run python eval/run_arithmetic_probes.py --model-path outputs/sft_gsm8k_baseline "
    "--output-dir outputs/eval_baseline --condition baseline"
)
FLAGS = {
    "batch_size": "evaluation.batch_size",
    "max_new_tokens": "evaluation.max_new_tokens",
    "seed": "evaluation.seed",
    "suite": "evaluation.suite",
}
CATEGORIES = ("mul_table", "mul_multidigit", "addition")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--seed", type=SEED, help="which probes are sampled")
    parser.add_argument("--suite", choices=("seed", "full"), help="281 probes, or all there are")
    add_evaluation_arguments(parser, "eval/configs/arithmetic_probes.yaml")
    return parser.parse_args(argv)


def score(gold: int, response: str) -> dict[str, Any]:
    """Return the extracted numbers of one response and the two verdicts."""
    strict = answers.extract_probe(response)
    credited = answers.extract_probe_credited(response)
    return {
        "strict": None if strict is None else str(strict),
        "credited": None if credited is None else str(credited),
        "correct": strict == gold,
        "correct_credited": credited == gold,
    }


def metrics(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return overall and per-category accuracies and the 9×9 grid of them, all as fractions."""
    from domain_tokens import statistics

    by_category = {c: [i for i in items if i["category"] == c] for c in CATEGORIES}
    correct = sum(i["correct"] for i in items)
    table = [i["correct"] for i in by_category["mul_table"]]
    size = len(table) // len(TABLE)  # wordings of a cell
    cells = [sum(table[i : i + size]) / size for i in range(0, len(table), size)]
    return {
        "overall_accuracy": correct / len(items),
        "overall_accuracy_interval_95": list(statistics.wilson_interval(correct, len(items))),
        "overall_accuracy_expression_credited": sum(i["correct_credited"] for i in items)
        / len(items),
        "correct": correct,
        "total": len(items),
        "category_accuracies": {
            category: {
                "accuracy": sum(i["correct"] for i in group) / len(group),
                "correct": sum(i["correct"] for i in group),
                "total": len(group),
            }
            for category, group in by_category.items()
        },
        "table_grid": grid(cells),
    }


def grid(cells: list[float]) -> list[list[float]]:
    """Return 81 values in the table's order as nine rows."""
    return [cells[row * 9 : row * 9 + 9] for row in range(9)]


def main(argv: list[str] | None = None) -> int:
    """Answer the probes, score them, write items and results."""
    args = parse(argv)
    from domain_tokens import endpoints, evaluation, preflight
    from domain_tokens.config import ProbeEvalConfig, load_config

    config = load_config(ProbeEvalConfig, args.config, overrides_of(args, FLAGS))
    settings = config.evaluation
    subject = evaluation.load_subject(
        Path(args.model_path), condition=args.condition, precision=settings.precision
    )
    chosen = list(probes(settings))
    data = {"probes": evaluation.fingerprint(chosen)}
    decode = {**settings.model_dump(), "greedy": True}
    card = evaluation.card(args, subject, stage="arithmetic", decode=decode, data=data)
    output = evaluation.Answers(args.output_dir, "arithmetic", evaluation.identity(card))
    if not output.open(resume=args.resume, overwrite=args.overwrite):
        print(f"{output.results} is already finished")
        return 0
    questions = evaluation.probe_questions(subject, chosen, forced_start=settings.forced_start)
    preflight.questions_fit(subject, questions, settings.max_new_tokens)
    preflight.probabilities_are_numbers(subject, questions)
    start = time.perf_counter()
    responses = evaluation.answer(
        subject,
        questions,
        output,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
    )
    seconds = time.perf_counter() - start
    items = [
        {**evaluation.item(subject, q, r), **score(gold, evaluation.text(subject, r))}
        for (_, _, gold), q, r in zip(chosen, questions, responses, strict=True)
    ]
    layout = subject.layout
    right = [{i for i in layout.fact_ids if layout.fact_of(i)[2] == gold} for _, _, gold in chosen]
    table_score = endpoints.table_score(subject, forced_start=settings.forced_start)
    results: dict[str, Any] = {
        "metrics": {
            "condition": args.condition,
            "model_path": args.model_path,
            **metrics(items),
            "a1": table_score.mean,
            "a1_grid": grid(table_score.by_cell),
            "fact_mass": table_score.fact_mass,
            **evaluation.decoding_metrics(subject, items, right),
            **evaluation.speed(items, seconds),
        },
        "card": card,
    }
    output.finish(items, results)
    scores: dict[str, Any] = results["metrics"]
    table = scores["category_accuracies"]["mul_table"]
    print(
        f"probes {args.condition}: {scores['overall_accuracy']:.1%} of {len(items)}, "
        f"table {table['correct']}/{table['total']}; results in {output.results}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
