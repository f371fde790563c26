"""Stage 2: fine-tune a Tulu checkpoint on GSM8K."""

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from domain_tokens import training
from domain_tokens.data import (
    VAL_KEY,
    Conversation,
    Problem,
    UsualValidation,
    apart_from_training,
    hold_out,
    load_problems,
    no_test_rows,
    problem_messages,
    separate_validation,
)
from domain_tokens.runs import Parser, run_script

if TYPE_CHECKING:
    from domain_tokens.data import StageData
    from domain_tokens.runs import SFTConfig

EXAMPLE = (
    "uv run python sft/sft_gsm8k.py --model-path outputs/sft_tulu_mul_tokens "
    "--output-dir outputs/sft_gsm8k_mul_tokens --condition mul_tokens --inject-mul-tokens "
    "--config sft/configs/gsm8k.yaml"
)
RESULTS = "sft_results.json"
USUAL: "UsualValidation" = "test"


def load_data(config: "SFTConfig") -> "StageData":
    """Load training problems, and for the final loss either test rows or a holdout by hash."""
    from domain_tokens.data import StageData

    data, settings = config.data, config.training
    options: dict[str, Any] = {"subset_seed": data.subset_seed, "rationale": data.rationale}
    limit = None if data.holdout else settings.max_train_samples
    loaded = load_problems(data.source, split=data.split, limit=limit, **options)
    rows, held, eval_split = loaded.items, [], None
    fingerprint, notes = {"train": loaded.fingerprint}, loaded.notes()
    lost: Counter[str] = Counter()
    elsewhere = separate_validation(config, USUAL)
    if data.holdout:
        rows, held = hold_out(rows, count=data.holdout, seed=data.subset_seed)
        rows, eval_split = rows[: settings.max_train_samples], "holdout"
    elif elsewhere:
        source, eval_split = elsewhere
        validation = load_problems(
            source,
            split=eval_split,
            limit=settings.max_val_samples,
            key=VAL_KEY,
            **options,
        )
        fingerprint["validation"] = validation.fingerprint
        held, lost, notes = validation.items, validation.dropped, notes + validation.notes()
    elif settings.max_val_samples:
        notes = [*notes, no_test_rows(data)]
    held, known = apart_from_training(held, rows)
    return StageData(
        [_conversation(problem) for problem in rows],
        [_conversation(problem) for problem in held],
        eval_split,
        fingerprint,
        dropped=loaded.dropped,
        validation_dropped=lost + known,
        irregular=loaded.irregular,
        notes=notes,
        test_questions=training.test_questions(data),
        no_equations=loaded.no_equations,
    )


def _conversation(problem: Problem) -> Conversation:
    return Conversation(problem.id, problem_messages(problem), "gsm8k", problem.row)


def main(argv: list[str] | None = None) -> int:
    """Train one arm on grade-school problems."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    training.add_stage_arguments(parser, "sft/configs/gsm8k.yaml")
    parser.add_argument(
        "--inject-mul-tokens",
        action="store_true",
        help="write products in the answers as fact tokens (condition mul_tokens only)",
    )
    run = training.parse_stage(parser, argv, usual_validation=USUAL)
    stage = training.open_stage(run, load_data, RESULTS)
    if stage.workspace.finished:
        print(f"{run.output_dir} is already finished{stage.workspace.note}")
        return 0
    results = training.run_stage(stage)
    if results:
        print(training.stage_summary(results, run.output_dir, RESULTS))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
