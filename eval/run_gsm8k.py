"""Evaluate a checkpoint on GSM8K with greedy decoding."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens import answers, corpora
from domain_tokens.command_line import COUNT, Parser, add_evaluation_arguments, overrides_of, run

if TYPE_CHECKING:
    from domain_tokens.evaluation import Question, Subject
    from domain_tokens.generation import Response

EXAMPLE = (
    "uv run python eval/run_gsm8k.py --model-path outputs/sft_gsm8k_baseline "
    "--output-dir outputs/eval_baseline --condition baseline"
)
FLAGS = {
    "batch_size": "evaluation.batch_size",
    "max_new_tokens": "evaluation.max_new_tokens",
    "split": "data.split",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--max-samples", type=COUNT, metavar="N", help="only N items, by hash")
    parser.add_argument("--split", help="overrides data.split")
    add_evaluation_arguments(parser, "eval/configs/gsm8k.yaml")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Answer the questions, score them, write items and results."""
    args = parse(argv)
    from domain_tokens import evaluation, metrics, preflight
    from domain_tokens.config import GSM8KEvalConfig, load_config

    config = load_config(GSM8KEvalConfig, args.config, overrides_of(args, FLAGS))
    settings = config.evaluation
    reading: dict[str, Any] = {
        "source": config.data.source,
        "split": config.data.split,
        "limit": args.max_samples,
        "subset_seed": config.data.subset_seed,
    }
    loaded = corpora.load_problems(**reading)
    golds = golds_of(loaded.items, settings.frequent_answers)
    data = {"source": config.data.source, "test": loaded.fingerprint}
    if loaded.dropped:
        data["dropped"] = dict(loaded.dropped)
        print(*loaded.notes(), flush=True)
    subject = evaluation.load_subject(
        Path(args.model_path), condition=args.condition, precision=settings.precision
    )
    seed = evaluation.rationale_seed(settings, subject.folder)
    decode = {**settings.model_dump(), "rationale_seed": seed, "greedy": True}
    card = evaluation.card(args, subject, stage="gsm8k", decode=decode, data=data, reading=reading)
    output = evaluation.Answers(args.output_dir, "gsm8k", evaluation.identity(card))
    if not output.open(resume=args.resume, overwrite=args.overwrite):
        print(f"{output.results} is already finished")
        return 0
    questions = evaluation.gsm8k_questions(subject, loaded.items)
    scored = {*golds, *settings.frequent_answers} if settings.rationales else ()
    preflight.questions_fit(subject, questions, settings.max_new_tokens, answers=scored)
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
    scores, rationales = evaluation.answer_endpoints(
        subject, questions, output, golds=golds, settings=settings
    )
    rows = zip(loaded.items, questions, responses, scores, strict=True)
    items = [item(subject, *row) for row in rows]
    shown = {
        "condition": args.condition,
        "model_path": args.model_path,
        **metrics.gsm8k(items, decode),
        **metrics.speed(items, seconds),
    }
    results = {"metrics": shown, "examples": items[: metrics.SHOWN], "card": card}
    output.finish(items, results, more={"rationales": rationales} if rationales else {})
    print(
        f"GSM8K {args.condition}: {shown['correct']}/{shown['total']} = {shown['accuracy']:.2%}, "
        f"stop rate {shown['stop_rate']:.1%}; results in {output.results}"
    )
    return 0


def golds_of(problems: list[corpora.Problem], frequent: list[str]) -> list[str]:
    """Return the gold answers as the data write them.

    Raises UserError, before a model is loaded, where one cannot be read or has no 16 distractors.
    """
    from domain_tokens import endpoints

    golds = [gold.text for gold in answers.golds(problems)]
    answers.refuse_unreadable(frequent, key="evaluation.frequent_answers")
    for gold in golds:
        endpoints.distractors(frequent, gold)
    return golds


def item(
    subject: "Subject",
    problem: corpora.Problem,
    question: "Question",
    response: "Response",
    endpoints: dict[str, Any],
) -> dict[str, Any]:
    """Return the scored line of one question; applicable: its gold solution uses a fact."""
    from domain_tokens import evaluation, metrics

    facts = evaluation.facts_in_solution(subject, problem)
    line = evaluation.item(subject, question, response, right=facts)
    return {
        **line,
        **metrics.problem_verdicts(line["gold"], line["response"]),
        "applicable": bool(facts),
        **endpoints,
    }


if __name__ == "__main__":
    sys.exit(run(main))
