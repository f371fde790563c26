"""Metrics against an oracle of the tests' own, on a finished run and on made-up answers."""

import copy
import json
import random

import pytest

from domain_tokens.evaluation.metrics import (
    arithmetic_metrics,
    gsm8k_metrics,
    item_scores,
    probe_verdicts,
    problem_verdicts,
)
from tests.oracles import metrics as oracle


def deep(tree):
    """A tree whose floats compare to rounding."""
    if isinstance(tree, dict):
        return {key: deep(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [deep(value) for value in tree]
    return pytest.approx(tree, rel=1e-9, abs=1e-12) if isinstance(tree, float) else tree


def livened(items, seed):
    """The items of a model that learned nothing, as if some were right and some held facts."""
    chooser = random.Random(seed)
    items = copy.deepcopy(items)
    for item in items:
        for name in ("strict", "flexible", "credited"):
            if name in item and chooser.random() < 0.4:
                item[name] = item["gold"]
        facts = chooser.randrange(4)
        item["fact_spans"] = [[i, i + 1] for i in range(facts)]
        item |= {"mul_tokens": facts, "mul_tokens_valid": chooser.randint(0, facts)}
        item |= {"mul_tokens_correct": chooser.randint(0, facts), "reserved_tokens": facts + 1}
        item["stop_reason"] = chooser.choice(["eos", "length"])
        item["response"] += chooser.choice(["", "\nUser: and"])
        if "g1_log_probs" in item:
            item["g1_log_probs"] = [chooser.uniform(-9, 0) for _ in range(16)]
            item["g2_log_probs"] = [chooser.uniform(-9, -3) for _ in range(17)]
            item |= item_scores(item["g1_log_probs"], item["g2_log_probs"])
            item["forced_cuts"] = chooser.randint(0, 16)
        for name in ("correct", "correct_flexible", "correct_credited"):
            source = {"correct": "strict"}.get(name, name.removeprefix("correct_"))
            if name in item:
                item[name] = item[source] == item["gold"]
        if "first_wrong" in item:
            kind = chooser.choice(
                ["table_fact", "product", "sum", "difference", "quotient", "none"]
            )
            item["first_wrong"] = None if item["correct"] else {"kind": kind, "equation": None}
    return items


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_is_the_oracles(experiment, seed):
    folder = experiment / "demo" / "eval_mul_tokens"
    decode = json.loads((folder / "gsm8k_results.json").read_text())["card"]["decode"]
    items = livened(oracle.lines(folder / "gsm8k_items.jsonl"), seed)
    metrics = gsm8k_metrics(items, decode)
    expected = oracle.gsm8k(items, frequent=decode["frequent_answers"])
    assert metrics.keys() - expected.keys() == {"best_constant_answer", "matched_floor_p"}
    assert {key: metrics[key] for key in expected} == deep(expected)
    assert 0 < metrics["accuracy"] < 1
    items = livened(oracle.lines(folder / "arithmetic_items.jsonl"), seed)
    scores = oracle.lines(folder / "arithmetic_scores.jsonl")
    assert arithmetic_metrics(items, scores) == deep(oracle.arithmetic(items, scores))


@pytest.mark.parametrize("name", ["gsm8k", "arithmetic"])
def test_the_oracle_agrees_with_what_was_written(experiment, name):
    folder = experiment / "demo" / "eval_baseline"
    tree = json.loads((folder / f"{name}_results.json").read_text())
    items = oracle.lines(folder / f"{name}_items.jsonl")
    if name == "gsm8k":
        expected = oracle.gsm8k(items, frequent=tree["card"]["decode"]["frequent_answers"])
    else:
        expected = oracle.arithmetic(items, oracle.lines(folder / "arithmetic_scores.jsonl"))
    assert {key: tree["metrics"][key] for key in expected} == deep(expected)


def test_no_answer_is_never_right():
    """An unreadable gold once made silence right: None equalled None."""
    assert problem_verdicts("None", "I do not know")["correct"] is False
    assert probe_verdicts("None", "")["correct_credited"] is False
    assert problem_verdicts("18", "#### 18.0")["correct"] is True
