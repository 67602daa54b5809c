"""The backward pass of a kernel's epilogue: activation and bias, in one pass over memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels import checks
from tlazy_kernels.activations import activation_grad
from tlazy_kernels.configs import TileConfig, pointwise_config, row_piece, split_rows
from tlazy_kernels.environment import dot_precision
from tlazy_kernels.launch import Buffer, Plan, Step, launch, metadata
from tlazy_kernels.layouts import strides_like
from tlazy_kernels.splits import sum_step
from tlazy_kernels.targets import Target
from tlazy_kernels.tf32 import to_tf32
from tlazy_kernels.units import element, units


def _epilogue_backward_metadata(
    grid: tuple, kernel: Any, args: Mapping[str, Any]
) -> dict[str, Any]:
    touched = ["grad_ptr"]
    touched += ["saved_ptr"] * (args["ACTIVATION"] is not None)
    touched += ["out_ptr"] * args["HAS_OUT"]
    touched += ["partial_ptr"] * args["HAS_BIAS"]
    sizes = " ".join(f"{name}={args[name]}" for name in ("outer", "channels", "inner"))
    return metadata(f"{kernel.name} [{sizes}]", 0, args, *touched)


# The units tell what divides these; that 16 does would only be one more kernel for some sizes.
_GIVEN_UNITS = ["channels", "inner", *(f"stride_{of}{axis}" for of in "gsd" for axis in "oci")]


@triton.jit(
    launch_metadata=_epilogue_backward_metadata,
    do_not_specialize=["outer", "steps_per_split"],
    do_not_specialize_on_alignment=_GIVEN_UNITS,
)
def _epilogue_backward_kernel(
    grad_ptr,  # dL/dy, shape (outer, channels, inner)
    saved_ptr,  # z or y, same shape; unread where ACTIVATION is None
    out_ptr,  # dL/dz, same shape; unwritten unless HAS_OUT
    partial_ptr,  # bias gradient's sums of each split, shape (splits, channels)
    outer,
    channels,
    inner,
    steps_per_split,  # of BLOCK_I positions
    stride_go,
    stride_gc,
    stride_gi,
    stride_so,
    stride_sc,
    stride_si,
    stride_do,
    stride_dc,
    stride_di,
    ACTIVATION: tl.constexpr,
    HAS_OUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROUNDED: tl.constexpr,  # out to tf32
    C_UNIT: tl.constexpr,  # as in units.py, of what is read
    L_UNIT: tl.constexpr,
    OUT_C_UNIT: tl.constexpr,  # and of out
    OUT_L_UNIT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    CHANNELS: tl.constexpr = max(C_UNIT, OUT_C_UNIT)
    POSITIONS: tl.constexpr = max(L_UNIT, OUT_L_UNIT)
    channels = channels // CHANNELS * CHANNELS
    inner = inner // POSITIONS * POSITIONS
    c = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)[None, :]
    split = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(tl.cast(inner, tl.int64), BLOCK_I)
    first = split * steps_per_split
    last = tl.minimum(first + steps_per_split, tl.cast(outer, tl.int64) * blocks)
    total = tl.zeros((BLOCK_I, BLOCK_C), dtype=tl.float32)
    for step in range(first, last):
        o = (step // blocks).to(tl.int64)
        i = (step % blocks).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)[:, None]
        mask = (i < inner) & (c < channels)
        place = element(o, c, i, stride_go, stride_gc, stride_gi, C_UNIT, L_UNIT)
        grad = tl.load(grad_ptr + place, mask=mask, other=0.0).to(tl.float32)
        if ACTIVATION is not None:
            place = element(o, c, i, stride_so, stride_sc, stride_si, C_UNIT, L_UNIT)
            saved = tl.load(saved_ptr + place, mask=mask, other=0.0).to(tl.float32)
            grad = activation_grad(grad, saved, ACTIVATION)
        if HAS_OUT:
            place = element(o, c, i, stride_do, stride_dc, stride_di, OUT_C_UNIT, OUT_L_UNIT)
            out = to_tf32(grad) if ROUNDED else grad
            tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=mask)
        if HAS_BIAS:
            total += tl.where(mask, grad, 0.0)
    if HAS_BIAS:
        place = partial_ptr + split * channels + c
        tl.store(place, tl.sum(total, axis=0, keep_dims=True), mask=c < channels)


def epilogue_backward(
    grad: Tensor,
    saved: Tensor | None,
    activation: str | None,
    bias: bool,
    for_tiles: bool = False,
    *,
    config: TileConfig | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """One pass for g = grad * act'(z) and the bias gradient, the sum of g over all but channels.

    Args:
        grad: dL/dy, shape (outer, channels, inner) or (outer, channels), any strides.
        saved: z for an activation in NEEDS_PREACTIVATION, else y, of `grad`'s shape; None where
            `activation` is None.
        activation: a name of ``reference.ACTIVATIONS``, or None.
        bias: whether to compute the bias gradient.
        for_tiles: whether convolutions read g next, in tiles: then it is channels last, and rounded
            to what their products read of it.
        config: tile; by default from the sizes.

    Returns:
        (g, bias gradient): g has `grad`'s shape and dtype and, of three dimensions, the memory
        layout of `saved` (else rows are contiguous) unless it is `for_tiles`. It is None where it
        would be `grad` itself: with neither an activation nor `for_tiles`. The bias gradient has
        shape (channels,), `grad`'s dtype, and is None unless asked for.

    Raises:
        RuntimeError, ValueError: as ``checks.epilogue_shape``, before anything is allocated.
    """
    precision = dot_precision(grad.dtype, "conv") if for_tiles else None
    g, grad_bias = launch(_plan, (grad, saved), activation, bias, for_tiles, precision, config)
    return g, grad_bias


def _plan(
    target: Target,
    grad: Tensor,
    saved: Tensor | None,
    activation: str | None,
    bias: bool,
    for_tiles: bool,
    precision: str | None,
    config: TileConfig | None,
) -> Plan:
    shape = checks.epilogue_shape(grad, saved, activation, for_tiles)
    read = grad if saved is None else saved
    dense = tuple(grad.shape)
    if grad.dim() == 2:
        grad, read = grad.unsqueeze(2), read.unsqueeze(2)
    strides = strides_like(shape, read, channels_last=True if for_tiles else None)
    has_out = activation is not None or for_tiles
    buffers: list[Buffer] = []
    if has_out:
        buffers.append(Buffer.of(dense, grad.dtype, strides[: len(dense)]))
    if bias:
        buffers.append(Buffer.of((shape[1],), grad.dtype))
    g = 0 if has_out else None
    sums = len(buffers) - 1 if bias else None
    if shape[1] == 0 or not buffers:
        return Plan(tuple(buffers), (), (g, sums))
    channels = shape[1]
    outer, inner, rows = _rows(shape, grad.stride(), read.stride(), strides)
    *read_rows, out_row = rows
    channels_last = read_rows[1][1] == 1
    elements = 32 * target.gpu.warp_size  # 8 for each thread of 4 warps: 16 bytes of 16 bits
    if config is None and for_tiles and not channels_last:
        config = _turning_config(inner, channels, target)
    config = config or _config(inner, channels, elements, channels_last=channels_last)
    channel_blocks = -(-channels // config.cols)
    steps = outer * -(-inner // config.rows)
    # Many programs, for their loads wait in turn.
    programs = 32 // config.num_warps * target.processors
    parts, steps_per_part = split_rows(steps, channel_blocks, 1, programs)
    first = 2
    partial = first + (sums or 0)
    if bias and parts > 1:  # one part is the sum itself
        partial = first + len(buffers)
        buffers.append(Buffer.of((parts, channels), torch.float32))
    written = units(channels, inner, grad.element_size(), out_row)
    step = Step(
        _epilogue_backward_kernel,
        (channel_blocks, parts),
        (0, 0 if saved is None else 1, first, partial),
        (outer, channels, inner, steps_per_part, *itertools.chain(*rows)),
        {
            "ACTIVATION": activation,
            "HAS_OUT": has_out,
            "HAS_BIAS": bias,
            "ROUNDED": precision == "tf32",
            **units(channels, inner, grad.element_size(), *read_rows),
            **{f"OUT_{name}": unit for name, unit in written.items()},
            "BLOCK_I": config.rows,
            "BLOCK_C": config.cols,
        },
        num_warps=config.num_warps,
    )
    if sums is None or partial == first + sums:
        return Plan(tuple(buffers), (step,), (g, sums))
    total = sum_step(buffers[-1], (channels,), partial, first + sums, first + sums)
    return Plan(tuple(buffers), (step, total), (g, sums))


def _turning_config(inner: int, channels: int, target: Target) -> TileConfig:
    """A tile that is read along one dimension and written along the other, by 128 threads. Where
    rows are no whole units, each element is a load of its own and has an address: in tiles twice as
    large their registers leave a processor fewer loads at a time."""
    cols = min(16, 1 << (channels - 1).bit_length())
    rows = min(1024 // cols, 1 << (inner - 1).bit_length())
    return TileConfig(rows=rows, cols=cols, depth=1, num_warps=128 // target.gpu.warp_size)


def _config(inner: int, channels: int, elements: int, *, channels_last: bool) -> TileConfig:
    """A tile of so many elements, as wide as may be where they are neighbours: a thread's then
    share an address, whatever the alignment. Of 128 or fewer, pieces are not cut to waste less.
    Small series, of which a tile has one, take fewer warps."""
    if channels_last:
        return pointwise_config(inner, channels, elements, widest=128)
    shortest = min(128, 1 << (inner - 1).bit_length())
    rows = max(row_piece(inner, elements), shortest)
    cols = min(elements // rows, 1 << (channels - 1).bit_length())
    warps = max(1, 4 * rows * cols // elements)
    return TileConfig(rows=rows, cols=cols, depth=1, num_warps=warps)


def _rows(
    shape: tuple[int, int, int], *strides: tuple[int, ...]
) -> tuple[int, int, list[tuple[int, int, int]]]:
    """Outer and inner size, and strides (o, c, i) of each tensor: one row where all lie like one.

    The stride of a dimension of size 1 is of no account.
    """
    outer, channels, inner = shape
    found = [(o if outer > 1 else 0, c if channels > 1 else 0, i) for o, c, i in strides]
    if inner == 1:
        return 1, outer, [(0, c, o) for o, c, _ in found]
    if outer == 1 or all(o == inner * i for o, _, i in found):
        return 1, outer * inner, [(0, c, i) for _, c, i in found]
    return outer, inner, found
