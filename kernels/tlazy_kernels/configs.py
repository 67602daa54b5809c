"""Tile sizes: a frozen config, and the deterministic rule that picks one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import triton

from tlazy_kernels.targets import Target

# Enough programs to fill any current GPU twice. A constant rather than the device's own count, so
# that the order of a split reduction, and with it the result, is the same on every device. Products
# by tiles are split for the device instead, of which a constant would leave much idle.
TARGET_PROGRAMS = 256


@dataclass(frozen=True)
class TileConfig:
    """Tile of one program: output rows, output columns, contraction; and how it is compiled.

    For a matrix product C = A @ B, `rows` and `cols` tile C and `depth` the contraction. For a
    convolution `rows` are positions (batch and time flattened), `cols` output channels and `depth`
    input channels. Each is a power of two; dots need at least 16. Where `specialized`, one warp
    group copies tiles while the others multiply (Triton >= 3.8 on Hopper, 4 warps).
    """

    rows: int
    cols: int
    depth: int
    num_warps: int = 4
    num_stages: int = 2
    specialized: bool = False

    @property
    def subtiles(self) -> int:
        """Column parts that the result is stored in; a wide tile at once would spill."""
        return 2 if self.cols >= 128 else 1

    def staged_bytes(self, itemsize: int, target: Target) -> int:
        """Shared memory of the operands' tiles. Where threads copy them, the tile of the last stage
        is still on its way there."""
        stages = self.num_stages if target.copies_tiles else self.num_stages - 1
        return stages * (self.rows + self.cols) * self.depth * itemsize

    def shared_bytes(
        self, itemsize: int, target: Target, out_itemsize: int = 4, parts: int | None = None
    ) -> int:
        """Shared memory: the operands', and on NVIDIA a part of the result on its way out, one of
        `parts`; by default, of `subtiles`."""
        leaving = self.rows * self.cols * out_itemsize // (parts or self.subtiles)
        leaves = target.gpu.backend == "cuda"
        return self.staged_bytes(itemsize, target) + leaves * leaving

    def programs(
        self, itemsize: int, target: Target, out_itemsize: int = 4, parts: int | None = None
    ) -> int:
        """Programs that fit on one processor at once: by shared memory and the accumulator."""
        held = self.shared_bytes(itemsize, target, out_itemsize, parts)
        held += target.shared_reserved + 512
        registers = self.rows * self.cols + 64 * target.gpu.warp_size * self.num_warps
        return max(1, min(target.shared // held, target.registers // registers, 4))


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


def pointwise_config(rows: int, channels: int, elements: int, widest: int = 32) -> TileConfig:
    """The tile, of that many `elements`, for a pass over (rows, channels); nothing is contracted.

    Args:
        widest: most columns of a tile.
    """
    cols = _tile(channels, widest)
    return TileConfig(rows=_tile(rows, elements // cols), cols=cols, depth=1)


def row_piece(length: int, most: int) -> int:
    """The longest piece of a row that reaches at most an eighth of the row behind its end: `most`,
    or a quarter of it, and so on. Each is a kernel of its own, and lengths may vary.
    """
    while most > 8 and -(-length // most) * most * 8 > length * 9:
        most //= 4
    return most


def split_rows(
    rows: int, tiles: int, step: int, programs: int = TARGET_PROGRAMS
) -> tuple[int, int]:
    """Split a reduction over `rows`, taken `step` rows at a time, that `tiles` programs share.

    Args:
        programs: how many there shall be about, all in all.

    Returns:
        (splits, rows in each): at least one split, of a multiple of `step` rows.
    """
    steps = max(1, _ceil_div(rows, step))
    wanted = max(1, min(programs // max(tiles, 1), steps // 4))
    rows_per_split = _ceil_div(steps, wanted) * step
    return max(1, _ceil_div(rows, rows_per_split)), rows_per_split


def _tile(size: int, largest: int) -> int:
    return min(largest, max(16, 1 << (size - 1).bit_length()))


def _ceil_div(a: int, b: int) -> int:
    """As ``triton.cdiv``, without its wrappers: these rules stand on the path of every launch."""
    return -(-a // b)


class Split(NamedTuple):
    """A product's tile, and the equal parts that its contraction is taken in.

    Attributes:
        config: of a tile.
        parts: programs that share each tile of the result; 1 where the contraction is not split.
        depth: of each part but the last, a multiple of the tile's.
    """

    config: TileConfig
    parts: int
    depth: int


# Tiles worth considering, for elements of 2 and of 4 bytes. None spills with any epilogue, which
# the gates see to. Where operands are read by pointers, a thread keeps its addresses and masks in
# registers, which leaves fewer for the tile.
_HALF_TILES = (
    TileConfig(128, 256, 64, num_warps=8, num_stages=3),
    TileConfig(128, 128, 64, num_warps=8, num_stages=4),
    TileConfig(128, 128, 64, num_warps=8, num_stages=3),
    TileConfig(128, 128, 64, num_warps=8, num_stages=2),
    TileConfig(128, 64, 64, num_warps=4, num_stages=4),
    TileConfig(64, 128, 64, num_warps=4, num_stages=4),
    TileConfig(64, 64, 64, num_warps=4, num_stages=4),
    TileConfig(64, 64, 64, num_warps=4, num_stages=2),
    TileConfig(64, 32, 64, num_warps=4, num_stages=6),
    TileConfig(64, 32, 64, num_warps=4, num_stages=2),
)
_SPILLS_ON_AMPERE = _HALF_TILES[2:4]  # beside masks of odd sizes; in 4 stages it does not
_HALF_POINTER_TILES = (
    TileConfig(128, 64, 32, num_warps=8, num_stages=2),
    TileConfig(64, 128, 32, num_warps=8, num_stages=2),
    TileConfig(64, 64, 32, num_warps=4, num_stages=2),
    TileConfig(64, 32, 32, num_warps=4, num_stages=2),
)
_SINGLE_POINTER_TILES = (
    TileConfig(64, 64, 32, num_warps=8, num_stages=2),
    TileConfig(64, 32, 32, num_warps=4, num_stages=2),
)
_SINGLE_TILES = (
    TileConfig(128, 128, 32, num_warps=8, num_stages=3),
    TileConfig(64, 128, 32, num_warps=8, num_stages=3),
    TileConfig(64, 64, 32, num_warps=4, num_stages=4),
    TileConfig(64, 64, 32, num_warps=4, num_stages=2),
    TileConfig(64, 32, 32, num_warps=4, num_stages=4),
    TileConfig(64, 32, 32, num_warps=4, num_stages=2),
)
# There a few bytes spill in 4 warps, in some sizes, and in tf32 in tiles of 64 x 128.
_BLACKWELL_SINGLE_TILES = (
    _SINGLE_TILES[0],
    TileConfig(128, 64, 32, num_warps=8, num_stages=3),
    *(replace(tile, num_warps=8) for tile in _SINGLE_TILES[2:]),
)

# On Blackwell, Triton 3.6 keeps both halves of a result in shared memory at once; 3.9 does not.
HALVES_TAKE_TURNS = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 8)

# Cycles, rounded: of a load from memory; of a step's waiting and bookkeeping; of a program's start,
# its first tiles' way and its last store; of a launch. Bytes that the L2 cache gives one processor
# in a cycle: published products of 128 x 256 tiles at 700 to 850 TFLOP/s on an H100 take 35 to 43
# without multicast, of the 64 that its link is wide. And cycles of an activation's arithmetic an
# element, from its instructions on sm_90.
_LATENCY = 800
_STEP = 40
_START = 2500
LAUNCH_CYCLES = 5000
_CACHE_BYTES = 44
_EPILOGUE = {None: 0.05, "relu": 0.06}
_EPILOGUE_OTHERS = 0.3


def split_contraction(
    m: int,
    n: int,
    k: int,
    itemsize: int,
    precision: str,
    target: Target,
    *,
    activation: str | None = None,
    described: bool = True,
    config: TileConfig | None = None,
) -> Split:
    """The tile, and the split of the contraction, with the least modelled time.

    Args:
        m, n, k: of the product (m, k) @ (k, n).
        itemsize: bytes of an operand's element.
        precision: of the dot, as ``environment.dot_precision``.
        target: to plan for.
        activation: of the result.
        described: whether the operands are read by tensor descriptors, not by pointers.
        config: the tile, where it is not to be chosen.
    """
    tiles = [config] if config else product_tiles(itemsize, target, described=described)
    candidates = [
        Split(tile, _ceil_div(k, depth) if k else 1, depth)
        for tile in tiles
        for depth in _depths(m, n, k, itemsize, tile, target)
    ]
    epilogue = _EPILOGUE.get(activation, _EPILOGUE_OTHERS)
    return min(
        candidates,
        key=lambda split: _cycles(m, n, k, itemsize, precision, target, epilogue, split),
    )


def product_tiles(itemsize: int, target: Target, *, described: bool) -> list[TileConfig]:
    """The tiles to choose from on a target: those that its shared memory holds, and its registers.

    Args:
        described: whether the operands are read by tensor descriptors, not by pointers.
    """
    if not described:
        return list(_HALF_POINTER_TILES if itemsize < 4 else _SINGLE_POINTER_TILES)
    threads_copy = target.gpu.backend == "cuda" and not target.copies_tiles
    single = _BLACKWELL_SINGLE_TILES if target.blackwell else _SINGLE_TILES
    widest = target.copies_tiles and (not target.blackwell or HALVES_TAKE_TURNS)
    largest = (
        128 * 256 if widest else 128 * 128 if itemsize < 4 or target.copies_tiles else 64 * 128
    )
    return [
        tile
        for tile in (_HALF_TILES if itemsize < 4 else single)
        if tile.rows * tile.cols <= largest
        and not (threads_copy and tile in _SPILLS_ON_AMPERE)
        and tile.shared_bytes(itemsize, target) <= target.shared_limit
    ]


def _depths(m: int, n: int, k: int, itemsize: int, tile: TileConfig, target: Target) -> list[int]:
    """Depths of the parts to consider: no split, and those that fill the processors once; or twice,
    where the partial sums are no more than a 25th of the traffic.

    Parts are as even as steps allow, and none is empty: each turns the same number of times.
    """
    steps = max(1, _ceil_div(k, tile.depth))
    tiles = _ceil_div(m, tile.rows) * _ceil_div(n, tile.cols)
    once, twice = target.processors // tiles, 2 * target.processors // tiles
    parts = {1, once}
    if 25 * 8 * twice * m * n <= (m * k + k * n) * itemsize:
        parts.add(twice)
    depths = {_ceil_div(steps, max(1, min(count, steps // 4))) * tile.depth for count in parts}
    return sorted(depths, reverse=True)


def step_cycles(
    tile: TileConfig,
    itemsize: int,
    precision: str,
    target: Target,
    resident: int | None = None,
    sides: int | None = None,
) -> float:
    """Modelled cycles of one step of a tile's contraction, of which a processor may run several.

    Args:
        resident: programs on a processor; by default, as many as it holds.
        sides: rows and columns together of which there is something to read; by default, all.
    """
    step_bytes = (sides or tile.rows + tile.cols) * tile.depth * itemsize
    resident = resident or tile.programs(itemsize, target)
    in_flight = resident * max(tile.num_stages - 1, 1) * step_bytes
    rate = min(_CACHE_BYTES, in_flight / _LATENCY)
    exact = 8 if itemsize == 4 else 1
    slowdown = {"ieee": exact, "tf32": 2, "tf32x3": 6}[precision]
    return _STEP + max(
        2 * max(tile.rows, 64) * tile.cols * tile.depth * slowdown / target.flops,
        step_bytes / rate,
    )


def _cycles(
    m: int,
    n: int,
    k: int,
    itemsize: int,
    precision: str,
    target: Target,
    epilogue: float,
    split: Split,
) -> float:
    """Modelled cycles of a product: the busiest processor's steps, each bound by the matrix units
    or by what the cache and the bytes in flight let through; the epilogues, which run beside
    another program's steps where there is one; the start; the memory's least time."""
    tile, parts, depth = split
    out_itemsize = itemsize if parts == 1 else 4
    programs = _ceil_div(m, tile.rows) * _ceil_div(n, tile.cols) * parts
    in_turn = _ceil_div(programs, target.processors)
    resident = min(tile.programs(itemsize, target, out_itemsize), in_turn)
    sides = min(tile.rows, m) + min(tile.cols, n)  # beyond the edges descriptors read nothing
    step = step_cycles(tile, itemsize, precision, target, resident, sides)
    store = out_itemsize / target.memory_bytes / 2 + (epilogue if parts == 1 else 0.05)
    each = _ceil_div(depth, tile.depth) * step + tile.rows * tile.cols * store / resident
    busy = in_turn * each + _START
    least = (m * k + k * n + m * n) * itemsize / target.memory_bytes / target.processors
    total = max(busy, least)
    if parts > 1:
        total += LAUNCH_CYCLES + 8 * parts * m * n / target.memory_bytes / target.processors
    return total
