"""CUDA code on a machine without a GPU: "cuda" tensors are fake, those on the CPU are real.

What it sees: tensors of both devices in one operation, moments at which the host would wait for the
device, such moments while a graph is recorded, and graphs that read memory which was freed. What it
cannot see: values (what comes back from the device is what went there, or zeros), kernels, time.
"""

from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.conftest import plant

aten = torch.ops.aten


class RecordingError(AssertionError):
    """The host waits for the device while a graph is recorded."""


class FreedError(AssertionError):
    """A graph is replayed that reads memory which nothing holds any more."""


def _storages(tree):
    fakes = [x for x in tree_leaves(tree) if isinstance(x, FakeTensor) and x.device.type == "cuda"]
    return {StorageWeakRef(x.untyped_storage()) for x in fakes}


class FakeCuda(TorchDispatchMode):
    """Runs operations on the CPU for real and all others as fakes.

    waits: how often the host waited, by reason; calls: operations on the device, as
    (operation, types of its tensors).
    """

    def __init__(self, fake):
        super().__init__()
        self._fake = fake
        self.waits, self.calls = Counter(), Counter()
        self._made, self._read = None, set()  # storages of a graph that is being recorded

    def wait(self, reason, tensor, then=lambda value: value):
        """Note that the host waits; return what is made of the value that would arrive."""
        if self._made is not None:
            raise RecordingError(reason)
        self.waits[reason] += 1
        with unset_fake_temporarily():
            sent = getattr(tensor, "_sent", None)
            return then(torch.zeros(tensor.shape, dtype=tensor.dtype) if sent is None else sent)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        real = [x for x in tensors if not isinstance(x, FakeTensor)]
        target = torch.device(kwargs.get("device") or "cpu").type
        if len(real) == len(tensors) and target == "cpu":
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return self.wait("item", args[0], torch.Tensor.item)
        if func is aten.index.Tensor:
            args = self._without_truths(args)
        with self:
            if (parts := func.decompose(*args, **kwargs)) is not NotImplemented:
                return parts
        self._refuse_mix(func, args, kwargs, real)
        return self._on_device(func, args, kwargs, real)

    def _without_truths(self, args):
        """Return the arguments of an index with a mask of truths as ones with indices."""
        mask = next((x for x in args[1] if x is not None and x.dtype == torch.bool), None)
        if mask is None:
            return args
        rows = self.wait("boolean index", mask, lambda value: int(value.sum()))
        index = torch.zeros(rows, dtype=torch.long, device="cuda")
        return args[0].flatten(0, mask.ndim - 1), [index]

    def _refuse_mix(self, func, args, kwargs, real):
        """Count copies that the host waits for; anything else may not take a CPU's tensor."""
        copies = (aten._to_copy.default, aten.copy_.default)
        waiting = [x for x in real if x.ndim]
        if not waiting:
            return
        if func not in copies:
            raise AssertionError(f"{func} takes a tensor on the CPU and one on the device")
        late = kwargs.get("non_blocking") or (func is copies[1] and len(args) > 2 and args[2])
        pinned = any(getattr(x, "_pinned", False) for x in waiting)
        if self._made is not None or not (late and pinned):
            self.wait("blocking copy to the device", waiting[0])

    def _on_device(self, func, args, kwargs, real):
        if self._made is not None:
            self._read |= _storages((args, kwargs)) - self._made

        def fake(x):
            return self._fake.from_tensor(x) if any(x is r for r in real) else x

        out = func(*tree_map(fake, args), **tree_map(fake, kwargs))
        given = tree_leaves((args, kwargs))
        kinds = tuple(str(x.dtype)[6:] for x in given if isinstance(x, torch.Tensor))
        self.calls[str(func), kinds] += 1
        if func is aten._to_copy.default and real:
            out._sent = real[0]
        if self._made is not None:
            self._made |= _storages(out) - self._read

        def arrived(x):
            back = isinstance(x, FakeTensor) and x.device.type == "cpu"
            return self.wait("copy to the host", x) if back else x

        return tree_map(arrived, out)

    def count(self, name, *kinds):
        """Return how often an operation of this name ran, with a tensor of these types first."""
        counts = [(k, n) for (f, k), n in self.calls.items() if name in f]
        return sum(n for k, n in counts if k[: len(kinds)] == kinds)

    def graphs(self):
        """Return what stands in for `modeling.GraphRecorder`."""
        mode = self

        class Graphs:
            def __init__(self):
                self._kept = []

            def __call__(self, body, *, keep):
                self._kept.append(keep)
                body()
                mode._made, mode._read = set(), set()
                try:
                    body()
                finally:
                    read, mode._made = mode._read, None

                def replay():
                    if any(storage.expired() for storage in read):
                        raise FreedError("a graph reads memory that was freed")

                return replay

        return Graphs


def _pin(tensor):
    tensor._pinned = True
    return tensor


def _chosen(precision):
    return "cuda", torch.float32 if precision == "fp32" else torch.bfloat16


@contextmanager
def fake_cuda():
    """Pretend that there is a GPU; yields the mode that counts."""
    import torch.nn.attention.varlen as varlen

    with ExitStack() as stack:
        mode = FakeCuda(stack.enter_context(FakeTensorMode()))
        patch = [
            mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
            mock.patch("torch.cuda.is_bf16_supported", return_value=True),
            mock.patch.object(torch.Tensor, "pin_memory", _pin),
            mock.patch.object(FakeTensor, "data_ptr", lambda tensor: id(tensor)),
        ]
        if hasattr(varlen, "_cudnn_version_and_major_capability"):
            name = "torch.nn.attention.varlen._cudnn_version_and_major_capability"
            patch.append(mock.patch(name, return_value=(92600, 8)))
        for each in patch:
            stack.enter_context(each)
        planted = stack.enter_context(pytest.MonkeyPatch.context())
        plant(planted, "domain_tokens.runs.device.choose_device", _chosen)
        plant(planted, "domain_tokens.modeling.graph_recorder.GraphRecorder", mode.graphs())
        stack.enter_context(mode)

        def listed(tensor):
            return mode.wait("tolist", tensor, torch.Tensor.tolist)

        stack.enter_context(mock.patch.object(FakeTensor, "tolist", listed))
        yield mode
