"""Copies that change the order of dimensions in memory, ahead of a product that needs another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels.launch import Buffer, Step, metadata
from tlazy_kernels.layouts import UNIT_BYTES, Tiled
from tlazy_kernels.tf32 import to_tf32
from tlazy_kernels.units import element, units


def _copy_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    sizes = "x".join(str(args[f"size{i}"]) for i in range(4))
    return metadata(f"{kernel.name} [{sizes}]", 0, args, "source_ptr", "target_ptr")


_SIZES = ["filled", *(f"{of}{i}" for of in ("size", "source", "target") for i in range(4))]


@triton.jit(launch_metadata=_copy_metadata, do_not_specialize_on_alignment=_SIZES)
def _copy_kernel(
    source_ptr,  # shape (size0, size1, filled, size3)
    target_ptr,  # shape (size0, size1, size2, size3); zeros from row `filled` on
    size0,
    size1,
    size2,
    size3,
    filled,
    source0,
    source1,
    source2,
    source3,
    target0,
    target1,
    target2,
    target3,
    SOURCE_R: tl.constexpr,  # the units of units.py: of the source's rows
    SOURCE_C: tl.constexpr,  # and columns
    TARGET_R: tl.constexpr,
    TARGET_C: tl.constexpr,
    ROUNDED: tl.constexpr,  # to tf32
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    COLUMNS: tl.constexpr = max(SOURCE_C, TARGET_C)
    size2 = size2 // TARGET_R * TARGET_R
    size3 = size3 // COLUMNS * COLUMNS
    filled = filled // SOURCE_R * SOURCE_R
    columns = tl.cdiv(size3, BLOCK_C)
    tiles = tl.cdiv(size2, BLOCK_R) * columns
    tile = tl.program_id(0) % tiles
    outer = (tl.program_id(0) // tiles).to(tl.int64)
    first, second = outer // size1, outer % size1
    row = ((tile // columns).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    column = ((tile % columns).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    mask = (row < size2) & (column < size3)
    source = first * source0 + second * source1
    target = first * target0 + second * target1
    # Both are taken as one step of a stride, which the units divide as well.
    source = element(1, row, column, source, source2, source3, SOURCE_R, SOURCE_C)
    target = element(1, row, column, target, target2, target3, TARGET_R, TARGET_C)
    copied = tl.load(source_ptr + source, mask=mask & (row < filled), other=0.0)
    if ROUNDED:
        copied = to_tf32(copied)
    tl.store(target_ptr + target, copied, mask=mask)


def copy_step(
    source: int,
    target: int,
    sizes: tuple[int, int, int, int],
    padded: int,
    source_strides: tuple[int, int, int, int],
    target_strides: tuple[int, int, int, int],
    itemsize: int,
    precision: str,
) -> Step:
    """Copy a plan's tensor `source` to `target`, both seen with these sizes and strides.

    The target's third dimension has size `padded`; zeros follow what is copied. Elements have
    `itemsize` bytes, and are rounded to what a product of this `precision` reads of them.

    A program copies a tile of the last two dimensions: of those one should be contiguous in the
    source, one in the target.
    """
    columns = min(64, triton.next_power_of_2(sizes[3]))
    rows = min(4096 // columns, triton.next_power_of_2(sizes[2]))
    tiles = triton.cdiv(padded, rows) * triton.cdiv(sizes[3], columns)
    read = units(sizes[2], sizes[3], itemsize, source_strides[1:], (source_strides[0], 0, 0))
    filled = units(padded, sizes[3], itemsize, target_strides[1:], (target_strides[0], 0, 0))
    return Step(
        _copy_kernel,
        (math.prod(sizes[:2]) * tiles,),
        (source, target),
        (*sizes[:2], padded, sizes[3], sizes[2], *source_strides, *target_strides),
        {
            "SOURCE_R": read["C_UNIT"],
            "SOURCE_C": read["L_UNIT"],
            "TARGET_R": filled["C_UNIT"],
            "TARGET_C": filled["L_UNIT"],
            "ROUNDED": precision == "tf32",
            "BLOCK_R": rows,
            "BLOCK_C": columns,
        },
        num_warps=4,
    )


def tiled_copy(
    x: Tensor, groups: int, source: int, target: int, precision: str
) -> tuple[Buffer, Step, Tiled]:
    """Copy x (N, C, L), a plan's tensor `source`, to channels last, each group in whole units, for
    a product of this precision."""
    batch, channels, length = x.shape
    unit = UNIT_BYTES // x.element_size()
    group = channels // groups
    padded = triton.cdiv(group, unit) * unit
    row = groups * padded
    stride_n, stride_c, stride_l = x.stride()
    step = copy_step(
        source,
        target,
        (batch, groups, group, length),
        padded,
        (stride_n, group * stride_c, stride_c, stride_l),
        (length * row, padded, 1, row),
        x.element_size(),
        precision,
    )
    tiled = Tiled("channels_last", length * row // unit, padded // unit, row // unit)
    return Buffer.of((batch, length, row), x.dtype), step, tiled
