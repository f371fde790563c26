"""Every script explains itself; bad input exits 2 with one line and leaves everything as it was."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT, call, edit, load_script, tree

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("sft", "eval", "sample", "scripts")
    for path in (ROOT / folder).glob("*.py")
)
TRAINING = ("sft/sft_tulu.py", "sft/sft_gsm8k.py")
EVALUATION = ("eval/run_gsm8k.py", "eval/run_arithmetic_probes.py")
RESULTS = {"sft/sft_tulu.py": "tulu_sft_results.json", "sft/sft_gsm8k.py": "sft_results.json"}


def arguments(script, demo, **changes):
    """Arguments with which a script would run on the small demo; changes replace."""
    stage = {"sft/sft_tulu.py": "hf", "sft/sft_gsm8k.py": "sft_tulu"}.get(script, "sft_gsm8k")
    given = {
        "--model-path": demo / f"{stage}_baseline",
        "--output-dir": demo / "new",
        "--condition": "baseline",
        "--config": f"sft/configs/demo/{script[8:-3]}.yaml",
    }
    more = {"source": "chat" if "tulu" in script else "train", "decontaminate_against": "test"}
    if "gsm8k" in script:
        more["validation_source"] = "test"
    if script in EVALUATION:
        given["--config"] = "eval/configs/" + (
            "demo/gsm8k.yaml" if "gsm8k" in script else "arithmetic_probes.yaml"
        )
        more = {"source": "test"} if "gsm8k" in script else {}
    if script == "scripts/make_base.py":
        given = {"--from": demo / "hf_baseline", "--condition": "baseline"}
        given |= {"--output-dir": demo / "new"}
        more = {}
    if script == "scripts/audit_injection.py":
        given = {"--source": demo / "data" / "train.jsonl", "--kind": "problems"}
        given |= {"--output-path": demo / "audit.json"}
        more = {}
    if script == "scripts/export_nanogpt.py":
        given = {"--checkpoint": demo / "ckpt.pt", "--condition": "baseline"}
        given |= {"--output-dir": demo / "new"}
        more = {}
    if script == "scripts/compare_runs.py":
        given = {"--baseline-dir": demo / "eval_baseline"}
        given |= {"--mul-tokens-dir": demo / "eval_mul_tokens"}
        more = {}
    if script == "scripts/run_experiment.py":
        given, more = {"--output-root": demo.parent, "--dry-run": ""}, {}
    if script == "sample/text_completion.py":
        given, more = {"--model-path": demo / "sft_gsm8k_baseline", "--question": "6 times 9?"}, {}
    if script == "scripts/check_checkpoint.py":
        given, more = {str(demo / "hf_baseline"): ""}, {}
    if script == "scripts/show_runs.py":
        given, more = {str(demo): ""}, {}
    if script == "scripts/hub.py":
        given, more = {"pull": "name/repository", str(demo / "new"): ""}, {}
    given |= changes
    words = [str(word) for pair in given.items() for word in pair if word]
    sets = [w for k, f in more.items() for w in ("--set", f"data.{k}={demo / 'data' / f}.jsonl")]
    return words + sets


def refuse(capsys, folder, script, *words):
    """Call a script with bad input; returns its one line of complaint."""
    before = tree(folder)
    assert call(script, *words) == 2
    shown = capsys.readouterr()
    assert tree(folder) == before
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    return shown.err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_an_example_to_copy(script, capsys):
    with pytest.raises(SystemExit) as end:
        load_script(script).main(["--help"])
    assert end.value.code == 0
    assert f"example:\n  uv run python {script} " in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_names_the_nearest_one(script, demo, capsys):
    flag = "--output-rot" if "experiment" in script else "--outputdir"
    if script in ("scripts/compare_runs.py", "scripts/check_checkpoint.py"):
        flag = "--hlep"
    if script == "sample/text_completion.py":
        flag = "--num-sample"
    if script == "scripts/show_runs.py":
        flag = "--jsn"
    if script == "scripts/hub.py":
        flag = "--privat"
    line = refuse(capsys, demo, script, *arguments(script, demo), flag, "x")
    assert flag in line
    assert "did you mean --" in line


@pytest.mark.parametrize("script", [*TRAINING, *EVALUATION, "sample/text_completion.py"])
def test_a_wrong_model_path_is_named(script, demo, capsys):
    words = arguments(script, demo, **{"--model-path": demo / "nowhere"})
    assert f"{demo / 'nowhere'} not found" in refuse(capsys, demo, script, *words)


def test_wrong_folders_are_named(demo, capsys):
    nowhere = demo / "nowhere"
    for script, words in (
        ("scripts/check_checkpoint.py", [nowhere]),
        ("scripts/audit_injection.py", ["--kind", "problems", "--source", nowhere]),
        (
            "scripts/export_nanogpt.py",
            arguments("scripts/export_nanogpt.py", demo, **{"--checkpoint": nowhere}),
        ),
        ("scripts/compare_runs.py", ["--baseline-dir", nowhere, "--mul-tokens-dir", nowhere]),
        ("scripts/make_base.py", arguments("scripts/make_base.py", demo, **{"--from": nowhere})),
    ):
        assert str(nowhere) in refuse(capsys, demo, script, *words)


@pytest.mark.parametrize("script", [*TRAINING, *EVALUATION])
def test_a_wrong_config_path_is_named(script, demo, capsys):
    words = arguments(script, demo, **{"--config": "sft/configs/tullu.yaml"})
    assert "sft/configs/tullu.yaml not found" in refuse(capsys, demo, script, *words)


@pytest.mark.parametrize("script", [*TRAINING, *EVALUATION])
def test_an_unknown_key_names_the_nearest_one(script, demo, capsys):
    section = "training" if script in TRAINING else "evaluation"
    words = [*arguments(script, demo), "--set", f"{section}.batchsize=4"]
    line = refuse(capsys, demo, script, *words)
    assert f"unknown key {section}.batchsize: did you mean {section}.batch_size?" in line


@pytest.mark.parametrize("script", [*TRAINING, *EVALUATION])
def test_a_wrong_type_shows_what_was_given(script, demo, capsys):
    section = "training" if script in TRAINING else "evaluation"
    words = [*arguments(script, demo), "--set", f"{section}.batch_size=many"]
    line = refuse(capsys, demo, script, *words)
    assert f"{section}.batch_size is 'many' (str)" in line


@pytest.mark.parametrize("script", [*TRAINING, "eval/run_gsm8k.py"])
def test_a_malformed_line_is_named_with_its_number(script, demo, capsys):
    """A half-written download must not become a smaller data set."""
    good = (demo / "data" / ("chat.jsonl" if "tulu" in script else "train.jsonl")).read_text()
    bad = demo / "bad.jsonl"
    bad.write_text("".join(good.splitlines(keepends=True)[:2]) + '{"messages": [\n')
    words = [*arguments(script, demo), "--set", f"data.source={bad}"]
    assert "line 3" in refuse(capsys, demo, script, *words)


@pytest.mark.parametrize("script", [*TRAINING, *EVALUATION])
def test_a_parent_of_the_other_arm_is_refused(script, demo, capsys):
    words = arguments(script, demo)
    words[words.index("--condition") + 1] = "mul_tokens"
    assert "is a baseline checkpoint" in refuse(capsys, demo, script, *words)


@pytest.mark.parametrize("script", [*TRAINING, *EVALUATION, "scripts/make_base.py"])
def test_a_finished_folder_is_not_touched(script, demo, capsys):
    stage = {"sft/sft_tulu.py": "sft_tulu", "sft/sft_gsm8k.py": "sft_gsm8k"}.get(script, "eval")
    stage = "hf" if script == "scripts/make_base.py" else stage
    words = arguments(script, demo, **{"--output-dir": demo / f"{stage}_baseline"})
    assert "--overwrite replaces it" in refuse(capsys, demo, script, *words)


def test_fact_tokens_in_the_baseline_are_a_contradiction(demo, capsys):
    script = "sft/sft_gsm8k.py"
    line = refuse(capsys, demo, script, *arguments(script, demo), "--inject-mul-tokens")
    assert "--inject-mul-tokens with --condition baseline" in line


@pytest.mark.parametrize("script", TRAINING)
def test_an_incomplete_parent_is_refused(script, demo, capsys):
    words = arguments(script, demo)
    parent = words[words.index("--model-path") + 1]
    (demo / parent / "model.safetensors").unlink()
    assert "model.safetensors missing" in refuse(capsys, demo, script, *words)


@pytest.mark.parametrize("script", TRAINING)
def test_a_parent_whose_weights_are_not_its_cards_is_refused(script, demo, capsys):
    """A checkpoint overwritten by hand kept the card of the run before it."""
    words = arguments(script, demo)
    card = demo / words[words.index("--model-path") + 1] / "run_card.json"
    edit(card, "weights", "0" * 64)
    assert "the weights are not those of its run card" in refuse(capsys, demo, script, *words)


def test_a_parent_of_another_prompt_format_is_refused(demo, capsys):
    edit(demo / "sft_tulu_baseline" / "run_card.json", "formats.prompt", "0")
    script = "sft/sft_gsm8k.py"
    assert "prompt format 0" in refuse(capsys, demo, script, *arguments(script, demo))


def test_the_shell_sees_one_line_and_status_2(demo):
    done = subprocess.run(
        [sys.executable, "eval/run_gsm8k.py", "--model-path", demo / "nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
