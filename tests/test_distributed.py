"""Two processes share each optimizer step and end where one process ends."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT


def run_alone(words):
    """Run Python on one core, as each of the processes does that are compared."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_two_processes_train_as_one(demo):
    words = ["sft/sft_gsm8k.py", "--model-path", demo / "sft_tulu_mul_tokens"]
    words += ["--condition", "mul_tokens", "--inject-mul-tokens"]
    words += ["--config", "sft/configs/demo/gsm8k.yaml", "--set", "training.batch_size=2"]
    words += ["--set", "training.gradient_accumulation_steps=8"]
    for key, name in (("source", "train"), ("validation_source", "test")):
        words += ["--set", f"data.{key}={demo / 'data' / name}.jsonl"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    for start, folder in (([], "one"), (launcher, "two")):
        done = run_alone([*start, *words, "--output-dir", demo / folder])
        assert done.stdout.count("sft_results.json") == 1
    one, two = (load_file(demo / folder / "model.safetensors") for folder in ("one", "two"))
    before = load_file(demo / "sft_tulu_mul_tokens" / "model.safetensors")
    worst = max(float((one[name] - two[name]).abs().max()) for name in one)
    moved = max(float((one[name] - before[name]).abs().max()) for name in one)
    assert worst < 1e-4 < 1e-3 < moved  # Adam magnifies rounding where a gradient is nearly zero
    results = [
        json.loads((demo / folder / "sft_results.json").read_text()) for folder in ("one", "two")
    ]
    for key in ("order_digest", "optimizer_steps", "tokens", "supervised_tokens"):
        assert results[0][key] == results[1][key]
    for key in ("train_loss", "eval_loss"):
        assert results[0][key] == pytest.approx(results[1][key], rel=1e-5)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(demo):
    """The items are dealt out, and the file is the same, byte for byte."""
    words = ["eval/run_gsm8k.py", "--model-path", demo / "sft_gsm8k_mul_tokens"]
    words += ["--condition", "mul_tokens", "--config", "eval/configs/demo/gsm8k.yaml"]
    words += ["--set", f"data.source={demo / 'data' / 'test.jsonl'}"]
    words += ["--set", "evaluation.num_rationales=2"]
    words += ["--max-new-tokens", "24", "--max-samples", "15"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29519"]
    for start, folder in (([], "one"), (launcher, "two")):
        done = run_alone([*start, *words, "--output-dir", demo / folder])
        assert done.stdout.count("results in") == 1
    one, two = (demo / folder / "gsm8k_items.jsonl" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert sorted(p.name for p in (demo / "two").iterdir()) == sorted(
        p.name for p in (demo / "one").iterdir()
    )
    one, two = (
        json.loads((demo / folder / "gsm8k_results.json").read_text())["metrics"]
        for folder in ("one", "two")
    )
    speeds = ("samples_per_second", "tokens_per_second", "seconds")
    assert {k: v for k, v in one.items() if k not in speeds} == {
        k: v for k, v in two.items() if k not in speeds
    }
