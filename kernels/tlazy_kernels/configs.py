"""Tile sizes: a frozen config, and the deterministic rule that picks one."""

from __future__ import annotations

from dataclasses import dataclass

# Enough programs to fill any current GPU twice. A constant rather than the device's own count, so
# that the order of a split reduction, and with it the result, is the same on every device.
TARGET_PROGRAMS = 256


@dataclass(frozen=True)
class TileConfig:
    """Tile of one program: output rows, output columns, contraction; and how it is compiled.

    For a matrix product C = A @ B, `rows` and `cols` tile C and `depth` the contraction. For a
    convolution `rows` are positions (batch and time flattened), `cols` output channels and `depth`
    input channels. Each is a power of two; dots need at least 16.
    """

    rows: int
    cols: int
    depth: int
    num_warps: int = 4
    num_stages: int = 2


def dot_config(rows: int, cols: int, depth: int, itemsize: int) -> TileConfig:
    """The tile for a (rows, depth) @ (depth, cols) product, by sizes alone.

    Args:
        itemsize: bytes of an operand's element. Those of 4 are split into three tf32 parts in
            registers; tiles of more than 64 x 64 then spill on sm_80 and gfx942. So do tiles with
            long sides in 4 warps, narrow as they may be: a side costs addresses.
    """
    block_rows = _tile(rows, 128 if itemsize < 4 else 64)
    # Long and flat tiles of 32 x 128 spill on gfx942; with few rows, more programs serve better.
    block_cols = _tile(cols, 128 if block_rows == 64 and itemsize < 4 else 64)
    return TileConfig(
        rows=block_rows,
        cols=block_cols,
        depth=_tile(depth, 32),
        num_warps=8 if max(block_rows, block_cols) * itemsize >= 256 else 4,
    )


def pointwise_config(rows: int, channels: int, elements: int = 2048) -> TileConfig:
    """The tile, of that many `elements`, for a pass over (rows, channels); nothing is contracted.

    A thread of 4 warps has 16 of 2048 elements, two 16-byte loads of 16 bits. Kernels that load
    them one by one keep an address for each, and take half as many.
    """
    cols = _tile(channels, 32)
    return TileConfig(rows=_tile(rows, elements // cols), cols=cols, depth=1)


def split_rows(rows: int, tiles: int, step: int) -> tuple[int, int]:
    """Split a reduction over `rows`, taken `step` rows at a time, that `tiles` programs share.

    Returns:
        (splits, rows in each): at least one split, of a multiple of `step` rows.
    """
    steps = max(1, _ceil_div(rows, step))
    wanted = max(1, min(TARGET_PROGRAMS // max(tiles, 1), steps // 4))
    rows_per_split = _ceil_div(steps, wanted) * step
    return max(1, _ceil_div(rows, rows_per_split)), rows_per_split


def _tile(size: int, largest: int) -> int:
    return min(largest, max(16, 1 << (size - 1).bit_length()))


def _ceil_div(a: int, b: int) -> int:
    """As ``triton.cdiv``, without its wrappers: these rules stand on the path of every launch."""
    return -(-a // b)
