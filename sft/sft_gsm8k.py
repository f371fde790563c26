"""Stage 2: fine-tune a Tulu checkpoint on GSM8K."""

import sys
from collections import Counter
from typing import TYPE_CHECKING

from domain_tokens import corpora, sft
from domain_tokens.command_line import Parser, overrides_of, run
from domain_tokens.errors import UserError

if TYPE_CHECKING:
    from domain_tokens.config import SFTConfig
    from domain_tokens.preparation import StageData

EXAMPLE = (
    "uv run python sft/sft_gsm8k.py --model-path outputs/sft_tulu_mul_tokens "
    "--output-dir outputs/sft_gsm8k_mul_tokens --condition mul_tokens --inject-mul-tokens "
    "--config sft/configs/gsm8k.yaml"
)
RESULTS = "sft_results.json"


def load_data(config: "SFTConfig") -> "StageData":
    """Load training problems, and for the final loss either test rows or a holdout by hash."""
    from domain_tokens.preparation import StageData

    data, settings = config.data, config.training
    loaded = corpora.load_problems(
        data.source,
        split=data.split,
        limit=None if data.holdout else settings.max_train_samples,
        subset_seed=data.subset_seed,
    )
    rows, held = loaded.items, []
    fingerprint = {"train": loaded.fingerprint}
    eval_split = data.validation_split or "test"
    if data.holdout:
        rows, held = corpora.hold_out(rows, count=data.holdout, seed=data.subset_seed)
        rows, eval_split = rows[: settings.max_train_samples], "holdout"
    elif settings.max_val_samples:
        other = corpora.load_problems(
            data.validation_source or data.source,
            split=eval_split,
            limit=settings.max_val_samples,
            subset_seed=data.subset_seed,
            key="data.validation_source",
        )
        fingerprint["validation"] = other.fingerprint
        held = other.items
    dropped = Counter(duplicate=loaded.duplicates)
    train, validation = ([_conversation(p) for p in part] for part in (rows, held))
    questions = sft.test_questions(data)
    return StageData(train, validation, eval_split, fingerprint, +dropped, questions)


def _conversation(problem: corpora.Problem) -> corpora.Conversation:
    return corpora.Conversation(problem.id, corpora.problem_messages(problem), "gsm8k")


def main(argv: list[str] | None = None) -> int:
    """Train one arm on grade-school problems."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    sft.add_stage_arguments(parser, "sft/configs/gsm8k.yaml")
    parser.add_argument(
        "--inject-mul-tokens",
        action="store_true",
        help="write products in the answers as fact tokens (condition mul_tokens only)",
    )
    args = parser.parse_args(argv)
    if args.inject_mul_tokens and args.condition == "baseline":
        raise UserError(
            "--inject-mul-tokens with --condition baseline; the baseline has no fact tokens: "
            "leave the flag out, or give --condition mul_tokens"
        )
    from domain_tokens.config import SFTConfig, load_config

    config = load_config(SFTConfig, args.config, overrides_of(args, sft.FLAGS))
    stage = sft.open_stage(args, config, load_data, RESULTS, inject=args.inject_mul_tokens)
    if stage.workspace.finished:
        print(f"{args.output_dir} is already finished{stage.workspace.note}")
        return 0
    results = sft.run_stage(stage)
    if results:
        print(sft.summary(results, args.output_dir, RESULTS))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
