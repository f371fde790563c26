"""Arguments: every number has bounds, and every default is found from any working directory."""

import argparse
import itertools
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain_tokens.experiment import Experiment
from domain_tokens.runs.cli import SEED, Number, Parser, run_script
from tests.conftest import ROOT, call, load_script
from tests.test_scripts import EVALUATION, SCRIPTS, TRAINING


class _StopError(Exception):
    """Ends a script once its parser is built."""


@pytest.fixture
def parser_of(monkeypatch):
    """A function from a script's path to its parser."""
    seen = []

    def stop(parser, *_):
        seen.append(parser)
        raise _StopError

    def find(script):
        with pytest.raises(_StopError):
            load_script(script).main([])
        return seen.pop()

    monkeypatch.setattr(Parser, "parse_args", stop)
    return find


def actions_of(parser):
    """All arguments of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):
            for inner in action.choices.values():
                yield from actions_of(inner)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_has_bounds(script, parser_of):
    """`--seed -1` and `--max-samples 0` ended as tracebacks after the model was loaded."""
    for action in actions_of(parser_of(script)):
        assert action.type not in (int, float), action.option_strings
        if isinstance(action.default, int | float) and not isinstance(action.default, bool):
            assert isinstance(action.type, Number), action.option_strings
        if isinstance(action.type, Number):
            assert action.type.low < action.type.high < float("inf")
        if action.dest in ("seed", "seeds"):
            assert action.type == SEED


def test_the_walk_over_arguments_finds_the_numbers(parser_of):
    words = {
        word
        for script in SCRIPTS
        for action in actions_of(parser_of(script))
        if isinstance(action.type, Number)
        for word in action.option_strings
    }
    expected = "seed seeds max-samples batch-size max-new-tokens temperature top-k learning-rates"
    assert words >= {f"--{name}" for name in expected.split()}


@pytest.mark.parametrize(
    ("script", "flag", "value"),
    [
        ("sft/sft_tulu.py", "--seed", "-1"),
        ("sft/sft_gsm8k.py", "--seed", "4294967296"),
        ("scripts/make_base.py", "--seed", "-1"),
        ("scripts/export_nanogpt.py", "--seed", "1.5"),
        ("scripts/run_experiment.py", "--seeds", "-7"),
        ("scripts/run_experiment.py", "--learning-rates", "nan"),
        ("scripts/run_experiment.py", "--learning-rates", "inf"),
        ("scripts/audit_injection.py", "--max-samples", "0"),
        ("eval/run_gsm8k.py", "--max-samples", "0"),
        ("eval/run_gsm8k.py", "--max-samples", "-1"),
        ("eval/run_gsm8k.py", "--batch-size", "0"),
        ("eval/run_arithmetic_probes.py", "--seed", "-1"),
        ("sample/text_completion.py", "--temperature", "nan"),
        ("sample/text_completion.py", "--top-p", "0"),
    ],
)
def test_a_number_out_of_bounds_is_one_line(script, flag, value, capsys):
    assert call(script, f"{flag}={value}") == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: argument {flag}: ")
    assert "; wanted a" in shown
    assert shown.count("\n") == 1


@given(st.integers() | st.floats())
def test_bounds_hold_for_every_number(value):
    for number in (SEED, Number(float, 0, 1)):
        inside = number.low <= value <= number.high
        inside = inside and (number.kind is float or isinstance(value, int))
        try:
            assert number(str(value)) == value
            assert inside
        except argparse.ArgumentTypeError:
            assert not inside


@pytest.mark.parametrize("words", [["--seeds", 1, 2, 1], ["--learning-rates", "1e-5", "0.00001"]])
def test_one_replicate_twice_is_refused(words, capsys):
    """Its one folder would be compared with itself."""
    assert call("scripts/run_experiment.py", "--dry-run", *words) == 2
    assert "twice; wanted each once" in capsys.readouterr().err


@pytest.mark.parametrize("script", [*TRAINING, *EVALUATION])
def test_default_configs_are_found_from_any_working_directory(
    script, parser_of, tmp_path, monkeypatch
):
    """The demo ended in another folder with 'config eval/configs/analysis_plan.yaml not found'."""

    def default():
        texts = [a.default for a in parser_of(script)._actions if isinstance(a.default, str)]
        (config,) = [text for text in texts if text.endswith(".yaml")]
        return config

    assert not os.path.isabs(default())
    monkeypatch.chdir(tmp_path)
    assert os.path.isfile(default())
    assert str(ROOT) not in parser_of(script).format_help().split("example:")[0]


def test_a_given_config_stays_one_from_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--model-path", "m", "--output-dir", "o", "--condition", "baseline"]
    given = ["--config", "sft/configs/gsm8k.yaml"]
    assert call("sft/sft_gsm8k.py", *words, *given) == 2
    assert "config sft/configs/gsm8k.yaml not found" in capsys.readouterr().err
    (tmp_path / "sft/configs").mkdir(parents=True)
    shutil.copy(ROOT / "sft/configs/gsm8k.yaml", tmp_path / "sft/configs")
    assert call("sft/sft_gsm8k.py", *words, *given) == 2
    assert "m not found" in capsys.readouterr().err


def test_the_plan_names_files_that_are_there_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = Experiment("demo", "outputs")
    stages = [plan.corpora(), *plan.stages(), *plan.comparisons(), plan.check()]
    for stage in stages:
        words = str(stage).split()
        assert os.path.isfile(words[words.index("python") + 1]), stage
        for flag, value in itertools.pairwise(words):
            if flag == "--config" or (flag == "--from" and value.endswith(".yaml")):
                assert os.path.isfile(value), stage
    assert sum("--config" in str(stage) for stage in stages) == 6


def test_the_demo_starts_in_another_working_directory(tmp_path):
    """It ended with 'config sft/configs/demo/base.yaml not found'."""
    script = ROOT / "scripts/run_experiment.py"
    for words in (["--dry-run"], ["--corpora-only"]):
        done = subprocess.run(
            [sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "outputs/demo/data/manifest.json").is_file()
    # The first stage on that data, from a base that is made in seconds.
    base, output = tmp_path / "base", tmp_path / "out"
    for words in (
        ["scripts/make_base.py", "--from", "tiny", "--output-dir", base],
        [
            "sft/sft_tulu.py",
            "--model-path",
            base,
            "--output-dir",
            output,
            "--dry-run",
            "--config",
            ROOT / "sft/configs/demo/tulu.yaml",
            "--set",
            "training.max_train_samples=50",
            "--set",
            "training.max_val_samples=5",
        ],
    ):
        command = [sys.executable, ROOT / words[0], *words[1:], "--condition", "baseline"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "50 examples" in done.stdout


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_only_a_command_that_works_looks_at_the_cpus(monkeypatch, words):
    """The look takes a twentieth of a second, which --help has no use for."""
    looks = []
    monkeypatch.setattr("domain_tokens.runs.cli.settle_threads", lambda: looks.append(1))
    assert run_script(lambda argv: 0, words) == 0
    assert len(looks) == (not words)
