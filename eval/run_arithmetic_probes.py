"""Evaluate a checkpoint on arithmetic probes: table, two-digit products, additions; or stories."""

import sys
import time
from typing import TYPE_CHECKING, Any

from domain_tokens import evaluation, runs
from domain_tokens.evaluation import probes
from domain_tokens.runs import SEED, Parser, add_forbidding_argument, run_script

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
    "forbid_fact_tokens": "evaluation.forbid_fact_tokens",
}


def parse(argv: list[str] | None) -> "EvaluationRun[ProbeEvalConfig]":
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--seed", type=SEED, help="which probes are sampled")
    parser.add_argument(
        "--suite",
        choices=("standard", "full", "stories", "seed"),  # seed: what standard was once called
        metavar="{standard,full,stories}",
        help="281 probes, all there are, or each cell of the table in ten stories",
    )
    add_forbidding_argument(parser)
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
    stories = settings.suite == "stories"
    name = "stories" if stories else "arithmetic"
    data = {"probes": evaluation.probes_fingerprint(chosen)}
    decode = {**settings.model_dump(), "greedy": True}
    card = evaluation.evaluation_card(run, subject, stage=name, decode=decode, data=data)
    output = evaluation.Answers(run.output_dir, name, evaluation.evaluation_identity(card))
    if not output.open(resume=run.resume, overwrite=run.overwrite):
        print(f"{output.results} is already finished{output.note}")
        return 0
    questions = evaluation.probe_questions(
        subject, chosen, response_prefix=settings.response_prefix
    )
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
    wordings = evaluation.STORIES if stories else evaluation.TEMPLATES
    scores = evaluation.table_scores(
        subject, response_prefix=settings.response_prefix, templates=wordings
    )
    metrics = evaluation.story_metrics if stories else evaluation.arithmetic_metrics
    shown: dict[str, Any] = {
        "condition": run.condition,
        "model_path": str(run.model_path),
        **metrics(items, scores),
        **evaluation.decoding_speed(items, seconds),
    }
    output.finish(items, {"metrics": shown, "card": card}, more={"scores": scores})
    print(f"{_summary(run.condition, shown)}; results in {output.results}")
    return 0


def _summary(condition: str, shown: dict[str, Any]) -> str:
    if "a2" in shown:
        return (
            f"stories {condition}: {shown['accuracy']:.1%} of {shown['total']}, A2 "
            f"{shown['a2']:.2f} nats (blind to the numbers {shown['a2_floor']:.2f})"
        )
    table = shown["category_accuracies"]["mul_table"]
    return (
        f"probes {condition}: {shown['overall_accuracy']:.1%} of {shown['total']}, "
        f"table {table['correct']}/{table['total']}"
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
