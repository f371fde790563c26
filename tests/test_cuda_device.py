"""Which device is taken, what is said of it, and what a GPU that cannot be used leads to."""

from types import SimpleNamespace

import pytest
import torch

from domain_tokens.errors import UserError
from domain_tokens.runs import device
from domain_tokens.runs.device import Device, choose_device, gpu_fault, hardware_line, peak_flops
from domain_tokens.training import gpu_memory
from domain_tokens.training.gpu_memory import rows_at_once
from domain_tokens.training.trainer import Surroundings, training_arguments
from tests.test_packing import random_examples
from tests.test_training import SETTINGS

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver by downloading and installing a new version"
)


@pytest.fixture
def machine(monkeypatch):
    """Return a function that says what torch finds; the answer is asked again."""

    def set_up(*, available=False, init=None, files=(), visible=None):
        def fail(*args, **kwargs):
            raise RuntimeError(init)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "init", fail)
        monkeypatch.setattr(torch, "ones", fail)
        monkeypatch.setattr(device, "_can_open_a_gpu", lambda: bool(files))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        gpu_fault.cache_clear()

    yield set_up
    gpu_fault.cache_clear()


@pytest.mark.parametrize(
    ("device", "fault"),
    [
        ({"init": "Found no NVIDIA driver on your system."}, None),
        ({"init": "No CUDA GPUs are available"}, None),
        ({"init": TOO_OLD}, "too old"),
        ({"init": "Torch not compiled with CUDA enabled", "files": ["nvidia0"]}, "not compiled"),
        ({"init": "Torch not compiled with CUDA enabled"}, None),
        ({"available": True, "init": "CUDA error: no kernel image is available"}, "no kernel"),
        ({"init": TOO_OLD, "visible": ""}, None),
        ({"init": TOO_OLD, "visible": "-1"}, None),
    ],
)
def test_a_gpu_that_cannot_be_used_is_an_error_that_says_how_to_go_on(machine, device, fault):
    """A driver too old for the wheel trained in fp32 on the CPU without a word."""
    machine(**device)
    if fault is None:
        assert choose_device("auto") == ("cpu", torch.float32)
        return
    for precision in ("auto", "bf16"):
        with pytest.raises(UserError, match=fault) as error:
            choose_device(precision)
        assert "--set training.precision=fp32" in str(error.value)
        assert "CUDA_VISIBLE_DEVICES=" in str(error.value)
        assert "\n" not in str(error.value)
    assert choose_device("fp32") == ("cpu", torch.float32)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("GeForce RTX 3090", 71e12),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA T4", None),
    ],
)
def test_a_card_is_known_by_its_whole_name(monkeypatch, name, rate):
    """A "4090 Laptop GPU" was given the rate of a 4090."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *index: name)
    assert peak_flops("cuda", torch.bfloat16) == rate
    assert peak_flops("cuda", torch.float32) is None


@pytest.mark.parametrize(("gpus", "processes"), [(1, 1), (4, 1), (4, 4)])
def test_the_hardware_line_says_what_is_used(monkeypatch, gpus, processes):
    about = SimpleNamespace(name="NVIDIA GeForce RTX 4090", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(device, "_driver_version", lambda: "580.159.04")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    line = hardware_line("cuda", torch.bfloat16)
    assert "NVIDIA GeForce RTX 4090 (24 GiB, driver 580.159.04, CUDA" in line
    assert "bfloat16" in line
    assert ("1 of 4 visible GPUs is used" in line) == (gpus > processes)
    assert "\n" not in line


def test_the_hardware_line_of_a_cpu():
    line = hardware_line("cpu", torch.float32)
    assert line.startswith("hardware: ")
    assert f"float32, {torch.get_num_threads()} thread" in line
    assert "GiB of memory" in line


def test_several_gpus_in_one_process_are_not_split_over(monkeypatch, tmp_path):
    """DataParallel takes a packed row for a batch."""
    from transformers import TrainingArguments

    from domain_tokens.training.step_plan import plan_steps

    plan = plan_steps(random_examples(4), SETTINGS)
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: self.__dict__["_n_gpu"]))
    honest = TrainingArguments.__post_init__

    def with_four(self):
        honest(self)
        self._n_gpu = 4

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_four)
    arguments = training_arguments(SETTINGS, plan, tmp_path, Surroundings(choose_device("fp32")))
    assert arguments.n_gpu == 1


@pytest.mark.parametrize(
    ("free", "rows"), [(1e9, 2), (4e9, 2), (24e9, 32), (80e9, 32)], ids=["1", "4", "24", "80"]
)
def test_a_step_is_one_micro_batch_where_memory_allows(monkeypatch, tiny_model, free, rows):
    """Of GPT-2 124M, rows of 512 tokens."""
    settings = SETTINGS.model_copy(
        update={"batch_size": 2, "gradient_accumulation_steps": 16, "max_length": 512}
    )
    shape = {"n_layer": 12, "n_embd": 768, "n_positions": 1024}
    tiny_model.config.update(shape)
    weights = [SimpleNamespace(numel=lambda: 124_000_000)]
    monkeypatch.setattr(tiny_model, "parameters", lambda: iter(weights))
    assert rows_at_once(tiny_model, settings, Device("cpu", torch.float32)) == 2
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free), int(free)))
    assert rows_at_once(tiny_model, settings, Device("cuda", torch.bfloat16)) == rows
    assert gpu_memory.STATE == 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_begins_again_with_each_stage():
    from domain_tokens.runs import peak_memory_bytes, reset_peak_memory

    big = torch.empty(2**26, device="cuda")
    del big
    assert peak_memory_bytes("cuda") >= 2**28
    reset_peak_memory("cuda")
    assert peak_memory_bytes("cuda") < 2**28
