"""Who computes an operation: tlazy, and those it is compared with."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tlazy
from tlazy.bench.operations import Conv1d, ConvTranspose1d, Linear, Operation, Unsupported
from tlazy.bench.problems import SINGLE, Problem
from tlazy.errors import UserError


def _as_they_are(tensors: list[Tensor], output_gradient: Tensor) -> tuple[list[Tensor], Tensor]:
    return tensors, output_gradient


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
        call: from the operation's tensors, as `prepare` leaves them, to its output.
        backend: what really runs.
        prepare: puts an input set and its output gradient into the form that `call` likes best,
            outside the measured time.
        context: holds around everything that runs `call`.
        own_thread: whether it must run in a thread of its own, backward passes included.
        note: what a reader of the times should know.
    """

    call: Callable[..., Tensor]
    backend: str
    prepare: Callable[[list[Tensor], Tensor], tuple[list[Tensor], Tensor]] = _as_they_are
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    own_thread: bool = False
    note: str = ""


def _tlazy(operation: Operation, x: Tensor) -> Implementation:
    return Implementation(operation.fused, tlazy.backend_of(x).name)


def _eager(operation: Operation, x: Tensor) -> Implementation:
    return Implementation(operation.stock, "aten")


def _eager_channels_last(operation: Operation, x: Tensor) -> Implementation:
    if not isinstance(operation, Conv1d):
        raise Unsupported("channels last is a memory layout of convolutions")

    def prepare(tensors: list[Tensor], gradient: Tensor) -> tuple[list[Tensor], Tensor]:
        signal, weight, *bias = tensors
        flat = gradient.transpose(1, 2).contiguous().transpose(1, 2)
        return [_channels_last(signal), _channels_last(weight), *bias], flat

    note = "input, weight and output gradient channels last"
    return Implementation(operation.stock_channels_last, "aten", prepare, note=note)


def _channels_last(tensor: Tensor) -> Tensor:
    moved = tensor.detach().unsqueeze(2).contiguous(memory_format=torch.channels_last)
    return moved.requires_grad_(tensor.requires_grad)


def _cudnn_benchmark(operation: Operation, x: Tensor) -> Implementation:
    if not isinstance(operation, Conv1d | ConvTranspose1d):
        raise Unsupported("cuDNN's search is for convolutions")

    # ATen keeps what cuDNN found or guessed in a table of the thread, and looks it up whether or
    # not it may search: in one thread, whichever of this and "eager" came first chose for both.
    return Implementation(operation.stock, "cudnn", context=_searching, own_thread=True)


def _cudnn_benchmark_channels_last(operation: Operation, x: Tensor) -> Implementation:
    built = _eager_channels_last(operation, x)
    return dataclasses.replace(built, backend="cudnn", context=_searching, own_thread=True)


@contextmanager
def _searching() -> Iterator[None]:
    """Let cuDNN time its algorithms. ``cudnn.flags`` would also reset how float32 is computed."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _compile(operation: Operation, x: Tensor) -> Implementation:
    import torch._functorch.config

    torch._dynamo.reset()
    compiled = torch.compile(operation.stock, dynamic=False, fullgraph=True)

    # A backward pass that is repeated on one graph must leave its buffers alone.
    def keeping_buffers() -> AbstractContextManager[Any]:
        return torch._functorch.config.patch(donated_buffer=False)

    return Implementation(compiled, "inductor", context=keeping_buffers)


def _cublaslt(operation: Operation, x: Tensor) -> Implementation:
    if type(operation) is not Linear or not operation.bias:
        raise Unsupported("cuBLASLt's epilogue is for a linear layer with a bias")
    if operation.activation not in ("relu", "gelu_tanh"):
        raise Unsupported("cuBLASLt's epilogue has relu and gelu_tanh")
    if torch.is_grad_enabled():
        raise Unsupported("torch has cuBLASLt's epilogue forward only")
    gelu = operation.activation == "gelu_tanh"

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch._addmm_activation(bias, x, weight.t(), use_gelu=gelu)

    return Implementation(call, "cublaslt")


def _triton_tutorial(operation: Operation, x: Tensor) -> Implementation:
    if type(operation) is not Linear:
        raise Unsupported("the tutorial's kernel is a matrix product")
    if torch.is_grad_enabled():
        raise Unsupported("the tutorial's kernel is forward only")
    if x.element_size() != 2:
        raise Unsupported("the tutorial's kernel takes float16 and bfloat16")
    matmul = _import("tlazy.bench.tutorial", "matmul")

    def call(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        y = matmul(x, weight.t())
        return operation.finish(y + bias[0] if bias else y)

    return Implementation(call, "triton", note="bias and activation by ATen")


def _causal_conv1d(operation: Operation, x: Tensor) -> Implementation:
    conv = _short_causal(operation)
    if not 2 <= conv.kernel_size <= 4:
        raise Unsupported(f"causal_conv1d has kernel sizes 2 to 4, not {conv.kernel_size}")
    function = _import("causal_conv1d", "causal_conv1d_fn")

    def call(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        return function(x, weight.squeeze(1), *bias, activation=conv.activation)

    return Implementation(call, "cuda")


def _fla(operation: Operation, x: Tensor) -> Implementation:
    conv = _short_causal(operation)
    function = _import("fla.modules.convolution", "causal_conv1d")

    def call(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        y = function(
            x.transpose(1, 2),
            weight.squeeze(1),
            *bias,
            activation=conv.activation,
        )
        return (y[0] if isinstance(y, tuple) else y).transpose(1, 2)

    return Implementation(call, "triton")


def _short_causal(operation: Operation) -> Conv1d:
    """The operation, where it is what the short-convolution libraries do."""
    if not isinstance(operation, Conv1d) or operation.op != "depthwise":
        raise Unsupported("for depthwise convolutions only")
    if operation.padding != "causal" or (operation.stride, operation.dilation) != (1, 1):
        raise Unsupported("for causal padding, stride 1 and dilation 1 only")
    if operation.out_channels != operation.in_channels:
        raise Unsupported("for one filter per channel only")
    if operation.activation not in (None, "silu"):
        raise Unsupported("has no activation but silu")
    return operation


def _import(module: str, name: str) -> Callable[..., Any]:
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a broken extension raises OSError, RuntimeError and more
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unsupported(f"cannot import {module}.{name}: {reason}") from error


PEERS: dict[str, Callable[[Operation, Tensor], Implementation]] = {
    "tlazy": _tlazy,
    "eager": _eager,
    "eager-channels-last": _eager_channels_last,
    "cudnn-benchmark": _cudnn_benchmark,
    "cudnn-benchmark-channels-last": _cudnn_benchmark_channels_last,
    "compile": _compile,
    "cublaslt": _cublaslt,
    "triton-tutorial": _triton_tutorial,
    "causal-conv1d": _causal_conv1d,
    "fla": _fla,
}
NEED_GPU = frozenset(PEERS) - {"tlazy", "eager", "eager-channels-last", "compile"}


def parse_peers(text: str, device: torch.device) -> tuple[str, ...]:
    """The peers that ``--peer a,b`` names; tlazy is always measured beside them.

    Raises:
        UserError: for an unknown name, or one that needs a GPU where `device` is none.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PEERS:
            raise UserError(f"--peer must be of {', '.join(PEERS)}, got {name!r}")
        if name in NEED_GPU and device.type != "cuda":
            raise UserError(f"--peer {name} needs a GPU; the measured device is {device.type}")
    return tuple(dict.fromkeys(["tlazy", *names]))


def default_peers(problem: Problem, device: torch.device) -> Sequence[str]:
    """Those that a problem is compared with unless told otherwise.

    Compiling takes tens of seconds on a CPU, so there ``--peer compile`` has to ask for it.
    """
    if device.type != "cuda" or problem.timed.startswith("host"):
        return ("tlazy", "eager")
    if problem.timed == "new length":
        return ("tlazy", "eager", "cudnn-benchmark")
    names = _fitting(problem.operation)
    # In other suites its seconds for each convolution are better spent on the next problem.
    missing = problem.suite in (SINGLE, "goals") and "compile" not in names
    return (*names, "compile") if missing else names


def _fitting(operation: Operation) -> Sequence[str]:
    """The peers that are worth their time on the device's work."""
    if operation.op == "depthwise":
        return ("tlazy", "eager", "causal-conv1d", "fla", "eager-channels-last")
    if isinstance(operation, Conv1d):
        twice = ("cudnn-benchmark", "cudnn-benchmark-channels-last")
        return ("tlazy", "eager", "eager-channels-last", *twice)
    if isinstance(operation, ConvTranspose1d):
        return ("tlazy", "eager", "cudnn-benchmark")
    if type(operation) is Linear:
        return ("tlazy", "eager", "compile", "cublaslt", "triton-tutorial")
    return ("tlazy", "eager", "compile")
