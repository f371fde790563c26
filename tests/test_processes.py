"""Two processes share each optimizer step and end where one process ends."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT


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
        done = subprocess.run(
            [sys.executable, *start, *words, "--output-dir", demo / folder],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("results in") == 1
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
