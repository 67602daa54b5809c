"""What one call of a layer costs the host, beside torch's layer.

    pytest perf/test_calls.py --benchmark-group-by=group

Tensors are so small that almost all the time is Python's and the dispatcher's. On the Triton path
the kernels themselves are left out, so that a machine without a GPU can time the way to them: all
of it but Triton's own launch.
"""

import importlib
import pkgutil

import pytest
import torch
import triton
from triton.compiler import CompiledKernel
from triton.runtime.interpreter import InterpretedFunction

import tlazy
import tlazy_kernels
from tlazy_kernels import launch

CHANNELS = 16


def layers(lib, **options):
    return {
        "linear": lambda: lib.Linear(CHANNELS, CHANNELS, **options),
        "conv1d": lambda: lib.Conv1d(CHANNELS, CHANNELS, 3, **options),
        "depthwise": lambda: lib.Conv1d(CHANNELS, CHANNELS, 3, groups=CHANNELS, **options),
    }


INPUTS = {"linear": (4, CHANNELS), "conv1d": (2, CHANNELS, 8), "depthwise": (2, CHANNELS, 8)}
PEERS = {"torch.nn": torch.nn, "tlazy.nn": tlazy.nn}
every_op = pytest.mark.parametrize("op", list(INPUTS))


class NoLaunch(CompiledKernel):
    """Stands for a kernel that is compiled at once; launching it does nothing."""

    def __init__(self):
        pass

    def __del__(self):
        pass

    def __getitem__(self, grid):
        return lambda *args, **options: self


@pytest.fixture
def no_launches(monkeypatch):
    """Leave every Triton kernel out; all around it is as ever."""
    monkeypatch.setattr(launch, "handle_of", lambda *_: lambda *_: None)
    kinds = (triton.runtime.jit.JITFunction, InterpretedFunction)
    for info in pkgutil.iter_modules(tlazy_kernels.__path__, "tlazy_kernels."):
        module = importlib.import_module(info.name)
        for name, value in list(vars(module).items()):
            if isinstance(value, kinds) and name.endswith("_kernel"):
                monkeypatch.setattr(module, name, NoLaunch())


@pytest.fixture(autouse=True)
def one_thread(benchmark):
    """Say what is measured; threads would only add noise to calls as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    benchmark.extra_info.update(device="cpu", torch=torch.__version__, triton=triton.__version__)
    yield
    torch.set_num_threads(before)


def call(layer, x, grad):
    if not grad:
        with torch.no_grad():
            return layer(x)
    y = layer(x)
    torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y))
    return y


def measure(benchmark, op, layer, grad, backend):
    x = torch.randn(INPUTS[op], requires_grad=grad)
    for _ in range(20):
        call(layer, x, grad)
    benchmark.group = f"{op} {INPUTS[op]}, {'forward+backward' if grad else 'forward'}"
    benchmark.extra_info["backend"] = backend
    benchmark(call, layer, x, grad)


@every_op
@pytest.mark.parametrize("grad", [False, True], ids=["forward", "full"])
@pytest.mark.parametrize("peer", list(PEERS))
def test_call(benchmark, op, grad, peer):
    layer = layers(PEERS[peer])[op]()
    measure(benchmark, op, layer, grad, "aten")


@every_op
@pytest.mark.parametrize("grad", [False, True], ids=["forward", "full"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="times the CPU's way to left-out kernels")
def test_dispatch_to_left_out_kernels(benchmark, no_launches, op, grad):
    layer = layers(tlazy.nn, activation="relu")[op]()
    with tlazy.backend("triton"):
        assert tlazy.backend_of(torch.empty(1)).name == "interpreter"
        measure(benchmark, op, layer, grad, "triton, without its launches")
