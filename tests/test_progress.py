"""How far a plan is: counted from files, timed from what has finished, whatever was killed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain_tokens.experiment import progress, settings
from domain_tokens.experiment.layout import Layout, Options
from domain_tokens.experiment.plan import Experiment
from domain_tokens.experiment.progress import Planned, planned, progress_of, seconds_left
from domain_tokens.experiment.stages import Stage
from domain_tokens.runs import UNFINISHED_MARKER
from tests.conftest import ROOT, plant

KINDS = ("train", "eval")


def plan(root, lineages=3):
    return [
        Planned(f"l{n}", kind, root / f"{kind}_l{n}" / f"{kind}_results.json")
        for n in range(lineages)
        for kind in KINDS
    ]


def finish(stage):
    stage.finished.parent.mkdir(exist_ok=True)
    stage.finished.write_text("{}")


def note(root, kind, seconds, *, jobs=1, whole=True):
    stage = Stage("s.py", [], [], root / f"{kind}_l0" / f"{kind}_results.json", kind)
    progress.record_seconds(root, stage, seconds, jobs=jobs, whole=whole)


def test_a_plan_from_its_start_to_its_end(tmp_path):
    stages = plan(tmp_path)
    unknown = "0 of 6 stages done, 6 left; time left: known when one of each kind has finished"
    assert str(progress_of(tmp_path, stages, jobs=1)) == unknown
    finish(stages[0])
    note(tmp_path, "train", 600)
    state = progress_of(tmp_path, stages, jobs=1, running=1)
    assert (state.done, state.running, state.left) == (1, 1, 4)
    words = "1 of 6 stages done, 1 running, 4 left; about 20 min left, and eval (none has finished)"
    assert str(state) == words
    note(tmp_path, "eval", 60)
    assert progress_of(tmp_path, stages, jobs=1).seconds == 2 * 600 + 3 * 60
    for stage in stages:
        finish(stage)
    assert str(progress_of(tmp_path, stages, jobs=1, running=0)) == "6 of 6 stages done, 0 left"


def test_what_a_kill_left_is_begun_and_not_counted_as_time(tmp_path):
    stages = plan(tmp_path)
    for stage in stages[:2]:
        stage.finished.parent.mkdir()
    (stages[0].finished.parent / UNFINISHED_MARKER).write_text("{}")
    (stages[1].finished.parent / "eval_items.partial.jsonl").write_text("{}\n")
    note(tmp_path, "train", 5, whole=False)  # it was resumed near its end
    with (tmp_path / progress.SECONDS).open("a") as stream:
        stream.write('{"stage": "train_l0/train_res')  # killed while it wrote
    state = progress_of(tmp_path, stages, jobs=1)
    assert (state.done, state.running, state.left, state.seconds) == (0, 2, 4, None)
    assert "2 begun" in str(state)
    note(tmp_path, "train", 7)  # this line joins the torn one and is lost with it, no more
    note(tmp_path, "train", 8)
    assert progress_of(tmp_path, stages, jobs=1).seconds == 3 * 8


def test_times_of_as_many_jobs_count_where_there_are_any(tmp_path):
    for seconds in (100, 110, 900):
        note(tmp_path, "train", seconds)
    assert progress.median_seconds(tmp_path, jobs=4) == {"train": 110}
    note(tmp_path, "train", 250, jobs=4)
    assert progress.median_seconds(tmp_path, jobs=4) == {"train": 250}
    assert progress.median_seconds(tmp_path, jobs=1) == {"train": 110}


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(KINDS)), min_size=1),
    st.integers(1, 8),
    st.floats(1, 1000),
    st.floats(1, 1000),
)
def test_no_estimate_is_shorter_than_a_lineage_or_longer_than_all(rows, jobs, train, evaluate):
    seconds = {"train": train, "eval": evaluate}
    stages = [Planned(f"l{n}", kind, None) for n, kind in rows]
    alone = [sum(seconds[kind] for m, kind in rows if m == n) for n in {n for n, _ in rows}]
    left = seconds_left(stages, seconds, jobs=jobs)
    assert max(alone) <= left * (1 + 1e-9)
    assert left <= sum(alone) * (1 + 1e-9)
    assert left * jobs >= sum(alone) * (1 - 1e-9)
    assert seconds_left(stages, {}, jobs=jobs) is None


def test_a_plan_is_written_once_and_read_back(tmp_path):
    stages = plan(tmp_path)
    assert progress.read_plan(tmp_path) is None
    progress.write_plan(tmp_path, stages, jobs=2)
    first = (tmp_path / progress.PLAN).stat()
    progress.write_plan(tmp_path, stages, jobs=2)
    again = (tmp_path / progress.PLAN).stat()
    assert (first.st_ino, first.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)
    assert progress.read_plan(tmp_path) == (stages, 2)
    assert str(tmp_path) not in json.dumps(json.loads((tmp_path / progress.PLAN).read_text()))


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "5 s"), (119, "119 s"), (600, "10 min"), (9000, "2 h 30 min")]
)
def test_seconds_as_a_person_says_them(seconds, words):
    assert progress.duration(seconds) == words


RATE = 2e11  # operations a second


@pytest.fixture
def laptop(tmp_path, monkeypatch):
    """A laptop plan in a folder, on a machine whose matrix products have a known rate."""
    honest = Layout.config

    def config(self, part, name):
        lines = (ROOT / honest(self, part, name)).read_text().splitlines()
        file = tmp_path / f"{part}_{name}.yaml"
        file.write_text("\n".join(line for line in lines if "rationale:" not in line))
        return str(file)

    monkeypatch.setattr(Layout, "config", config)
    plant(monkeypatch, "domain_tokens.runs.device.peak_flops", lambda device, dtype: RATE)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return lambda *sets, seeds=(1,): Experiment(
        "laptop", str(tmp_path), seeds, options=Options(base="a", overrides=sets)
    )


def seconds_of(plan, kind):
    return settings._work(plan.layout)[kind] / RATE


def test_before_the_first_stage_time_comes_from_a_probe(laptop):
    plan = laptop()
    stages = planned([plan.base_lineage(), *plan.lineages()])
    kinds = [stage.kind for stage in stages]
    total = sum(seconds_of(plan, kind) for kind in kinds)
    told = settings.expected_time(plan, stages, jobs=1)
    assert f"{len(kinds)} of {len(kinds)} stages are left: about {progress.duration(total)}" in told
    assert "a probe of this machine's matrix products (200 GFLOP/s)" in told
    # Lineages side by side share one CPU.
    assert settings.expected_time(plan, stages, jobs=4) == told


def test_the_probe_knows_what_the_user_set(laptop):
    plain = laptop()
    longer = laptop("gsm8k.training.num_epochs=3", "gsm8k.training.max_train_samples=null")
    rows = 7473 * 3 - 2500
    more = seconds_of(longer, "gsm8k") - seconds_of(plain, "gsm8k")
    assert more == pytest.approx(rows * settings.WORK["gsm8k"] / RATE)
    cheap = laptop("eval_gsm8k.evaluation.num_rationales=2")
    less = seconds_of(plain, "eval_gsm8k") - seconds_of(cheap, "eval_gsm8k")
    assert less == pytest.approx(500 * 6 * settings.WORK["answer"] / RATE)


def test_finished_stages_take_the_place_of_the_probe(laptop):
    plan = laptop(seeds=(1, 2))
    stages = planned([plan.base_lineage(), *plan.lineages()])
    root = plan.layout.root
    root.mkdir()
    for stage in stages[:4]:
        stage.finished.parent.mkdir(exist_ok=True)
        stage.finished.write_text("{}")
    note(root, "gsm8k", 1000)
    told = settings.expected_time(plan, stages, jobs=1)
    assert "a probe of this machine's" in told
    assert "and the stages that have finished here" in told
    for kind in {stage.kind for stage in stages}:
        note(root, kind, 1000)
    left = len(stages) - 4
    words = (
        f"{left} of {len(stages)} stages are left: about {progress.duration(1000 * left)}, from "
    )
    told = settings.expected_time(plan, stages, jobs=1)
    assert told == words + "the stages that have finished here"
    for stage in stages:
        stage.finished.parent.mkdir(exist_ok=True)
        stage.finished.write_text("{}")
    assert settings.expected_time(plan, stages, jobs=1) == "nothing is left to do"
