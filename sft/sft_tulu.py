"""Stage 1: instruction-tune a base checkpoint on Tulu-3 conversations."""

import sys
from collections import Counter
from typing import TYPE_CHECKING

from domain_tokens import corpora, sft
from domain_tokens.command_line import Parser, overrides_of, run

if TYPE_CHECKING:
    from domain_tokens.config import SFTConfig
    from domain_tokens.preparation import StageData

EXAMPLE = (
    "uv run python sft/sft_tulu.py --model-path outputs/hf_baseline_10b "
    "--output-dir outputs/sft_tulu_baseline --condition baseline --config sft/configs/tulu.yaml"
)
RESULTS = "tulu_sft_results.json"


def load_data(config: "SFTConfig") -> "StageData":
    """Load the training subset and the validation rows."""
    from domain_tokens.preparation import StageData

    data, settings = config.data, config.training
    wanted = settings.max_train_samples
    own_validation = data.validation_source in (None, data.source)
    held = settings.max_val_samples if own_validation else 0
    loaded = corpora.load_conversations(
        data.source,
        split=data.split,
        limit=None if wanted is None else wanted + held,
        subset_seed=data.subset_seed,
    )
    rows = loaded.items
    fingerprint = {"train": loaded.fingerprint}
    dropped = Counter(duplicate=loaded.duplicates)
    if own_validation:
        held = min(held, len(rows) // 10)
        validation = rows[len(rows) - held :] if held else []
        rows = rows[: len(rows) - held][:wanted]
    else:
        other = corpora.load_conversations(
            data.validation_source or "",
            split=data.validation_split or "validation",
            limit=settings.max_val_samples,
            subset_seed=data.subset_seed,
            key="data.validation_source",
        )
        fingerprint["validation"] = other.fingerprint
        ids = {row.id for row in rows}
        validation = [row for row in other.items if row.id not in ids]
    questions = sft.test_questions(data)
    return StageData(rows, validation, "validation", fingerprint, +dropped, questions)


def main(argv: list[str] | None = None) -> int:
    """Train one arm on the chat mixture."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    sft.add_stage_arguments(parser, "sft/configs/tulu.yaml")
    args = parser.parse_args(argv)
    from domain_tokens.config import SFTConfig, load_config

    config = load_config(SFTConfig, args.config, overrides_of(args, sft.FLAGS))
    stage = sft.open_stage(args, config, load_data, RESULTS, inject=args.condition == "mul_tokens")
    if stage.workspace.finished:
        print(f"{args.output_dir} is already finished{stage.workspace.note}")
        return 0
    results = sft.run_stage(stage)
    if results:
        print(sft.summary(results, args.output_dir, RESULTS))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
