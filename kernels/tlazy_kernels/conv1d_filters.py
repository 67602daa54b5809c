"""The filters of a convolution in the order that tiles read them: [taps, groups, F, C], C dense.

Small groups are put together: a block of groups is one group whose filters are zero for the other
groups' channels (block-diagonal). Products with zeros cost less than tiles that are mostly empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels.configs import HALVES_TAKE_TURNS
from tlazy_kernels.copies import copy_step
from tlazy_kernels.launch import Buffer, Step, metadata
from tlazy_kernels.layouts import UNIT_BYTES, in_units
from tlazy_kernels.targets import Target
from tlazy_kernels.tf32 import to_tf32

# Channels of a group from which on it fills a product's contraction by itself.
FULL_GROUP = 16

# Bytes of a block's channels in a sample: what one copy to shared memory takes in a piece.
BLOCK_BYTES = 128


def groups_together(groups: int, channels: int, filters: int, itemsize: int) -> int:
    """How many groups of so many channels and filters to put together; 1 where they are large.

    >>> groups_together(32, 4, 4, itemsize=2)
    16
    >>> groups_together(20, 4, 8, itemsize=2)  # whole units of 16 bytes
    4
    >>> groups_together(16, 32, 32, itemsize=2)
    1
    """
    if min(channels, filters) >= FULL_GROUP:
        return 1
    most = min(groups, BLOCK_BYTES // itemsize // max(channels, filters, 1))
    fitting = [n for n in range(1, most + 1) if groups % n == 0]
    whole = [n for n in fitting if n * channels * itemsize % UNIT_BYTES == 0]
    return max(whole or fitting, default=1)


def shares_tiles(target: Target) -> bool:
    """Whether the kernel that keeps groups apart compiles: not by Triton 3.6 for Blackwell."""
    return HALVES_TAKE_TURNS or not target.blackwell


def _block_diagonal_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    sizes = f"together={args['together']} F={args['F']} C={args['C']}"
    return metadata(f"{kernel.name} [{sizes}]", 0, args, "source_ptr", "target_ptr")


@triton.jit(launch_metadata=_block_diagonal_metadata)
def _block_diagonal_kernel(
    source_ptr,  # shape (blocks, together, F, C, taps)
    target_ptr,  # shape (taps, blocks, together * F, row), contiguous; zeros between groups
    taps,
    blocks,
    together,
    F,  # of a group
    C,  # of a group
    row,  # together * C or a little more
    source_g,
    source_f,
    source_c,
    source_k,
    ROUNDED: tl.constexpr,  # to tf32
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    columns = tl.cdiv(row, BLOCK_C)
    tiles = tl.cdiv(together * F, BLOCK_F) * columns
    tile = tl.program_id(0) % tiles
    outer = tl.program_id(0) // tiles
    tap, block = outer // blocks, outer % blocks
    f = (tile // columns * BLOCK_F + tl.arange(0, BLOCK_F)).to(tl.int64)
    c = (tile % columns * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    own = (f // F)[:, None] == (c // C)[None, :]
    group = block.to(tl.int64) * together + f // F
    source = (group * source_g + f % F * source_f)[:, None] + (c % C * source_c)[None, :]
    mask = (f < together * F)[:, None] & (c < row)[None, :]
    there = mask & own & (c < together * C)[None, :]
    w = tl.load(source_ptr + source + tap.to(tl.int64) * source_k, mask=there, other=0.0)
    if ROUNDED:
        w = to_tf32(w)
    target = (outer.to(tl.int64) * together * F + f)[:, None] * row + c[None, :]
    tl.store(target_ptr + target, w, mask=mask)


def packed(
    weight: Tensor, groups: int, together: int, transposed: bool, precision: str, place: int
) -> tuple[list[Buffer], list[Step], int, tuple[int, ...]]:
    """The filters as [taps, groups, F, C], C contiguous: in place, or by a copy.

    A copy moves each weight twice, and a convolution that reads it for many positions saves more:
    a tap's weights lie `taps` elements apart in PyTorch's order, which no wide load can take.

    Args:
        weight: shape (C_out, C_in / G, K) of G = groups * together groups; where `transposed`, C_in
            are the filters.
        precision: of the product; a copy is rounded to what that reads of it.
        place: the plan's tensor that a copy would be.

    Returns:
        buffers, steps, the plan's tensor that has them, its first three strides in units.
    """
    out_channels, contracted, taps = weight.shape
    filters = out_channels // (groups * together)
    stride_f, stride_c, stride_k = weight.stride()
    stride_g = filters * stride_f
    if transposed:
        filters, contracted, stride_f, stride_c = contracted, filters, stride_c, stride_f
    source = stride_g, stride_f, stride_c, stride_k
    strides = in_units(weight, (stride_k, taps), (stride_g, groups), (stride_f, filters))
    aligned = weight.data_ptr() % UNIT_BYTES == 0
    unit = UNIT_BYTES // weight.element_size()
    dense = stride_c == 1 and contracted % unit == 0
    if together == 1 and strides and aligned and dense:
        return [], [], 1, strides
    row = triton.cdiv(together * contracted, unit) * unit
    buffer = Buffer.of((taps, groups, together * filters, row), weight.dtype)
    target = groups * together * filters * row, together * filters * row, row
    if together == 1:
        sizes = groups, filters, contracted, taps
        into = target[1], target[2], 1, target[0]
        itemsize = weight.element_size()
        step = copy_step(1, place, sizes, row, source, into, itemsize, precision)
    else:
        sizes = groups, together, filters, contracted
        step = _block_diagonal_step(place, sizes, taps, row, source, precision)
    return [buffer], [step], place, tuple(stride // unit for stride in target)


def _block_diagonal_step(
    place: int,
    sizes: tuple[int, int, int, int],
    taps: int,
    row: int,
    source_strides: tuple[int, int, int, int],
    precision: str,
) -> Step:
    blocks, together, filters, contracted = sizes
    block_f = min(32, triton.next_power_of_2(together * filters))
    block_c = min(64, triton.next_power_of_2(row))
    tiles = triton.cdiv(together * filters, block_f) * triton.cdiv(row, block_c)
    return Step(
        _block_diagonal_kernel,
        (taps * blocks * tiles,),
        (1, place),
        (taps, blocks, together, filters, contracted, row, *source_strides),
        {"ROUNDED": precision == "tf32", "BLOCK_F": block_f, "BLOCK_C": block_c},
        num_warps=4,
    )
