"""A treated lineage from base to evaluation: drawn once, passed on, verified, refused by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from domain_tokens.checkpoints.folder import read_card
from domain_tokens.checkpoints.lineage import BrokenLinkError, verify_checkpoint, verify_evaluation
from domain_tokens.comparison.arms import refuse_other_arm
from domain_tokens.comparison.must_equal import find_differences
from domain_tokens.comparison.runs import load_run
from domain_tokens.data.demo_corpora import write_demo_corpora
from domain_tokens.errors import UserError
from domain_tokens.evaluation.verification import verify_data, verify_tokens
from domain_tokens.runs.files import read_json, read_lines
from domain_tokens.treatments import draw_half, treatment_of
from tests.conftest import ROOT, call, edit

CHAT = ("sft/sft_tulu.py", "sft/configs/demo/tulu.yaml", "chat", "test", "decontaminate_against")
PROBLEMS = ("sft/sft_gsm8k.py", "sft/configs/demo/gsm8k.yaml", "train", "test", "validation_source")


def stage(root, of, parent, folder, *more):
    script, config, rows, other, key = of
    data = root / "data"
    words = ["--model-path", root / parent, "--output-dir", root / folder, "--config", config]
    words += ["--condition", "mul_tokens", "--set", f"data.source={data / rows}.jsonl"]
    words += ["--set", f"data.{key}={data / other}.jsonl"]
    words += ["--inject-mul-tokens"] if of is PROBLEMS else []
    return call(script, *words, *more)


def evaluate(root, model, folder, *more):
    words = ["--model-path", root / model, "--output-dir", root / folder]
    words += ["--condition", "mul_tokens", "--config", "eval/configs/demo/gsm8k.yaml"]
    return call(
        "eval/run_gsm8k.py", *words, "--set", f"data.source={root / 'data/test.jsonl'}", *more
    )


def named(name, which):
    return "--set", f"data.treatment={name}", "--set", f"data.treated_facts={which}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small base and a lineage of `operands` of half A from it, to its evaluation."""
    root = tmp_path_factory.mktemp("treated")
    sizes = {"pretraining": 60, "chat": 60, "train": 60, "test": 8}
    patch = pytest.MonkeyPatch()
    patch.setattr("domain_tokens.data.demo_corpora.SIZES", sizes)
    patch.chdir(ROOT)
    try:
        write_demo_corpora(root / "data", seed=42)
        words = ["--from", "sft/configs/demo/base.yaml", "--condition", "mul_tokens"]
        words += [
            "--tokenizer",
            root / "data" / "tokenizer",
            "--output-dir",
            root / "hf_mul_tokens",
        ]
        words += ["--set", f"data.source={root / 'data' / 'pretraining.jsonl'}"]
        assert call("scripts/make_base.py", *words) == 0
        assert stage(root, CHAT, "hf_mul_tokens", "tulu", *named("operands", "half_a")) == 0
        assert stage(root, PROBLEMS, "tulu", "gsm8k") == 0
        assert evaluate(root, "gsm8k", "eval") == 0
    finally:
        patch.undo()
    return root


def test_the_first_stage_draws_and_the_next_one_reads(root):
    first, second = (read_card(root / name) for name in ("tulu", "gsm8k"))
    record = first["treatment"]
    assert second["treatment"] == record == second["ancestors"][0]["treatment"]
    assert (record["name"], record["treated_facts"]) == ("operands", "half_a")
    half_a, _ = draw_half(record["draw"]["occurrences"], first["seed"])
    assert set(record["facts"]) == half_a == set(record["meanings"])
    assert record["draw"]["seed"] == first["seed"] == 42
    assert "treatment" not in second["config"]["data"]
    results = read_json(root / "gsm8k" / "sft_results.json")
    assert results["untreated_places"] == 0
    assert results["flops"] > 0 < results["injected_tokens"]


def test_the_complement_has_the_other_facts_of_the_same_draw(root, capsys):
    assert stage(root, CHAT, "hf_mul_tokens", "other", *named("operands", "half_b")) == 0
    assert "treatment: operands of 2" in capsys.readouterr().out
    one, other = (read_card(root / name)["treatment"] for name in ("tulu", "other"))
    assert one["draw"] == other["draw"]
    assert len(one["facts"]) + len(other["facts"]) == 45
    assert not set(one["facts"]) & set(other["facts"])


def test_an_evaluation_reads_its_responses_by_the_card(root):
    results = root / "eval" / "gsm8k_results.json"
    card = read_json(results)["card"]
    assert treatment_of(card).name == "operands"
    items = read_lines(root / "eval" / "gsm8k_items.jsonl")
    assert all(item["applicable"] == bool(item["gold_facts"]) for item in items)
    assert any(item["gold_facts"] for item in items)
    assert "from their tokens" in verify_tokens(results, root / "gsm8k")
    assert "questions and golds" in verify_data(results, root / "gsm8k")
    assert verify_evaluation(results).count("<-") == 3
    load_run(root / "eval", condition="mul_tokens")


def test_a_treated_checkpoint_is_checked(root, capsys):
    assert call("scripts/check_checkpoint.py", root / "gsm8k", root / "eval") == 0
    assert "lineage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (named("generic", "half_a"), "data.treatment is generic, and "),
        (named("operands", "half_b"), "data.treated_facts is half_b, and "),
        (("--set", "data.treated_facts=all"), "data.treated_facts is all, and "),
    ],
)
def test_another_treatment_is_refused_before_anything_is_written(root, capsys, words, said):
    assert stage(root, PROBLEMS, "tulu", "refused", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (root / "refused").exists()
    assert evaluate(root, "gsm8k", "refused", *words) == 2
    assert said in capsys.readouterr().err
    assert stage(root, PROBLEMS, "tulu", "gsm8k", "--resume", *words) == 2  # a finished folder
    assert said in capsys.readouterr().err


def test_what_the_config_names_again_is_no_mismatch(root):
    assert stage(root, PROBLEMS, "tulu", "again", *named("operands", "half_a"), "--dry-run") == 0


@pytest.mark.parametrize("name", ["generic", "matched_merges", "unsupervised"])
def test_other_treatments_train(root, name, capsys):
    assert stage(root, PROBLEMS, "hf_mul_tokens", name, "--set", f"data.treatment={name}") == 0
    assert f"treatment: {name} of 45 facts (all)" in capsys.readouterr().out
    assert verify_checkpoint(root / name).count("<-") == 1
    results = read_json(root / name / "sft_results.json")
    assert results["injected_tokens"] > 0
    assert treatment_of(read_card(root / name)).name == name


FAULTS = {
    "facts": lambda record: record["facts"].pop(),
    "half": lambda record: record.update(treated_facts="half_b"),
    "meanings": lambda record: record["meanings"].popitem(),
    "name": lambda record: record.update(name="result"),
    "seed": lambda record: record["draw"].update(seed=1),
    "whole draw": lambda record: record.update(draw=None),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("folder", ["tulu", "gsm8k"])
def test_a_changed_treatment_breaks_the_link(root, tmp_path, folder, fault):
    copy = Path(shutil.copytree(root, tmp_path / "demo", ignore=shutil.ignore_patterns("check*")))
    verify_checkpoint(copy / folder)
    card = copy / folder / "run_card.json"
    record = read_json(card)["treatment"]
    FAULTS[fault](record)
    edit(card, "treatment", record)
    with pytest.raises((BrokenLinkError, UserError)):
        verify_checkpoint(copy / folder)


def test_a_draw_of_another_seed_breaks_the_link(root, tmp_path):
    copy = Path(shutil.copytree(root, tmp_path / "demo", ignore=shutil.ignore_patterns("check*")))
    card = copy / "tulu" / "run_card.json"
    record = read_json(card)["treatment"]
    record["draw"]["seed"] = 5
    half_a, _ = draw_half(record["draw"]["occurrences"], 5)
    record["facts"] = [fact for fact in draw_half({}, 0)[0] | draw_half({}, 0)[1] if fact in half_a]
    record["facts"].sort(key=lambda fact: [int(part) for part in fact[5:-1].split("_")])
    record["meanings"] = {fact: "{}*{}".format(*fact[5:].split("_")) for fact in record["facts"]}
    edit(card, "treatment", record)
    with pytest.raises(BrokenLinkError, match="not drawn from its seed 42"):
        verify_checkpoint(copy / "tulu")


def with_treatment(run, seed, **changes):
    """A run whose card says another seed and treatment."""
    evaluations = {}
    for name, evaluation in run.evaluations.items():
        card = json.loads(json.dumps(evaluation.card))
        for record in (card["training"], *card["training"]["ancestors"]):
            if record["stage"] != "base":
                record["seed"] = seed
                record["treatment"] = {**card["training"]["treatment"], **changes}
        evaluations[name] = replace(evaluation, card=card)
    return replace(run, seed=seed, evaluations=evaluations)


def test_treatments_may_differ_between_arms_but_not_within_one(root):
    run = load_run(root / "eval", condition="mul_tokens")
    arms = [with_treatment(run, 1), with_treatment(run, 1, name="generic", treated_facts="all")]
    find_differences([tuple(arms)], [])
    same = [with_treatment(run, 2), with_treatment(run, 2, name="generic", treated_facts="all")]
    find_differences([tuple(arms), tuple(same)], [])
    other = with_treatment(run, 2, name="result", treated_facts="all")
    with pytest.raises(UserError, match="is of arm result and was given as generic"):
        refuse_other_arm(other, "generic")
    refuse_other_arm(arms[1], "generic")


def test_facts_that_never_occur_are_a_clear_line(root, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    line = {"question": "How many?", "answer": "It is 6*9=54.\n#### 54"}
    rows.write_text(
        "".join(json.dumps({**line, "question": f"How many, {i}?"}) + "\n" for i in range(40))
    )
    card = []
    for which in ("half_a", "half_b"):
        words = (*named("generic", which), "--set", f"data.source={rows}", "--dry-run")
        card.append(stage(root, PROBLEMS, "hf_mul_tokens", which, *words))
    out = capsys.readouterr()
    assert sorted(card) == [0, 2]
    assert "note: in no row that the draw was made on: " in out.out
    assert "no place that treatment generic of half_" in out.err


def test_merges_are_word_sequences_of_the_problems(root, capsys):
    """The demo's chat rows share no word sequence with its problems: `matched_merges`, chosen from
    the first stage's own rows, wrote nothing in the second one, which was refused."""
    source = f"data.merges_source={root / 'data/train.jsonl'}"
    words = ("--set", "data.treatment=matched_merges")
    assert stage(root, CHAT, "hf_mul_tokens", "tulu_merges", *words, "--set", source) == 0
    record = read_card(root / "tulu_merges")["treatment"]
    problems = " ".join(row["answer"] for row in read_lines(root / "data/train.jsonl"))
    assert record["meanings"]
    assert all(merge in f" {problems}" for merge in record["meanings"].values())
    assert stage(root, PROBLEMS, "tulu_merges", "gsm8k_merges") == 0
    assert read_json(root / "gsm8k_merges" / "sft_results.json")["injected_tokens"] > 0
    assert read_card(root / "gsm8k_merges")["treatment"] == record
    capsys.readouterr()
    again = (*words, "--set", source)
    assert stage(root, PROBLEMS, "tulu_merges", "gsm8k_again", *again) == 2
    assert "leave data.merges_source out" in capsys.readouterr().err
    assert stage(root, CHAT, "hf_mul_tokens", "tulu_other", "--set", source) == 2
    assert "is of treatment matched_merges" in capsys.readouterr().err
