"""Stage 1: instruction-tune a base checkpoint on Tulu-3 conversations."""

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from domain_tokens import training
from domain_tokens.data import (
    VAL_KEY,
    UsualValidation,
    apart_from_training,
    load_conversations,
    separate_validation,
)
from domain_tokens.runs import Parser, run_script

if TYPE_CHECKING:
    from domain_tokens.data import StageData
    from domain_tokens.runs import SFTConfig

EXAMPLE = (
    "uv run python sft/sft_tulu.py --model-path outputs/hf_baseline_10b "
    "--output-dir outputs/sft_tulu_baseline --condition baseline --config sft/configs/tulu.yaml"
)
RESULTS = "tulu_sft_results.json"
USUAL: "UsualValidation" = "holdout"


def load_data(config: "SFTConfig") -> "StageData":
    """Load the training subset and the validation rows."""
    from domain_tokens.data import StageData

    data, settings = config.data, config.training
    options: dict[str, Any] = {"subset_seed": data.subset_seed}
    max_rows = settings.max_train_samples
    elsewhere = separate_validation(config, USUAL)
    held = 0 if elsewhere else settings.max_val_samples
    limit = None if max_rows is None else max_rows + held
    loaded = load_conversations(data.source, split=data.split, limit=limit, **options)
    rows, fingerprint, notes = loaded.items, {"train": loaded.fingerprint}, loaded.notes()
    lost: Counter[str] = Counter()
    if elsewhere:
        source, split = elsewhere
        validation = load_conversations(
            source, split=split, limit=settings.max_val_samples, key=VAL_KEY, **options
        )
        fingerprint["validation"] = validation.fingerprint
        items, lost, notes = validation.items, validation.dropped, notes + validation.notes()
    else:
        held = min(held, len(rows) // 10)
        items, rows = rows[len(rows) - held :], rows[: len(rows) - held][:max_rows]
        if settings.max_val_samples and not held:
            notes = [*notes, f"validation: none: {len(rows)} rows are too few to hold a tenth out"]
    items, known = apart_from_training(items, rows)
    return StageData(
        rows,
        items,
        "validation" if elsewhere or held else None,
        fingerprint,
        dropped=loaded.dropped,
        validation_dropped=lost + known,
        irregular=loaded.irregular,
        notes=notes,
        test_questions=training.test_questions(data),
    )


def main(argv: list[str] | None = None) -> int:
    """Train one arm on the chat mixture."""
    parser = Parser(__doc__ or "", example=EXAMPLE)
    training.add_stage_arguments(parser, "sft/configs/tulu.yaml")
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
