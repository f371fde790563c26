"""Evaluate a checkpoint on GSM8K with greedy decoding."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_tokens import answers, corpora, sources
from domain_tokens.command_line import COUNT, Parser, add_evaluation_arguments, overrides_of, run
from domain_tokens.injection import find_facts
from domain_tokens.vocabulary import FACTS, Layout

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
SHOWN = 50  # examples repeated in the results JSON, as in the lab note
PERMUTATIONS = 2000  # of the golds, for the matched floor


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--max-samples", type=COUNT, metavar="N", help="only N items, by hash")
    parser.add_argument("--split", help="overrides data.split")
    add_evaluation_arguments(parser, "eval/configs/gsm8k.yaml")
    return parser.parse_args(argv)


def score(problem: corpora.Problem, response: str) -> dict[str, Any]:
    """Return the extracted answers of one response and the three verdicts."""
    gold = answers.gold(problem.answer).number
    found = {
        "strict": answers.extract_strict(response),
        "flexible": answers.extract_flexible(response),
        "credited": answers.extract_credited(response),
    }
    verdicts = {
        "correct": found["strict"] == gold,
        "correct_flexible": found["flexible"] == gold,
        "correct_credited": found["credited"] == gold,
    }
    return {**{k: v if v is None else str(v) for k, v in found.items()}, **verdicts}


def facts_of(problem: corpora.Problem, layout: Layout) -> set[int]:
    """Return the ids of the facts that the gold solution uses."""
    used = {fact.token for fact in find_facts(problem.answer)}
    return {layout.first_fact_id + i for i, fact in enumerate(FACTS) if fact in used}


def metrics(items: list[dict[str, Any]], training_mode: str) -> dict[str, Any]:
    """Return accuracies as fractions, the strict one with its Wilson interval and its floors."""
    from domain_tokens import statistics

    total = len(items)
    correct = sum(item["correct"] for item in items)
    golds = [item["gold"] for item in items]
    mode = statistics.training_mode_constant([training_mode], golds)
    constant = statistics.best_constant(golds)
    matched, p = statistics.matched_floor(
        [item["strict"] for item in items], golds, permutations=PERMUTATIONS, seed=42
    )
    return {
        "correct": correct,
        "total": total,
        "accuracy": correct / total,
        "accuracy_interval_95": list(statistics.wilson_interval(correct, total)),
        "accuracy_expression_credited": sum(i["correct_credited"] for i in items) / total,
        "accuracy_flexible": sum(i["correct_flexible"] for i in items) / total,
        "training_mode_answer": training_mode,
        "training_mode_accuracy": mode.accuracy,
        "best_constant_answer": constant.answer,
        "best_constant_accuracy": constant.accuracy,
        "matched_floor": matched,
        "matched_floor_p": p,
    }


def item(
    subject: "Subject",
    problem: corpora.Problem,
    question: "Question",
    response: "Response",
    facts: set[int],
    endpoints: dict[str, Any],
) -> dict[str, Any]:
    """Return the scored line of one question; applicable: its gold solution uses a fact."""
    from domain_tokens import evaluation

    return {
        **evaluation.item(subject, question, response),
        **score(problem, evaluation.text(subject, response)),
        "applicable": bool(facts),
        **endpoints,
    }


def report(
    args: argparse.Namespace,
    subject: "Subject",
    items: list[dict[str, Any]],
    training_mode: str,
    *,
    more: dict[str, Any],
    used: list[set[int]],
) -> dict[str, Any]:
    """Return all metrics of answered and scored items; used: facts of each gold solution."""
    from domain_tokens import evaluation

    return {
        "condition": args.condition,
        "model_path": args.model_path,
        **metrics(items, training_mode),
        **evaluation.decoding_metrics(subject, items, used),
        **more,
    }


def main(argv: list[str] | None = None) -> int:
    """Answer the questions, score them, write items and results."""
    args = parse(argv)
    from domain_tokens import evaluation, preflight
    from domain_tokens.config import GSM8KEvalConfig, load_config

    config = load_config(GSM8KEvalConfig, args.config, overrides_of(args, FLAGS))

    loaded = corpora.load_problems(
        config.data.source,
        split=config.data.split,
        limit=args.max_samples,
        subset_seed=config.data.subset_seed,
    )
    golds = answers.golds(loaded.items)  # before a model is loaded
    settings = config.evaluation
    answers.refuse_unreadable(settings.frequent_answers, key="evaluation.frequent_answers")
    data = {"source": config.data.source, "test": loaded.fingerprint}
    if loaded.dropped:
        data["dropped"] = dict(loaded.dropped)
        print(*loaded.notes(), flush=True)
    subject = evaluation.load_subject(
        Path(args.model_path), condition=args.condition, precision=settings.precision
    )
    seed = evaluation.rationale_seed(settings, subject.folder)
    decode = {**settings.model_dump(), "rationale_seed": seed, "greedy": True}
    files = sources.file_hashes(config.data.source, split=config.data.split)
    card = evaluation.card(args, subject, stage="gsm8k", decode=decode, data=data, sources=files)
    output = evaluation.Answers(args.output_dir, "gsm8k", evaluation.identity(card))
    if not output.open(resume=args.resume, overwrite=args.overwrite):
        print(f"{output.results} is already finished")
        return 0
    questions = evaluation.gsm8k_questions(subject, loaded.items)
    texts = [gold.text for gold in golds]
    scored = {*texts, *settings.frequent_answers} if settings.rationales else ()
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
    scores, means = evaluation.answer_endpoints(
        subject,
        questions,
        output,
        golds=texts,
        settings=settings,
    )
    used = [facts_of(problem, subject.layout) for problem in loaded.items]
    rows = zip(loaded.items, questions, responses, used, scores, strict=True)
    items = [item(subject, *row) for row in rows]
    more = {**means, **evaluation.speed(items, seconds)}
    shown = report(args, subject, items, settings.frequent_answers[0], more=more, used=used)
    output.finish(items, {"metrics": shown, "examples": items[:SHOWN], "card": card})
    print(
        f"GSM8K {args.condition}: {shown['correct']}/{shown['total']} = {shown['accuracy']:.2%}, "
        f"stop rate {shown['stop_rate']:.1%}; results in {output.results}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
