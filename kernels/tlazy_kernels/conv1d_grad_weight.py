"""The weight gradient of a dense or grouped conv1d: for each tap, dY^T times the rows it reads.

The sum over batch and time is taken in parts, which are added in a fixed order. As the forward
pass, it reads tiles through tensor descriptors where memory is aligned, and by pointers elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels.configs import TileConfig, dot_config, split_rows
from tlazy_kernels.conv1d_configs import (
    grad_weight_config,
    grad_weight_parts,
    series_in_tile,
    subtiles,
)
from tlazy_kernels.conv1d_filters import groups_together
from tlazy_kernels.conv1d_tiled import Source, fits_tiles, form_on, source_of
from tlazy_kernels.conv1d_tiles import columns_of, load_rows, rows_of
from tlazy_kernels.first_layer import first_layer_grad_weight
from tlazy_kernels.launch import Buffer, Plan, Step, metadata
from tlazy_kernels.positions import Geometry, source_position
from tlazy_kernels.splits import sum_step
from tlazy_kernels.targets import Target
from tlazy_kernels.tf32 import to_tf32
from tlazy_kernels.tuned import tuned_convolution
from tlazy_kernels.units import element, strides_of, units


def _grad_weight_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    products = args["groups"] * args["F"] * args["C"] // args.get("TOGETHER", 1) * args["taps"]
    flops = 2 * args["batch"] * args["out_length"] * products
    sizes = " ".join(f"{size}={args[size]}" for size in ("out_length", "C", "F", "taps"))
    return metadata(f"{kernel.name} [{sizes}]", flops, args, "grad_ptr", "x_ptr", "out_ptr")


# What changes with the length: strides are in whole units.
_VARYING = ["batch", "length", "out_length", "steps_per_part"]
_VARYING += ["stride_gn", "stride_gg", "stride_gt", "stride_xn", "stride_xg", "stride_xt"]


@triton.jit(launch_metadata=_grad_weight_metadata, do_not_specialize=_VARYING)
def _grad_weight_tiled_kernel(
    grad_ptr,  # g = dL/dz, shape (batch, groups * F, out_length)
    x_ptr,  # shape (batch, groups * C, length)
    out_ptr,  # partial sums, shape (parts, groups * F, C / TOGETHER, taps), contiguous
    batch,
    length,
    out_length,
    groups,
    C,
    F,
    taps,
    padding,
    dilation,
    steps_per_part,
    stride_gn,
    stride_gg,
    stride_gt,
    stride_xn,
    stride_xg,
    stride_xt,
    STRIDE: tl.constexpr,
    GRAD_FORM: tl.constexpr,  # as in conv1d_tiled.form_on
    X_FORM: tl.constexpr,
    L_UNIT: tl.constexpr,  # divides out_length
    PRECISION: tl.constexpr,
    SUBTILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TOGETHER: tl.constexpr,  # small groups in each group: blocks on the diagonal are kept
):
    out_length = out_length // L_UNIT * L_UNIT
    in_blocks = tl.cdiv(C, BLOCK_C)
    out_blocks = tl.cdiv(F, BLOCK_F)
    tap = tl.program_id(0) % taps
    f = tl.program_id(0) // taps % out_blocks * BLOCK_F
    c = tl.program_id(0) // (taps * out_blocks) % in_blocks * BLOCK_C
    group = tl.program_id(0) // (taps * out_blocks * in_blocks)
    part = tl.program_id(1)
    lift = tl.cdiv(padding, STRIDE)
    offset = tap * dilation - padding + lift * STRIDE
    source = offset // STRIDE - lift
    phase = offset % STRIDE
    # Rows that this tap reads: none behind the last output, whose gradient's zeros would meet them.
    rows = tl.minimum(tl.cdiv(length - phase, STRIDE), out_length + source)
    grad = rows_of(
        grad_ptr, batch, out_length, groups, F, stride_gn, stride_gg, stride_gt,
        1, GRAD_FORM, BLOCK_N, BLOCK_L, BLOCK_F,
    )  # fmt: skip
    x = rows_of(
        x_ptr, batch, length if X_FORM == "words" else tl.maximum(rows, 1), groups, C,
        stride_xn, stride_xg, stride_xt, STRIDE, X_FORM, BLOCK_N, BLOCK_L, BLOCK_C,
    )  # fmt: skip
    row_blocks = tl.cdiv(out_length, BLOCK_L)
    first = part * steps_per_part
    last = tl.minimum(first + steps_per_part, row_blocks * tl.cdiv(batch, BLOCK_N))
    # No channel where the tap reads padding alone: a descriptor has one row at least.
    read_c = tl.where(rows > 0, c, in_blocks * BLOCK_C)
    acc = tl.zeros((BLOCK_F, BLOCK_C), dtype=tl.float32)
    for step in range(first, last):
        n = step // row_blocks * BLOCK_N
        row = step % row_blocks * BLOCK_L
        g = load_rows(grad, n, row, 0, group, f, GRAD_FORM, BLOCK_N, BLOCK_L, BLOCK_F)
        read = load_rows(
            x, n, row + source, phase, group, read_c, X_FORM, BLOCK_N, BLOCK_L, BLOCK_C
        )
        # In tf32 the matrix units take neighbours in the contraction; else registers pass them.
        if PRECISION == "tf32" and GRAD_FORM == "channels_last":
            g = to_tf32(g)
        if PRECISION == "tf32" and X_FORM == "channels_last":
            read = to_tf32(read)
        if X_FORM == "words":  # the last may hold samples behind these rows
            read = tl.where((row + source + tl.arange(0, BLOCK_L) < rows)[:, None], read, 0.0)
        acc = tl.dot(g.T, read, acc, input_precision=PRECISION)
    filters = f + tl.arange(0, BLOCK_F)
    out_row = (part.to(tl.int64) * groups + group) * F + filters
    for i in tl.static_range(SUBTILES):
        total = columns_of(acc, i, SUBTILES)
        channels = c + i * (BLOCK_C // SUBTILES) + tl.arange(0, BLOCK_C // SUBTILES)
        each = C // TOGETHER
        mask = (filters < F)[:, None] & (channels < C)[None, :]
        if TOGETHER > 1:
            mask &= (filters // (F // TOGETHER))[:, None] == (channels // each)[None, :]
            channels %= each
        # 32 bits for the place within a filter: in 64, registers spill on sm_80.
        target = (out_row * each * taps + tap)[:, None] + (channels * taps)[None, :]
        tl.store(out_ptr + target, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(
    launch_metadata=_grad_weight_metadata,
    do_not_specialize=["batch", "length", "stride_xn"],
    do_not_specialize_on_alignment=[
        "stride_xc",
        "out_length",
        "stride_gn",
        "stride_go",
        "stride_gl",
    ],
)
def _grad_weight_gather_kernel(
    grad_ptr,  # g = dL/dz, shape (N, groups * F, out_length)
    x_ptr,  # shape (N, groups * C, length)
    out_ptr,  # partial sums, shape (splits, groups * F, C, taps), contiguous
    batch,
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
    C_UNIT: tl.constexpr,  # of the gradient, both as in units.py
    L_UNIT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    F = F // C_UNIT * C_UNIT
    out_length = out_length // L_UNIT * L_UNIT
    in_blocks = tl.cdiv(C, BLOCK_C)
    tiles = tl.cdiv(F, BLOCK_F) * in_blocks * taps
    group = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    split = tl.program_id(1).to(tl.int64)
    tap = tile % taps
    f = (tile // taps // in_blocks).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    c = (tile // taps % in_blocks).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    grad_channel = (group * F + f)[:, None]
    x_channels = x_ptr + (group * C + c) * stride_xc
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, tl.cast(batch, tl.int64) * out_length)
    acc = tl.zeros((BLOCK_F, BLOCK_C), dtype=tl.float32)
    for start in range(first, last, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R).to(tl.int64)
        series = row // out_length
        position = row % out_length
        source, exists = source_position(position, tap, stride, padding, dilation, length, False)
        place = element(
            series[None, :],
            grad_channel,
            position[None, :],
            stride_gn,
            stride_go,
            stride_gl,
            C_UNIT,
            L_UNIT,
        )
        grad = tl.load(
            grad_ptr + place,
            mask=(f < F)[:, None] & (row < last)[None, :],
            other=0.0,
        )
        x = tl.load(
            (series * stride_xn + source * stride_xl)[:, None] + x_channels[None, :],
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


def plan_grad_weight(
    target: Target,
    grad: Tensor,
    x: Tensor,
    shape: tuple[int, int, int],
    geometry: Geometry,
    precision: str,
    config: TileConfig | None,
) -> Plan:
    """The weight gradient, of `shape` (C_out, C_in / groups, K)."""
    out = Buffer.of(shape, grad.dtype)
    if 0 in shape:
        return Plan((out,), (), (0,))
    if config is None:
        plan = first_layer_grad_weight(grad, x, shape, geometry, precision=precision)
        if plan is not None:
            return plan
    config = config or tuned_convolution(
        target, "conv1d_grad_weight", grad, shape, x.shape[2], geometry, precision
    )
    itemsize = x.element_size()
    together = groups_together(geometry.groups, shape[1], shape[0] // geometry.groups, itemsize)
    blocks = geometry._replace(groups=geometry.groups // together)
    sources: list[Source] = []
    if shape[1] * shape[2] < 2**31 and fits_tiles(x, grad.shape[2], shape[2], geometry):
        sources = _sources(target, grad, x, shape, blocks, together, precision)
    if not sources:
        parts, product = _gather_step(grad, x, shape, geometry, precision, config)
    else:
        config = config or grad_weight_config(
            target,
            rows=grad.shape[0] * grad.shape[2],
            filters=shape[0] // blocks.groups,
            channels=shape[1] * together,
            copies=shape[2] * blocks.groups,
            itemsize=itemsize,
            precision=precision,
            words=sources[1].tiled.form == "words",
        )
        parts, product = _tiled_step(
            target, grad, x, sources, shape, blocks, precision, config, together
        )
    buffers = [buffer for source in sources for buffer in source.buffers]
    steps = [step for source in sources for step in source.steps]
    last = 2 + len(buffers)
    if parts == 1:
        return Plan((*buffers, out), (*steps, product), (len(buffers),))
    partial = Buffer.of((parts, *shape), torch.float32)
    total = sum_step(partial, shape, last, last + 1, last + 1)
    return Plan((*buffers, partial, out), (*steps, product, total), (len(buffers) + 1,))


def _sources(
    target: Target,
    grad: Tensor,
    x: Tensor,
    shape: tuple[int, int, int],
    geometry: Geometry,
    together: int,
    precision: str,
) -> list[Source]:
    """What is read in tiles for gradient and x; none where copies that they need do not pay. Of the
    weight's groups, each of `geometry` has `together`."""
    group_out = shape[0] // (geometry.groups * together)
    sources: list[Source] = []
    for i, (tensor, step, others) in enumerate(
        ((grad, 1, shape[1]), (x, geometry.stride, group_out))
    ):
        reads = shape[2] * grad.shape[2] / tensor.shape[2]  # for each output and tap
        source = source_of(
            target,
            tensor,
            place=i,
            free=2 + sum(len(source.buffers) for source in sources),
            groups=geometry.groups,
            step=step,
            reads=reads * triton.cdiv(others, 64),  # columns of a gather's tile
            precision=precision,
            shifted=i == 1,
        )
        if source is None:
            return []
        sources.append(source)
    return sources


def _tiled_step(
    target: Target,
    grad: Tensor,
    x: Tensor,
    sources: list[Source],
    shape: tuple[int, int, int],
    geometry: Geometry,
    precision: str,
    config: TileConfig,
    together: int,
) -> tuple[int, Step]:
    """(parts, the launch that fills them)."""
    out_channels, group_in, taps = shape
    group_in *= together
    batch, _, out_length = grad.shape
    stride, (padding, _), dilation, groups = geometry
    group_out = out_channels // groups
    tiled_grad, tiled_x = (source.tiled for source in sources)
    of_grad = units(group_out, out_length, grad.element_size(), strides_of(grad))
    several = tiled_grad.channels_last and tiled_x.channels_last
    block_n = series_in_tile(config.depth, out_length) if several else 1
    block_l = config.depth // block_n
    tiles = triton.cdiv(group_out, config.rows) * triton.cdiv(group_in, config.cols) * taps * groups
    steps = triton.cdiv(out_length, block_l) * triton.cdiv(batch, block_n)
    elements = math.prod(shape)
    parts, steps_per_part, _ = grad_weight_parts(
        target, config, steps, tiles, elements, x.element_size(), precision
    )
    step = Step(
        _grad_weight_tiled_kernel,
        (tiles, parts),
        (*(source.place for source in sources), 2 + sum(len(s.buffers) for s in sources)),
        (
            batch,
            x.shape[2],
            out_length,
            groups,
            group_in,
            group_out,
            taps,
            padding,
            dilation,
            steps_per_part,
            tiled_grad.stride_n,
            tiled_grad.stride_g,
            tiled_grad.stride_t,
            tiled_x.stride_n,
            tiled_x.stride_g,
            tiled_x.stride_t,
        ),
        {
            "STRIDE": stride,
            "GRAD_FORM": form_on(target, tiled_grad),
            "X_FORM": form_on(target, tiled_x),
            "L_UNIT": of_grad["L_UNIT"],
            "PRECISION": precision,
            "SUBTILES": subtiles(config, target),
            "BLOCK_N": block_n,
            "BLOCK_L": block_l,
            "BLOCK_F": config.rows,
            "BLOCK_C": config.cols,
            "TOGETHER": together,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return parts, step


def _gather_step(
    grad: Tensor,
    x: Tensor,
    shape: tuple[int, int, int],
    geometry: Geometry,
    precision: str,
    config: TileConfig | None,
) -> tuple[int, Step]:
    """(parts, the launch that fills them)."""
    out_channels, group_in, taps = shape
    batch, _, out_length = grad.shape
    stride, (padding, _), dilation, groups = geometry
    group_out = out_channels // groups
    rows = batch * out_length
    config = config or dot_config(group_out, group_in, rows, x.element_size())
    tiles = triton.cdiv(group_out, config.rows) * triton.cdiv(group_in, config.cols) * taps * groups
    parts, rows_per_split = split_rows(rows, tiles, config.depth)
    step = Step(
        _grad_weight_gather_kernel,
        (tiles, parts),
        (0, 1, 2),
        (
            batch,
            rows_per_split,
            out_length,
            x.shape[2],
            group_in,
            group_out,
            groups,
            taps,
            stride,
            padding,
            dilation,
            *strides_of(grad),
            *x.stride(),
        ),
        {
            "PRECISION": precision,
            **units(group_out, out_length, grad.element_size(), strides_of(grad)),
            "BLOCK_R": config.depth,
            "BLOCK_F": config.rows,
            "BLOCK_C": config.cols,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return parts, step
