"""Depthwise conv1d: each input channel has its own filters, C_out / C_in of them.

There is no contraction over channels: these are passes over memory with a short sum over taps.
Which kernel runs depends on how the tensors lie in memory: channels side by side
(depthwise_channels.py), samples side by side (depthwise_time.py), or neither
(depthwise_general.py), which also serves whatever the others leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tlazy_kernels import checks
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.conv1d_gather import gather_steps
from tlazy_kernels.depthwise_backward import Needs
from tlazy_kernels.depthwise_channels import channels_backward, channels_step
from tlazy_kernels.depthwise_general import general_grad_weight, general_step
from tlazy_kernels.depthwise_time import time_backward, time_step
from tlazy_kernels.depthwise_toeplitz import toeplitz_grad_weight, toeplitz_step
from tlazy_kernels.environment import dot_precision
from tlazy_kernels.epilogue import epilogue_backward
from tlazy_kernels.first_layer import first_layer_grad_weight, first_layer_step
from tlazy_kernels.launch import Buffer, Plan, launch
from tlazy_kernels.layouts import empty_like, strides_like
from tlazy_kernels.positions import Geometry
from tlazy_kernels.targets import Target
from tlazy_kernels.tuned import tuned_convolution

# Filters of a channel from which on the way back to it is a matrix product.
MANY_FILTERS = 16


def plan_convolution(
    target: Target,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    preactivation: Tensor | None,
    geometry: Geometry,
    transposed: bool,
    activation: str | None,
    precision: str,
    config: TileConfig | None,
) -> Plan:
    """Fill y with the depthwise convolution of x, or (transposed) with the way back from x."""
    if y.numel() == 0:
        return Plan((), (), ())
    tensors = (x, weight, bias, y, preactivation)
    stride, (padding, _), dilation, groups = geometry
    if config is None and not transposed:
        one = first_layer_step(*tensors, geometry, activation=activation, precision=precision)
        if one is not None:
            return Plan((), (one,), ())
    if config is None and transposed and weight.shape[0] >= MANY_FILTERS * groups:
        # A contraction over the filters of each channel, long enough for a matrix product.
        buffers, steps = gather_steps(
            target,
            *tensors,
            geometry,
            transposed=True,
            activation=activation,
            precision=precision,
            config=None,
        )
        return Plan((*buffers,), (*steps,), ())
    name = "conv1d_grad_input" if transposed else "conv1d_forward"
    if transposed:
        # The way back over stride 1 is a convolution with the filters turned around.
        padding = (weight.shape[2] - 1) * dilation - padding
    forward = not transposed or (stride == 1 and weight.shape[0] == groups)
    settings: dict[str, Any] = {"flipped": transposed, "activation": activation}
    if forward and config is None:  # it has one tile only, and none to look up
        long = toeplitz_step(target, *tensors, stride, padding, dilation, **settings)
        if long is not None:
            return Plan((), (long,), ())
    config = config or tuned_convolution(
        target, name, x, weight.shape, y.shape[2], geometry, precision
    )
    if forward:
        for plan_step in (time_step, channels_step):
            step = plan_step(*tensors, stride, padding, dilation, **settings, config=config)
            if step is not None:
                return Plan((), (step,), ())
    step = general_step(
        *tensors, geometry, transposed=transposed, activation=activation, config=config
    )
    return Plan((), (step,), ())


def plan_grad_weight(
    target: Target,
    grad: Tensor,
    x: Tensor,
    shape: tuple[int, int, int],
    geometry: Geometry,
    precision: str,
    config: TileConfig | None,
) -> Plan:
    """The weight gradient, of `shape` (C_out, 1, K), summed in splits whose order is fixed."""
    if 0 in shape:
        return Plan((Buffer.of(shape, grad.dtype),), (), (0,))
    if config is None:  # kernels that have one tile only
        one = first_layer_grad_weight(grad, x, shape, geometry, precision=precision)
        stride, (padding, _), dilation, _ = geometry
        one = one or toeplitz_grad_weight(target, grad, x, shape, stride, padding, dilation)
        if one is not None:
            return one
        config = tuned_convolution(
            target, "conv1d_grad_weight", grad, shape, x.shape[2], geometry, precision
        )
    needs = Needs(x=False, weight=True, bias=False)
    inputs = (grad, None, x, None, None)
    plan = _one_pass(target, inputs, shape, x.shape[2], geometry, None, needs, config)
    if plan is not None:
        return plan.renumbered((0, 2), len(inputs))._replace(outputs=(0,))
    return general_grad_weight(grad, x, shape, geometry, config)


def depthwise_backward(
    grad: Tensor,
    saved: Tensor | None,
    x: Tensor | None,
    weight: Tensor | None,
    input_length: int,
    kernel_size: int,
    stride: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    activation: str | None = None,
    needs: Sequence[bool] = (True, True, True),
    channels_last: bool | None = None,
    *,
    config: TileConfig | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """All gradients of ``act(conv1d(x, weight) + bias)`` for a depthwise convolution.

    Where the tensors lie alike and the stride is 1 this is one pass: it reads `grad`, `saved` and
    `x`, writes dL/dx, and sums the other two up on the way, in splits whose order is fixed.

    Args:
        grad: dL/dy, shape (N, C_out, L_out), any strides.
        saved: z for an activation in NEEDS_PREACTIVATION, else y, of `grad`'s shape; None where
            `activation` is None.
        x: shape (N, C_in, L), any strides; may be None where dL/dweight is not needed.
        weight: shape (C_out, 1, K); may be None where dL/dx is not needed.
        input_length: L.
        kernel_size: K.
        stride, padding, dilation, groups: as in ``conv1d_forward``; groups is C_in.
        activation: a name of ``reference.ACTIVATIONS``, or None.
        needs: which of the three gradients are asked for.
        channels_last: the memory layout of dL/dx; by default that of `x`, of `saved` where there
            is no `x`, of `grad` where there is neither.
        config: as in ``conv1d_forward``.

    Returns:
        (dL/dx, dL/dweight, dL/dbias): shapes (N, C_in, L), (C_out, 1, K) and (C_out,), `grad`'s
        dtype; None where not needed.

    Raises:
        RuntimeError, ValueError: as ``checks.depthwise_backward_shapes``, before anything is
            allocated.
    """
    geometry = Geometry(stride, tuple(padding), dilation, groups)  # type: ignore[arg-type]
    needed = Needs(*needs)
    sizes = (input_length, kernel_size, geometry)
    settings = (activation, needed, channels_last, config)
    found = launch(_plan_backward, (grad, saved, x, weight), *sizes, *settings)
    if found:  # nothing comes from an empty plan
        grad_x, grad_weight, grad_bias = found
        return grad_x, grad_weight, grad_bias
    g, grad_bias = epilogue_backward(grad, saved, activation, bias=needed.bias)
    g = grad if g is None else g
    grad_x = grad_weight = None
    how = (dot_precision(grad.dtype, "conv"), config)
    if weight is not None and needed.x:
        like = _first_of(x, saved, grad)
        grad_x = empty_like((grad.shape[0], groups, input_length), like, channels_last)
        launch(plan_convolution, (g, weight, None, grad_x, None), geometry, True, None, *how)
    if x is not None and needed.weight:
        shape = (grad.shape[1], 1, kernel_size)
        (grad_weight,) = launch(plan_grad_weight, (g, x), shape, geometry, *how)
    return grad_x, grad_weight, grad_bias


def _plan_backward(
    target: Target,
    grad: Tensor,
    saved: Tensor | None,
    x: Tensor | None,
    weight: Tensor | None,
    length: int,
    taps: int,
    geometry: Geometry,
    activation: str | None,
    needs: Needs,
    channels_last: bool | None,
    config: TileConfig | None,
) -> Plan:
    """One pass for all gradients; an empty plan where it takes more than one."""
    checks.depthwise_backward_shapes(
        grad, saved, x, weight, length, taps, *geometry, activation, needs
    )
    shape = grad.shape[0], geometry.groups, length
    strides = strides_like(shape, _first_of(x, saved, grad), channels_last)
    grad_x = Buffer.of(shape, grad.dtype, strides) if needs.x else None
    inputs = (
        grad,
        saved,
        x if needs.weight else None,
        weight if needs.x else None,
        None if grad_x is None else grad_x.described(),
    )
    sizes = ((grad.shape[1], 1, taps), length, geometry)
    plan = _one_pass(target, inputs, *sizes, activation, needs, config)
    if plan is None:
        return Plan((), (), ())
    sums = (None if i is None else i + 1 for i in plan.outputs)
    return Plan((grad_x, *plan.buffers), plan.steps, (0 if needs.x else None, *sums))


def _one_pass(
    target: Target,
    inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    shape: tuple[int, int, int],
    length: int,
    geometry: Geometry,
    activation: str | None,
    needs: Needs,
    config: TileConfig | None,
) -> Plan | None:
    """The pass over (grad, saved, x, weight, grad_x) that gives (grad_weight, grad_bias) and fills
    grad_x, or None where no kernel does it all at once."""
    stride, (padding, _), dilation, groups = geometry
    if not (inputs[0].numel() and length and stride == 1 and shape[0] == groups):
        return None
    settings = (shape, length, padding, dilation)
    for plan_pass in (time_backward, channels_backward):
        plan = plan_pass(
            target, inputs, *settings, activation=activation, needs=needs, config=config
        )
        if plan is not None:
            return plan
    return None


def _first_of(*tensors: Tensor | None) -> Tensor:
    return next(x for x in tensors if x is not None)
