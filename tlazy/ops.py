"""The launchers as PyTorch operators, ``torch.ops.tlazy.*``.

Registered for CUDA (and HIP, which is the same key) and the CPU, and with a fake implementation
each, so that ``torch.compile``, ``torch.export`` and tracing see shapes without running anything.
On the CPU the operators are plain ATen; only where TRITON_INTERPRET=1 was set before the import
do they run the kernels in Triton's interpreter, for the dtypes that it computes rightly.
autograd.py gives them their derivatives.

An operator cannot return an optional tensor: what the launchers give as None is a tensor of shape
(0,) here.

The dispatcher costs the host more than all else on the way to a kernel. :class:`Operator` knows the
way past it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tlazy_kernels import checks, layouts, reference
from tlazy_kernels.environment import HAS_TRITON, INTERPRETED, INTERPRETER_DTYPES

LIBRARY = torch.library.Library("tlazy", "DEF")
_CONVOLUTION = "int stride, int[2] padding, int dilation, int groups"


class Operator:
    """An operator, and what runs it without the dispatcher.

    Kernels are imported at the first call that wants one: declaring them takes more time than all
    else that ``import tlazy`` does.

    Args:
        module: of the launcher, in ``tlazy_kernels``.
        name: of the operator, its launcher and its twin.
    """

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name
        self.packet = getattr(torch.ops.tlazy, name)
        self.overload = self.packet.default

    @cached_property
    def on_cuda(self) -> Callable:
        """The launcher, a function of the operator's arguments which gives None for what the
        operator gives a tensor of shape (0,). The twin where there is no Triton."""
        if not HAS_TRITON:
            return self._twin
        return getattr(_imported(f"tlazy_kernels.{self.module}"), self.name)

    @cached_property
    def on_cpu(self) -> Callable:
        """The twin, likewise; the interpreted launcher for the dtypes that it computes rightly."""
        return self._interpreted if INTERPRETED else self._twin

    def past_dispatcher(self, x: Tensor) -> Callable:
        """What runs it for a call whose first tensor is `x`, where that is ``unnoticed``."""
        if x.is_cuda:
            return self.on_cuda
        return self.on_cpu if x.is_cpu else self.overload

    @property
    def _twin(self) -> Callable:
        return getattr(reference, self.name)

    def _interpreted(self, first: Tensor, *args: Any) -> Any:
        run = self.on_cuda if first.dtype in INTERPRETER_DTYPES else self._twin
        return run(first, *args)


def _imported(module: str) -> ModuleType:
    """The module, whose kernels are interpreted if and only if all others are."""
    import triton

    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = INTERPRETED
        return import_module(module)


def _register(
    module: str, schema: str, fake: Callable, flops: Callable[..., int] | None = None
) -> Operator:
    """Define an operator that has the name and the arguments of a launcher in `module`, and of its
    twin; `flops` counts its operations from the shapes of its tensors."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    operator = Operator(module, name)
    LIBRARY.impl(name, _with_tensors(lambda *args: operator.on_cuda(*args)), "CUDA")
    LIBRARY.impl(name, _with_tensors(lambda *args: operator.on_cpu(*args)), "CPU")
    torch.library.register_fake(f"tlazy::{name}", fake, lib=LIBRARY)
    if flops is not None:
        register_flop_formula(operator.packet)(flops)
    return operator


def _with_tensors(run: Callable) -> Callable:
    """`run`, with tensors in place of None."""

    def call(first: Tensor, *args: Any) -> Any:
        found = run(first, *args)
        return found if isinstance(found, Tensor) else _present(first, found)

    return call


def _present(like: Tensor, found: Iterable[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(like.new_empty(0) if x is None else x for x in found)


def _fake_epilogue_backward(
    grad: Tensor, saved: Tensor | None, activation: str | None, bias: bool, for_tiles: bool = False
) -> tuple[Tensor, ...]:
    checks.epilogue_shape(grad, saved, activation, for_tiles)
    g = None
    if for_tiles:
        g = layouts.empty_like(grad.shape, grad, channels_last=True)
    elif saved is not None and activation is not None:
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


epilogue_backward = _register(
    "epilogue",
    "epilogue_backward(Tensor grad, Tensor? saved, str? activation, bool bias,"
    " bool for_tiles=False) -> (Tensor g, Tensor grad_bias)",
    _fake_epilogue_backward,
)
linear_forward = _register(
    "linear",
    "linear_forward(Tensor x, Tensor weight, Tensor? bias, str? activation,"
    " bool save_preactivation) -> (Tensor y, Tensor preactivation)",
    _fake_linear_forward,
    _linear_flops,
)
linear_grad_input = _register(
    "linear",
    "linear_grad_input(Tensor grad, Tensor weight) -> Tensor",
    lambda grad, weight: grad.new_empty(grad.shape[0], weight.shape[1]),
    _linear_flops,
)
linear_grad_weight = _register(
    "linear",
    "linear_grad_weight(Tensor grad, Tensor x) -> Tensor",
    lambda grad, x: grad.new_empty(grad.shape[1], x.shape[1]),
    lambda grad, x, out_shape: 2 * grad[0] * math.prod(out_shape),
)
conv1d_forward = _register(
    "conv1d",
    f"conv1d_forward(Tensor x, Tensor weight, Tensor? bias, {_CONVOLUTION}, str padding_mode,"
    " str? activation, bool save_preactivation, bool? channels_last=None)"
    " -> (Tensor y, Tensor preactivation)",
    _fake_conv1d_forward,
    _conv1d_flops,
)
conv1d_grad_input = _register(
    "conv1d",
    f"conv1d_grad_input(Tensor grad, Tensor weight, SymInt input_length, {_CONVOLUTION},"
    " str padding_mode, bool? channels_last=None) -> Tensor",
    _fake_conv1d_grad_input,
    lambda grad, weight, *_, out_shape: 2 * grad[0] * grad[2] * math.prod(weight),
)
conv1d_grad_weight = _register(
    "conv1d",
    f"conv1d_grad_weight(Tensor grad, Tensor x, int kernel_size, {_CONVOLUTION},"
    " str padding_mode) -> Tensor",
    _fake_conv1d_grad_weight,
    lambda grad, *_, out_shape: 2 * grad[0] * grad[2] * math.prod(out_shape),
)
depthwise_backward = _register(
    "depthwise",
    "depthwise_backward(Tensor grad, Tensor? saved, Tensor? x, Tensor? weight,"
    f" SymInt input_length, int kernel_size, {_CONVOLUTION}, str? activation, bool[3] needs,"
    " bool? channels_last=None) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    _fake_depthwise_backward,
    _depthwise_backward_flops,
)
conv_transpose1d_forward = _register(
    "conv_transpose1d",
    "conv_transpose1d_forward(Tensor x, Tensor weight, Tensor? bias, int stride, int padding,"
    " int output_padding, int dilation, int groups, str? activation, bool save_preactivation)"
    " -> (Tensor y, Tensor preactivation)",
    _fake_conv_transpose1d_forward,
    lambda x, weight, *_, out_shape: 2 * x[0] * x[2] * math.prod(weight),
)
