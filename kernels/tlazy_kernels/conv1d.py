"""Direct conv1d: y = act(conv(x, W) + b) and its gradients, without im2col or padded copies.

The convolution is a matrix product whose contraction runs over (input channel, tap); each tap
reads its rows of x in place, shifted. The input gradient is the same product with the shifts
turned around (transposed), the weight gradient one product per tap over all positions. Aligned
memory is read in tiles (conv1d_tiled.py), any other by pointers (conv1d_gather.py). One input
channel per group (depthwise) has no contraction over channels and goes to depthwise.py.

Padding of the series' own samples adds convolutions of its borders (borders.py).

Samples that do not exist (padding; in the input gradient also what the stride skips) may take part
in the product as zeros. An infinite or NaN weight or gradient may therefore give NaN where its tap
meets one, as in an explicitly padded convolution; depthwise convolutions, and some of ATen's, leave
them out. Telling them apart would take an accumulator, and a choice, for each tap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from tlazy_kernels import checks, depthwise, layouts
from tlazy_kernels.borders import (
    Window,
    border_inputs,
    borders,
    by_source,
    grad_of_source,
    padding_samples,
    window,
)
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.conv1d_filters import groups_together, shares_tiles
from tlazy_kernels.conv1d_gather import gather_steps, widest
from tlazy_kernels.conv1d_grad_weight import plan_grad_weight
from tlazy_kernels.conv1d_tiled import fits_tiles, source_of, tiled_steps
from tlazy_kernels.environment import dot_precision
from tlazy_kernels.first_layer import first_layer_step
from tlazy_kernels.launch import Buffer, Plan, launch
from tlazy_kernels.positions import Geometry
from tlazy_kernels.targets import Target
from tlazy_kernels.tuned import tuned_convolution


def conv1d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    activation: str | None = None,
    save_preactivation: bool = False,
    channels_last: bool | None = None,
    *,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y = act(conv1d(x, weight) + bias), over x and a padding around it.

    Args:
        x: shape (N, C_in, L), any strides; float32, float16 or bfloat16.
        weight: shape (C_out, C_in / groups, K), any strides, `x`'s dtype.
        bias: shape (C_out,), `x`'s dtype, or None.
        stride, dilation: in samples.
        padding: (left, right), in samples.
        groups: divides C_in and C_out.
        padding_mode: what the padding is made of: ``"zeros"``, or samples: ``"reflect"``,
            ``"replicate"`` or ``"circular"``, as in ``torch.nn.Conv1d``.
        activation: a name of ``reference.ACTIVATIONS``, or None.
        save_preactivation: also give z, for the backward pass of those in NEEDS_PREACTIVATION.
        channels_last: the memory layout of the results; by default that of `x`.
        config: tile; by default from the sizes. Where one is given, a kernel that takes tiles runs,
            also for first layers and long depthwise filters, whose own kernels have one each.

    Returns:
        (y, z): both of shape (N, C_out, L_out) and `x`'s dtype, accumulated in fp32; z is None
        unless asked for.

    Raises:
        RuntimeError, ValueError: as ``checks.conv1d_shape``, before anything is allocated.
    """
    geometry = Geometry(stride, tuple(padding), dilation, groups)  # type: ignore[arg-type]
    how = (activation, dot_precision(x.dtype, "conv"), config)
    new = (padding_mode, channels_last, save_preactivation)
    y, z = launch(_plan_forward, (x, weight, bias), geometry, *new, *how)
    if padding_mode != "zeros":
        unpadded = geometry._replace(padding=(0, 0))
        for read, outputs in border_inputs(x, weight.shape[2], geometry, padding_mode):
            saved = None if z is None else z[:, :, outputs]
            filled = (read, weight, bias, y[:, :, outputs], saved)
            launch(plan_convolution, filled, unpadded, False, *how)
    return y, z


def _plan_forward(
    target: Target,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    padding_mode: str,
    channels_last: bool | None,
    save: bool,
    activation: str | None,
    *settings: Any,
) -> Plan:
    shape = checks.conv1d_shape(x, weight, bias, *geometry, activation)
    checks.check_padding_mode(padding_mode, geometry.padding, x.shape[2])
    y = Buffer.of(shape, x.dtype, layouts.strides_like(shape, x, channels_last))
    tensors = (x, weight, bias)
    return plan_new(target, tensors, y, geometry, False, activation, *settings, save=save)


def conv1d_grad_input(
    grad: Tensor,
    weight: Tensor,
    input_length: int,
    stride: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    channels_last: bool | None = None,
    *,
    config: TileConfig | None = None,
) -> Tensor:
    """dL/dx: each input sample gathers the outputs that used it.

    Args:
        grad: g = dL/dz, shape (N, C_out, L_out), any strides.
        weight: shape (C_out, C_in / groups, K), `grad`'s dtype.
        input_length: L of the input; several give the same L_out where the stride skips samples.
        stride, padding, dilation, groups, padding_mode: as in :func:`conv1d_forward`.
        channels_last: the memory layout of the result; by default that of `grad`.
        config: as in :func:`conv1d_forward`.

    Returns:
        shape (N, C_in, L), `grad`'s dtype.

    Raises:
        RuntimeError: as ``checks.conv1d_grad_shapes``, before anything is allocated.
    """
    geometry = Geometry(stride, tuple(padding), dilation, groups)  # type: ignore[arg-type]
    how = (None, dot_precision(grad.dtype, "conv"), config)
    new = (input_length, padding_mode, channels_last)
    out = launch(_plan_grad_input, (grad, weight, None), geometry, *new, *how)[0]
    if padding_mode != "zeros":
        _grad_sources(grad, weight, out, geometry, padding_mode, *how)
    return out


def _plan_grad_input(
    target: Target,
    grad: Tensor,
    weight: Tensor,
    bias: None,
    geometry: Geometry,
    input_length: int,
    padding_mode: str,
    channels_last: bool | None,
    *settings: Any,
) -> Plan:
    checks.conv1d_grad_shapes(grad, weight.shape, input_length, *geometry)
    checks.same_kind("conv1d", grad=grad, weight=weight)
    checks.check_padding_mode(padding_mode, geometry.padding, input_length)
    shape = grad.shape[0], weight.shape[1] * geometry.groups, input_length
    out = Buffer.of(shape, grad.dtype, layouts.strides_like(shape, grad, channels_last))
    return plan_new(target, (grad, weight, bias), out, geometry, True, *settings)


def _grad_sources(
    grad: Tensor,
    weight: Tensor,
    out: Tensor,
    geometry: Geometry,
    mode: str,
    *settings: Any,
) -> None:
    """Fill in the gradients, in out, of samples that padding is made of: summed in fp32."""
    length, taps = out.shape[2], weight.shape[2]

    def part_of(seen: Window | None, samples: int) -> Tensor:
        shape = *out.shape[:2], samples
        strides = layouts.strides_like(shape, out)
        part = out.new_empty_strided(shape, strides, dtype=torch.float32)
        if seen is None:
            return part.zero_()
        g = grad[:, :, seen.outputs]
        launch(plan_convolution, (g, weight, None, part, None), seen.geometry, True, *settings)
        return part

    for sides in by_source([*borders(length, taps, geometry, mode)]):
        start = min(side.source.start for side in sides)
        stop = max(side.source.stop for side in sides)
        total = part_of(window(start, stop, length, taps, geometry), stop - start)
        for side in sides:
            place = slice(side.source.start - start, side.source.stop - start)
            total[:, :, place] += grad_of_source(part_of(side.window, side.samples), mode)
        out[:, :, start:stop] = total


def conv1d_grad_weight(
    grad: Tensor,
    x: Tensor,
    kernel_size: int,
    stride: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    config: TileConfig | None = None,
) -> Tensor:
    """dL/dweight, summed over batch and time in splits whose order is fixed.

    Args:
        grad: g = dL/dz, shape (N, C_out, L_out), any strides.
        x: shape (N, C_in, L), any strides, `grad`'s dtype.
        kernel_size: K.
        stride, padding, dilation, groups, padding_mode: as in :func:`conv1d_forward`.
        config: as in :func:`conv1d_forward`.

    Returns:
        shape (C_out, C_in / groups, K), `grad`'s dtype.

    Raises:
        RuntimeError: as ``checks.conv1d_grad_weight_shape``, before anything is allocated.
    """
    geometry = Geometry(stride, tuple(padding), dilation, groups)  # type: ignore[arg-type]
    how = (dot_precision(grad.dtype, "conv"), config)
    bordered = padding_mode != "zeros" and any(padding)
    new = (kernel_size, padding_mode, torch.float32 if bordered else grad.dtype)
    total = launch(_plan_grad_weight, (grad, x), geometry, *new, *how)[0]
    if not bordered:
        return total
    part = (kernel_size, "zeros", torch.float32)
    for side in borders(x.shape[2], kernel_size, geometry, padding_mode):
        g = grad[:, :, side.window.outputs]
        read = padding_samples(x, side.right, side.samples, padding_mode)
        total += launch(_plan_grad_weight, (g, read), side.window.geometry, *part, *how)[0]
    return total.to(grad.dtype)


def _plan_grad_weight(
    target: Target,
    grad: Tensor,
    x: Tensor,
    geometry: Geometry,
    kernel_size: int,
    padding_mode: str,
    dtype: torch.dtype,
    *settings: Any,
) -> Plan:
    shape = checks.conv1d_grad_weight_shape(grad, x, kernel_size, *geometry)
    checks.check_padding_mode(padding_mode, geometry.padding, x.shape[2])
    planner = depthwise.plan_grad_weight if shape[1] == 1 else plan_grad_weight
    return planner(target, grad, x, shape, geometry, *settings).in_dtype(dtype)


def plan_new(
    target: Target,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    y: Buffer,
    geometry: Geometry,
    *settings: Any,
    save: bool = False,
) -> Plan:
    """A convolution of (x, weight, bias) into new memory: y and, where it is saved, z."""
    new = y.described()
    outputs = (new, new if save else None)
    plan = plan_convolution(target, *tensors, *outputs, geometry, *settings)
    return Plan((y, y if save else None, *plan.buffers), plan.steps, (0, 1 if save else None))


def plan_convolution(
    target: Target,
    x: Tensor,
    weight: Tensor,
    *tensors_and_settings: Any,
) -> Plan:
    """Fill y with the convolution of x, or (transposed) with the way back from outputs x."""
    _bias, _y, _z, geometry, transposed, *_, config = tensors_and_settings
    dense = weight.shape[1] != 1
    if transposed and geometry.groups == 1 and config is None:
        dense = dense or _contracts_filters(target, weight)
    planner = _plan_dense if dense else depthwise.plan_convolution
    return planner(target, x, weight, *tensors_and_settings)


def _contracts_filters(target: Target, weight: Tensor) -> bool:
    """Whether the way back to one channel is of filters enough for a matrix product.

    In float32, threads that copy tiles themselves have no registers left for operands' parts.
    """
    fits = weight.element_size() < 4 or target.copies_tiles
    return fits and weight.shape[0] >= depthwise.MANY_FILTERS


def _plan_dense(
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
    if y.numel() == 0:
        return Plan((), (), ())
    tensors = (x, weight, bias, y, preactivation)
    if config is None and not transposed:
        step = first_layer_step(*tensors, geometry, activation=activation, precision=precision)
        if step is not None:
            return Plan((), (step,), ())
    name = "conv1d_grad_input" if transposed else "conv1d_forward"
    config = config or tuned_convolution(
        target, name, x, weight.shape, y.shape[2], geometry, precision
    )
    settings: dict[str, Any] = {
        "transposed": transposed,
        "activation": activation,
        "precision": precision,
        "config": config,
    }
    together = 1
    if shares_tiles(target):
        together = groups_together(
            geometry.groups,
            x.shape[1] // geometry.groups,
            y.shape[1] // geometry.groups,
            x.element_size(),
        )
    blocks = geometry._replace(groups=geometry.groups // together)
    source = None
    if fits_tiles(x, y.shape[2], weight.shape[2], geometry):
        # A gather loads for each output and tap: on the way back also what the stride skips.
        reads = weight.shape[2] * y.shape[2] / x.shape[2]
        source = source_of(
            target,
            x,
            place=0,
            free=len(tensors),
            groups=blocks.groups,
            step=1 if transposed else geometry.stride,
            reads=reads * triton.cdiv(y.shape[1] // geometry.groups, widest(target)),
            precision=precision,
        )
    if source is None:
        buffers, steps = gather_steps(target, *tensors, geometry, **settings)
    else:
        buffers, steps = tiled_steps(
            *tensors, blocks, **settings, source=source, target=target, together=together
        )
    return Plan((*buffers,), (*steps,), ())
