"""The device, its number type, its peak rate and what memory a run took."""

import functools
import os
import platform
import re
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from domain_tokens.errors import UserError
from domain_tokens.runs.distributed import world_size
from domain_tokens.runs.threads import describe_threads

if TYPE_CHECKING:
    import torch

# Dense bf16 tensor-core rates in FLOP/s, from the vendor's data sheets, by the driver's whole name
# of a card: a "4090 Laptop GPU", a "4090 D" and a slice of an A100 are other cards.
PEAK_BF16 = {
    r"(NVIDIA )?GeForce RTX 3090": 71e12,
    r"(NVIDIA )?GeForce RTX 4090": 165.2e12,
    r"(NVIDIA )?A100-(SXM4|PCIE)-\d+GB|NVIDIA A100 80GB PCIe": 312e12,
    r"NVIDIA H100 80GB HBM3": 989e12,
    r"NVIDIA H100 PCIe": 756e12,
    r"NVIDIA H100 NVL|NVIDIA H200 NVL": 835e12,
    r"NVIDIA H200": 989e12,
}


class Device(NamedTuple):
    """Where a run computes and in which number type: chosen once, at its start, and passed on."""

    type: str  # "cuda" or "cpu"
    dtype: "torch.dtype"


def choose_device(precision: str) -> Device:
    """Return the device and number type for "auto", "fp32" or "bf16" (auto: bf16 on CUDA only).

    Raises UserError where a GPU is there but cannot be used: hours on the CPU in another type would
    follow. "fp32" goes on without it.
    """
    import torch

    fault = gpu_fault()
    if fault and precision != "fp32":
        raise UserError(
            f"a GPU is there but cannot be used ({fault}); repair its driver, or go on without it: "
            "--set training.precision=fp32 for training, CUDA_VISIBLE_DEVICES= before any command"
        )
    device = "cuda" if torch.cuda.is_available() and not fault else "cpu"
    if precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("precision bf16 was asked for and this GPU has none; set precision to fp32")
    bf16 = precision == "bf16" or (precision == "auto" and device == "cuda")
    return Device(device, torch.bfloat16 if bf16 else torch.float32)


@functools.cache
def gpu_fault() -> str | None:
    """Return why a GPU that is there cannot be used; None where it can, or where there is none.

    CUDA_VISIBLE_DEVICES= (empty or -1) hides it, so that there is none.
    """
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in {"", "-1"}:
        return None
    try:
        if torch.cuda.is_available():
            torch.ones(8, device="cuda").add_(1).sum().item()  # a kernel for this architecture?
            return None
        torch.cuda.init()
    except Exception as error:  # RuntimeError, AssertionError of a CPU build, AcceleratorError
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        seen = torch.cuda.is_available() or "too old" in reason or _can_open_a_gpu()
        return reason if seen else None
    return None


def _can_open_a_gpu() -> bool:
    """Return whether this process may use a device file; on a cluster another job's is closed."""
    for path in sorted(Path("/dev").glob("nvidia[0-9]*")):
        try:
            os.close(os.open(path, os.O_RDWR))
        except OSError:
            continue
        return True
    return False


def hardware_line(device: str, dtype: "torch.dtype") -> str:
    """Return what a run computes with, in one line: device, driver, type, threads, memory."""
    import torch

    words = [str(dtype).removeprefix("torch."), describe_threads()]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    words.append(f"{memory:.0f} GiB of memory")
    if device == "cpu":
        return f"hardware: {_processor()}, {', '.join(words)}"
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver = _driver_version()
    known = [f"{about.total_memory / 2**30:.0f} GiB", *([f"driver {driver}"] if driver else [])]
    name = f"{about.name} ({', '.join(known)}, CUDA {torch.version.cuda})"
    visible = torch.cuda.device_count()
    if visible > 1 and world_size() == 1:
        words.append(
            f"1 of {visible} visible GPUs is used (torchrun --nproc-per-node {visible} uses all)"
        )
    return f"hardware: {name}, {', '.join(words)}"


def _driver_version() -> str | None:
    try:
        about = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    version = re.search(r"\b\d{3,}\.\d+(\.\d+)*\b", about)
    return version[0] if version else None


def _processor() -> str:
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        about = ""
    name = re.search(r"^model name\s*: (.+)$", about, re.MULTILINE)
    return name[1] if name else platform.processor() or "CPU"


def peak_flops(device: str, dtype: "torch.dtype") -> float | None:
    """Return one device's peak rate in FLOP/s: a data sheet's on CUDA (None if unknown).

    On a CPU it is the best fp32 matrix product seen within half a second; on a shared machine,
    measure before and after a run and take the larger.
    """
    import torch

    if device == "cuda":
        name = torch.cuda.get_device_name()
        known = [rate for model, rate in PEAK_BF16.items() if re.fullmatch(model, name)]
        return known[0] if known and dtype == torch.bfloat16 else None
    size = 1024
    a, b = torch.ones(size, size), torch.ones(size, size)
    best = float("inf")
    end = time.perf_counter() + 0.5
    while (start := time.perf_counter()) < end:
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def reset_peak_memory(device: str) -> None:
    """Begin to count from here; a CPU's figure is of the whole process and cannot begin again."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes(device: str) -> int:
    """Return the largest memory: allocated on the GPU since `reset_peak_memory`, or resident."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
