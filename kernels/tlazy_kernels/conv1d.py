"""Direct conv1d: y = act(conv(x, W) + b) and its gradients, without im2col or padded copies.

The convolution is a matrix product whose contraction runs over (input channel, tap); each tap
reads its rows of x in place, shifted. The input gradient is the same product with the shifts
turned around (transposed), the weight gradient one product per tap over all positions. Aligned
memory is read in tiles (conv1d_tiled.py), any other by pointers (conv1d_gather.py). One input
channel per group (depthwise) has no contraction over channels and goes to depthwise.py.

Padding of the series' own samples adds convolutions of its borders (borders.py).

Samples that do not exist (padding; in the input gradient also what the stride skips) may take part
in the product as zeros. An infinite or NaN weight may therefore give NaN where its tap meets one,
as in an explicitly padded convolution; depthwise convolutions, and some of ATen's, leave them out.
Telling them apart would take an accumulator, and a choice, for each tap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
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
from tlazy_kernels.conv1d_gather import gather_step
from tlazy_kernels.conv1d_grad_weight import correlate
from tlazy_kernels.conv1d_tiled import filter_blocks, fits_tiles, readable_tiles, tiled_steps
from tlazy_kernels.copies import copy_pays, tiled_copy
from tlazy_kernels.environment import check_device, dot_precision
from tlazy_kernels.first_layer import first_layer_step
from tlazy_kernels.launch import Buffer, Plan, Step, launch
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
    *,
    activation: str | None = None,
    save_preactivation: bool = False,
    channels_last: bool | None = None,
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
    shape = checks.conv1d_shape(x, weight, bias, stride, padding, dilation, groups, activation)
    checks.check_padding_mode(padding_mode, padding, x.shape[2])
    check_device(x)
    y = layouts.empty_like(shape, x, channels_last)
    z = torch.empty_like(y) if save_preactivation else None
    geometry = Geometry(stride, (padding[0], padding[1]), dilation, groups)
    launch = depthwise.convolve if weight.shape[1] == 1 else convolve
    options: dict[str, Any] = {"bias": bias, "activation": activation, "config": config}
    launch(x, weight, y, geometry, preactivation=z, **options)
    if padding_mode != "zeros":
        unpadded = geometry._replace(padding=(0, 0))
        for read, outputs in border_inputs(x, weight.shape[2], geometry, padding_mode):
            saved = None if z is None else z[:, :, outputs]
            launch(read, weight, y[:, :, outputs], unpadded, preactivation=saved, **options)
    return y, z


def conv1d_grad_input(
    grad: Tensor,
    weight: Tensor,
    input_length: int,
    stride: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    channels_last: bool | None = None,
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
    checks.conv1d_grad_shapes(grad, weight.shape, input_length, stride, padding, dilation, groups)
    checks.same_kind("conv1d", grad=grad, weight=weight)
    checks.check_padding_mode(padding_mode, padding, input_length)
    check_device(grad)
    shape = grad.shape[0], weight.shape[1] * groups, input_length
    out = layouts.empty_like(shape, grad, channels_last)
    geometry = Geometry(stride, (padding[0], padding[1]), dilation, groups)
    launch = depthwise.convolve if weight.shape[1] == 1 else convolve
    launch(grad, weight, out, geometry, transposed=True, config=config)
    if padding_mode != "zeros":
        _grad_sources(grad, weight, out, geometry, padding_mode, config)
    return out


def _grad_sources(
    grad: Tensor,
    weight: Tensor,
    out: Tensor,
    geometry: Geometry,
    mode: str,
    config: TileConfig | None,
) -> None:
    """Fill in the gradients, in out, of samples that padding is made of: summed in fp32."""
    convolution = depthwise.convolve if weight.shape[1] == 1 else convolve
    length, taps = out.shape[2], weight.shape[2]

    def part_of(seen: Window | None, samples: int) -> Tensor:
        shape = *out.shape[:2], samples
        strides = layouts.strides_like(shape, out)
        part = out.new_empty_strided(shape, strides, dtype=torch.float32)
        if seen is None:
            return part.zero_()
        g = grad[:, :, seen.outputs]
        convolution(g, weight, part, seen.geometry, transposed=True, config=config)
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
    shape = checks.conv1d_grad_weight_shape(grad, x, kernel_size, stride, padding, dilation, groups)
    checks.check_padding_mode(padding_mode, padding, x.shape[2])
    check_device(grad)
    geometry = Geometry(stride, (padding[0], padding[1]), dilation, groups)
    launch = depthwise.correlate if shape[1] == 1 else correlate
    if padding_mode == "zeros" or not any(padding):
        return launch(grad, x, shape, geometry, config=config)
    total = launch(grad, x, shape, geometry, dtype=torch.float32, config=config)
    for side in borders(x.shape[2], kernel_size, geometry, padding_mode):
        g = grad[:, :, side.window.outputs]
        read = padding_samples(x, side.right, side.samples, padding_mode)
        total += launch(g, read, shape, side.window.geometry, dtype=torch.float32, config=config)
    return total.to(grad.dtype)


def convolve(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    geometry: Geometry,
    *,
    transposed: bool = False,
    bias: Tensor | None = None,
    activation: str | None = None,
    preactivation: Tensor | None = None,
    config: TileConfig | None = None,
) -> None:
    """Fill y with the convolution of x, or (transposed) with the way back from outputs x."""
    precision = dot_precision(x.dtype, "conv")
    tensors = (x, weight, bias, y, preactivation)
    launch(_plan, tensors, geometry, transposed, activation, precision, config)


def _plan(
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
    tiled, source = None, 0
    buffers: list[Buffer] = []
    steps: list[Step] = []
    together = 1
    if shares_tiles(target):
        together = groups_together(
            geometry.groups,
            x.shape[1] // geometry.groups,
            y.shape[1] // geometry.groups,
            x.element_size(),
        )
    blocks = geometry._replace(groups=geometry.groups // together)
    if fits_tiles(x, y.shape[2], weight.shape[2], geometry):
        tiled = readable_tiles(target, x, blocks.groups, 1 if transposed else geometry.stride)
        reads = weight.shape[2] / (geometry.stride if transposed else 1)
        reads *= filter_blocks(y.shape[1] // geometry.groups)
        if tiled is None and copy_pays(x, reads):
            source = len(tensors)
            buffer, step, tiled = tiled_copy(x, blocks.groups, 0, source)
            buffers.append(buffer)
            steps.append(step)
    if tiled is None:
        return Plan((), (gather_step(target, *tensors, geometry, **settings),), ())
    more, launches = tiled_steps(
        *tensors,
        blocks,
        **settings,
        source=source,
        tiled=tiled,
        target=target,
        together=together,
    )
    return Plan((*buffers, *more), (*steps, *launches), ())
