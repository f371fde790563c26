"""The comparison: unequal arms are refused by key, equal ones are counted item by item."""

import json
import random

import pytest

from domain_tokens.comparison.must_equal import find_differences, flatten, unrecorded_in_cards
from domain_tokens.comparison.runs import load_run
from domain_tokens.errors import UserError
from domain_tokens.runs.files import file_digest, read_lines, sealed, write_json, write_text
from tests.conftest import call, edit, rewrite_items, tree

ARMS = ("baseline", "mul_tokens")


def compare(demo, *more):
    folders = [f"--{a.replace('_', '-')}-dir={demo / f'eval_{a}'}" for a in ARMS]
    return call("scripts/compare_runs.py", *folders, *more)


def answer(folder, right):
    """Rewrite the GSM8K items of a folder so that exactly these positions are right."""
    return rewrite_items(
        folder,
        lambda number, item: {"response": f"#### {item['gold'] if number in right else 'none'}"},
    )


def test_counts_deltas_and_p_are_those_of_the_items(demo):
    total = answer(demo / "eval_baseline", {0, 1, 2, 3, 4, 5, 6})
    assert total == answer(demo / "eval_mul_tokens", {0, 8})
    assert compare(demo, f"--output-path={demo / 'deep' / 'report.json'}") == 0
    report = json.loads((demo / "deep" / "report.json").read_text())
    row = next(r for r in report["pairs"][0]["endpoints"] if r["endpoint"] == "accuracy")
    assert (row["only_baseline_right"], row["only_mul_tokens_right"]) == (6, 1)
    assert row["delta"] == pytest.approx(-5 / total)
    assert row["mcnemar_p"] == pytest.approx(2 * (1 + 7) / 2**7)  # both tails of B(7, 1/2)
    assert row["mcnemar_p_holm"] == pytest.approx(2 * row["mcnemar_p"])
    assert row["delta_interval_95"][0] < row["delta"] < row["delta_interval_95"][1]
    assert report["analysis"]["same_base"] is True
    assert "this says nothing about the method" in report["verdicts"][0]


def test_a_difference_between_two_checkpoints_is_not_one_of_the_method(demo, capsys):
    answer(demo / "eval_baseline", set(range(20)))
    answer(demo / "eval_mul_tokens", {1})
    assert compare(demo) == 0
    shown = capsys.readouterr().out
    assert "These two checkpoints differ on these items, baseline is higher" in shown
    assert "this says nothing about the method" in shown


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("card.tokenizer", "0" * 64),
        ("card.formats.prompt", "0"),
        ("card.formats.injector", "0"),
        ("card.formats.answers", "0"),
        ("card.data.test", "0" * 64),
        ("card.decode.rationale_seed", 9),
        ("card.decode.batch_size", 9),
        ("card.environment.device_type", "cuda"),
        ("card.environment.dtype", "bfloat16"),
        ("card.code.tree", "0" * 64),
        ("card.training.order_digest", "0" * 64),
        ("card.training.config.training.learning_rate", 0.5),
        ("card.training.config.training.max_length", 9),
        ("card.training.data.train", "0" * 64),
        ("card.training.code.tree", "0" * 64),
        ("card.training.environment.dtype", "bfloat16"),
        ("card.training.seed", 7),
    ],
)
def test_arms_that_differ_in_more_than_one_thing_are_refused(demo, capsys, key, value):
    results = demo / "eval_mul_tokens" / "gsm8k_results.json"
    edit(results, key, value)
    if key == "card.tokenizer":  # the card of the checkpoint says it, too
        edit(results, "card.training.tokenizer", value)
    before = tree(demo)
    assert compare(demo, f"--output-path={demo / 'report.json'}") == 2
    error = capsys.readouterr().err
    assert key.removeprefix("card.").removesuffix("training.seed").split(".")[-1] in error
    assert error.count("\n") == 1
    assert tree(demo) == before
    if "seed" not in key:
        assert compare(demo, f"--allow-diff={key.removeprefix('card.')}") == 0


@pytest.mark.parametrize(
    "keys",
    [
        ("card.model_path", "metrics.model_path", "card.parent.path"),
        ("card.data.source", "card.reading.source"),
        ("card.training.parent.path",),
    ],
)
def test_where_things_lie_makes_no_difference(demo, keys):
    content = json.loads((demo / "eval_mul_tokens" / "gsm8k_results.json").read_text())
    for key in keys:
        *parents, last = key.split(".")
        node = content
        for part in parents:
            node = node[part]
        node[last] = "elsewhere"
    content["card"]["training"] = sealed(content["card"]["training"])
    write_json(demo / "eval_mul_tokens" / "gsm8k_results.json", content)
    assert compare(demo) == 0


def test_results_of_an_older_version_are_compared_and_it_is_said(demo, capsys):
    """Before items were bound and cards had a hash of the whole model."""
    for path in demo.glob("eval_*/*_results.json"):
        content = json.loads(path.read_text())
        for key in ("items", "rationales", "scores", "seal"):
            content.pop(key, None)
        for key in ("model", "architecture", "reading"):
            del content["card"][key]
        for key in ("model", "files", "results", "seal"):
            del content["card"]["training"][key]
        content["card"]["training"] = sealed(content["card"]["training"])
        write_json(path, content)
    assert compare(demo) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(said) == 4
    assert all("bound only accuracies to its items" in line for line in said)
    edit(demo / "eval_baseline" / "gsm8k_results.json", "metrics.accuracy", 0.5)
    assert compare(demo) == 2
    assert "its items say" in capsys.readouterr().err


def test_a_changed_file_that_was_not_sealed_again_is_refused(demo, capsys):
    path = demo / "eval_mul_tokens" / "gsm8k_results.json"
    path.write_text(path.read_text().replace('"python": "3', '"python": "4', 1))
    assert compare(demo) == 2
    assert "its seal is not that of its content" in capsys.readouterr().err


def test_arms_of_another_shape_are_refused_by_key(demo, capsys):
    """Four and eight heads have weights of the same shapes: config.json belonged to no hash."""
    for name in ("gsm8k", "arithmetic"):
        path = demo / "eval_mul_tokens" / f"{name}_results.json"
        edit(path, "card.architecture.n_head", 2)
    assert compare(demo) == 2
    assert "architecture.n_head (4 and 2)" in capsys.readouterr().err


def test_swapped_folders_are_noticed(demo, capsys):
    swapped = [f"--{a.replace('_', '-')}-dir={demo / f'eval_{b}'}" for a, b in (ARMS, ARMS[::-1])]
    assert call("scripts/compare_runs.py", *swapped) == 2
    assert "swapped" in capsys.readouterr().err


def test_results_that_do_not_follow_from_their_items_are_refused(demo, capsys):
    edit(demo / "eval_baseline" / "gsm8k_results.json", "metrics.accuracy", 0.5)
    assert compare(demo) == 2
    assert "its items say" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["missing", "prompt"])
def test_items_that_cannot_be_paired_are_refused(demo, capsys, change):
    path = demo / "eval_baseline" / "gsm8k_items.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if change == "prompt":
        lines[0] = json.dumps(json.loads(lines[0]) | {"prompt_hash": "0"}) + "\n"
    total = answer(demo / "eval_mul_tokens", set())
    write_text(path, "".join(lines if change == "prompt" else lines[1:]))
    if change == "missing":
        items = [json.loads(line) for line in lines[1:]]
        right = sum(item["correct"] for item in items)
        assert right == 0 < total
    assert compare(demo) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_different_bases_are_said_to_confound(demo, capsys):
    for name in ("gsm8k", "arithmetic"):
        edit(demo / "eval_mul_tokens" / f"{name}_results.json", "card.training.base", "0" * 64)
    assert compare(demo) == 0
    assert "pretraining noise and condition cannot be separated" in capsys.readouterr().out


def seeded(demo, arm, seed):
    """Copy an arm's evaluation as that of another seed; return its folder."""
    folder = demo / f"eval_{arm}_seed_{seed}"
    folder.mkdir()
    for path in (demo / f"eval_{arm}").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for path in folder.glob("*_results.json"):
        edit(path, "card.seed", seed)
        edit(path, "card.training.seed", seed)
        edit(path, "card.training.parent.weights", f"{arm}-{seed}")
        edit(path, "card.training.ancestors", [])
        for key in ("card.weights", "card.training.weights"):
            edit(path, key, f"{arm}-{seed}-last")
    return folder


def test_several_folders_are_paired_by_seed(demo, capsys):
    baseline = [seeded(demo, "baseline", seed) for seed in (1, 2)]
    mul_tokens = [seeded(demo, "mul_tokens", seed) for seed in (2, 1)]
    words = ["--baseline-dir", *baseline, "--mul-tokens-dir", *mul_tokens]
    assert call("scripts/compare_runs.py", *words, "--output-path", demo / "report.json") == 0
    report = json.loads((demo / "report.json").read_text())
    assert [pair["seed"] for pair in report["pairs"]] == [1, 2]
    assert report["analysis"]["clusters"] == 2
    assert len(report["mean_deltas"][0]["deltas"]) == 2
    capsys.readouterr()
    assert call("scripts/compare_runs.py", *words[:2], *words[3:]) == 2
    assert "seeds cannot be paired" in capsys.readouterr().err
    doubled = ["--baseline-dir", *baseline, baseline[0], "--mul-tokens-dir", *mul_tokens]
    assert call("scripts/compare_runs.py", *doubled) == 2
    assert "give each seed once" in capsys.readouterr().err


def other(value):
    """A value that is not this one."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}'"


def change(tree, key):
    """Change a dotted key of nested mappings."""
    *parents, last = key.split(".")
    for part in parents:
        tree = tree[part]
    tree[last] = other(tree[last])


def runs_of(demo):
    return [load_run(demo / f"eval_{arm}", condition=arm) for arm in ARMS]


def tulu(run):
    """What a run's cards say of its Tulu stage, one record per evaluation."""
    trainings = [e.card["training"] for e in run.evaluations.values()]
    return [next(r for r in t["ancestors"] if r["stage"] == "tulu_sft") for t in trainings]


# Of a Tulu card: what says where things lie or what came out, or is told apart by other means.
NOT_COMPARED = {"stage", "condition", "weights", "inject", "injected_examples", "injected_tokens"}
NOT_COMPARED |= {"cross_base", "config.data.source", "config.data.validation_source"}
NOT_COMPARED |= {"config.data.decontaminate_against"}  # only whether there is one
NOT_COMPARED |= {"config.training.seed"}  # a copy of `seed`


def test_whatever_differs_in_the_tulu_stage_is_refused_by_its_key(experiment):
    """Arms with Tulu rates of 1e-3 and 5e-3, 32 and 64 samples, seeds 7 and 42 were compared.

    Only the last stage's card was looked at. Every leaf of the Tulu record is changed in turn.
    """
    demo = experiment / "demo"
    assert find_differences([tuple(runs_of(demo))], []) == []
    leaves = {
        key.removeprefix("x."): value
        for key, value in flatten(tulu(runs_of(demo)[1])[0], "x").items()
    }
    changed = [key for key in leaves if key not in NOT_COMPARED]
    named = ("config.training.learning_rate", "config.training.max_train_samples", "seed")
    assert {*named, "order_digest", "code.tree", "data.train", "formats.prompt"} <= set(changed)
    for key in changed:
        baseline, mul_tokens = runs_of(demo)
        for record in tulu(mul_tokens):
            change(record, key)
        named, said = key, f"differ in ancestors.tulu_sft.{key} "
        if key.startswith("treatment."):  # arms differ in it, the stages of one run do not
            named, said = "treatment", r"tulu_sft\.treatment is .* as in the last stage"
        with pytest.raises(UserError, match=said):
            find_differences([(baseline, mul_tokens)], [])
        allowed = find_differences([(baseline, mul_tokens)], [f"ancestors.tulu_sft.{named}"])
        assert [d.key for d in allowed] == [f"ancestors.tulu_sft.{named}"]


def test_seeds_and_order_of_ancestors_are_free_across_pairs_and_nothing_else(experiment):
    demo = experiment / "demo"
    for key, free in (
        ("seed", True),
        ("order_digest", True),
        ("config.training.max_length", False),
    ):
        first, second = runs_of(demo), runs_of(demo)
        for run in second:
            for record in tulu(run):
                change(record, key)
        pairs = [tuple(first), tuple(second)]
        if free:
            assert find_differences(pairs, []) == []
        else:
            with pytest.raises(UserError, match=f"ancestors.tulu_sft.{key}"):
                find_differences(pairs, [])


def test_cards_that_tell_nothing_hide_no_difference_of_those_that_do(experiment):
    """Of three pairs the first is old; the others still differ from each other."""
    demo = experiment / "demo"
    pairs = [tuple(runs_of(demo)) for _ in range(3)]
    for run in (*pairs[0], pairs[1][0], pairs[2][0]):
        for evaluation in run.evaluations.values():
            del evaluation.card["training"]["ancestors"]
    assert find_differences(pairs, []) == []
    (said,) = [w for w in unrecorded_in_cards([r for p in pairs for r in p]) if "parent" in w]
    assert said.endswith("not say how the parent was trained: only the last stage is compared.")
    for record in tulu(pairs[2][1]):
        change(record, "config.training.learning_rate")
    with pytest.raises(UserError, match="learning_rate"):
        find_differences(pairs, [])


@pytest.mark.parametrize(
    ("arm", "stage", "inject", "count"),
    [
        ("mul_tokens", "training", False, 0),
        ("mul_tokens", "training", True, 0),
        ("mul_tokens", "ancestors.tulu_sft", False, 0),
        ("baseline", "training", True, 3),
        ("baseline", "ancestors.tulu_sft", False, 3),
    ],
)
def test_an_arm_that_was_not_treated_as_it_says_is_refused(experiment, arm, stage, inject, count):
    """A mul_tokens arm trained without --inject-mul-tokens was compared as the treated one."""
    runs = runs_of(experiment / "demo")
    run = runs[ARMS.index(arm)]
    records = tulu(run)
    if stage == "training":
        records = [e.card["training"] for e in run.evaluations.values()]
    for record in records:
        record |= {"inject": inject, "injected_tokens": count}
    with pytest.raises(UserError, match=f"{stage}.inject is {inject} with {count} fact tokens"):
        find_differences([tuple(runs)], [])
    (permitted,) = find_differences([tuple(runs)], [f"{stage}.inject"])
    assert permitted.key == f"{stage}.inject"


def test_the_shell_hears_of_both(demo, capsys):
    """An arm with another Tulu stage is refused; old cards are compared, and that is said."""
    for name in ("gsm8k", "arithmetic"):
        path = demo / "eval_mul_tokens" / f"{name}_results.json"
        ancestors = json.loads(path.read_text())["card"]["training"]["ancestors"]
        ancestors[0]["config"]["training"]["learning_rate"] = 5e-3
        edit(path, "card.training.ancestors", ancestors)
    assert compare(demo) == 2
    assert "ancestors.tulu_sft.config.training.learning_rate (0.001 and" in capsys.readouterr().err
    for name in ("gsm8k", "arithmetic"):
        path = demo / "eval_mul_tokens" / f"{name}_results.json"
        content = json.loads(path.read_text())
        for key in ("ancestors", "inject"):
            del content["card"]["training"][key]
        content["card"]["training"] = sealed(content["card"]["training"])
        write_json(path, content)
    assert compare(demo) == 0
    shown = capsys.readouterr().out
    assert "does not say how the parent was trained: only the last stage is compared" in shown
    assert "does not say whether fact tokens were written" in shown


def shuffled(folder, seed):
    """Put the lines of a folder's GSM8K items into another order; what hashes them follows."""
    items, rationales = (
        read_lines(folder / f"gsm8k_{kind}.jsonl") for kind in ("items", "rationales")
    )
    random.Random(seed).shuffle(items)
    place = {item["id"]: number for number, item in enumerate(items)}
    rationales.sort(key=lambda line: place[line["id"].partition("#")[0]])
    for kind, lines in (("items", items), ("rationales", rationales)):
        path = folder / f"gsm8k_{kind}.jsonl"
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    edit(folder / "gsm8k_results.json", "rationales.sha256", file_digest(path))
    rewrite_items(folder, lambda number, item: {})


@pytest.mark.parametrize("arms", [("baseline",), ("mul_tokens",), ARMS])
def test_the_order_of_lines_changes_nothing_but_the_files_hash(demo, arms):
    """Each arm was read in the order of its own first file, and subtracted out of step."""
    for arm in ARMS:
        for seed in (1, 2):
            seeded(demo, arm, seed)
    words = []
    for arm in ARMS:
        folders = [demo / f"eval_{arm}_seed_{seed}" for seed in (1, 2)]
        words += [f"--{arm.replace('_', '-')}-dir", *folders]
    told = []
    for name in ("before", "after"):
        if name == "after":
            for arm in arms:
                shuffled(demo / f"eval_{arm}_seed_1", 3)
        assert call("scripts/compare_runs.py", *words, "--output-path", demo / name) == 0
        report = json.loads((demo / name).read_text())
        for pair in report["pairs"]:
            for arm in ARMS:
                del pair[arm]["files"]
        told.append(report)
    assert told[0] == told[1]


def test_a_missing_evaluation_makes_no_smaller_family(demo):
    """Holm over one: the p of a study without its probes was half of what it is."""
    answer(demo / "eval_baseline", {0, 1, 2, 3, 4, 5, 6})
    answer(demo / "eval_mul_tokens", {0, 8})
    for arm in ARMS:
        for path in (demo / f"eval_{arm}").glob("arithmetic_*"):
            path.unlink()
    assert compare(demo, f"--output-path={demo / 'report.json'}") == 0
    row = json.loads((demo / "report.json").read_text())["pairs"][0]["endpoints"][0]
    assert row["mcnemar_p_holm"] == pytest.approx(2 * row["mcnemar_p"])
