"""A finished evaluation may lack a key of `since(…)`, and is verified without it; no other key."""

import json
import shutil
from pathlib import Path

import pytest

from domain_tokens.comparison.runs import load_run
from domain_tokens.errors import UserError
from domain_tokens.evaluation import verification
from domain_tokens.evaluation.attribution import ATTRIBUTION_VERSION
from domain_tokens.evaluation.metrics import derived_keys
from domain_tokens.runs.config import as_written_today
from domain_tokens.runs.files import file_digest, read_json, read_lines, write_json
from domain_tokens.runs.results import evaluation
from domain_tokens.runs.results.record import Record, extra_of, given, lacked_keys, since
from tests.conftest import ROOT, rewrite_items

OLDER = ROOT / "tests" / "golden" / "evaluations" / "mul_tokens_1"
NAMES = ("gsm8k", "arithmetic")
CARD = "command architecture sources reading decode.rationale_seed decode.calculator".split()
CARD += ["decode.forbid_fact_tokens", "formats.attribution"]


def models(name):
    """The models of an evaluation's metrics and items."""
    results = evaluation.EVALUATION_RESULTS[name].model_fields
    return results["metrics"].annotation, evaluation.EVALUATION_LINES[name]["items"]


def since_keys(model):
    return [key for key, field in model.model_fields.items() if "since" in extra_of(field)]


def bind(folder, name, kind, lines):
    path, results = folder / f"{name}_{kind}.jsonl", folder / f"{name}_results.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tree = read_json(results)
    tree[kind] |= {"sha256": file_digest(path), "count": len(lines)}
    if kind == "items" and "examples" in tree:
        tree["examples"] = lines[:50]
    write_json(results, tree)


@pytest.fixture(scope="module")
def today(tmp_path_factory):
    """A stored evaluation with every key that is computed now."""
    folder = Path(shutil.copytree(OLDER, tmp_path_factory.mktemp("today") / "evaluated"))
    scores = read_lines(folder / "arithmetic_scores.jsonl")
    for line in scores:
        line |= {f"both_{key}": line[key] for key in ("log_prob", "log_sum", "value")}
    bind(folder, "arithmetic", "scores", scores)
    for name in NAMES:
        tree = read_json(folder / f"{name}_results.json")
        tree["card"]["formats"]["attribution"] = ATTRIBUTION_VERSION
        decode = as_written_today(tree["card"]["decode"]) | {"forbid_fact_tokens": False}
        tree["card"]["decode"] = decode | ({"calculator": None} if name == "gsm8k" else {})
        write_json(folder / f"{name}_results.json", tree)
        rewrite_items(folder, lambda number, item: {}, name=name)
    return folder


@pytest.fixture
def folder(today, tmp_path):
    """A copy to change."""
    return Path(shutil.copytree(today, tmp_path / "evaluated"))


def without(path, section, key):
    tree = read_json(path)
    node = tree[section]
    *parents, last = key.split(".")
    for part in parents:
        node = node[part]
    del node[last]
    write_json(path, tree)


def all_keys(name):
    return [key for key in models(name)[0].model_fields]


LATER = [(name, key) for name in NAMES for key in since_keys(models(name)[0])]
OTHERS = [(name, key) for name in NAMES for key in all_keys(name) if (name, key) not in LATER]


def test_the_folder_has_every_metric(folder):
    load_run(folder, condition=None)
    for name in NAMES:
        assert [*sorted(read_json(folder / f"{name}_results.json")["metrics"])] == sorted(
            all_keys(name)
        )
    assert {"attribution", "matched_floor", "a1", "seconds"} <= {key for _, key in LATER}
    own = set(since_keys(evaluation.StoriesMetrics)) - set(since_keys(evaluation.Metrics))
    assert not own  # else stories need cases here


@pytest.mark.parametrize(("name", "key"), LATER)
def test_a_metric_that_came_later_may_lack(folder, name, key, monkeypatch):
    """It was recomputed and refused: "they are not of one run: evaluate again"."""
    results = folder / f"{name}_results.json"
    tree = read_json(results)
    value = tree["metrics"][key]
    tree["metrics"][key] = value + 1 if isinstance(value, (int, float)) else "x"
    write_json(results, tree)
    seen = {"seconds": "samples_per_second"}.get(key, key)  # the first that does not follow
    with pytest.raises(UserError, match=f"metrics(: |\\.){seen} is"):  # there, and wrong
        load_run(folder, condition=None)
    without(results, "metrics", key)
    load_run(folder, condition=None)
    monkeypatch.setattr(verification, "lacked_keys", lambda kind, trees: set())
    with pytest.raises(UserError, match=rf"metrics: {key} is None, its items say"):
        load_run(folder, condition=None)


@pytest.mark.parametrize(("name", "key"), OTHERS)
def test_no_other_metric_may_lack(folder, name, key):
    without(folder / f"{name}_results.json", "metrics", key)
    with pytest.raises(UserError, match=key):
        load_run(folder, condition=None)


def test_speeds_are_of_one_time_also_where_it_lacks(folder):
    results = folder / "gsm8k_results.json"
    tree = read_json(results)
    del tree["metrics"]["seconds"]
    tree["metrics"]["samples_per_second"] *= 1.01
    write_json(results, tree)
    with pytest.raises(UserError, match="tokens_per_second"):
        load_run(folder, condition=None)


@pytest.mark.parametrize("key", CARD)
def test_a_key_of_the_card_that_came_later_may_lack(folder, key):
    without(folder / "gsm8k_results.json", "card", key)
    load_run(folder, condition=None)


# --- items --------------------------------------------------------------------------------------


def derived(name, items):
    """The later keys of items that are computed again when a folder is read."""
    return [key for key in since_keys(models(name)[1]) if key in derived_keys(name, items[0])]


@pytest.mark.parametrize("name", NAMES)
def test_a_derived_key_of_items_may_lack_from_all_and_not_from_some(folder, name):
    whole = read_lines(folder / f"{name}_items.jsonl")
    results = folder / f"{name}_results.json"
    metrics = read_json(results)["metrics"]
    keys = derived(name, whole)
    assert {"strict", "credited"} < {*keys, "correct"}
    for key in keys:
        if (name, key) == ("gsm8k", "strict"):
            continue  # the floors are computed from it
        bind(folder, name, "items", [{k: v for k, v in i.items() if k != key} for i in whole])
        if key == "first_wrong":  # what is counted from it is not there either
            with pytest.raises(UserError, match="attribution"):
                load_run(folder, condition=None)
            without(results, "metrics", "attribution")
        load_run(folder, condition=None)
        bind(folder, name, "items", [{k: v for k, v in whole[0].items() if k != key}, *whole[1:]])
        with pytest.raises(UserError, match=key):
            load_run(folder, condition=None)
        bind(folder, name, "items", whole)
        tree = read_json(results)
        write_json(results, {**tree, "metrics": metrics})
    load_run(folder, condition=None)


class Inner(Record):
    """A record within others."""

    old: int = given("x")
    new: int = since("2026-12-01", "y")


class Outer(Record):
    """One that holds others in each way."""

    one: Inner | None = given("x")
    many: list[Inner] = given("x")
    named: dict[str, Inner] = given("x")
    new: int = since("2026-12-01", "y")


def test_keys_are_found_where_they_lack_at_any_depth():
    old, new = {"old": 1}, {"old": 1, "new": 2}
    trees = [
        {"one": None, "many": [], "named": {"a": old}, "new": 1},
        {"one": old, "many": [new, old], "named": {"a": new, "b": old}},
    ]
    assert lacked_keys(Outer, trees) == {"one.new", "many.1.new", "named.b.new"}
    assert lacked_keys(Outer, trees[1:]) == {"one.new", "many.1.new", "named.b.new", "new"}
