"""Depthwise conv1d for whatever settings and memory layouts no other kernel takes.

Each load finds its sample by itself: any strides, any number of taps, any dilation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels.activations import activate
from tlazy_kernels.configs import TileConfig, pointwise_config, split_rows
from tlazy_kernels.launch import Buffer, Plan, Step, metadata
from tlazy_kernels.positions import Geometry, source_position
from tlazy_kernels.splits import sum_step


def _depthwise_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    touched = ["x_ptr", "weight_ptr", "y_ptr"]
    touched += ["bias_ptr"] * args["HAS_BIAS"]
    touched += ["preactivation_ptr"] * args["SAVE_PREACTIVATION"]
    outputs = args["x_ptr" if args["TRANSPOSED"] else "y_ptr"].numel()
    return metadata(f"{kernel.name} [{_sizes(args)}]", 2 * outputs * args["taps"], args, *touched)


# What changes with the length; samples are loaded one by one, wherever they lie.
_VARYING = ["batches", "length", "stride_xn"]


@triton.jit(
    launch_metadata=_depthwise_metadata,
    do_not_specialize=_VARYING,
    do_not_specialize_on_alignment=["stride_xc"],
)
def _depthwise_kernel(
    x_ptr,  # shape (N, C_in, length); C_out channels where TRANSPOSED
    weight_ptr,  # shape (C_out, 1, taps)
    bias_ptr,  # shape (channels,); unread unless HAS_BIAS
    y_ptr,  # act(conv + bias), shape (N, channels, out_length)
    preactivation_ptr,  # conv + bias, same shape and strides as y; unwritten unless saved
    batches,
    out_length,
    length,
    channels,
    multiplier,  # C_out / C_in
    taps,
    stride,
    padding,
    dilation,
    stride_xn,
    stride_xc,
    stride_xl,
    stride_wc,
    stride_wk,
    stride_bias,
    stride_yn,
    stride_yc,
    stride_yl,
    TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    tile = tl.program_id(0)
    row = (tile // channel_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = (tile % channel_blocks).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = tl.cast(batches, tl.int64) * out_length
    batch = row // out_length
    position = row % out_length
    acc = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    terms = taps * multiplier if TRANSPOSED else taps
    for term in range(terms):
        tap = term % taps
        if TRANSPOSED:
            out_channel = channel * multiplier + term // taps
            source_channel = out_channel
        else:
            out_channel = channel
            source_channel = channel // multiplier
        source, exists = source_position(
            position, tap, stride, padding, dilation, length, TRANSPOSED
        )
        x = tl.load(
            x_ptr
            + (batch * stride_xn + source * stride_xl)[:, None]
            + (source_channel * stride_xc)[None, :],
            mask=((row < rows) & exists)[:, None] & (channel < channels)[None, :],
            other=0.0,
        )
        w = tl.load(
            weight_ptr + out_channel * stride_wc + tap.to(tl.int64) * stride_wk,
            mask=channel < channels,
            other=0.0,
        )
        # A choice, not a product with the padding's 0: an infinite weight would make that NaN.
        acc += tl.where(exists[:, None], x.to(tl.float32) * w.to(tl.float32)[None, :], 0.0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel * stride_bias, mask=channel < channels, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    target = (batch * stride_yn + position * stride_yl)[:, None] + (channel * stride_yc)[None, :]
    mask = (row < rows)[:, None] & (channel < channels)[None, :]
    if SAVE_PREACTIVATION:
        tl.store(preactivation_ptr + target, acc.to(preactivation_ptr.dtype.element_ty), mask=mask)
    tl.store(y_ptr + target, activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty), mask=mask)


def _depthwise_grad_weight_metadata(
    grid: tuple, kernel: Any, args: Mapping[str, Any]
) -> dict[str, Any]:
    flops = 2 * args["grad_ptr"].numel() * args["taps"]
    name = f"{kernel.name} [{_sizes(args)}]"
    return metadata(name, flops, args, "grad_ptr", "x_ptr", "out_ptr")


def _sizes(args: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={args[name]}" for name in ("out_length", "channels", "taps", "stride"))


@triton.jit(
    launch_metadata=_depthwise_grad_weight_metadata,
    do_not_specialize=_VARYING,
    do_not_specialize_on_alignment=["stride_xc"],
)
def _depthwise_grad_weight_kernel(
    grad_ptr,  # g = dL/dz, shape (N, C_out, out_length)
    x_ptr,  # shape (N, C_in, length)
    out_ptr,  # partial sums, shape (splits, C_out, 1, taps), contiguous
    batches,
    rows_per_split,
    out_length,
    length,
    channels,  # C_out
    multiplier,  # C_out / C_in
    taps,
    stride,
    padding,
    dilation,
    stride_gn,
    stride_gc,
    stride_gl,
    stride_xn,
    stride_xc,
    stride_xl,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tap = tl.program_id(0) % taps
    channel = (tl.program_id(0) // taps).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    split = tl.program_id(1).to(tl.int64)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, tl.cast(batches, tl.int64) * out_length)
    acc = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for start in range(first, last, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R).to(tl.int64)
        batch = row // out_length
        position = row % out_length
        source, exists = source_position(position, tap, stride, padding, dilation, length, False)
        mask = ((row < last) & exists)[:, None] & (channel < channels)[None, :]
        grad = tl.load(
            grad_ptr
            + (batch * stride_gn + position * stride_gl)[:, None]
            + (channel * stride_gc)[None, :],
            mask=mask,
            other=0.0,
        )
        x = tl.load(
            x_ptr
            + (batch * stride_xn + source * stride_xl)[:, None]
            + (channel // multiplier * stride_xc)[None, :],
            mask=mask,
            other=0.0,
        )
        acc += grad.to(tl.float32) * x.to(tl.float32)
    tl.store(
        out_ptr + (split * channels + channel) * taps + tap,
        tl.sum(acc, axis=0).to(out_ptr.dtype.element_ty),
        mask=channel < channels,
    )


def general_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    preactivation: Tensor | None,
    geometry: Geometry,
    *,
    transposed: bool,
    activation: str | None,
    config: TileConfig | None,
) -> Step:
    """Fill y with the convolution of x; the arguments are a plan's first five tensors."""
    batch, channels, out_length = y.shape
    rows = batch * out_length
    config = config or pointwise_config(rows, channels, elements=1024)
    return Step(
        _depthwise_kernel,
        (-(-rows // config.rows) * -(-channels // config.cols),),
        (0, 1, 0 if bias is None else 2, 3, 3 if preactivation is None else 4),
        (
            batch,
            out_length,
            x.shape[2],
            channels,
            weight.shape[0] // geometry.groups,
            weight.shape[2],
            geometry.stride,
            geometry.padding[0],
            geometry.dilation,
            *x.stride(),
            weight.stride(0),
            weight.stride(2),
            0 if bias is None else bias.stride(0),
            *y.stride(),
        ),
        {
            "TRANSPOSED": transposed,
            "ACTIVATION": activation,
            "HAS_BIAS": bias is not None,
            "SAVE_PREACTIVATION": preactivation is not None,
            "BLOCK_R": config.rows,
            "BLOCK_C": config.cols,
        },
        num_warps=config.num_warps,
    )


def general_grad_weight(
    grad: Tensor,
    x: Tensor,
    shape: tuple[int, int, int],
    geometry: Geometry,
    config: TileConfig | None,
) -> Plan:
    """The weight gradient of `shape` (C_out, 1, K), in splits whose order is fixed."""
    channels, _, taps = shape
    batch, _, out_length = grad.shape
    rows = batch * out_length
    config = config or pointwise_config(rows, channels, elements=1024)
    tiles = -(-channels // config.cols) * taps
    parts, rows_per_part = split_rows(rows, tiles, config.rows)
    partial = Buffer.of((parts, *shape), torch.float32)
    step = Step(
        _depthwise_grad_weight_kernel,
        (tiles, parts),
        (0, 1, 3),
        (
            batch,
            rows_per_part,
            out_length,
            x.shape[2],
            channels,
            channels // x.shape[1],
            taps,
            geometry.stride,
            geometry.padding[0],
            geometry.dilation,
            *grad.stride(),
            *x.stride(),
        ),
        {"BLOCK_R": config.rows, "BLOCK_C": config.cols},
        num_warps=config.num_warps,
    )
    steps = (step, sum_step(partial, shape, 3, 2, 2))
    return Plan((Buffer.of(shape, grad.dtype), partial), steps, (0,))
