"""A run is one frozen object: made from the command line once, its device chosen once."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from domain_tokens.checkpoints.folder import load_model
from domain_tokens.checkpoints.hashes import weights_hash
from domain_tokens.evaluation.checkpoint import load_for_evaluation
from domain_tokens.evaluation.evaluation_run import EvaluationRun
from domain_tokens.runs.device import choose_device
from domain_tokens.training.stage_run import StageRun
from tests.conftest import ROOT, call, load_script, plant, train
from tests.test_make_base import make

FOLDERS = ("domain_tokens", "sft", "eval")
FILES = [f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*.py"))]
FILES += [ROOT / "scripts/make_base.py", ROOT / "scripts/export_nanogpt.py"]


def takers(source):
    """Names of the functions that take a Namespace: by annotation, or by the name it always has."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            for argument in arguments:
                says = ast.unparse(argument.annotation) if argument.annotation else ""
                if "Namespace" in says or (argument.arg == "args" and says in ("", "Any")):
                    yield node.name


def test_the_check_finds_what_it_looks_for():
    source = "def f(args: argparse.Namespace): ...\ndef g(*, x: 'Namespace | None'): ...\n"
    assert list(takers(source + "def h(args): ...\ndef k(arguments: list): ...")) == ["f", "g", "h"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_function_takes_a_namespace(file):
    expected = ["parse_args"] if file.name == "cli.py" else []  # argparse's own method
    names = [name for name in takers(file.read_text(encoding="utf-8")) if name[:3] != "on_"]
    assert names == expected  # `on_step_end` and the like are Trainer's


def test_runs_are_frozen():
    for kind in (StageRun, EvaluationRun, load_script("scripts/make_base.py").BaseRun):
        assert kind.__dataclass_params__.frozen
        assert {"output_dir", "condition", "command"} <= {f.name for f in dataclasses.fields(kind)}


def count_choices(patch):
    chosen = []

    def counting(precision):
        chosen.append(precision)
        return choose_device(precision)

    plant(patch, "domain_tokens.runs.device.choose_device", counting)
    return chosen


def evaluate(demo, folder="eval", *more):
    words = ["--model-path", demo / "sft_gsm8k_baseline", "--output-dir", demo / folder]
    words += ["--condition", "baseline", "--max-new-tokens", 4, *more]
    return call("eval/run_arithmetic_probes.py", *words)


def test_the_device_is_chosen_once(demo, monkeypatch):
    chosen = count_choices(monkeypatch)
    assert train(demo, "new", "--set", "training.num_epochs=1") == 0
    assert len(chosen) == 1
    assert evaluate(demo) == 0
    assert len(chosen) == 2
    assert train(demo, "dry", "--dry-run") == 0
    assert len(chosen) == 3


def change(folder, by=1.5, *, replaced):
    """Write other weights into a folder: into the same file, or a new file in its place."""
    path = folder / "model.safetensors"
    tensors = {name: tensor * by for name, tensor in load_file(path).items()}
    new = folder / "new.safetensors"
    save_file(tensors, new, metadata={"format": "pt"})
    if replaced:
        new.rename(path)
    else:
        content = new.read_bytes()
        new.unlink()
        assert len(content) == path.stat().st_size
        with path.open("r+b") as file:
            file.write(content)


def without_card(demo):
    """Make a parent without a card, as bases from elsewhere are: named by its hash alone."""
    (demo / "sft_tulu_baseline" / "run_card.json").unlink()
    return demo / "sft_tulu_baseline"


@pytest.mark.parametrize("replaced", [True, False])
def test_a_parent_that_changes_before_it_is_loaded_is_refused(demo, monkeypatch, capsys, replaced):
    """Its card named the hash of other weights than were trained."""
    parent = without_card(demo)

    def loading(folder, *, dtype):
        change(parent, replaced=replaced)
        return load_model(folder, dtype=dtype)

    plant(monkeypatch, "domain_tokens.checkpoints.folder.load_model", loading)
    assert train(demo, "new") == 2
    assert "changed while it was read" in capsys.readouterr().err
    assert not (demo / "new" / "run_card.json").exists()
    (demo / "sft_gsm8k_baseline" / "run_card.json").unlink()
    parent = demo / "sft_gsm8k_baseline"
    assert evaluate(demo) == 2
    assert "changed while it was read" in capsys.readouterr().err


@pytest.mark.parametrize("replaced", [True, False])
def test_a_parent_that_changes_after_it_was_loaded_changes_nothing(demo, monkeypatch, replaced):
    """Loaded weights were pages of the file: what was written to it later was trained from."""
    from domain_tokens.checkpoints.fact_rows import begin_fact_rows

    parent = without_card(demo)
    assert train(demo, "whole") == 0
    verified = weights_hash(parent)

    def beginning(*arguments, **options):
        change(parent, replaced=replaced)
        return begin_fact_rows(*arguments, **options)

    plant(monkeypatch, "domain_tokens.checkpoints.fact_rows.begin_fact_rows", beginning)
    assert train(demo, "new") == 0
    card = json.loads((demo / "new" / "run_card.json").read_text())
    assert card["parent"]["weights"] == verified != weights_hash(parent)
    assert weights_hash(demo / "new") == weights_hash(demo / "whole")


def test_a_loaded_model_is_no_part_of_its_file(demo):
    folder = demo / "sft_gsm8k_baseline"
    model = load_for_evaluation(folder, condition="baseline", precision="fp32").model
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        expected = model(ids).logits
    mapped = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    assert not [path for path in mapped if path.startswith(str(folder))]
    change(folder, replaced=False)
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, expected)


def test_a_base_whose_source_changes_is_refused(demo, monkeypatch, capsys):
    """The base's card named the source as it was after the base had been made."""
    from domain_tokens.checkpoints.base import load_source_model

    source = demo / "hf_baseline"

    def loading(place):
        change(source, replaced=True)
        return load_source_model(place)

    plant(monkeypatch, "domain_tokens.checkpoints.base.load_source_model", loading)
    assert make(source, demo / "base") == 2
    assert "changed while it was read" in capsys.readouterr().err
    assert not (demo / "base" / "run_card.json").exists()
