"""The configs that a plan's stages resolve to, and the time that they are expected to take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from domain_tokens.errors import UserError
from domain_tokens.experiment.layout import LAPTOP, Layout
from domain_tokens.experiment.plan import Experiment
from domain_tokens.experiment.progress import (
    Planned,
    duration,
    median_seconds,
    seconds_left,
)
from domain_tokens.runs import in_repository

if TYPE_CHECKING:
    from domain_tokens.runs import GSM8KEvalConfig, SFTConfig

TRAINING_ROWS, TEST_ROWS = 7_473, 1_319  # of GSM8K
# What a stage of a 135M Llama costs, in fp32 operations at the rate of the machine's best matrix
# product: core-seconds measured on SmolLM2-135M, times that rate of one core (187 GFLOP/s): in the
# study of progress/21 that of a job with one thread. Per training row and epoch (240 rows: 200 s),
# per test item and answer (the greedy one and each rationale; 400 at 40 tokens: 145 s), per whole
# evaluation (the probes: 110 s); each call loads a model (30 s, the first time).
CALL = 5.6e12
WORK = {
    "base": 7e12,
    "base_copy": 5e12,
    "gsm8k": 1.3e11,
    "answer": 5e10,
    "probes": 2.1e13,
    "stories": 4.2e13,  # 120 s on both cores
}


def config_of(layout: Layout, kind: str) -> Any:
    """Return the config that stages of a kind resolve to, the user's overrides applied.

    Raises UserError for a kind that the profile has no stage of, or none with keys, and for an
    override that the config refuses.
    """
    from domain_tokens import runs

    profile = layout.profile
    kinds: dict[str, tuple[Any, str]] = {
        "gsm8k": (runs.SFTConfig, layout.config("sft", "gsm8k")),
        "eval_gsm8k": (runs.GSM8KEvalConfig, layout.config("eval", "gsm8k")),
        "probes": (runs.ProbeEvalConfig, in_repository("eval/configs/arithmetic_probes.yaml")),
    }
    if profile.chat:
        kinds["tulu"] = (runs.SFTConfig, layout.config("sft", "tulu"))
    if "stories" in layout.extra:
        kinds["stories"] = kinds["probes"]
    if profile.makes_base and profile is not LAPTOP:
        kinds["base"] = (runs.PretrainingConfig, layout.config("sft", "base"))
    if kind not in kinds:
        raise UserError(
            f"--set {kind}.…: profile {profile.name} has no such keys; it has those of "
            f"{', '.join(sorted(kinds))}"
        )
    model, file = kinds[kind]
    return runs.load_config(model, file, layout.overrides(kind)[1::2])


def refuse_bad_overrides(layout: Layout) -> None:
    """Raise UserError for an override that a stage would refuse, before the first one runs."""
    for kind in dict.fromkeys(text.partition(".")[0] for text in layout.options.overrides):
        config_of(layout, kind)


def expected_time(plan: Experiment, stages: Sequence[Planned], *, jobs: int) -> str:
    """Return in words how long what is left takes here, and where that is known from.

    From stages that have finished in the same folder; else, on a CPU, from the rate of its matrix
    products, for a model of 135M parameters.
    """
    rest = [stage for stage in stages if not stage.finished.is_file()]
    if not rest:
        return "nothing is left to do"
    measured = median_seconds(plan.layout.root, jobs=jobs)
    count = f"{len(rest)} of {len(stages)} stages are left"
    missing = [stage for stage in rest if stage.kind not in measured]
    seconds = seconds_left(rest, measured, jobs=jobs) or 0.0
    if not missing:
        return f"{count}: about {duration(seconds)}, from the stages that have finished here"
    import torch

    from domain_tokens.runs import peak_flops

    if torch.cuda.is_available():
        known = f"; those that are known: {duration(seconds)}" if seconds else ""
        return f"{count}; on a GPU the time is known when one of each kind has finished{known}"
    rate = peak_flops("cpu", torch.float32)
    assert rate is not None  # it is measured
    estimated = {kind: work / rate for kind, work in _work(plan.layout).items()}
    # On a CPU lineages side by side share what one alone would have.
    seconds += seconds_left(missing, estimated, jobs=1) or 0.0
    source = f"a probe of this machine's matrix products ({rate / 1e9:.0f} GFLOP/s)"
    others = "" if len(missing) == len(rest) else " and the stages that have finished here"
    return (
        f"{count}: about {duration(seconds)}, from {source}{others}, "
        "for a model of 135M parameters, if the machine stays as busy as it is now"
    )


def _work(layout: Layout) -> dict[str, float]:
    """Return the operations that a stage of each kind of the laptop profile takes."""
    training: SFTConfig = config_of(layout, "gsm8k")
    evaluation: GSM8KEvalConfig = config_of(layout, "eval_gsm8k")
    settings = training.training
    rows = (settings.max_train_samples or TRAINING_ROWS) * settings.num_epochs
    items = int(layout.limit()[1]) if layout.limit() else TEST_ROWS
    whole = {kind: WORK[kind] for kind in ("base", "base_copy", "probes", "stories")}
    answers = items * WORK["answer"]
    return {
        **whole,
        "gsm8k": CALL + rows * WORK["gsm8k"],
        "eval_gsm8k": CALL + answers * (1 + evaluation.evaluation.num_rationales),
        "calculator": CALL + answers,
    }
