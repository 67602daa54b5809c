"""The launchers as PyTorch operators, ``torch.ops.tlazy.*``.

Registered for CUDA (and HIP, which is the same key) and the CPU, and with a fake implementation
each, so that ``torch.compile``, ``torch.export`` and tracing see shapes without running anything.
On the CPU the operators are plain ATen; only where TRITON_INTERPRET=1 was set before the import
do they run the kernels in Triton's interpreter, for the dtypes that it computes rightly.
autograd.py gives them their derivatives.

An operator cannot return an optional tensor: what the launchers give as None is a tensor of shape
(0,) here.

The dispatcher costs the host more than all else on the way to a kernel. :func:`shortcut` goes past
it where nobody would notice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _has_storage,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch.autograd import _profiler_enabled
from torch.utils.flop_counter import register_flop_formula

from tlazy_kernels import checks, layouts, reference
from tlazy_kernels.environment import HAS_TRITON, INTERPRETED, INTERPRETER_DTYPES

LIBRARY = torch.library.Library("tlazy", "DEF")
_CONVOLUTION = "int stride, int[2] padding, int dilation, int groups"

# What runs an operator on CUDA and on the CPU, by the operator.
_implementations: dict[Any, tuple[Callable, Callable]] = {}
_PLAIN = frozenset((Tensor, torch.nn.Parameter))


def _launcher(module: str, name: str) -> Callable:
    """``tlazy_kernels.<module>.<name>``, imported at its first call: declaring kernels takes more
    time than all else that ``import tlazy`` does.

    Without Triton the operators exist all the same, and every one of them is its twin.
    """
    if not HAS_TRITON:
        return getattr(reference, name)
    found: list[Callable] = []

    def launch(*args: Any) -> Any:
        if not found:
            found.append(getattr(_imported(f"tlazy_kernels.{module}"), name))
        return found[0](*args)

    return launch


def _imported(module: str) -> ModuleType:
    """The module, whose kernels are interpreted if and only if all others are."""
    import triton

    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = INTERPRETED
        return import_module(module)


def _register(
    module: str, schema: str, fake: Callable, flops: Callable[..., int] | None = None
) -> None:
    """Define an operator that has the name and the arguments of a launcher in `module`, and of its
    twin; `flops` counts its operations from the shapes of its tensors."""
    name = schema.partition("(")[0]
    kernel, twin = _launcher(module, name), getattr(reference, name)
    on_cpu = _interpreted_or(twin, kernel) if INTERPRETED else twin
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, _with_tensors(kernel), "CUDA")
    LIBRARY.impl(name, _with_tensors(on_cpu), "CPU")
    torch.library.register_fake(f"tlazy::{name}", fake, lib=LIBRARY)
    operator = getattr(torch.ops.tlazy, name)
    _implementations[operator.default] = kernel, on_cpu
    if flops is not None:
        register_flop_formula(operator)(flops)


def shortcut(operator: Any, *tensors: Tensor | None) -> Callable:
    """What gives an operator's results without derivatives: where no mode, transform, profiler or
    kind of tensor of its own would notice, the launcher or its twin, else the operator.

    Args:
        operator: an overload, such as ``torch.ops.tlazy.linear_forward.default``.
        tensors: its arguments that are tensors; the first is one.

    Returns:
        a function of the operator's arguments. The launcher gives None for what the operator gives
        a tensor of shape (0,).
    """
    if (
        _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or _are_functorch_transforms_active()
        or _profiler_enabled()
    ):
        return operator
    for x in tensors:  # what torch.autograd.grad(is_grads_batched=True) batches has no storage
        if x is not None and not (type(x) in _PLAIN and _has_storage(x)):
            return operator
    first: Any = tensors[0]
    on_cuda, on_cpu = _implementations[operator]
    return on_cuda if first.is_cuda else on_cpu if first.is_cpu else operator


def _interpreted_or(twin: Callable, kernel: Callable) -> Callable:
    """The kernel for the dtypes that Triton's interpreter computes rightly, the twin for others."""

    def run(first: Tensor, *args: Any) -> Any:
        return (kernel if first.dtype in INTERPRETER_DTYPES else twin)(first, *args)

    return run


def _with_tensors(run: Callable) -> Callable:
    """`run`, with tensors in place of None."""

    def call(first: Tensor, *args: Any) -> Any:
        found = run(first, *args)
        return found if isinstance(found, Tensor) else _present(first, found)

    return call


def _present(like: Tensor, found: Iterable[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(like.new_empty(0) if x is None else x for x in found)


def _fake_epilogue_backward(
    grad: Tensor, saved: Tensor | None, activation: str | None, bias: bool
) -> tuple[Tensor, ...]:
    g = None
    if saved is not None and activation is not None:
        plane = grad.dim() == 2
        g = grad.new_empty(grad.shape) if plane else layouts.empty_like(grad.shape, saved)
    return _present(grad, (g, grad.new_empty(grad.shape[1]) if bias else None))


def _fake_linear_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, save: bool
) -> tuple[Tensor, ...]:
    shape = checks.linear_shape(x, weight, bias, activation)
    return x.new_empty(shape), x.new_empty(shape if save else 0)


def _fake_conv1d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    groups: int,
    padding_mode: str,
    activation: str | None,
    save: bool,
    channels_last: bool | None = None,
) -> tuple[Tensor, ...]:
    shape = checks.conv1d_shape(x, weight, bias, stride, padding, dilation, groups, activation)
    checks.check_padding_mode(padding_mode, padding, x.shape[2])
    y = layouts.empty_like(shape, x, channels_last)
    return y, layouts.empty_like(shape, x, channels_last) if save else x.new_empty(0)


def _fake_conv1d_grad_input(
    grad: Tensor,
    weight: Tensor,
    input_length: int,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    groups: int,
    padding_mode: str,
    channels_last: bool | None = None,
) -> Tensor:
    shape = grad.shape[0], weight.shape[1] * groups, input_length
    return layouts.empty_like(shape, grad, channels_last)


def _fake_conv1d_grad_weight(
    grad: Tensor,
    x: Tensor,
    kernel_size: int,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    groups: int,
    padding_mode: str,
) -> Tensor:
    return grad.new_empty(grad.shape[1], x.shape[1] // groups, kernel_size)


def _fake_conv_transpose1d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    output_padding: int,
    dilation: int,
    groups: int,
    activation: str | None,
    save: bool,
) -> tuple[Tensor, ...]:
    settings = (stride, padding, output_padding, dilation, groups)
    shape = checks.conv_transpose1d_shape(x, weight, bias, *settings, activation)
    y = layouts.empty_like(shape, x)
    return y, layouts.empty_like(shape, x) if save else x.new_empty(0)


def _fake_depthwise_backward(
    grad: Tensor,
    saved: Tensor | None,
    x: Tensor | None,
    weight: Tensor | None,
    input_length: int,
    kernel_size: int,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    groups: int,
    activation: str | None,
    needs: Sequence[bool],
    channels_last: bool | None = None,
) -> tuple[Tensor, ...]:
    like = next(t for t in (x, saved, grad) if t is not None)
    shape = (grad.shape[0], groups, input_length)
    found = (
        layouts.empty_like(shape, like, channels_last) if needs[0] else None,
        grad.new_empty(grad.shape[1], 1, kernel_size) if needs[1] else None,
        grad.new_empty(grad.shape[1]) if needs[2] else None,
    )
    return _present(grad, found)


def _depthwise_backward_flops(
    grad: Sequence[int],
    _saved: Any,
    _x: Any,
    _weight: Any,
    _length: int,
    taps: int,
    _stride: int,
    _padding: Any,
    _dilation: int,
    _groups: int,
    _activation: str | None,
    needs: Sequence[bool],
    *_: Any,
    **_named: Any,
) -> int:
    return (needs[0] + needs[1]) * 2 * math.prod(grad) * taps


def _linear_flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * x[0] * math.prod(weight)


def _conv1d_flops(x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Any) -> int:
    return 2 * x[0] * out_shape[0][2] * math.prod(weight)


_register(
    "epilogue",
    "epilogue_backward(Tensor grad, Tensor? saved, str? activation, bool bias)"
    " -> (Tensor g, Tensor grad_bias)",
    _fake_epilogue_backward,
)
_register(
    "linear",
    "linear_forward(Tensor x, Tensor weight, Tensor? bias, str? activation,"
    " bool save_preactivation) -> (Tensor y, Tensor preactivation)",
    _fake_linear_forward,
    _linear_flops,
)
_register(
    "linear",
    "linear_grad_input(Tensor grad, Tensor weight) -> Tensor",
    lambda grad, weight: grad.new_empty(grad.shape[0], weight.shape[1]),
    _linear_flops,
)
_register(
    "linear",
    "linear_grad_weight(Tensor grad, Tensor x) -> Tensor",
    lambda grad, x: grad.new_empty(grad.shape[1], x.shape[1]),
    lambda grad, x, out_shape: 2 * grad[0] * math.prod(out_shape),
)
_register(
    "conv1d",
    f"conv1d_forward(Tensor x, Tensor weight, Tensor? bias, {_CONVOLUTION}, str padding_mode,"
    " str? activation, bool save_preactivation, bool? channels_last=None)"
    " -> (Tensor y, Tensor preactivation)",
    _fake_conv1d_forward,
    _conv1d_flops,
)
_register(
    "conv1d",
    f"conv1d_grad_input(Tensor grad, Tensor weight, SymInt input_length, {_CONVOLUTION},"
    " str padding_mode, bool? channels_last=None) -> Tensor",
    _fake_conv1d_grad_input,
    lambda grad, weight, *_, out_shape: 2 * grad[0] * grad[2] * math.prod(weight),
)
_register(
    "conv1d",
    f"conv1d_grad_weight(Tensor grad, Tensor x, int kernel_size, {_CONVOLUTION},"
    " str padding_mode) -> Tensor",
    _fake_conv1d_grad_weight,
    lambda grad, *_, out_shape: 2 * grad[0] * grad[2] * math.prod(out_shape),
)
_register(
    "depthwise",
    "depthwise_backward(Tensor grad, Tensor? saved, Tensor? x, Tensor? weight,"
    f" SymInt input_length, int kernel_size, {_CONVOLUTION}, str? activation, bool[3] needs,"
    " bool? channels_last=None) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    _fake_depthwise_backward,
    _depthwise_backward_flops,
)
_register(
    "conv_transpose1d",
    "conv_transpose1d_forward(Tensor x, Tensor weight, Tensor? bias, int stride, int padding,"
    " int output_padding, int dilation, int groups, str? activation, bool save_preactivation)"
    " -> (Tensor y, Tensor preactivation)",
    _fake_conv_transpose1d_forward,
    lambda x, weight, *_, out_shape: 2 * x[0] * x[2] * math.prod(weight),
)
