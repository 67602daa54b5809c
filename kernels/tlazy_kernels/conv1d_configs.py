"""Tiles of dense and grouped conv1d: the deterministic rule that picks one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from tlazy_kernels.configs import LAUNCH_CYCLES, TileConfig, step_cycles
from tlazy_kernels.targets import Target

# Cycles, rounded, of a tile's start: its first loads' way, and the descriptors' where they change.
_START = 1500

# Of a weight gradient: the least steps worth a part of their own, and the most parts in turn that
# a processor is given. More would even out what a last round leaves idle, and add partial sums. And
# what a model cannot tell from the least time.
_LEAST_STEPS = 4
_MOST_ROUNDS = 8
_NEARLY = 1.04


def series_in_tile(config_rows: int, rows: int) -> int:
    """How many series, of so many output rows each, share a tile: short ones would not fill it."""
    return max(1, config_rows // (1 << (rows - 1).bit_length()))


def subtiles(config: TileConfig, target: Target) -> int:
    """Parts of a tile's columns to store one after another: 16 elements of each of 32 threads, or 8
    where registers would not do: beside addresses to copy tiles from, and where two warp groups
    read their sums from Blackwell's tensor memory."""
    few = target.blackwell and config.num_warps == 8
    few |= target.gpu.backend == "cuda" and not target.copies_tiles and config.num_warps == 4
    elements = 8 if few else 16
    return max(1, config.rows * config.cols // (elements * config.num_warps * 32))


def programs_of(
    config: TileConfig,
    itemsize: int,
    target: Target,
    *,
    series: int = 1,
    together: int = 1,
    apart: bool = False,
) -> int:
    """Programs of a convolution that fit on one processor at once: no more than registers allow,
    else some would wait for the others to end.

    Args:
        series: in a tile; tiles of several go through registers.
        together: as in :func:`conv1d_config`.
        apart: whether elements are written one by one, each to an address of its own.
    """
    threads_copy = target.gpu.backend == "cuda" and not target.copies_tiles
    each = 160 if threads_copy else 64
    each += 32 * (together > 1) + 64 * apart
    held = config.rows * config.cols * (2 if together > 1 else 1)
    if itemsize == 4:  # split into parts
        held += 3 * config.rows * config.depth
    elif series > 1 or together > 1:
        held += config.rows * config.depth
    held += each * target.gpu.warp_size * config.num_warps
    fit = config.programs(itemsize, target, parts=subtiles(config, target))
    if target.gpu.backend != "cuda":  # a result may leave as a whole, once operands are done with
        fit = min(fit, target.shared // (config.rows * config.cols * 4))
    return max(1, min(fit, target.registers // held))


def conv1d_config(
    target: Target,
    *,
    batch: int,
    rows: int,
    filters: int,
    channels: int,
    taps: float,
    groups: int,
    itemsize: int,
    precision: str,
    channels_last: bool,
    words: bool,
    together: int = 1,
    apart: bool = False,
) -> TileConfig:
    """The tile with the least modelled time for a convolution.

    Args:
        target: to plan for.
        rows: output positions of one series, or of each residue of them.
        filters, channels: of a group, written and contracted.
        taps: that a row's sum has, on average.
        groups: of channels, times residues.
        itemsize: bytes of an element.
        precision: of the dot, as ``environment.dot_precision``.
        channels_last: whether a tile may take rows of several series.
        words: whether tiles of samples are put together from words (``layouts.Tiled.form``).
        together: small groups in each group, which a second accumulator keeps apart.
        apart: as in :func:`programs_of`.
    """

    def cycles(tile: TileConfig) -> float:
        series = series_in_tile(tile.rows, rows) if channels_last else 1
        count = -(-batch // series) * -(-rows // (tile.rows // series)) * -(-filters // tile.cols)
        steps = max(1.0, taps * -(-channels // tile.depth))
        store = tile.rows * tile.cols * itemsize / target.memory_bytes
        resident = programs_of(
            tile, itemsize, target, series=series, together=together, apart=apart
        )
        step = step_cycles(tile, itemsize, precision, target, resident)
        each = steps * step + store + _START / resident
        return -(-count * groups // target.processors) * each

    tiles = list(_tiles(target, filters, channels, itemsize, words))
    if target.blackwell and precision == "tf32x3":  # in 4, sums and the parts of operands spill
        tiles = [replace(tile, num_warps=8) for tile in tiles]
    if together > 1:
        # Where threads copy tiles, they keep addresses as well: 256 threads share them.
        least = min(tile.rows for tile in tiles)
        warps = least // 16 if target.copies_tiles else 256 // target.gpu.warp_size
        tiles = [replace(tile, num_warps=warps) for tile in tiles if tile.rows == least]
    return _nearly_least(tiles, cycles)


def grad_weight_config(
    target: Target,
    *,
    rows: int,
    filters: int,
    channels: int,
    copies: int,
    itemsize: int,
    precision: str,
    words: bool,
) -> TileConfig:
    """The tile with the least modelled time for a weight gradient, a sum over `rows` in parts.

    Args:
        target: to plan for.
        rows: of the sum: output positions of all series.
        filters, channels: of a group.
        copies: taps times groups, each of which is such a product.
        itemsize, precision, words: as in :func:`conv1d_config`.
    """

    def cycles(tile: TileConfig) -> float:
        tiles = -(-filters // tile.rows) * -(-channels // tile.cols) * copies
        steps = -(-rows // tile.depth)
        elements = filters * channels * copies
        found = grad_weight_parts(target, tile, steps, tiles, elements, itemsize, precision)
        return found.cycles

    return _nearly_least(_tiles(target, channels, rows, itemsize, words), cycles)


class Sum(NamedTuple):
    """How a weight gradient's sum is taken.

    Attributes:
        parts: how many, which another launch adds up where there are several.
        steps: of each part but the last.
        cycles: modelled, of it all.
    """

    parts: int
    steps: int
    cycles: float


def grad_weight_parts(
    target: Target,
    tile: TileConfig,
    steps: int,
    tiles: int,
    elements: int,
    itemsize: int,
    precision: str,
) -> Sum:
    """Nearly the least modelled time, in few parts: none, or as many as give all processors as
    nearly the same as they can. The same on every call.

    Args:
        steps: of a tile's sum.
        tiles: of the gradient, for all taps and groups.
        elements: of the gradient.
    """
    fit = programs_of(tile, itemsize, target)
    memory = target.memory_bytes * target.processors

    def split(wanted: int) -> Sum:
        each = max(1, -(-steps // max(1, min(wanted, steps // _LEAST_STEPS))))
        parts = max(1, -(-steps // each))
        in_turn = -(-tiles * parts // target.processors)
        resident = min(fit, in_turn)
        step = step_cycles(tile, itemsize, precision, target, resident)
        cycles = in_turn * (each * step + _START / resident)
        if parts > 1:  # partial sums are written and read
            cycles += LAUNCH_CYCLES + 8 * parts * elements / memory
        return Sum(parts, each, cycles)

    rounds = range(1, _MOST_ROUNDS + 1)
    wanted = {1, *(count * target.processors // tiles for count in rounds)}
    found = [split(count) for count in sorted(wanted)]
    enough = min(one.cycles for one in found) * _NEARLY
    return next(one for one in found if one.cycles <= enough)  # with the fewest parts


def _nearly_least(tiles: Iterable[TileConfig], cycles: Callable[[TileConfig], float]) -> TileConfig:
    """The first tile of nearly the least modelled time, so that lengths that differ little share
    one, and with it what is compiled."""
    times = [(cycles(tile), tile) for tile in tiles]
    enough = min(time for time, _ in times) * _NEARLY
    return next(tile for time, tile in times if time <= enough)


def _tiles(
    target: Target, cols: int, depth: int, itemsize: int, words: bool
) -> Iterator[TileConfig]:
    """Tiles of as many rows as the matrix units take at once (Hopper 64, Blackwell 128) or more,
    and as many stages as fit. Where threads copy tiles, larger ones leave too few registers; those
    from words more so, and two tiles of words make one of samples."""
    widest = 256 if target.copies_tiles else 256 // itemsize
    largest = 128 * 256 if target.copies_tiles else 128 * 128
    if itemsize == 4:
        largest = 128 * 128 if target.copies_tiles else 64 * 64
    deep = min(128 // itemsize // (1 + words), max(16, 1 << (depth - 1).bit_length()))
    for block_rows in (128,) if target.blackwell else (128, 64):
        for block_cols in (256, 128, 64, 32, 16):
            area = block_rows * block_cols
            # One warp group computes 64 rows; in float32 it has registers for 128 columns.
            most = widest if block_rows == 128 else min(widest, 512 // itemsize)
            if block_cols > min(most, 2 * max(cols, 16) - 1) or area > largest:
                continue
            warps = 8 if block_rows == 128 and area * itemsize > 128 * 64 * 2 else 4
            tile = TileConfig(block_rows, block_cols, deep, num_warps=warps, num_stages=4)
            limit = target.shared_limit // (1 + words)
            while tile.num_stages > 2 and tile.staged_bytes(itemsize, target) > (
                limit // (1 if area > 128 * 128 else 2)
            ):
                tile = replace(tile, num_stages=tile.num_stages - 1)
            if tile.staged_bytes(itemsize, target) <= limit:
                yield tile
