"""What compare_runs.py writes: every pair, estimates over seeds, and what may be said."""

from typing import Any, Literal

from domain_tokens.runs.config import AnalysisPlan
from domain_tokens.runs.results.parts import Code, Evaluated
from domain_tokens.runs.results.record import (
    SHA256,
    SHARE,
    Interval,
    Record,
    given,
    only,
    since,
)

UNIT = "as `unit` says: nats, or points as a fraction 0–1"
SEVERAL = "there are several lineages"
NOISE = "the noise of runs is known"


class ArmFolder(Record):
    """One evaluation folder."""

    folder: str = given("as given")
    weights: str = given("of its checkpoint", SHA256)
    files: dict[str, str] = given("hash of results and items by evaluation", SHA256)


class ArmAccuracy(Record):
    """One arm's accuracy."""

    accuracy: float = given("share of the items that are right", SHARE)
    correct: int = given("items that are right", "items")
    interval_95: Interval = given("Wilson's interval", SHARE)


class PairedEndpoint(Record):
    """One accuracy of a pair of checkpoints, item by item."""

    evaluation: Evaluated = given("where it was measured")
    endpoint: str = given("as in the metrics, with `category.` before it for probes")
    headline: bool = given("whether it is the one that is tested for the evaluation")
    total: int = given("items", "items")
    baseline: ArmAccuracy = given("arm baseline")
    mul_tokens: ArmAccuracy = given("arm mul_tokens")
    delta: float = given("mul_tokens - baseline", SHARE)
    delta_interval_95: Interval = given("of the paired difference", SHARE)
    only_baseline_right: int = given("b of McNemar", "items")
    only_mul_tokens_right: int = given("c of McNemar", "items")
    mcnemar_p: float = given("exact, of this pair alone", SHARE)
    mcnemar_p_holm: float = only(
        "it is the headline", "after Holm over all evaluations and pairs", SHARE
    )


class ArmValues(Record):
    """A metric of both arms."""

    baseline: float | None = given("null where it is no number", "as in the metrics")
    mul_tokens: float | None = given("null where it is no number", "as in the metrics")


class Floor(Record):
    """What a constant answer scores."""

    answer: str | None = given("most frequent gold answer")
    accuracy: float = given("what always giving it scores", SHARE)


class Pair(Record):
    """One pair of checkpoints."""

    seed: int | None = given("training seed")
    baseline: ArmFolder = given("arm baseline")
    mul_tokens: ArmFolder = given("arm mul_tokens")
    endpoints: list[PairedEndpoint] = given("accuracies")
    metrics: dict[str, dict[str, ArmValues]] = given("other numbers by evaluation and metric")
    best_constant: dict[str, Floor] = given("by evaluation")


class MeanDelta(Record):
    """One accuracy over all pairs."""

    evaluation: Evaluated = given("where it was measured")
    endpoint: str = given("as in the pairs")
    deltas: list[float] = given("of each pair", SHARE)
    mean_delta: float = given("their mean", SHARE)


class PlanRecord(AnalysisPlan):
    """The frozen analysis plan, and its hash."""

    hash: str = given("of the plan", SHA256)


class EndpointEstimate(Record):
    """One endpoint over independent lineages."""

    endpoint: str = given("a1, g1, …")
    evaluation: Evaluated = given("where it was measured")
    unit: Literal["nats", "points"] = given("of all values in this object")
    role: Literal["primary", "exploratory"] = given("primary: fixed in the plan, tested by Holm")
    items: int = given("items (cells for A1)", "items")
    baseline: float = only("it is no interaction", "mean of the arm", UNIT)
    mul_tokens: float = only("it is no interaction", "mean of the arm", UNIT)
    by_seed: dict[str, float] = only("it is no interaction", "difference by training seed", UNIT)
    delta: float = given("mean difference, mul_tokens - baseline", UNIT)
    confidence: float = given("level of the interval", SHARE)
    interval: Interval | None = given("of delta; null where there is none", UNIT)
    se: float = only(SEVERAL, "standard error of delta", UNIT)
    df: float = only(SEVERAL, "degrees of freedom", "degrees of freedom")
    p: float | None = given("two-sided; null for one lineage", SHARE)
    method: str = given("how interval and p were computed")
    permutation_p: float | None = only(SEVERAL, "of the signs of runs; null beyond 20", SHARE)
    p_holm: float | None = only("it is no interaction", "of a primary, after Holm", SHARE)
    margin: float | None = only("it is no interaction", "equivalence margin of the plan", UNIT)
    detectable: float | None = only("it is no interaction", "effect found at the power", UNIT)
    seeds_needed: int | None = only(
        "it is no interaction", "lineages per arm that the margin takes; null if unknown or many"
    )
    run_sd: float = only(NOISE, "standard deviation of runs of one condition", UNIT)
    item_arm_sd: float | None = only(NOISE, "of items' reactions; null if unknown", UNIT)
    detectable_limit: float = only(NOISE, "effect that no number of seeds goes below", UNIT)


class Statement(Record):
    """What may be said, or has to be known."""

    about: str | None = given("endpoint, or evaluation and endpoint; null for a note")
    words: str = given("as people read it")
    verdicts: list[dict[str, Any]] = given(
        "what it rests on: claim, delta, interval, margin, p, … of each endpoint"
    )


class Analysis(Record):
    """Estimates under the plan."""

    plan: PlanRecord = given("the frozen plan")
    clusters: int = given("independent lineages per arm", "lineages")
    same_base: bool | None = given("whether all runs start from one base; null if not recorded")
    identical: bool = given("whether a pair has the same weights in both arms")
    pilot: list[str] | None = given("folders of the A/A pilot")
    replicates_differ_in: list[str] = since("2026-11-26", "what the seeds decided")
    endpoints: list[EndpointEstimate] = given("estimates")
    verdicts: list[str] = given("what may be said of the primaries, and notes")
    statements: list[Statement] = since("2026-11-26", "the same as data and in words")


class AllowedDifference(Record):
    """A difference between folders that --allow-diff permitted."""

    key: str = given("dotted key of the cards")
    folders: list[str] = given("the two folders")
    values: list[Any] = given("their values")


class Comparison(Record):
    """The JSON of `compare_runs.py --output-path`."""

    evaluations: list[Evaluated] = given("what is in all folders")
    not_compared: list[Evaluated] = given("what is in some folders only")
    notices: list[str] = since(
        "2026-11-26", "what could not be checked, as of an older version's results"
    )
    pairs: list[Pair] = given("each pair of checkpoints")
    mean_deltas: list[MeanDelta] = given("accuracies over the pairs")
    cross_base: list[str] = given("folders whose base is of the other arm")
    untold: list[str] = since("2026-11-26", "what cards do not record, in words")
    analysis: Analysis = given("estimates over lineages")
    verdicts: list[str] = given("what may be said, one sentence each")
    allowed_differences: list[AllowedDifference] = given("what was permitted to differ")
    code: Code = given("code that compared")
    statements: list[Statement] = since("2026-11-26", "every verdict as data and in words")


class ArmRun(ArmFolder):
    """One run of an arm."""

    seed: int | None = given("training seed")


class ArmEndpoint(Record):
    """One endpoint of one arm."""

    unit: Literal["nats", "points"] = given("of the values in this object")
    mean: float = given("over the runs", UNIT)
    by_seed: dict[str, float] = given("by training seed", UNIT)


class CountedAccuracy(ArmAccuracy):
    """One run's accuracy."""

    total: int = given("items", "items")


class ArmAccuracies(Record):
    """One accuracy of one arm."""

    evaluation: Evaluated = given("where it was measured")
    endpoint: str = given("as in the metrics, with `category.` before it for probes")
    by_seed: dict[str, CountedAccuracy] = given("by training seed")
    mean: float = given("over the runs", SHARE)


class Arm(Record):
    """One arm of a study."""

    seeds: list[int | None] = given("training seeds")
    runs: list[ArmRun] = given("its folders")
    endpoints: dict[str, ArmEndpoint] = given("by endpoint")
    accuracies: list[ArmAccuracies] = given("exploratory")
    counts: dict[str, dict[str, float]] = given("tokens, examples, FLOPs, … by stage", "counts")
    attribution: dict[str, float] = given("wrong answers by kind of first wrong equation", "items")


class Study(Record):
    """The JSON of `compare_runs.py --arm … --output-path`."""

    plan: dict[str, Any] = given("the frozen plan, and its hash")
    families: dict[str, int] = given("hypotheses that Holm runs over, by family")
    arms: dict[str, Arm] = given("by name")
    half_table: dict[str, Any] | None = given("the contrast within runs; null without both halves")
    contrasts: list[dict[str, Any]] = given("differences of arms that the plan names")
    ceilings: list[dict[str, Any]] = given("accuracy with a calculator, by arm")
    pilot: list[str] | None = given("folders of the A/A pilot")
    notices: list[str] = given("what could not be checked, as of an older version's results")
    untold: list[str] = given("what cards do not record, in words")
    verdicts: list[str] = given("what may be said, one sentence each")
    statements: list[Statement] = given("the same as data and in words")
    allowed_differences: list[AllowedDifference] = given("what was permitted to differ")
    code: Code = given("code that compared")
