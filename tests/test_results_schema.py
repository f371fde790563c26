"""Every results file is what its model says: no key more, no key less, each with its unit."""

import copy
import json
from pathlib import Path

import pytest

from domain_tokens.checkpoints.parent import ANCESTRY, SETTING
from domain_tokens.comparison.runs import ACCURACIES
from domain_tokens.comparison.values import ENDPOINTS
from domain_tokens.errors import UserError
from domain_tokens.evaluation.checkpoint import evaluation_identity
from domain_tokens.evaluation.responses import PartialResponses
from domain_tokens.experiment.run_table import STAGES
from domain_tokens.inference import Response
from domain_tokens.runs.files import read_json, read_lines, write_json
from domain_tokens.runs.output_folder import UNFINISHED_MARKER, open_workspace, release_locks
from domain_tokens.runs.results import card, evaluation, lines, training
from domain_tokens.runs.results.files import FILES, file_model
from domain_tokens.runs.results.page import models_of_files, page
from domain_tokens.runs.results.record import (
    SchemaError,
    check_record,
    check_records,
    extra_of,
    missing_keys,
    require_record,
    unknown_keys,
    write_record,
    wrong_values,
)
from tests.conftest import ROOT, call, edit

# Objects whose keys are data (names of files, reasons, metrics, a base's arguments, config.json of
# a model), so that any is fine: the names of the last two keys that lead to one. Written down
# here, and not read from the models.
FREE = """
    files libraries sources dropped validation_dropped irregular_rows source_composition left_out
    sizes architecture metrics.category_accuracies by_seed best_constant metrics.gsm8k
    metrics.arithmetic pairs.metrics data identity identity.config identity.config.model
    identity.config.training meanings metrics.attribution statements.verdicts
"""
# The model's own and the data's: rows of the demo are no results.
OTHERS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
DATA = ("pretraining.jsonl", "chat.jsonl", "train.jsonl", "test.jsonl")


def files_of(folder):
    """Yield (path, model, objects) of every results file below a folder."""
    for path in sorted(Path(folder).rglob("*.json*")):
        if path.name in (*OTHERS, *DATA):
            continue
        trees = read_lines(path) if path.suffix == ".jsonl" else [read_json(path)]
        kind = file_model(path.name, trees[0])
        assert kind is not None, f"{path} is of no model"
        yield path, kind, trees


@pytest.fixture(scope="module")
def files(experiment):
    return list(files_of(experiment / "demo"))


def test_every_file_of_the_demo_is_what_its_model_says(files):
    assert len(files) == 32
    for path, kind, trees in files:
        for tree in trees:
            require_record(kind, tree, path.name)
            assert [*unknown_keys(kind, tree), *missing_keys(kind, tree, writing=False)] == []
            assert list(wrong_values(kind, tree)) == []


def objects(node, path=()):
    """Yield (path, object) of all objects of a JSON tree, of a list's the first alone."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from objects(value, (*path, key))
    elif isinstance(node, list) and node:
        yield from objects(node[0], (*path, 0))


def renamed(tree, path, key):
    """Return a tree in which a key of the object at a path has another name."""
    tree = copy.deepcopy(tree)
    node = tree
    for part in path:
        node = node[part]
    node[f"{key}_x"] = node.pop(key)
    return tree


def label(path):
    """The last names that lead to an object, whatever the numbers between them."""
    names = [part for part in path if isinstance(part, str)]
    for size in (1, 2, 3):
        if ".".join(names[-size:]) in FREE.split():
            return ".".join(names[-size:])
    return ".".join(names)


def test_any_key_that_is_renamed_is_named(files):
    """Every key of every object, found by a walk that knows no model."""
    tried, unseen = 0, set()
    for path, kind, trees in files:
        for at, node in objects(trees[0]):
            for key in node:
                other = renamed(trees[0], at, key)
                where = ".".join(map(str, (*at, f"{key}_x")))
                named = [*unknown_keys(kind, other), *wrong_values(kind, other)]
                assert not named or any(where in words for words in named), (path.name, where)
                tried += 1
                if not named:
                    unseen.add(label(at))
    assert tried > 2000
    assert unseen <= set(FREE.split())
    assert len(unseen) > 12


def test_any_key_that_is_missing_is_named_where_it_is_written(files):
    tried = 0
    for path, kind, trees in files:
        for key, field in kind.model_fields.items():
            if key not in trees[0]:
                continue
            rest = {k: v for k, v in trees[0].items() if k != key}
            if "when" in extra_of(field):
                require_record(kind, rest, path.name)
                continue
            tried += 1
            with pytest.raises(SchemaError, match=f"{path.name}: {key} is missing"):
                require_record(kind, rest, path.name)
    assert tried > 300


def test_a_key_that_is_missing_within_is_named_by_its_place(files):
    by_name = {path.name: (kind, trees) for path, kind, trees in files}
    for name, place, key in (
        ("run_card.json", ("code",), "tree"),
        ("sft_results.json", ("config", "training"), "learning_rate"),
        ("gsm8k_results.json", ("card", "environment"), "dtype"),
        ("gsm8k_results.json", ("metrics",), "accuracy"),
        ("gsm8k_results.json", ("examples", 0), "gold"),
        ("arithmetic_results.json", ("metrics", "category_accuracies", "addition"), "total"),
        ("comparison.json", ("analysis", "endpoints", 0), "delta"),
        ("comparison.json", ("pairs", 0, "metrics", "gsm8k", "stop_rate"), "baseline"),
    ):
        kind, trees = by_name[name]
        tree = copy.deepcopy(trees[0])
        node = tree
        for part in place:
            node = node[part]
        del node[key]
        where = ".".join(map(str, (*place, key)))
        with pytest.raises(SchemaError, match=f"{where} is missing"):
            require_record(kind, tree, name)
        with pytest.raises(UserError, match=f"has no {where}"):
            check_record(f"a/{name}", kind, tree)


def test_older_files_stay_readable_and_newer_ones_are_told(files):
    """Without all that was added later a file is read; what is newer than this code is named."""

    def older(kind, tree):
        fields = kind.model_fields
        return {k: v for k, v in tree.items() if not {"since", "when"} & extra_of(fields[k]).keys()}

    for path, kind, trees in files:
        rest = [older(kind, tree) for tree in trees]
        assert check_records(path, kind, rest) == ""
        notice = check_records(path, kind, [{**tree, "newer": 1} for tree in rest])
        assert notice.endswith("does not know and leaves out: newer")


def test_what_earlier_code_wrote_is_read():
    """Two seeds of each arm, stored when results were first bound to their items."""
    files = list(files_of(ROOT / "tests" / "golden" / "evaluations"))
    assert len(files) == 24
    for path, kind, trees in files:
        assert check_records(path, kind, trees) == ""


def test_a_writer_is_stopped_before_anything_is_written(tmp_path):
    line = {"step": 1, "steps": 2, "loss": 4.0, "learning_rate": None, "grad_norm": None}
    line |= {"tokens_per_second": 1.0, "seconds": 2}
    path = tmp_path / "train_log.json"
    for change, words in (
        ({"los": 1.0}, "los is no key of domain_tokens.runs.results.training.TrainLogLine"),
        ({"loss": "4.0"}, "loss is '4.0': input should be a valid number"),
        ({"step": True}, "step is True"),
        ({"loss": None}, "loss is None"),
    ):
        with pytest.raises(SchemaError, match=words):
            write_record(path, training.TrainLogLine, line | change)
    assert not path.exists()
    write_record(path, training.TrainLogLine, line)
    assert read_json(path) == line


def test_a_stage_is_checked_before_its_first_step(files):
    """A key that no model has would be found after hours of training."""
    tree = next(trees[0] for path, _, trees in files if path.parent.name == "sft_gsm8k_baseline")
    before = {k: v for k, v in tree.items() if k not in card.AFTER_TRAINING}
    require_record(card.StageCard, before, "card", later=card.AFTER_TRAINING)
    with pytest.raises(SchemaError, match="speed is no key"):
        require_record(card.StageCard, {**before, "speed": 1}, "card", later=card.AFTER_TRAINING)
    with pytest.raises(SchemaError, match="weights is there already"):
        require_record(card.StageCard, tree, "card", later=card.AFTER_TRAINING)


def test_a_card_of_other_code_within_results_is_no_fault_of_the_writer(files):
    tree = next(trees[0] for path, _, trees in files if path.name == "gsm8k_results.json")
    other = copy.deepcopy(tree)
    other["card"]["training"]["newer"] = 1
    del other["card"]["training"]["ancestors"]
    require_record(evaluation.GSM8KResults, other, "results")
    assert list(unknown_keys(evaluation.GSM8KResults, other)) == ["card.training.newer"]


def test_files_of_an_unfinished_run_are_what_their_models_say(files, tmp_path):
    by_place = {(path.parent.name, path.name): trees[0] for path, _, trees in files}
    stage = by_place["sft_gsm8k_baseline", "run_card.json"]
    open_workspace(
        tmp_path / "stage",
        "sft_results.json",
        stage["identity"],
        resume=False,
        overwrite=False,
    ).begin({"tokens": 1}, commit=None)
    release_locks()
    require_record(card.StageMarker, read_json(tmp_path / "stage" / UNFINISHED_MARKER), "marker")
    evaluated = by_place["eval_baseline", "gsm8k_results.json"]["card"]
    partial = PartialResponses(tmp_path, "gsm8k", evaluation_identity(evaluated))
    partial.start(keep=False)
    partial.append("q1", Response([1, 2], "eos"))
    head, line = read_lines(partial.files()[0])
    require_record(evaluation.EvaluationIdentity, head, "head")
    require_record(lines.PartialResponse, line, "line")


# --- what a person is told ----------------------------------------------------------------------


def compare(demo):
    words = ["--baseline-dir", demo / "eval_baseline", "--mul-tokens-dir", demo / "eval_mul_tokens"]
    return call("scripts/compare_runs.py", *words)


def test_keys_are_named_to_whoever_compares_checks_or_lists(demo, capsys):
    results, log = demo / "eval_baseline" / "gsm8k_results.json", "sft_gsm8k_baseline"
    edit(results, "metrics.newer", 1)
    edit(demo / log / "sft_results.json", "newer", 1)
    assert call("scripts/show_runs.py", demo) == 0
    shown = capsys.readouterr().out
    assert shown.count("keys that this code does not know and leaves out") == 2
    tree = read_json(results)
    del tree["metrics"]["newer"], tree["metrics"]["stop_rate"]
    write_json(results, tree)
    assert compare(demo) == 2
    assert "gsm8k_results.json has no metrics.stop_rate" in capsys.readouterr().err
    assert call("scripts/check_checkpoint.py", demo / "eval_baseline") == 1
    assert "has no metrics.stop_rate" in capsys.readouterr().out
    assert call("scripts/show_runs.py", demo) == 0
    assert "gsm8k_results.json has no metrics.stop_rate" in capsys.readouterr().out


def test_a_newer_key_does_not_stop_a_comparison(demo, capsys):
    """A colleague's later version: its folders are compared, and what was left out is said once."""
    edit(demo / "eval_baseline" / "arithmetic_results.json", "card.newer", 1)
    edit(demo / "eval_baseline" / "arithmetic_results.json", "card.training.later", 1)
    assert compare(demo) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(said) == 1
    assert said[0].endswith("leaves out: card.newer, card.training.later")


# --- one place for each name --------------------------------------------------------------------


def test_names_used_elsewhere_are_keys_of_the_models():
    metrics = {
        name: evaluation.EVALUATION_RESULTS[name].model_fields["metrics"].annotation.model_fields
        for name in ACCURACIES
    }
    for name, pairs in ACCURACIES.items():
        items = evaluation.EVALUATION_LINES[name]["items"].model_fields
        assert {metric for metric, _ in pairs} <= metrics[name].keys()
        assert {verdict for _, verdict in pairs} <= items.keys()
    assert all(endpoint.name in metrics[endpoint.evaluation] for endpoint in ENDPOINTS)
    for file, (_, place, keys) in STAGES.items():
        model = file_model(file, {})
        fields = metrics[file.partition("_")[0]] if place else model.model_fields
        assert set(keys) <= fields.keys()
    assert set(training.MEASURED) < training.StageNumbers.model_fields.keys()
    assert set(card.AFTER_TRAINING) < card.StageCard.model_fields.keys()
    ancestor = card.Ancestor.model_fields
    assert {*ANCESTRY, *SETTING} <= ancestor.keys()
    for part, keys in SETTING.items():
        assert set(keys) == ancestor[part].annotation.model_fields.keys()


def test_every_key_says_what_it_means_and_every_number_its_unit():
    assert len({file.name for file in FILES}) == len(FILES)
    models = models_of_files()
    assert len(models) > 40
    for model in models:
        assert model.__doc__
        for name, field in model.model_fields.items():
            extra = extra_of(field)
            if not extra:  # of a config section, which says it there
                assert model in evaluation.CONFIGURED
                continue
            assert field.description, f"{model.__name__}.{name}"
            if "float" in str(field.annotation):
                assert extra["unit"], f"{model.__name__}.{name} is a number without a unit"


def test_the_page_is_what_the_models_say():
    """After a change: uv run python -m domain_tokens.runs.results > docs/results.md."""
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == page()


def test_json_is_written_as_before(tmp_path):
    """A model looks at what is written and changes nothing of it: order of keys, digits."""
    line = {"seconds": 0.1 + 0.2, "tokens_per_second": 1e-7, "samples_per_second": 3}
    write_record(tmp_path / "a.json", evaluation.Speed, line)
    write_json(tmp_path / "b.json", line)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert list(json.loads((tmp_path / "a.json").read_text())) == list(line)
