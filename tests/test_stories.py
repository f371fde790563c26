"""The story probe: what its stories say, its endpoint, and its folder next to the others'."""

import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from domain_tokens.comparison.must_equal import must_equal
from domain_tokens.comparison.runs import load_run
from domain_tokens.data import demo_corpora, demo_problems
from domain_tokens.data.corpora import load_problems
from domain_tokens.data.decontamination import Decontaminator
from domain_tokens.errors import UserError
from domain_tokens.evaluation.checkpoint import LoadedCheckpoint
from domain_tokens.evaluation.endpoints import table_scores
from domain_tokens.evaluation.metrics import story_metrics, table_metrics
from domain_tokens.evaluation.probes import TABLE, probes
from domain_tokens.evaluation.stories import STORIES, Counted, story_floors, worded
from domain_tokens.evaluation.verification import verify_data, verify_results, verify_tokens
from domain_tokens.injection import find_facts
from domain_tokens.prompts import Renderer
from domain_tokens.runs.config import ProbeEvalConfig, ProbeSection, load_config
from domain_tokens.runs.files import read_json, read_lines, write_json
from domain_tokens.runs.older_names import say
from domain_tokens.vocabulary import layout_of
from tests.conftest import ROOT, call, plant
from tests.test_endpoints import log_prob
from tests.test_every_leaf import bind

SETTINGS = ProbeSection(
    batch_size=128, max_new_tokens=16, response_prefix=" The answer is", suite="stories"
)
OPERATORS = re.compile(
    r"[-+*×·÷/=<>]|\b(times|plus|minus|multipl\w*|product|divided|sum|total|altogether|add\w*|double|"
    r"twice|pair|dozen|one|two|three|four|five|six|seven|eight|nine|ten|x)\b",
    re.IGNORECASE,
)
CELLS = [(a, b, story) for a, b in TABLE for story in STORIES]


# --- the texts ------------------------------------------------------------------------------------


def test_every_cell_is_asked_in_ten_stories_of_its_own():
    asked = list(probes(SETTINGS))
    assert len(asked) == 810
    assert len({question for _, question, _ in asked}) == 810
    assert Counter(product for _, _, product in asked) == Counter(
        a * b for a, b in TABLE for _ in range(10)
    )
    assert {category for category, _, _ in asked} == {"story"}


def faults(text, a, b):
    """What a story may not hold: an operator, or another number than its two."""
    problems = [match[0] for match in OPERATORS.finditer(text)]
    numbers = sorted(map(int, re.findall(r"\d+", text)))
    problems += [] if numbers == sorted((a, b)) else [f"numbers {numbers}"]
    return problems


def test_a_story_holds_its_two_numbers_and_nothing_that_says_what_to_do():
    for a, b, story in CELLS:
        text = worded(story, a, b)
        assert not faults(text, a, b), text
        assert not find_facts(text)
        assert text.count("?") == 1
        assert text.endswith("?")


def test_the_guard_on_stories_sees_operators_and_products():
    """Planted, since a list of words that matches nothing would pass."""
    bad = (
        "There are {a} times {b} tins.",
        "Is {a}*{b} more?",
        "Twice {a}, {b}?",
        "{a} and {b}, 54?",
    )
    assert all(faults(bad_one.format(a=6, b=9), 6, 9) for bad_one in bad)


def test_a_story_is_grammatical_for_one():
    """The noun follows its number, and no verb does: only nouns change from 1 to 2."""
    for story in STORIES:
        nouns = re.findall(r"\{([ab]):(\w+)/(\w+)\}", story)
        assert sorted(name for name, _, _ in nouns) == ["a", "b"]
        for a, b in ((1, 1), (1, 2), (2, 1), (2, 2)):
            text = worded(story, a, b)
            for name, one, many in nouns:
                count = {"a": a, "b": b}[name]
                assert f"{count} {one if count == 1 else many}" in text
                assert not re.search(rf"\b{count} {many if count == 1 else one}\b", text)
                after = text.partition(f"{count} {one if count == 1 else many}")[2]
                assert not re.match(r" (?:is|are|has|have|was|were|does|do|live|lives)\b", after)
    assert f"{Counted(1)} {Counted(12)}" == "1 12"


def test_stories_differ_in_nouns_and_in_which_number_comes_first():
    nouns = [noun for story in STORIES for noun in re.findall(r":(\w+)/", story)]
    assert len(set(nouns)) == 20
    first = Counter(re.search(r"\{([ab])", story)[1] for story in STORIES)
    assert first == {"a": 5, "b": 5}


def shape(text):
    """The words of a template or a text, its numbers and places left out."""
    return re.findall(r"[a-z]+", re.sub(r"\{[^}]*\}+|\d+", " ", text.casefold()))


def runs(words, size):
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def demo_texts():
    """Every template from which the demo's corpora are made, whatever its place in the modules."""
    waiting = [v for m in (demo_corpora, demo_problems) for v in vars(m).values()]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, demo_problems.Template):
            waiting += [value.question, *value.sentences]
        elif isinstance(value, (tuple, list)):
            waiting += value


def test_no_demo_template_says_what_a_story_says():
    seen = set().union(*(runs(shape(text), 5) for text in demo_texts()))
    assert tuple("what is times please tell".split()) in seen
    for story in STORIES:
        shared = runs(shape(story), 5) & seen
        assert not shared, (story, shared)


def test_no_generated_row_of_the_demo_repeats_a_story():
    finder = Decontaminator([worded(story, 6, 9) for story in STORIES])
    rows = [row["question"] for row in demo_problems.problem_rows(2000, 1, "train")]
    rows += list(demo_corpora.pretraining_texts(500, 1))
    rows += [m["content"] for row in demo_corpora.chat_rows(500, 1) for m in row["messages"]]
    assert not any(finder.match(text) for text in rows)
    assert finder.match("So: " + worded(STORIES[0], 6, 9))


@pytest.mark.shared_data
def test_no_gsm8k_question_repeats_a_story():
    source = ROOT.parent / "shared/data/gsm8k/train.jsonl"
    if not source.is_file():
        pytest.skip("no shared/data next to the checkout")
    finder = Decontaminator([worded(story, 6, 9) for story in STORIES])
    problems = load_problems(str(source), split="train", limit=None, subset_seed=0).items
    assert not any(finder.match(problem.question) for problem in problems)


# --- the endpoint ---------------------------------------------------------------------------------


def test_a2_is_each_products_share_of_the_36_in_ten_stories(tiny_model, tokenizer, tmp_path):
    """Against plain forward passes, as A1."""
    subject = LoadedCheckpoint(tmp_path, tiny_model.eval(), tokenizer, layout_of(tokenizer))
    stories = (STORIES[3], STORIES[7])
    lines = table_scores(subject, response_prefix=" The answer is", templates=stories)
    assert [(x["a"], x["b"], x["template"]) for x in lines[:3]] == [
        (1, 1, stories[0]),
        (1, 1, stories[1]),
        (1, 2, stories[0]),
    ]
    metrics = table_metrics(lines, endpoint="a2", wordings=2)
    renderer = Renderer(tokenizer)
    products = sorted({a * b for a, b in TABLE})
    values = []
    for question in (
        "A kitten drinks 1 spoon of milk. How many spoons of milk are needed for 6 kittens?",
        "To knit a scarf takes 1 ball of wool. How many balls of wool are needed for 6 scarves?",
    ):
        prompt = renderer.prompt([("user", question)], response_prefix=" The answer is")
        scores = [
            log_prob(subject.model, prompt, [*renderer.encode(f" {c}"), renderer.eos])
            for c in products
        ]
        values.append(scores[products.index(6)] - float(torch.tensor(scores).logsumexp(0)))
    assert metrics["a2_grid"][5][0] == pytest.approx(sum(values) / 2, abs=1e-4)
    assert metrics["a2"] == pytest.approx(sum(map(sum, metrics["a2_grid"])) / 81)
    assert metrics.keys() == {"a2", "a2_grid", "fact_mass"}


def test_the_floors_are_what_a_model_scores_that_does_not_multiply():
    """By enumeration: no answer that ignores the numbers has a higher A2, none has chance's."""
    floors = story_floors()
    assert floors["a2_chance"] == pytest.approx(math.log(1 / 36))
    counts = Counter(a * b for a, b in TABLE)
    best = torch.tensor([counts[p] / 81 for p in sorted(counts)], dtype=torch.float64)
    weights = best.clone()
    value = float((weights * best.log()).sum())
    assert floors["a2_floor"] == pytest.approx(value)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = best * torch.exp(0.3 * torch.randn(36, generator=generator, dtype=torch.float64))
        assert float((weights * (other / other.sum()).log()).sum()) < value
    assert floors["a2_chance"] < floors["a2_floor"] < 0
    assert floors["larger_number_accuracy"] == pytest.approx(17 / 81)


# --- its folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(experiment, tmp_path_factory):
    """The demo's evaluation folders of one seed, with the stories next to the two others."""
    demo = Path(shutil.copytree(experiment / "demo", tmp_path_factory.mktemp("told") / "demo"))
    for arm in ("baseline", "mul_tokens"):
        tell(demo, arm)
    return demo


def tell(demo, arm, *more):
    words = ["--model-path", demo / f"sft_gsm8k_{arm}", "--output-dir", demo / f"eval_{arm}"]
    words += ["--condition", arm, "--suite", "stories", "--max-new-tokens", 8, *more]
    assert call("eval/run_arithmetic_probes.py", *words) == 0


def test_three_evaluations_share_a_folder(told, capsys):
    folder = told / "eval_mul_tokens"
    names = {path.name for path in folder.iterdir()}
    assert {f"stories_{kind}" for kind in ("results.json", "items.jsonl", "scores.jsonl")} <= names
    assert {"gsm8k_results.json", "arithmetic_results.json"} <= names
    tree = read_json(folder / "stories_results.json")
    items, scores = (read_lines(folder / f"stories_{kind}.jsonl") for kind in ("items", "scores"))
    assert (len(items), len(scores)) == (810, 810)
    assert tree["metrics"]["total"] == 810
    verify_results(folder / "stories_results.json", tree, items)
    assert verify_tokens(folder / "stories_results.json", told / "sft_gsm8k_mul_tokens")
    assert "settings" in verify_data(folder / "stories_results.json", told / "sft_gsm8k_mul_tokens")
    tell(told, "mul_tokens", "--resume")
    assert "already finished" in capsys.readouterr().out
    assert set(load_run(folder, condition=None).evaluations) == {"gsm8k", "arithmetic", "stories"}


def test_metrics_of_stories_are_those_of_an_oracle(told):
    """Counted from the lines by cell, whatever their order."""
    folder = told / "eval_baseline"
    items, scores = (read_lines(folder / f"stories_{kind}.jsonl") for kind in ("items", "scores"))
    for number, item in enumerate(items):
        if number % 7 == 0:
            item |= {
                "strict": item["gold"],
                "correct": True,
                "credited": item["gold"],
                "correct_credited": True,
            }
    metrics = story_metrics(items, scores)
    right = {text: [] for text in CELLS}
    for item, (a, b, story) in zip(items, CELLS, strict=True):
        assert item["prompt"] == worded(story, a, b)
        right[a, b, story] = item["correct"]
    for a in range(1, 10):
        for b in range(1, 10):
            cell = [right[a, b, story] for story in STORIES]
            assert metrics["story_grid"][a - 1][b - 1] == pytest.approx(sum(cell) / 10)
            values = [s["log_prob"] - s["log_sum"] for s in scores if (s["a"], s["b"]) == (a, b)]
            assert len(values) == 10
            assert metrics["a2_grid"][a - 1][b - 1] == pytest.approx(sum(values) / 10)
    assert metrics["accuracy"] == pytest.approx(sum(i["correct"] for i in items) / 810)
    assert metrics["best_constant_accuracy"] == pytest.approx(
        max(Counter(i["gold"] for i in items).values()) / 810
    )


def test_a_comparison_shows_a2_and_tests_what_it_tested_before(told, tmp_path):
    """Stories are exploratory: the family of Holm is the two evaluations that it was."""
    arms = ["--baseline-dir", told / "eval_baseline", "--mul-tokens-dir", told / "eval_mul_tokens"]
    page = tmp_path / "report.html"
    words = ["--output-path", tmp_path / "with.json", "--report", page]
    assert call("scripts/compare_runs.py", *arms, *words) == 0
    report = json.loads((tmp_path / "with.json").read_text())
    rows = {row["endpoint"]: row for row in report["analysis"]["endpoints"]}
    assert rows["a2"]["role"] == "exploratory"
    assert rows["a2"]["items"] == 81
    means = [
        read_json(told / f"eval_{a}" / "stories_results.json")["metrics"]["a2"]
        for a in ("baseline", "mul_tokens")
    ]
    assert rows["a2"]["delta"] == pytest.approx(means[1] - means[0])
    shown = {
        row["endpoint"] for row in report["pairs"][0]["endpoints"] if row["evaluation"] == "stories"
    }
    assert shown == {"accuracy", "accuracy_expression_credited"}
    assert not any(
        row["headline"] for row in report["pairs"][0]["endpoints"] if row["evaluation"] == "stories"
    )
    assert "A2, the table in stories" in page.read_text()
    bare = tmp_path / "bare"
    for arm in ("baseline", "mul_tokens"):
        hidden = shutil.ignore_patterns("stories_*")
        shutil.copytree(told / f"eval_{arm}", bare / f"eval_{arm}", ignore=hidden)
    arms = ["--baseline-dir", bare / "eval_baseline", "--mul-tokens-dir", bare / "eval_mul_tokens"]
    assert call("scripts/compare_runs.py", *arms, "--output-path", tmp_path / "without.json") == 0
    without = json.loads((tmp_path / "without.json").read_text())
    assert report["verdicts"] == without["verdicts"]


def changed_item(tree, lines):
    lines["items"][5]["response"] += " 7"


def changed_score(tree, lines):
    lines["scores"][5]["value"] += 0.5


def changed_order(tree, lines):
    lines["scores"][0], lines["scores"][1] = lines["scores"][1], lines["scores"][0]


def dropped_cell(tree, lines):
    del lines["items"][-1]
    del lines["scores"][-1]


def another_suite(tree, lines):
    tree["card"]["decode"]["suite"] = "standard"


def another_endpoint(tree, lines):
    tree["metrics"]["a2"] += 0.1


def another_floor(tree, lines):
    tree["metrics"]["larger_number_accuracy"] = 0.1


@pytest.mark.parametrize(
    "fault",
    [
        changed_item,
        changed_score,
        changed_order,
        dropped_cell,
        another_suite,
        another_endpoint,
        another_floor,
    ],
)
def test_planted_faults_of_a_stories_folder_are_refused(told, tmp_path, fault):
    folder = Path(shutil.copytree(told / "eval_baseline", tmp_path / "eval"))
    results = folder / "stories_results.json"
    tree = read_json(results)
    lines = {kind: read_lines(folder / f"stories_{kind}.jsonl") for kind in ("items", "scores")}
    fault(tree, lines)
    write_json(results, tree)
    for kind, rows in lines.items():
        path = folder / f"stories_{kind}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        bind(path)
    with pytest.raises(UserError, match="stories_"):
        load_run(folder, condition=None)


# --- what a suite is called -----------------------------------------------------------------------


def test_seed_is_called_standard_and_says_so(capsys):
    say.cache_clear()
    path = ROOT / "eval/configs/arithmetic_probes.yaml"
    config = load_config(ProbeEvalConfig, path, ["evaluation.suite=seed"])
    assert config.evaluation.suite == "standard"
    assert capsys.readouterr().err == "note: evaluation.suite=seed is called standard now\n"
    assert load_config(ProbeEvalConfig, path, []).evaluation == config.evaluation
    assert capsys.readouterr().err == ""
    assert list(probes(ProbeSection.model_validate(config.evaluation.model_dump())))
    with pytest.raises(UserError, match="suite is 'seeds'"):
        load_config(ProbeEvalConfig, path, ["evaluation.suite=seeds"])


def test_an_older_card_is_read_by_the_names_of_today(told, monkeypatch):
    """`--resume` and a comparison find the same run under the suite's older name."""
    results = told / "eval_baseline" / "arithmetic_results.json"
    card = read_json(results)["card"]
    older = json.loads(json.dumps(card))
    older["decode"]["suite"] = "seed"
    config = older["training"]["config"]
    del config["training"]["train"], config["data"]["rationale"]
    for ancestor in older["training"]["ancestors"]:
        for part, key in (("training", "train"), ("data", "rationale")):
            ancestor.get("config", {}).get(part, {}).pop(key, None)
    assert must_equal(older) == must_equal(card)
    plant(monkeypatch, "domain_tokens.runs.config.with_later_keys", lambda config: config)
    assert must_equal(older) != must_equal(card)
