"""Derivatives of the operators, and the autograd functions that eager calls go through.

Forward, input gradient and weight gradient are bilinear and closed under differentiation: the
derivative of each is one of the other two. Gradients of gradients therefore need nothing of their
own but the second derivative of the activation, which ATen has.

Eager calls use a ``torch.autograd.Function``, the cheapest way into autograd from Python, and
where nobody would notice they leave out the dispatcher too (``dispatch.unnoticed``); inside
``torch.compile`` and ``torch.export`` the operators are called directly, so that graphs hold them.
Both share one pair of setup and backward functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tlazy import ops
from tlazy.dispatch import unnoticed
from tlazy.ops import LIBRARY, Operator
from tlazy_kernels import checks, layouts, reference
from tlazy_kernels.copy_cost import products_copy
from tlazy_kernels.environment import INTERPRETED
from tlazy_kernels.reference import NEEDS_PREACTIVATION


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, plain: bool = False
) -> Tensor:
    """Differentiable ``act(x @ weight.T + bias)`` by the operators, for x of shape (M, K).

    `plain`, here and below: whether the tensors are known to be ``unnoticed``.
    """
    needs_grad = _needs_grad(x, weight, bias)
    save = needs_grad and activation in NEEDS_PREACTIVATION
    arguments = (x, weight, bias, activation, save)
    return _call(LinearFunction, ops.linear_forward, plain, needs_grad, *arguments)[0]


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    groups: int,
    padding_mode: str,
    activation: str | None,
    plain: bool = False,
) -> Tensor:
    """Differentiable ``act(conv1d(x, weight) + bias)`` by the operators, for x (N, C_in, L)."""
    needs_grad = _needs_grad(x, weight, bias)
    save = needs_grad and activation in NEEDS_PREACTIVATION
    arguments = (
        x, weight, bias, stride, padding, dilation, groups, padding_mode, activation, save, None
    )  # fmt: skip
    return _call(Conv1dFunction, ops.conv1d_forward, plain, needs_grad, *arguments)[0]


def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    output_padding: int,
    dilation: int,
    groups: int,
    activation: str | None,
    plain: bool = False,
) -> Tensor:
    """Differentiable ``act(conv_transpose1d(x, weight) + bias)`` by the operators, for 3-D x."""
    needs_grad = _needs_grad(x, weight, bias)
    save = needs_grad and activation in NEEDS_PREACTIVATION
    arguments = (
        x, weight, bias, stride, padding, output_padding, dilation, groups, activation, save
    )  # fmt: skip
    operator = ops.conv_transpose1d_forward
    return _call(ConvTranspose1dFunction, operator, plain, needs_grad, *arguments)[0]


def _call(
    function: Any,
    operator: Operator,
    plain: bool,
    needs_grad: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """The operator, differentiable. Where nothing needs a gradient, autograd is left out: its
    bookkeeping costs more than the rest of the way to a kernel."""
    if not plain and torch.compiler.is_compiling():
        return operator.overload(x, weight, bias, *settings)
    if plain or unnoticed(x, weight, bias):
        run, apply = operator.past_dispatcher(x), function.plain_apply
    else:
        run, apply = _below_autograd(operator.overload), function.apply
    if not needs_grad:
        return run(x, weight, bias, *settings)
    return apply(x, weight, bias, *settings, run)


def _below_autograd(overload: Any) -> Callable:
    def run(*arguments: Any) -> tuple[Tensor, Tensor | None]:
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*arguments)

    return run


class _Function(torch.autograd.Function):
    """An operator's call: its arguments and what runs it, its results.

    ``plain_apply`` is ``apply`` without its half in Python, a third of what it costs, which plain
    tensors do not need: it serves a setup_context and unwraps what functorch's transforms left.
    """

    plain_apply: ClassVar[Callable]

    def __init_subclass__(cls) -> None:
        cls.plain_apply = super(torch.autograd.Function, cls).apply  # type: ignore[misc]


class LinearFunction(_Function):
    """``tlazy::linear_forward`` for eager calls; taking its arguments apart would cost each 2%."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str | None,
        save: bool,
        run: Callable,
    ) -> tuple[Tensor, Tensor | None]:
        output = run(x, weight, bias, activation, save)
        _forward_setup(ctx, x, weight, bias, activation, save, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_linear_backward(ctx, *grads), None


class Conv1dFunction(_Function):
    """``tlazy::conv1d_forward``, likewise."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor | None]:
        *arguments, run = inputs
        output = run(*arguments)
        _conv1d_setup(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_conv1d_backward(ctx, *grads), None


class ConvTranspose1dFunction(_Function):
    """``tlazy::conv_transpose1d_forward``, likewise."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor | None]:
        *arguments, run = inputs
        output = run(*arguments)
        _conv_transpose1d_setup(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_conv_transpose1d_backward(ctx, *grads), None


def _needs_grad(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )


def _linear_setup(ctx: Any, inputs: Sequence, output: tuple[Tensor, Tensor | None]) -> None:
    x, weight, bias, activation, save = inputs
    _forward_setup(ctx, x, weight, bias, activation, save, output)


def _linear_backward(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, saved = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    g, grad_bias = _epilogue_backward(dy, dz, saved, ctx.activation, needs_bias)
    if g is None:
        return (None,) * 5
    grad_x = _pass(ops.linear_grad_input, g, weight) if needs_x else None
    grad_weight = _pass(ops.linear_grad_weight, g, x) if needs_weight else None
    return grad_x, grad_weight, grad_bias, None, None


def _conv1d_setup(ctx: Any, inputs: Sequence, output: tuple[Tensor, Tensor | None]) -> None:
    x, weight, bias, *ctx.settings, activation, save, _ = inputs
    ctx.input_length = x.shape[2]
    _, ctx.group_channels, ctx.kernel_size = weight.shape
    ctx.channels_last = layouts.is_channels_last(x)
    _forward_setup(ctx, x, weight, bias, activation, save, output)


def _conv1d_backward(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, saved = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = needs = ctx.needs_input_grad[:3]
    depthwise = ctx.group_channels == 1 and ctx.settings[-1] == "zeros"
    if depthwise and dy is not None and dz is None and not torch.is_grad_enabled():
        _check_saved(saved, ctx.activation)
        sizes = (ctx.input_length, ctx.kernel_size, *ctx.settings[:-1])
        tensors = (dy, saved, x, weight)
        run = _shortest(ops.depthwise_backward, *tensors)
        found = run(*tensors, *sizes, ctx.activation, needs, ctx.channels_last)
        return *(t if n else None for t, n in zip(found, needs, strict=True)), *(None,) * 8
    for_tiles = _for_tiles(ctx, dy, saved, step=1)
    g, grad_bias = _epilogue_backward(dy, dz, saved, ctx.activation, needs_bias, for_tiles)
    if g is None:
        return (None,) * 11
    grad_x = grad_weight = None
    if needs_x:
        sizes = (ctx.input_length, *ctx.settings)
        grad_x = _pass(ops.conv1d_grad_input, g, weight, *sizes, ctx.channels_last)
    if needs_weight:
        sizes = (ctx.kernel_size, *ctx.settings)
        grad_weight = _pass(ops.conv1d_grad_weight, g, x, *sizes)
    return grad_x, grad_weight, grad_bias, *(None,) * 8


def _conv_transpose1d_setup(
    ctx: Any, inputs: Sequence, output: tuple[Tensor, Tensor | None]
) -> None:
    x, weight, bias, stride, padding, output_padding, dilation, groups, activation, save = inputs
    ctx.samples, zeros = checks.adjoint_conv1d(output[0].shape[2], padding, output_padding)
    ctx.settings, ctx.input_length = (stride, zeros, dilation, groups, "zeros"), x.shape[2]
    ctx.group_channels, ctx.kernel_size = weight.shape[0] // groups, weight.shape[2]
    ctx.channels_last = layouts.is_channels_last(x)
    _forward_setup(ctx, x, weight, bias, activation, save, output)


def _conv_transpose1d_backward(
    ctx: Any, dy: Tensor | None, dz: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, weight, saved = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    for_tiles = _for_tiles(ctx, dy, saved, step=ctx.settings[0])
    g, grad_bias = _epilogue_backward(dy, dz, saved, ctx.activation, needs_bias, for_tiles)
    if g is None:
        return (None,) * 10
    if ctx.samples != g.shape[2]:
        g = g[:, :, : ctx.samples]
    grad_x = grad_weight = None
    if needs_x:
        settings = (None, *ctx.settings, None, False, ctx.channels_last)
        grad_x = _pass(ops.conv1d_forward, g, weight, *settings)[0]
    if needs_weight:
        sizes = (ctx.kernel_size, *ctx.settings)
        grad_weight = _pass(ops.conv1d_grad_weight, x, g, *sizes)
    return grad_x, grad_weight, grad_bias, *(None,) * 7


def _forward_setup(
    ctx: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    save: bool,
    output: tuple[Tensor, Tensor | None],
) -> None:
    """Keep what the backward pass needs. The activation's y or z is kept as an *output*, so that
    a second derivative flows through it into this very node, as the gradient of that output."""
    y, preactivation = output
    if not save and preactivation is not None:
        ctx.mark_non_differentiable(preactivation)
    saved = None
    if activation in NEEDS_PREACTIVATION:
        saved = preactivation if save else None
    elif activation is not None:
        saved = y
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None, saved)
    ctx.activation = activation
    ctx.set_materialize_grads(False)


def _epilogue_backward(
    dy: Tensor | None,
    dz: Tensor | None,
    saved: Tensor | None,
    activation: str | None,
    bias: bool,
    for_tiles: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the preactivation, shape (outer, channels, ...), and of the bias.

    `dz` is only there in a second derivative, where the pass must be differentiable itself: then
    it is composed of ATen's operators, else it is one kernel. `for_tiles` is that kernel's.
    """
    if dy is None:
        return dz, None if dz is None or not bias else reference.sum_of_channels(dz)
    _check_saved(saved, activation)
    if dz is None and activation is None and not bias and not for_tiles:
        return dy, None
    if dz is None and not torch.is_grad_enabled():
        run = _shortest(ops.epilogue_backward, dy, saved)
        g, grad_bias = run(dy, saved, activation, bias, for_tiles)
        return dy if activation is None and not for_tiles else g, grad_bias if bias else None
    g, _ = reference.epilogue_backward(dy, saved, activation, bias=False)
    g = dy if g is None else g
    g = g if dz is None else g + dz
    return g, reference.sum_of_channels(g) if bias else None


def _for_tiles(ctx: Any, dy: Tensor | None, saved: Tensor | None, step: int) -> bool:
    """Whether products of a convolution would copy the gradient of its preactivation, of which they
    read rows `step` samples apart: then the pass that computes it leaves it like such a copy."""
    if dy is None or torch.is_grad_enabled() or not any(ctx.needs_input_grad[:2]):
        return False
    if not (dy.is_cuda or INTERPRETED):
        return False  # no kernel reads it
    return products_copy(
        dy if ctx.activation is None or saved is None else saved,
        groups=ctx.settings[3],
        step=step,
        across=ctx.group_channels,
        taps=ctx.kernel_size,
        other_length=ctx.input_length,
    )


def _pass(operator: Operator, first: Tensor, second: Tensor, *settings: Any) -> Any:
    """A bilinear operator inside a backward pass, differentiable where that has to be."""
    run = operator.overload if torch.is_grad_enabled() else _shortest(operator, first, second)
    return run(first, second, *settings)


def _shortest(operator: Operator, *tensors: Any) -> Callable:
    """What gives the operator's results inside a pass that nobody differentiates."""
    return operator.past_dispatcher(tensors[0]) if unnoticed(*tensors) else operator.overload


def _check_saved(saved: Tensor | None, activation: str | None) -> None:
    if activation is not None and saved is None:
        raise RuntimeError(f"the gradient of {activation!r} needs save_preactivation=True")


def _pair_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Setup of a bilinear operator of two tensors."""
    first, second, *ctx.settings = inputs
    ctx.save_for_backward(first, second)


def _linear_grad_input_backward(ctx: Any, dd: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight = ctx.saved_tensors
    needs_grad, needs_weight = ctx.needs_input_grad[:2]
    return (
        ops.linear_forward.overload(dd, weight, None, None, False)[0] if needs_grad else None,
        ops.linear_grad_weight.overload(grad, dd) if needs_weight else None,
    )


def _linear_grad_weight_backward(ctx: Any, dd: Tensor) -> tuple[Tensor | None, ...]:
    grad, x = ctx.saved_tensors
    needs_grad, needs_x = ctx.needs_input_grad[:2]
    return (
        ops.linear_forward.overload(x, dd, None, None, False)[0] if needs_grad else None,
        ops.linear_grad_input.overload(grad, dd) if needs_x else None,
    )


def _conv1d_grad_input_backward(ctx: Any, dd: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight = ctx.saved_tensors
    _, *settings, _ = ctx.settings
    needs_grad, needs_weight = ctx.needs_input_grad[:2]
    grad_grad = grad_weight = None
    if needs_grad:
        last = layouts.is_channels_last(grad)
        grad_grad = ops.conv1d_forward.overload(dd, weight, None, *settings, None, False, last)[0]
    if needs_weight:
        grad_weight = ops.conv1d_grad_weight.overload(grad, dd, weight.shape[2], *settings)
    return grad_grad, grad_weight, *(None,) * 7


def _conv1d_grad_weight_backward(ctx: Any, dd: Tensor) -> tuple[Tensor | None, ...]:
    grad, x = ctx.saved_tensors
    _, *settings = ctx.settings
    needs_grad, needs_x = ctx.needs_input_grad[:2]
    grad_grad = grad_x = None
    if needs_grad:
        last = layouts.is_channels_last(grad)
        grad_grad = ops.conv1d_forward.overload(x, dd, None, *settings, None, False, last)[0]
    if needs_x:
        last = layouts.is_channels_last(x)
        grad_x = ops.conv1d_grad_input.overload(grad, dd, x.shape[2], *settings, last)
    return grad_grad, grad_x, *(None,) * 6


def _epilogue_backward_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor | None]) -> None:
    grad, saved, ctx.activation, ctx.bias, ctx.for_tiles = inputs
    ctx.save_for_backward(grad, saved)


def _epilogue_backward_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    def run(grad: Tensor, saved: Tensor | None) -> tuple[Tensor | None, ...]:
        return reference.epilogue_backward(grad, saved, ctx.activation, ctx.bias, ctx.for_tiles)

    return *_composed_backward(run, ctx.saved_tensors, grads), None, None, None


def _depthwise_backward_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.activation, ctx.needs, _ = inputs
    ctx.save_for_backward(*tensors[:4])
    ctx.sizes = tensors[4:]


def _depthwise_backward_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    def run(*tensors: Any) -> tuple[Tensor | None, ...]:
        settings: dict[str, Any] = {"activation": ctx.activation, "needs": ctx.needs}
        return reference.depthwise_backward(*tensors, *ctx.sizes, **settings)

    return *_composed_backward(run, ctx.saved_tensors, grads), *(None,) * (len(ctx.sizes) + 3)


def _composed_backward(
    run: Callable[..., tuple[Tensor | None, ...]],
    tensors: Sequence[Tensor | None],
    grads: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """Gradients of `tensors` by ATen: differentiate `run`, the pass composed of its operators."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that a tensor that is two arguments gets each one's share apart.
        inputs = [
            t if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
            for t in tensors
        ]
        pairs = [(y, dy) for y, dy in zip(run(*inputs), grads, strict=True) if y is not None]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in pairs],
                [t for t in inputs if t is not None],
                [dy for _, dy in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return tuple(t if t is None else next(found) for t in inputs)


for _name, _backward, _setup in (
    ("linear_forward", _linear_backward, _linear_setup),
    ("linear_grad_input", _linear_grad_input_backward, _pair_setup),
    ("linear_grad_weight", _linear_grad_weight_backward, _pair_setup),
    ("conv1d_forward", _conv1d_backward, _conv1d_setup),
    ("conv1d_grad_input", _conv1d_grad_input_backward, _pair_setup),
    ("conv1d_grad_weight", _conv1d_grad_weight_backward, _pair_setup),
    ("conv_transpose1d_forward", _conv_transpose1d_backward, _conv_transpose1d_setup),
    ("epilogue_backward", _epilogue_backward_backward, _epilogue_backward_setup),
    ("depthwise_backward", _depthwise_backward_backward, _depthwise_backward_setup),
):
    torch.library.register_autograd(f"tlazy::{_name}", _backward, setup_context=_setup, lib=LIBRARY)
