"""The table of all runs: every stage of a study is in it once, with its state and its numbers."""

import json
import shutil

from domain_tokens.experiment.progress import Planned, write_plan
from domain_tokens.runs.output_folder import UNFINISHED_MARKER
from tests.conftest import call, edit


def shown(capsys, folder):
    assert call("scripts/show_runs.py", folder, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_every_run_of_the_demo_is_in_the_table_once(experiment, capsys):
    table = shown(capsys, experiment / "demo")
    stages = sorted((row["stage"], row["condition"]) for row in table)
    kinds = ("base", "eval gsm8k", "eval probes", "gsm8k", "tulu")
    assert stages == sorted((k, c) for k in kinds for c in ("baseline", "mul_tokens"))
    assert {row["state"] for row in table} == {"finished"}
    row = next(r for r in table if r["folder"] == "sft_gsm8k_mul_tokens")
    results = json.loads((experiment / "demo" / row["folder"] / "sft_results.json").read_text())
    assert row["numbers"]["train_loss"] == results["train_loss"]
    assert (row["parent"], row["seed"]) == ("sft_tulu_mul_tokens", 42)
    for row in table:
        treated = row["condition"] == "mul_tokens" and row["stage"] != "base"
        expected = ("fact_token", "all") if treated else (None, None)
        assert (row["treatment"], row["half"]) == expected, row
    assert [r["when"] for r in table] == sorted((r["when"] for r in table), reverse=True)


def test_the_text_has_a_line_per_run(experiment, capsys):
    assert call("scripts/show_runs.py", experiment / "demo") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 10
    assert lines[0].split() == [
        "when",
        "folder",
        "stage",
        "condition",
        "treatment",
        "half",
        "seed",
        "parent",
        "state",
        "numbers",
    ]


def test_what_is_unfinished_damaged_or_of_other_code_is_told_apart(demo, capsys):
    (demo / "sft_gsm8k_baseline" / "sft_results.json").unlink()
    (demo / "sft_gsm8k_baseline" / UNFINISHED_MARKER).write_text('{"condition": "baseline"}')
    (demo / "eval_baseline" / "gsm8k_results.json").write_text("{")
    results = demo / "eval_baseline" / "arithmetic_results.json"
    tree = json.loads(results.read_text())
    tree["card"]["code"]["tree"] = "0" * 64
    results.write_text(json.dumps(tree))
    (demo / "eval_mul_tokens" / "gsm8k_results.json").unlink()
    (demo / "eval_mul_tokens" / "gsm8k_items.partial.jsonl").write_text("{}\n{}\n{}\n")
    states = {(r["folder"], r["stage"]): r for r in shown(capsys, demo)}
    stage = states["sft_gsm8k_baseline", "gsm8k"]
    assert (stage["state"], stage["condition"]) == ("unfinished", "baseline")
    assert stage["numbers"]["step"] == stage["numbers"]["steps"]
    assert states["eval_baseline", "eval gsm8k"]["state"] == "unreadable"
    assert states["eval_baseline", "eval probes"]["state"] == "other code"
    partial = states["eval_mul_tokens", "eval gsm8k"]
    assert (partial["state"], partial["numbers"]) == ("unfinished", {"answered": 2})


def test_a_half_and_a_control_are_told_apart(demo, capsys):
    treatment = {"name": "fact_token", "version": "1", "treated_facts": "half_a", "facts": []}
    edit(demo / "sft_gsm8k_mul_tokens" / "run_card.json", "treatment", treatment)
    control = {**treatment, "name": "generic", "treated_facts": "all"}
    edit(demo / "eval_mul_tokens" / "gsm8k_results.json", "card.training.treatment", control)
    edit(demo / "sft_gsm8k_baseline" / "run_card.json", "treatment", None)
    shown_as = {(r["folder"], r["stage"]): (r["treatment"], r["half"]) for r in shown(capsys, demo)}
    assert shown_as["sft_gsm8k_mul_tokens", "gsm8k"] == ("fact_token", "half_a")
    assert shown_as["eval_mul_tokens", "eval gsm8k"] == ("generic", "all")
    assert shown_as["sft_gsm8k_baseline", "gsm8k"] == (None, None)


def test_a_plan_is_shown_with_how_far_it_is(tmp_path, capsys):
    stages = [Planned("base", "base", tmp_path / "hf" / "make_base_results.json")]
    stages += [Planned("a", kind, tmp_path / "a" / f"{kind}_results.json") for kind in ("x", "y")]
    write_plan(tmp_path, stages, jobs=1)
    for name, content in (("hf/make_base_results.json", "{}"), (f"a/{UNFINISHED_MARKER}", "{}")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    assert call("scripts/show_runs.py", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    (last,) = (line for line in lines if line.startswith("plan "))
    assert last.startswith(
        f"plan {tmp_path}: 1 of 3 stages done, 2 begun, 0 left; time left: known"
    )


def test_a_folder_without_runs_and_one_that_is_not_there(tmp_path, capsys):
    assert call("scripts/show_runs.py", tmp_path) == 0
    assert "holds no runs" in capsys.readouterr().out
    assert call("scripts/show_runs.py", tmp_path / "no") == 2
    assert "not found" in capsys.readouterr().err


def test_a_study_within_a_folder_is_found(experiment, tmp_path, capsys):
    shutil.copytree(experiment / "demo" / "hf_baseline", tmp_path / "a" / "b" / "hf")
    assert [r["folder"] for r in shown(capsys, tmp_path)] == ["a/b/hf"]
