"""Dense and grouped conv1d by pointers: any strides, any alignment, on any device.

The contraction runs over (input channel, tap); each tap gathers its samples of x in place, shifted.
Samples that do not exist (padding; on the way back also what the stride skips) are zeros. Of the
filters, which every tile reads, a large convolution packs the channels first: wide loads then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels.activations import activate
from tlazy_kernels.configs import TileConfig, dot_config
from tlazy_kernels.conv1d_filters import packed
from tlazy_kernels.conv1d_tiles import columns_of
from tlazy_kernels.copy_cost import LEAST_COPY, WIDEST
from tlazy_kernels.launch import Buffer, Step, metadata
from tlazy_kernels.layouts import UNIT_BYTES
from tlazy_kernels.positions import Geometry, source_position
from tlazy_kernels.targets import Target
from tlazy_kernels.units import element, strides_of, units


def _conv1d_gather_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    touched = ["x_ptr", "weight_ptr", "y_ptr"]
    touched += ["bias_ptr"] * args["HAS_BIAS"]
    touched += ["preactivation_ptr"] * args["SAVE_PREACTIVATION"]
    # Each weight meets each of the shorter side's positions, those in the padding too.
    positions = args["x_ptr" if args["TRANSPOSED"] else "y_ptr"].shape
    products = args["x_ptr"].shape[1] * args["F"] * args["taps"]
    flops = 2 * positions[0] * positions[2] * products
    return metadata(f"{kernel.name} [{_sizes(args)}]", flops, args, *touched)


# What changes with the length; samples are loaded one by one, wherever they lie.
_VARYING = ["batches", "length", "stride_xn"]


@triton.jit(
    launch_metadata=_conv1d_gather_metadata,
    do_not_specialize=_VARYING,
    do_not_specialize_on_alignment=[
        "stride_xc",
        "out_length",
        "stride_yn",
        "stride_yo",
        "stride_yl",
    ],
)
def _conv1d_gather_kernel(
    x_ptr,  # shape (N, groups * C, length)
    weight_ptr,  # element (group, f, c, tap), by four strides, all but stride_wc in W_UNIT
    bias_ptr,  # shape (groups * F,); unread unless HAS_BIAS
    y_ptr,  # act(conv + bias), shape (N, groups * F, out_length)
    preactivation_ptr,  # conv + bias, same shape and strides as y; unwritten unless saved
    batches,
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
    W_UNIT: tl.constexpr,  # elements of 16 bytes where C is contiguous, in whole units; else 1
    TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    SUBTILES: tl.constexpr,
    C_UNIT: tl.constexpr,  # of y, both as in units.py
    L_UNIT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    F = F // C_UNIT * C_UNIT
    out_length = out_length // L_UNIT * L_UNIT
    out_blocks = tl.cdiv(F, BLOCK_F)
    rows = tl.cast(batches, tl.int64) * out_length
    tiles = tl.cdiv(rows, BLOCK_R) * out_blocks
    group = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    row = (tile // out_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    f = (tile % out_blocks).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    batch = row // out_length
    position = row % out_length
    x_rows = x_ptr + batch * stride_xn + group * C * stride_xc
    w_columns = weight_ptr + group * stride_wg * W_UNIT + f * stride_wo * W_UNIT
    w_channels = tl.cdiv(C, W_UNIT) * W_UNIT
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
            (c * stride_wc + tap.to(tl.int64) * stride_wk * W_UNIT)[:, None] + w_columns[None, :],
            mask=(c < w_channels)[:, None] & (f < F)[None, :],
            other=0.0,
        )
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    mask = (row < rows)[:, None]
    for part in tl.static_range(SUBTILES):
        z = columns_of(acc, part, SUBTILES)
        filters = (tile % out_blocks).to(tl.int64) * BLOCK_F
        filters += part * (BLOCK_F // SUBTILES) + tl.arange(0, BLOCK_F // SUBTILES)
        channel = group * F + filters
        if HAS_BIAS:
            bias = tl.load(bias_ptr + channel * stride_bias, mask=filters < F, other=0.0)
            z += bias.to(tl.float32)[None, :]
        target = element(
            batch[:, None], channel[None, :], position[:, None],
            stride_yn, stride_yo, stride_yl, C_UNIT, L_UNIT,
        )  # fmt: skip
        exists = mask & (filters < F)[None, :]
        if SAVE_PREACTIVATION:
            kept = z.to(preactivation_ptr.dtype.element_ty)
            tl.store(preactivation_ptr + target, kept, mask=exists)
        tl.store(y_ptr + target, activate(z, ACTIVATION).to(y_ptr.dtype.element_ty), mask=exists)


def _sizes(args: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={args[name]}" for name in ("out_length", "C", "F", "taps", "stride"))


def gather_steps(
    target: Target,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    preactivation: Tensor | None,
    geometry: Geometry,
    *,
    transposed: bool,
    activation: str | None,
    precision: str,
    config: TileConfig | None,
) -> tuple[list[Buffer], list[Step]]:
    """Fill y with the convolution of x; the tensors are a plan's first five."""
    (batch, channels, length), (_, out_channels, out_length) = x.shape, y.shape
    stride, (padding, _), dilation, groups = geometry
    group_in, group_out = channels // groups, out_channels // groups
    rows = batch * out_length
    config = config or _config(target, rows, group_out, group_in, x.element_size(), precision)
    buffers, steps, filters, strides, unit = _filters(x, weight, groups, transposed, precision)
    tiles = triton.cdiv(rows, config.rows) * triton.cdiv(group_out, config.cols)
    step = Step(
        _conv1d_gather_kernel,
        (tiles * groups,),
        (0, filters, 0 if bias is None else 2, 3, 3 if preactivation is None else 4),
        (
            batch,
            out_length,
            length,
            group_in,
            group_out,
            weight.shape[2],
            stride,
            padding,
            dilation,
            *x.stride(),
            *strides,
            0 if bias is None else bias.stride(0),
            *strides_of(y),
        ),
        {
            "W_UNIT": unit,
            "TRANSPOSED": transposed,
            "ACTIVATION": activation,
            "HAS_BIAS": bias is not None,
            "SAVE_PREACTIVATION": preactivation is not None,
            "PRECISION": precision,
            "SUBTILES": max(1, config.cols // 64),
            **units(group_out, out_length, y.element_size(), strides_of(y)),
            "BLOCK_R": config.rows,
            "BLOCK_F": config.cols,
            "BLOCK_C": config.depth,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return buffers, [*steps, step]


def widest(target: Target) -> int:
    """Filters of a tile at most: each block of them gathers all samples once more. Only Hopper has
    registers for more than 64."""
    return WIDEST if target.copies_tiles and not target.blackwell else WIDEST // 2


def _config(
    target: Target, rows: int, filters: int, channels: int, itemsize: int, precision: str
) -> TileConfig:
    config = dot_config(rows, filters, channels, itemsize)
    thirds = precision == "tf32x3"  # operands are split into three parts in registers
    if filters > 64 and config.rows >= 64 and widest(target) > 64:
        stages = 2 if thirds else 3
        return replace(config, rows=64, cols=widest(target), num_warps=8, num_stages=stages)
    # On Blackwell too few registers are left for copies ahead; where threads copy, for the
    # addresses of a whole tile.
    if thirds and target.blackwell:
        return replace(config, num_stages=1)
    if thirds and not target.copies_tiles:
        return replace(config, depth=16)
    return config


def _filters(
    x: Tensor, weight: Tensor, groups: int, transposed: bool, precision: str
) -> tuple[list[Buffer], list[Step], int, tuple[int, int, int, int], int]:
    """As ``packed`` gives them where x is large enough for a copy: buffers, steps, the plan's
    tensor; strides of a group, a filter, a channel and a tap, and the unit of all but the third."""
    if x.numel() >= LEAST_COPY:
        buffers, steps, place, (tap, group, filters) = packed(
            weight, groups, 1, transposed, precision, 5
        )
        return buffers, steps, place, (group, filters, 1, tap), UNIT_BYTES // x.element_size()
    filters, channel, tap = weight.stride()
    group = weight.shape[0] // groups * filters
    if transposed:
        filters, channel = channel, filters
    return [], [], 1, (group, filters, channel, tap), 1
