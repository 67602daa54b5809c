"""Direct conv1d: y = act(conv(x, W) + b) and its gradients, without im2col or padded copies.

The convolution is a matrix product whose contraction runs over (input channel, tap); each tap
reads its rows of x in place, shifted. The input gradient is the same product with the shifts
turned around, the weight gradient one product per tap over all positions. One input channel per
group (depthwise) has no contraction over channels and goes to depthwise.py.

Samples that do not exist (padding; in the input gradient also what the stride skips) take part in
the product as zeros. An infinite or NaN weight therefore gives NaN where its tap meets one, as an
explicitly padded convolution does; depthwise convolutions, and some of ATen's, leave them out.
Telling them apart would take an accumulator, and a choice, for each tap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels import checks, depthwise
from tlazy_kernels.activations import activate
from tlazy_kernels.configs import TileConfig, dot_config, split_rows
from tlazy_kernels.launch import check_device, dot_precision, metadata, sum_splits
from tlazy_kernels.positions import Geometry, source_position


def _conv1d_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    touched = ["x_ptr", "weight_ptr", "y_ptr"]
    touched += ["bias_ptr"] * args["HAS_BIAS"]
    touched += ["preactivation_ptr"] * args["SAVE_PREACTIVATION"]
    # Each weight meets each of the shorter side's positions, those in the padding too.
    positions = args["x_ptr" if args["TRANSPOSED"] else "y_ptr"].shape
    flops = 2 * positions[0] * positions[2] * args["weight_ptr"].numel()
    return metadata(f"{kernel.name} [{_sizes(args)}]", flops, args, *touched)


@triton.jit(launch_metadata=_conv1d_metadata)
def _conv1d_kernel(
    x_ptr,  # shape (N, groups * C, length)
    weight_ptr,  # element (group, f, c, tap), by four strides
    bias_ptr,  # shape (groups * F,); unread unless HAS_BIAS
    y_ptr,  # act(conv + bias), shape (N, groups * F, out_length)
    preactivation_ptr,  # conv + bias, same shape and strides as y; unwritten unless saved
    rows,  # N * out_length
    out_length,
    length,
    C,  # contraction channels a group
    F,  # filters (output channels) a group
    taps,
    stride,
    padding,
    dilation,
    stride_xn,
    stride_xc,
    stride_xl,
    stride_wg,
    stride_wo,
    stride_wc,
    stride_wk,
    stride_bias,
    stride_yn,
    stride_yo,
    stride_yl,
    TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    out_blocks = tl.cdiv(F, BLOCK_F)
    tiles = tl.cdiv(rows, BLOCK_R) * out_blocks
    group = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    row = (tile // out_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    f = (tile % out_blocks).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    batch = row // out_length
    position = row % out_length
    x_rows = x_ptr + batch * stride_xn + group * C * stride_xc
    w_columns = weight_ptr + group * stride_wg + f * stride_wo
    acc = tl.zeros((BLOCK_R, BLOCK_F), dtype=tl.float32)
    for step in range(tl.cdiv(C, BLOCK_C) * taps):
        tap = step % taps
        c = (step // taps).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
        source, exists = source_position(
            position, tap, stride, padding, dilation, length, TRANSPOSED
        )
        x = tl.load(
            (x_rows + source * stride_xl)[:, None] + (c * stride_xc)[None, :],
            mask=((row < rows) & exists)[:, None] & (c < C)[None, :],
            other=0.0,
        )
        w = tl.load(
            (c * stride_wc + tap.to(tl.int64) * stride_wk)[:, None] + w_columns[None, :],
            mask=(c < C)[:, None] & (f < F)[None, :],
            other=0.0,
        )
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    channel = group * F + f
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel * stride_bias, mask=f < F, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    target = (batch * stride_yn + position * stride_yl)[:, None] + (channel * stride_yo)[None, :]
    mask = (row < rows)[:, None] & (f < F)[None, :]
    if SAVE_PREACTIVATION:
        tl.store(preactivation_ptr + target, acc.to(preactivation_ptr.dtype.element_ty), mask=mask)
    tl.store(y_ptr + target, activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty), mask=mask)


def _conv1d_grad_weight_metadata(
    grid: tuple, kernel: Any, args: Mapping[str, Any]
) -> dict[str, Any]:
    flops = 2 * args["rows"] * args["groups"] * args["F"] * args["C"] * args["taps"]
    name = f"{kernel.name} [{_sizes(args)}]"
    return metadata(name, flops, args, "grad_ptr", "x_ptr", "out_ptr")


def _sizes(args: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={args[name]}" for name in ("rows", "C", "F", "taps", "stride"))


@triton.jit(launch_metadata=_conv1d_grad_weight_metadata)
def _conv1d_grad_weight_kernel(
    grad_ptr,  # g = dL/dz, shape (N, groups * F, out_length)
    x_ptr,  # shape (N, groups * C, length)
    out_ptr,  # partial sums, shape (splits, groups * F, C, taps), contiguous
    rows,  # N * out_length
    rows_per_split,
    out_length,
    length,
    C,
    F,
    groups,
    taps,
    stride,
    padding,
    dilation,
    stride_gn,
    stride_go,
    stride_gl,
    stride_xn,
    stride_xc,
    stride_xl,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    in_blocks = tl.cdiv(C, BLOCK_C)
    tiles = tl.cdiv(F, BLOCK_F) * in_blocks * taps
    group = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    split = tl.program_id(1).to(tl.int64)
    tap = tile % taps
    f = (tile // taps // in_blocks).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    c = (tile // taps % in_blocks).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    grad_channels = grad_ptr + (group * F + f) * stride_go
    x_channels = x_ptr + (group * C + c) * stride_xc
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, rows)
    acc = tl.zeros((BLOCK_F, BLOCK_C), dtype=tl.float32)
    for start in range(first, last, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R).to(tl.int64)
        batch = row // out_length
        position = row % out_length
        source, exists = source_position(position, tap, stride, padding, dilation, length, False)
        grad = tl.load(
            grad_channels[:, None] + (batch * stride_gn + position * stride_gl)[None, :],
            mask=(f < F)[:, None] & (row < last)[None, :],
            other=0.0,
        )
        x = tl.load(
            (batch * stride_xn + source * stride_xl)[:, None] + x_channels[None, :],
            mask=((row < last) & exists)[:, None] & (c < C)[None, :],
            other=0.0,
        )
        acc = tl.dot(grad, x, acc, input_precision=PRECISION)
    out_row = (split * groups + group) * F + f
    tl.store(
        out_ptr + (out_row * C)[:, None] * taps + c[None, :] * taps + tap,
        acc.to(out_ptr.dtype.element_ty),
        mask=(f < F)[:, None] & (c < C)[None, :],
    )


def conv1d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    save_preactivation: bool = False,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y = act(conv1d(x, weight) + bias), zeros standing for what the padding adds.

    Args:
        x: shape (N, C_in, L), any strides; float32, float16 or bfloat16.
        weight: shape (C_out, C_in / groups, K), any strides, `x`'s dtype.
        bias: shape (C_out,), `x`'s dtype, or None.
        stride, dilation: in samples.
        padding: zeros (left, right), in samples.
        groups: divides C_in and C_out.
        activation: a name of ``reference.ACTIVATIONS``, or None.
        save_preactivation: also give z, for the backward pass of those in NEEDS_PREACTIVATION.
        config: tile; by default from the sizes.

    Returns:
        (y, z): both of shape (N, C_out, L_out) and `x`'s dtype, contiguous, accumulated in fp32;
        z is None unless asked for.

    Raises:
        RuntimeError, ValueError: as ``checks.conv1d_shape``, before anything is allocated.
    """
    shape = checks.conv1d_shape(x, weight, bias, stride, padding, dilation, groups, activation)
    check_device(x)
    y = torch.empty(shape, dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if save_preactivation else None
    geometry = Geometry(stride, (padding[0], padding[1]), dilation, groups)
    launch = depthwise.convolve if weight.shape[1] == 1 else convolve
    launch(
        x,
        weight,
        y,
        geometry,
        bias=bias,
        activation=activation,
        preactivation=z,
        config=config,
    )
    return y, z


def conv1d_grad_input(
    grad: Tensor,
    weight: Tensor,
    input_length: int,
    stride: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    *,
    config: TileConfig | None = None,
) -> Tensor:
    """dL/dx: each input sample gathers the outputs that used it.

    Args:
        grad: g = dL/dz, shape (N, C_out, L_out), any strides.
        weight: shape (C_out, C_in / groups, K), `grad`'s dtype.
        input_length: L of the input; several give the same L_out where the stride skips samples.
        stride, padding, dilation, groups: as in :func:`conv1d_forward`.
        config: tile; by default from the sizes.

    Returns:
        shape (N, C_in, L), `grad`'s dtype.

    Raises:
        RuntimeError: as ``checks.conv1d_grad_shapes``, before anything is allocated.
    """
    checks.conv1d_grad_shapes(grad, weight.shape, input_length, stride, padding, dilation, groups)
    checks.same_kind("conv1d", grad=grad, weight=weight)
    check_device(grad)
    out = grad.new_empty((grad.shape[0], weight.shape[1] * groups, input_length))
    geometry = Geometry(stride, (padding[0], padding[1]), dilation, groups)
    launch = depthwise.convolve if weight.shape[1] == 1 else convolve
    launch(grad, weight, out, geometry, transposed=True, config=config)
    return out


def conv1d_grad_weight(
    grad: Tensor,
    x: Tensor,
    kernel_size: int,
    stride: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    *,
    config: TileConfig | None = None,
) -> Tensor:
    """dL/dweight, summed over batch and time in splits whose order is fixed.

    Args:
        grad: g = dL/dz, shape (N, C_out, L_out), any strides.
        x: shape (N, C_in, L), any strides, `grad`'s dtype.
        kernel_size: K.
        stride, padding, dilation, groups: as in :func:`conv1d_forward`.
        config: tile; by default from the sizes.

    Returns:
        shape (C_out, C_in / groups, K), `grad`'s dtype.

    Raises:
        RuntimeError: as ``checks.conv1d_grad_weight_shape``, before anything is allocated.
    """
    shape = checks.conv1d_grad_weight_shape(grad, x, kernel_size, stride, padding, dilation, groups)
    check_device(grad)
    geometry = Geometry(stride, (padding[0], padding[1]), dilation, groups)
    launch = depthwise.correlate if shape[1] == 1 else correlate
    return launch(grad, x, shape, geometry, config=config)


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
    batch, channels, length = x.shape
    out_length = y.shape[2]
    group_in, group_out = channels // geometry.groups, y.shape[1] // geometry.groups
    if y.numel() == 0:
        return
    rows, taps = batch * out_length, weight.shape[2]
    stride_out, stride_in, stride_tap = weight.stride()
    stride_group = weight.shape[0] // geometry.groups * stride_out
    if transposed:
        stride_out, stride_in = stride_in, stride_out
    config = config or dot_config(rows, group_out, group_in, x.element_size())
    tiles = triton.cdiv(rows, config.rows) * triton.cdiv(group_out, config.cols)
    with torch.cuda.device_of(x):
        _conv1d_kernel[(tiles * geometry.groups,)](
            x,
            weight,
            x if bias is None else bias,
            y,
            y if preactivation is None else preactivation,
            rows,
            out_length,
            length,
            group_in,
            group_out,
            taps,
            geometry.stride,
            geometry.padding[0],
            geometry.dilation,
            *x.stride(),
            stride_group,
            stride_out,
            stride_in,
            stride_tap,
            0 if bias is None else bias.stride(0),
            *y.stride(),
            TRANSPOSED=transposed,
            ACTIVATION=activation,
            HAS_BIAS=bias is not None,
            SAVE_PREACTIVATION=preactivation is not None,
            PRECISION=dot_precision(x.dtype, "conv"),
            BLOCK_R=config.rows,
            BLOCK_F=config.cols,
            BLOCK_C=config.depth,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )


def correlate(
    grad: Tensor,
    x: Tensor,
    shape: tuple[int, int, int],
    geometry: Geometry,
    *,
    config: TileConfig | None = None,
) -> Tensor:
    """The weight gradient, of `shape` (C_out, C_in / groups, K): one product per tap."""
    if 0 in shape:
        return grad.new_empty(shape)
    out_channels, group_in, taps = shape
    batch, _, out_length = grad.shape
    groups = geometry.groups
    group_out = out_channels // groups
    rows = batch * out_length
    config = config or dot_config(group_out, group_in, rows, x.element_size())
    tiles = triton.cdiv(group_out, config.rows) * triton.cdiv(group_in, config.cols) * taps * groups
    splits, rows_per_split = split_rows(rows, tiles, config.depth)
    out = grad.new_empty((splits, *shape), dtype=grad.dtype if splits == 1 else torch.float32)
    with torch.cuda.device_of(x):
        _conv1d_grad_weight_kernel[(tiles, splits)](
            grad,
            x,
            out,
            rows,
            rows_per_split,
            out_length,
            x.shape[2],
            group_in,
            group_out,
            groups,
            taps,
            geometry.stride,
            geometry.padding[0],
            geometry.dilation,
            *grad.stride(),
            *x.stride(),
            PRECISION=dot_precision(x.dtype, "conv"),
            BLOCK_R=config.depth,
            BLOCK_F=config.rows,
            BLOCK_C=config.cols,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return sum_splits(out, grad.dtype)
