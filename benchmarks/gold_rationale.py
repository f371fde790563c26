"""Show that a log-probability given the gold rationale measures copying, and so no endpoint.

Asked three times: of the gold solution, of one whose last number was replaced by a wrong one in the
rationale and in the answer, and of the right answer after that spoiled rationale. A model that
reasons prefers the right answer; one that copies prefers whatever number stood there last.
"""

import math
import random
import re
import sys
from pathlib import Path

from domain_tokens.answers import gold_text
from domain_tokens.data import load_problems
from domain_tokens.runs import Parser, code_identity, run_script, write_json

EXAMPLE = (
    "uv run python benchmarks/gold_rationale.py --model-path outputs/hf_smollm2 "
    "--data ../shared/data/gsm8k/test.jsonl --max-samples 200"
)
NUMBER = re.compile(r"[0-9][0-9,]*(?:\.[0-9]+)?")


def spoiled(solution: str, chooser: random.Random) -> str | None:
    """Return the solution with its last number replaced, or None where that is not the answer."""
    rationale, _, _ = solution.rpartition("####")
    gold = gold_text(solution)
    numbers = list(NUMBER.finditer(rationale))
    if not numbers or numbers[-1][0].rstrip(",") != gold:
        return None
    last = numbers[-1]
    wrong = str(int(float(gold.replace(",", ""))) + chooser.choice((-3, -2, -1, 1, 2, 3, 7)))
    return f"{rationale[: last.start()]}{wrong}{rationale[last.end() :]}#### {wrong}"


def main(argv: list[str] | None = None) -> int:
    """Score gold and spoiled solutions of a checkpoint and print both."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    parser.add_argument("--model-path", required=True, metavar="DIR")
    parser.add_argument("--data", required=True, metavar="FILE", help="GSM8K test rows")
    parser.add_argument("--max-samples", type=int, default=200, metavar="N")
    parser.add_argument("--output-path", metavar="FILE", help="write the figures here as JSON")
    args = parser.parse_args(argv)
    from domain_tokens.evaluation import (
        gold_rationale_log_probs,
        gsm8k_questions,
        load_for_evaluation,
    )

    subject = load_for_evaluation(Path(args.model_path), condition="baseline", precision="fp32")
    problems = load_problems(
        args.data, split="test", limit=args.max_samples, subset_seed=42, key="--data"
    ).items
    chooser = random.Random(42)
    pairs = [(p, wrong) for p in problems if (wrong := spoiled(p.answer, chooser)) is not None]
    prompts = [q.prompt_ids for q in gsm8k_questions(subject, [p for p, _ in pairs])]
    gold = gold_rationale_log_probs(subject, prompts, [p.answer for p, _ in pairs])
    wrong = gold_rationale_log_probs(subject, prompts, [w for _, w in pairs])
    torn = [f"{w.rpartition('####')[0]}#### {gold_text(p.answer)}" for p, w in pairs]
    right = gold_rationale_log_probs(subject, prompts, torn)

    def mean(values: list[float]) -> float:
        return math.fsum(values) / len(values)

    report = {
        "problems": len(problems),
        "answer_is_last_number": len(pairs) / len(problems),
        "log_prob_given_gold_rationale": mean(gold),
        "log_prob_of_wrong_given_spoiled_rationale": mean(wrong),
        "log_prob_of_gold_given_spoiled_rationale": mean(right),
        "share_where_wrong_beats_gold_given_spoiled_rationale": mean(
            [float(w > r) for r, w in zip(right, wrong, strict=True)]
        ),
        "code": code_identity(),
    }
    for name, value in report.items():
        if name != "code":
            print(f"{name}: {value:.4g}")
    if args.output_path:
        write_json(Path(args.output_path), report)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
