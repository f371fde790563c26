"""Which file of a run is of which model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from domain_tokens.runs.results import (
    bases,
    card,
    comparison,
    evaluation,
    lines,
    plans,
    training,
)
from domain_tokens.runs.results.record import Record


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A file: its name, who writes it, and its models (of a line, for JSONL).

    choose: which of several models a file is of.
    """

    name: str
    writer: str
    models: tuple[type[Record], ...]
    choose: Callable[[dict[str, Any]], type[Record]] | None = None


STAGES = "sft/sft_tulu.py, sft/sft_gsm8k.py"
BASES = "scripts/make_base.py, scripts/export_nanogpt.py"
STORIES = "eval/run_arithmetic_probes.py --suite stories"
FILES = (
    ResultFile(
        card.CARD_NAME,
        f"{STAGES}, {BASES}",
        (card.StageCard, card.MakeBaseCard, card.ExportCard),
        card.card_model,
    ),
    ResultFile("tulu_sft_results.json", "sft/sft_tulu.py", (training.StageResults,)),
    ResultFile("sft_results.json", "sft/sft_gsm8k.py", (training.StageResults,)),
    ResultFile("train_log.jsonl", f"{STAGES}, scripts/make_base.py", (training.TrainLogLine,)),
    ResultFile("decontaminated.json", STAGES, (training.Decontaminated,)),
    ResultFile("unfinished.json", STAGES, (card.StageMarker,)),
    ResultFile("make_base_results.json", "scripts/make_base.py", (bases.MakeBaseResults,)),
    ResultFile("export_report.json", "scripts/export_nanogpt.py", (bases.ExportReport,)),
    ResultFile("gsm8k_results.json", "eval/run_gsm8k.py", (evaluation.GSM8KResults,)),
    ResultFile("gsm8k_items.jsonl", "eval/run_gsm8k.py", (lines.GSM8KItem,)),
    ResultFile("gsm8k_rationales.jsonl", "eval/run_gsm8k.py", (lines.GSM8KRationales,)),
    ResultFile(
        "arithmetic_results.json", "eval/run_arithmetic_probes.py", (evaluation.ArithmeticResults,)
    ),
    ResultFile("arithmetic_items.jsonl", "eval/run_arithmetic_probes.py", (lines.ArithmeticItem,)),
    ResultFile(
        "arithmetic_scores.jsonl", "eval/run_arithmetic_probes.py", (lines.ArithmeticScore,)
    ),
    ResultFile("stories_results.json", STORIES, (evaluation.StoriesResults,)),
    ResultFile("stories_items.jsonl", STORIES, (lines.ArithmeticItem,)),
    ResultFile("stories_scores.jsonl", STORIES, (lines.ArithmeticScore,)),
    ResultFile(
        "*_items.partial*.jsonl",
        "both evaluations, until they are finished",
        (evaluation.EvaluationIdentity, lines.PartialResponse),
    ),
    ResultFile("comparison.json", "scripts/compare_runs.py", (comparison.Comparison,)),
    ResultFile("arms.json", "scripts/compare_runs.py --arm", (comparison.Study,)),
    ResultFile("plan.json", "scripts/run_experiment.py --jobs", (plans.StudyPlan,)),
    ResultFile("stage_seconds.jsonl", "scripts/run_experiment.py", (plans.StageSeconds,)),
    ResultFile("manifest.json", "scripts/run_experiment.py (demo)", (bases.Manifest,)),
)


def file_model(name: str, tree: dict[str, Any]) -> type[Record] | None:
    """Return the model of a file or of its lines; None for one that is not of this project."""
    file = next((file for file in FILES if file.name == name), None)
    if file is None:
        return None
    return file.choose(tree) if file.choose else file.models[0]
