"""Evaluate a checkpoint on GSM8K with greedy decoding."""

import sys
import time
from typing import TYPE_CHECKING, Any

from domain_tokens import evaluation, inference, runs
from domain_tokens.answers import refuse_unreadable
from domain_tokens.data import Problem, load_problems
from domain_tokens.runs import COUNT, Parser, add_forbidding_argument, run_script

if TYPE_CHECKING:
    from domain_tokens.evaluation import EvaluationRun, LoadedCheckpoint, Question
    from domain_tokens.inference import Response
    from domain_tokens.runs import GSM8KEvalConfig

EXAMPLE = (
    "uv run python eval/run_gsm8k.py --model-path outputs/sft_gsm8k_baseline "
    "--output-dir outputs/eval_baseline --condition baseline"
)
FLAGS = {
    "batch_size": "evaluation.batch_size",
    "max_new_tokens": "evaluation.max_new_tokens",
    "split": "data.split",
    "calculator": "evaluation.calculator",
    "forbid_fact_tokens": "evaluation.forbid_fact_tokens",
}


def parse(argv: list[str] | None) -> "EvaluationRun[GSM8KEvalConfig]":
    """Read the command line."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--max-samples", type=COUNT, metavar="N", help="only N items, by hash")
    parser.add_argument("--split", help="overrides data.split")
    parser.add_argument(
        "--calculator",
        choices=("facts", "all"),
        help="write right results after `a*b=` of two digits, or after any `a op b=`",
    )
    add_forbidding_argument(parser)
    return evaluation.parse_evaluation(
        parser, argv, runs.GSM8KEvalConfig, default_config="eval/configs/gsm8k.yaml", flags=FLAGS
    )


def main(argv: list[str] | None = None) -> int:
    """Answer the questions, score them, write items and results."""
    run = parse(argv)
    config, settings = run.config, run.config.evaluation
    reading: dict[str, Any] = {
        "source": config.data.source,
        "split": config.data.split,
        "limit": run.max_samples,
        "subset_seed": config.data.subset_seed,
    }
    if config.data.rationale != "full":  # cards from before have no such key
        reading["rationale"] = config.data.rationale
    loaded = load_problems(**reading)
    golds = golds_of(loaded.items, settings.frequent_answers)
    data = {"source": config.data.source, "test": loaded.fingerprint}
    if loaded.dropped:
        data["dropped"] = dict(loaded.dropped)
        print(*loaded.notes(), flush=True)
    subject = evaluation.load_for_evaluation(
        run.model_path, condition=run.condition, precision=settings.precision
    )
    evaluation.refuse_other_data_treatment(subject, config.data)
    seed = evaluation.resolved_rationale_seed(settings, subject)
    decode = {**settings.model_dump(), "rationale_seed": seed, "greedy": True}
    if settings.num_rationales:
        decode["sampler"] = inference.SAMPLER_VERSION
    card = evaluation.evaluation_card(
        run, subject, stage="gsm8k", decode=decode, data=data, reading=reading
    )
    output = evaluation.Answers(run.output_dir, "gsm8k", evaluation.evaluation_identity(card))
    if not output.open(resume=run.resume, overwrite=run.overwrite):
        print(f"{output.results} is already finished{output.note}")
        return 0
    questions = evaluation.gsm8k_questions(subject, loaded.items)
    scored = {*golds, *settings.frequent_answers} if settings.num_rationales else ()
    evaluation.refuse_long_questions(subject, questions, settings.max_new_tokens, answers=scored)
    evaluation.refuse_broken_weights(subject, questions)
    start = time.perf_counter()
    responses = evaluation.answer_questions(subject, questions, output, settings)
    seconds = time.perf_counter() - start
    scores, rationales = evaluation.answer_endpoints(
        subject, questions, output, golds=golds, settings=settings
    )
    rows = zip(loaded.items, questions, responses, scores, strict=True)
    items = [item(subject, *row) for row in rows]
    shown: dict[str, Any] = {
        "condition": run.condition,
        "model_path": str(run.model_path),
        **evaluation.gsm8k_metrics(items, decode),
        **evaluation.decoding_speed(items, seconds),
    }
    results = {"metrics": shown, "examples": items[: evaluation.SHOWN], "card": card}
    output.finish(items, results, more={"rationales": rationales} if rationales else {})
    print(
        f"GSM8K {run.condition}: {shown['correct']}/{shown['total']} = {shown['accuracy']:.2%}, "
        f"stop rate {shown['stop_rate']:.1%}; results in {output.results}"
    )
    kinds = ", ".join(f"{kind} {count}" for kind, count in shown["attribution"].items())
    print(f"wrong first in: {kinds}")
    return 0


def golds_of(problems: list[Problem], frequent: list[str]) -> list[str]:
    """Return the gold answers as the data write them.

    Raises UserError, before a model is loaded, where one cannot be read or has no 16 distractors.
    """
    golds = [gold.text for gold in evaluation.read_golds(problems)]
    refuse_unreadable(frequent, key="evaluation.frequent_answers")
    for gold in golds:
        evaluation.distractors(frequent, gold)
    return golds


def item(
    subject: "LoadedCheckpoint",
    problem: Problem,
    question: "Question",
    response: "Response",
    endpoints: dict[str, Any],
) -> dict[str, Any]:
    """Return the scored line of one question; applicable: its gold solution uses a fact."""
    facts = evaluation.facts_in_solution(subject, problem)
    line = evaluation.item_of(subject, question, response, right=facts)
    return {
        **line,
        **evaluation.problem_keys(line),
        "applicable": bool(facts),
        "gold_facts": evaluation.names_of(subject, facts),
        **endpoints,
    }


if __name__ == "__main__":
    sys.exit(run_script(main))
