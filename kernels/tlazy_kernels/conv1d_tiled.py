"""Dense and grouped conv1d by tiles that tensor descriptors read: aligned memory, either layout.

A tap of the filter reads a tile of x in place, as rows that lie `step` samples apart: sample t is
row t // step of residue t % step, so that a strided or dilated tap is a dense tile of the view
[N, L / step, step, groups, C], and the device fills with zeros what lies beyond its borders. The
filters come as [taps, groups, F, C], contraction last. The way back (transposed) writes rows that
lie `stride` apart, one residue of output positions a tile: of those taps alone that reach it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels import layouts
from tlazy_kernels.activations import activate
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.conv1d_configs import conv1d_config, series_in_tile
from tlazy_kernels.copies import copy_step
from tlazy_kernels.launch import Buffer, Step, metadata
from tlazy_kernels.layouts import UNIT_BYTES, Tiled, in_units
from tlazy_kernels.positions import Geometry
from tlazy_kernels.targets import Target


@triton.jit
def rows_of(
    ptr,  # shape (batch, groups * channels, step * rows), and perhaps less than a row more
    batch,
    rows,
    groups,
    channels,
    stride_n,
    stride_g,
    stride_t,  # of a sample where CHANNELS_LAST, of a channel where not
    STEP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Descriptor of a tensor whose rows lie STEP samples apart; all else reads as zeros.

    Strides are in units of 16 bytes, which lets the compiler know that addresses are aligned.
    """
    UNIT: tl.constexpr = 128 // ptr.dtype.element_ty.primitive_bitwidth
    stride_n = tl.cast(stride_n, tl.int64) * UNIT
    stride_g = tl.cast(stride_g, tl.int64) * UNIT
    stride_t = tl.cast(stride_t, tl.int64) * UNIT
    if CHANNELS_LAST:
        channels = tl.cdiv(channels, UNIT) * UNIT  # as many in memory; a copy has zeros there
        tensor = tl.make_tensor_descriptor(
            ptr,
            [batch, rows, STEP, groups, channels],
            [stride_n, STEP * stride_t, stride_t, stride_g, 1],
            [BLOCK_N, BLOCK_L, 1, 1, BLOCK_C],
        )
    else:
        tl.static_assert((STEP == 1) & (BLOCK_N == 1), "samples must be neighbours in a tile")
        tensor = tl.make_tensor_descriptor(
            ptr,
            [batch, groups, channels, rows],
            [stride_n, stride_g, stride_t, 1],
            [1, 1, BLOCK_C, BLOCK_L],
        )
    return tensor


@triton.jit
def load_rows(
    tensor,
    n,
    row,
    residue,
    group,
    c,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile of shape (BLOCK_N * BLOCK_L, BLOCK_C) of such a descriptor."""
    if CHANNELS_LAST:
        tile = tensor.load([n, row, residue, group, c]).reshape(BLOCK_N * BLOCK_L, BLOCK_C)
    else:
        tile = tensor.load([n, group, c, row]).reshape(BLOCK_C, BLOCK_L).T
    return tile


@triton.jit
def _add_taps(
    acc,  # shape (BLOCK_N * BLOCK_L, BLOCK_F)
    x,
    weight,
    n,
    row,
    group,
    f,
    first,
    every,
    count,  # of the taps first, first + every, ...
    steps,  # of the product: count * cdiv(C, BLOCK_C)
    padding,
    dilation,
    lift,
    residue,
    STEP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """acc + the product over (input channels, these taps), taps within channels."""
    for i in range(steps):
        tap = first + i % count * every
        c = i // count * BLOCK_C
        # `lift` rows are added and taken off again, because division rounds towards zero.
        if TRANSPOSED:
            source = (residue + padding - tap * dilation) // STEP
            phase = 0
        else:
            offset = tap * dilation - padding + lift * STEP
            source = offset // STEP - lift
            phase = offset % STEP
        rows = load_rows(
            x, n, row + source, phase, group, c, CHANNELS_LAST, BLOCK_N, BLOCK_L, BLOCK_C
        )
        filters = weight.load([tap, group, f, c]).reshape(BLOCK_F, BLOCK_C)
        acc = tl.dot(rows, filters.T, acc, input_precision=PRECISION)
    return acc


def _conv1d_tiled_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    touched = ["x_ptr", "weight_ptr", "y_ptr"]
    touched += ["bias_ptr"] * args["HAS_BIAS"]
    touched += ["preactivation_ptr"] * args["SAVE_PREACTIVATION"]
    # Each weight meets each of the shorter side's positions, those in the padding too.
    positions = args["length" if args["TRANSPOSED"] else "out_length"]
    weights = math.prod(args[size] for size in ("taps", "groups", "F", "C"))
    sizes = " ".join(f"{size}={args[size]}" for size in ("batch", "out_length", "C", "F", "taps"))
    flops = 2 * args["batch"] * positions * weights
    return metadata(f"{kernel.name} [{sizes}]", flops, args, *touched)


@triton.jit(launch_metadata=_conv1d_tiled_metadata)
def _conv1d_tiled_kernel(
    x_ptr,  # shape (batch, groups * C, length)
    weight_ptr,  # shape (taps, groups, F, C)
    bias_ptr,  # shape (groups * F,); unread unless HAS_BIAS
    y_ptr,  # act(conv + bias), shape (batch, groups * F, out_length)
    preactivation_ptr,  # conv + bias, same shape and strides as y; unwritten unless saved
    batch,
    length,
    out_length,
    groups,
    C,  # contraction channels a group
    F,  # filters (output channels) a group
    taps,
    padding,
    dilation,
    period,  # every so many taps, source rows have the same residue
    programs,
    stride_xn,
    stride_xg,
    stride_xt,
    stride_wk,
    stride_wg,
    stride_wf,
    stride_bias,
    stride_yn,
    stride_yc,
    stride_yl,
    STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    FLATTEN: tl.constexpr,  # one loop over all tiles' steps; STRIDE is 1
    SUBTILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    X_STEP: tl.constexpr = 1 if TRANSPOSED else STRIDE
    Y_STEP: tl.constexpr = STRIDE if TRANSPOSED else 1
    UNIT: tl.constexpr = 128 // weight_ptr.dtype.element_ty.primitive_bitwidth
    weight = tl.make_tensor_descriptor(
        weight_ptr,
        [taps, groups, F, tl.cdiv(C, UNIT) * UNIT],
        [
            tl.cast(stride_wk, tl.int64) * UNIT,
            tl.cast(stride_wg, tl.int64) * UNIT,
            tl.cast(stride_wf, tl.int64) * UNIT,
            1,
        ],
        [1, 1, BLOCK_F, BLOCK_C],
    )
    if X_STEP == 1:
        x = rows_of(
            x_ptr, batch, length, groups, C, stride_xn, stride_xg, stride_xt,
            1, CHANNELS_LAST, BLOCK_N, BLOCK_L, BLOCK_C,
        )  # fmt: skip
    lift = tl.cdiv(padding, STRIDE)
    filter_blocks = tl.cdiv(F, BLOCK_F)
    row_blocks = tl.cdiv(tl.cdiv(out_length, Y_STEP), BLOCK_L)
    batch_blocks = tl.cdiv(batch, BLOCK_N)
    tiles = filter_blocks * Y_STEP * row_blocks * batch_blocks * groups
    channel_blocks = tl.cdiv(C, BLOCK_C)
    # Triton makes one loop of two only where each tile is known to take the same number of steps.
    every_tap = taps * channel_blocks
    tl.assume(every_tap > 0)
    for tile in tl.range(tl.program_id(0), tiles, programs, flatten=FLATTEN):
        f = tile % filter_blocks * BLOCK_F
        residue = tile // filter_blocks % Y_STEP
        row = tile // (filter_blocks * Y_STEP) % row_blocks * BLOCK_L
        tile_of_series = tile // (filter_blocks * Y_STEP * row_blocks)
        n = tile_of_series % batch_blocks * BLOCK_N
        group = tile_of_series // batch_blocks
        acc = tl.zeros((BLOCK_N * BLOCK_L, BLOCK_F), dtype=tl.float32)
        if X_STEP == 1:
            first, every, count, steps = 0, 1, taps, every_tap
            if Y_STEP > 1:  # the first tap that reaches positions of this residue, if any does
                first, every = taps, period
                for tap in range(tl.minimum(period, taps)):
                    if (residue + padding + (period * dilation - tap * dilation)) % Y_STEP == 0:
                        first = tap
                count = tl.cdiv(taps - first, period)
                steps = count * channel_blocks
            acc = _add_taps(
                acc, x, weight, n, row, group, f, first, every, count, steps,
                padding, dilation, lift, residue, STRIDE, TRANSPOSED, CHANNELS_LAST, PRECISION,
                BLOCK_N, BLOCK_L, BLOCK_F, BLOCK_C,
            )  # fmt: skip
        else:
            # The last row is whole only for the first residues; there each has its own descriptor.
            reach = (taps - 1) * dilation // X_STEP + 1
            inside = row + BLOCK_L + reach <= length // X_STEP
            parts = 1 if inside else tl.minimum(period, taps)
            every = 1 if inside else period
            for part in range(parts):
                phase = (part * dilation - padding + lift * X_STEP) % X_STEP
                rows = length // X_STEP
                if not inside:
                    rows = tl.cdiv(length - phase, X_STEP)
                count = tl.where(rows > 0, tl.cdiv(taps - part, every), 0)
                x = rows_of(
                    x_ptr, batch, tl.maximum(rows, 1), groups, C, stride_xn, stride_xg, stride_xt,
                    X_STEP, CHANNELS_LAST, BLOCK_N, BLOCK_L, BLOCK_C,
                )  # fmt: skip
                acc = _add_taps(
                    acc, x, weight, n, row, group, f, part, every, count, count * channel_blocks,
                    padding, dilation, lift, 0, STRIDE, TRANSPOSED, CHANNELS_LAST, PRECISION,
                    BLOCK_N, BLOCK_L, BLOCK_F, BLOCK_C,
                )  # fmt: skip
        within = tl.arange(0, BLOCK_N * BLOCK_L)
        series = n.to(tl.int64) + within // BLOCK_L
        position = (row.to(tl.int64) + within % BLOCK_L) * Y_STEP + residue
        exists = (series < batch) & (position < out_length)
        target = series * stride_yn + position * stride_yl
        for part in tl.static_range(SUBTILES):
            z = columns_of(acc, part, SUBTILES)
            filters = f + part * (BLOCK_F // SUBTILES) + tl.arange(0, BLOCK_F // SUBTILES)
            channel = group.to(tl.int64) * F + filters
            if HAS_BIAS:
                bias = tl.load(bias_ptr + channel * stride_bias, mask=filters < F, other=0.0)
                z += bias.to(tl.float32)[None, :]
            mask = exists[:, None] & (filters < F)[None, :]
            element = target[:, None] + (channel * stride_yc)[None, :]
            if SAVE_PREACTIVATION:
                kept = z.to(preactivation_ptr.dtype.element_ty)
                tl.store(preactivation_ptr + element, kept, mask=mask)
            y = activate(z, ACTIVATION).to(y_ptr.dtype.element_ty)
            tl.store(y_ptr + element, y, mask=mask)


@triton.jit
def columns_of(x, part: tl.constexpr, PARTS: tl.constexpr):
    """That part of the columns of x. An epilogue of whole large tiles would need more registers."""
    if PARTS == 1:
        found = x
    else:
        halves: tl.constexpr = PARTS // 2
        split = tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))
        found = columns_of(split[part // halves], part % halves, halves)
    return found


def fits_tiles(x: Tensor, out_length: int, taps: int, geometry: Geometry) -> bool:
    """Whether there is something to contract, and 32 bits hold every sample's and tile's number."""
    stride, padding, dilation, _ = geometry
    longest = max(out_length, x.shape[2] + sum(padding) + (taps + stride) * dilation)
    return x.numel() > 0 and longest < 2**31 and x.shape[0] * out_length < 2**36


def readable_tiles(target: Target, x: Tensor, groups: int, step: int) -> Tiled | None:
    """How tiles of x, with rows `step` samples apart, can be read in place, or None.

    Where samples are neighbours, a tap's tile starts at any of them, which only TMA reads well,
    and of samples further apart it reads nothing.
    """
    tiled = layouts.tiled(x, groups)
    if tiled is None or tiled.channels_last:
        return tiled
    return tiled if step == 1 and target.copies_tiles and layouts.ANY_START else None


def subtiles(config: TileConfig) -> int:
    """Parts of a tile's columns to store one after another: 16 elements of each of 32 threads."""
    return max(1, config.rows * config.cols // (16 * config.num_warps * 32))


def filter_blocks(filters: int) -> int:
    """How often a product by gathered tiles reads each of its rows for each tap."""
    return triton.cdiv(filters, 64)


def tiled_steps(
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
    source: int,
    tiled: Tiled,
    target: Target,
) -> tuple[list[Buffer], list[Step]]:
    """Fill y with the convolution of x; the tensors are a plan's first five, in this order.

    `source` is the plan's tensor that has x in a form that can be read as `tiled`: x, or a copy.
    """
    (batch, channels, length), (_, out_channels, out_length) = x.shape, y.shape
    stride, (padding, _), dilation, groups = geometry
    taps, residues = weight.shape[2], stride if transposed else 1
    rows = triton.cdiv(out_length, residues)
    filters, contracted = out_channels // groups, channels // groups
    config = config or conv1d_config(
        target,
        batch=batch,
        rows=rows,
        filters=filters,
        channels=contracted,
        taps=taps / residues,
        groups=groups * residues,
        itemsize=x.element_size(),
        precision=precision,
        channels_last=tiled.channels_last,
    )
    block_n = series_in_tile(config.rows, rows) if tiled.channels_last else 1
    block_l = config.rows // block_n
    tiles = triton.cdiv(filters, config.cols) * triton.cdiv(rows, block_l)
    tiles *= triton.cdiv(batch, block_n) * groups * residues
    buffers, steps, packed, strides = _packed(
        weight, groups, transposed, 5 if source == 0 else source + 1
    )
    programs = min(tiles, target.processors * config.programs(x.element_size(), target))
    step = Step(
        _conv1d_tiled_kernel,
        (programs,),
        (source, packed, source if bias is None else 2, 3, 3 if preactivation is None else 4),
        (
            batch,
            length,
            out_length,
            groups,
            contracted,
            filters,
            taps,
            padding,
            dilation,
            stride // math.gcd(stride, dilation),
            programs,
            tiled.stride_n,
            tiled.stride_g,
            tiled.stride_t,
            *strides,
            0 if bias is None else bias.stride(0),
            *y.stride(),
        ),
        {
            "STRIDE": stride,
            "TRANSPOSED": transposed,
            "CHANNELS_LAST": tiled.channels_last,
            "ACTIVATION": activation,
            "HAS_BIAS": bias is not None,
            "SAVE_PREACTIVATION": preactivation is not None,
            "PRECISION": precision,
            # Copied by threads, the next tile's first operands would need more shared memory.
            "FLATTEN": stride == 1 and target.copies_tiles,
            "SUBTILES": subtiles(config),
            "BLOCK_N": block_n,
            "BLOCK_L": block_l,
            "BLOCK_F": config.cols,
            "BLOCK_C": config.depth,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return buffers, [*steps, step]


def _packed(
    weight: Tensor, groups: int, transposed: bool, place: int
) -> tuple[list[Buffer], list[Step], int, tuple[int, ...]]:
    """The filters as [taps, groups, F, C], C contiguous: in place, or by a copy.

    A copy moves each weight twice, and a convolution that reads it for many positions saves more:
    a tap's weights lie `taps` elements apart in PyTorch's order, which no wide load can take.

    Args:
        place: the plan's tensor that a copy would be.

    Returns:
        buffers, steps, the plan's tensor that has them, its first three strides in units.
    """
    out_channels, in_channels, taps = weight.shape
    filters, contracted = out_channels // groups, in_channels
    stride_f, stride_c, stride_k = weight.stride()
    stride_g = filters * stride_f
    if transposed:
        filters, contracted, stride_f, stride_c = contracted, filters, stride_c, stride_f
    sizes = groups, filters, contracted, taps
    strides = in_units(weight, (stride_k, taps), (stride_g, groups), (stride_f, filters))
    aligned = weight.data_ptr() % UNIT_BYTES == 0
    unit = UNIT_BYTES // weight.element_size()
    if strides and aligned and stride_c == 1 and contracted % unit == 0:
        return [], [], 1, strides
    row = triton.cdiv(contracted, unit) * unit
    buffer = Buffer((taps, groups, filters, row), weight.dtype)
    target = groups * filters * row, filters * row, row
    strides = tuple(stride // unit for stride in target)
    source = stride_g, stride_f, stride_c, stride_k
    step = copy_step(1, place, sizes, row, source, (target[1], target[2], 1, target[0]))
    return [buffer], [step], place, strides
