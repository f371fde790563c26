"""What `run_experiment.py` leaves in a study's folder: the plan, and what its stages took."""

from domain_tokens.runs.results.record import Record, given


class PlannedStage(Record):
    """A stage of the plan."""

    lineage: str = given("lineage that it belongs to, as in half_a_seed_1; base")
    kind: str = given("stages of one kind take about the same time")
    finished: str = given("file that it ends with, from the study's folder")


class StudyPlan(Record):
    """`plan.json`, of plans that run lineages side by side."""

    jobs: int = given("lineages side by side", "lineages")
    stages: list[PlannedStage] = given("in the order in which they run")


class StageSeconds(Record):
    """A line of `stage_seconds.jsonl`."""

    stage: str = given("its folder and the file that it ends with")
    kind: str = given("as in the plan")
    seconds: float = given("from its start to its end", "seconds")
    jobs: int = given("lineages that ran side by side", "lineages")
    whole: bool = given("whether it ran from its start, not from where one was killed")
