"""Evaluate a checkpoint on arithmetic probes: the table, two-digit products, additions."""

import sys
import time
from typing import TYPE_CHECKING, Any

from domain_tokens import evaluation, runs
from domain_tokens.evaluation import probes
from domain_tokens.runs import SEED, Parser, run_script

if TYPE_CHECKING:
    from domain_tokens.evaluation import EvaluationRun
    from domain_tokens.runs import ProbeEvalConfig

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


def parse(argv: list[str] | None) -> "EvaluationRun[ProbeEvalConfig]":
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--seed", type=SEED, help="which probes are sampled")
    parser.add_argument("--suite", choices=("seed", "full"), help="281 probes, or all there are")
    default = "eval/configs/arithmetic_probes.yaml"
    return evaluation.parse_evaluation(
        parser, argv, runs.ProbeEvalConfig, default_config=default, flags=FLAGS
    )


def main(argv: list[str] | None = None) -> int:
    """Answer the probes, score them, write items and results."""
    run = parse(argv)
    settings = run.config.evaluation
    subject = evaluation.load_for_evaluation(
        run.model_path, condition=run.condition, precision=settings.precision
    )
    chosen = list(probes(settings))
    data = {"probes": evaluation.probes_fingerprint(chosen)}
    decode = {**settings.model_dump(), "greedy": True}
    card = evaluation.evaluation_card(run, subject, stage="arithmetic", decode=decode, data=data)
    output = evaluation.Answers(run.output_dir, "arithmetic", evaluation.evaluation_identity(card))
    if not output.open(resume=run.resume, overwrite=run.overwrite):
        print(f"{output.results} is already finished{output.note}")
        return 0
    questions = evaluation.probe_questions(subject, chosen, forced_start=settings.forced_start)
    evaluation.refuse_long_questions(subject, questions, settings.max_new_tokens)
    evaluation.refuse_broken_weights(subject, questions)
    start = time.perf_counter()
    responses = evaluation.answer_questions(
        subject,
        questions,
        output,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
    )
    seconds = time.perf_counter() - start
    items = []
    for (_, _, gold), question, response in zip(chosen, questions, responses, strict=True):
        right = evaluation.facts_with_product(subject, gold)
        line = evaluation.item_of(subject, question, response, right=right)
        items.append({**line, **evaluation.probe_verdicts(line["gold"], line["response"])})
    scores = evaluation.table_scores(subject, forced_start=settings.forced_start)
    shown: dict[str, Any] = {
        "condition": run.condition,
        "model_path": str(run.model_path),
        **evaluation.arithmetic_metrics(items, scores),
        **evaluation.decoding_speed(items, seconds),
    }
    output.finish(items, {"metrics": shown, "card": card}, more={"scores": scores})
    table = shown["category_accuracies"]["mul_table"]
    print(
        f"probes {run.condition}: {shown['overall_accuracy']:.1%} of {len(items)}, "
        f"table {table['correct']}/{table['total']}; results in {output.results}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
