"""Tiles that were measured to be the fastest, in tables by device; they go before the chooser.

A table is a JSON file that ``tlazy bench --tune`` writes on the device it is for. Tables in
this package's folder ``tuned`` are always used, and those that the environment variable TLAZY_TILES
names (files, separated like those of PATH) go before them. A device without a table, or a call
whose sizes stand in none, gets the chooser's tile: nothing is ever searched for on the way.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tlazy_kernels.configs import TileConfig
from tlazy_kernels.layouts import is_channels_last, tiled
from tlazy_kernels.positions import Geometry
from tlazy_kernels.targets import Target

FOLDER = Path(__file__).with_name("tuned")
VARIABLE = "TLAZY_TILES"

_asked: list[str] | None = None


def tuned(
    target: Target, launcher: str, dtype: torch.dtype, traits: Sequence[object]
) -> TileConfig | None:
    """The measured tile of a launcher for such a call on a target, or None.

    Args:
        traits: all that the best tile depends on: sizes, precision, layouts, what is fused.

    Raises:
        ValueError: for a file that is no table of tiles.
    """
    key = " ".join([launcher, str(dtype).removeprefix("torch."), *map(str, traits)])
    if _asked is not None:
        _asked.append(key)
    return _tiles(target.name, os.environ.get(VARIABLE, "")).get(key)


def tuned_convolution(
    target: Target,
    launcher: str,
    first: torch.Tensor,
    second: Sequence[int],
    length: int,
    geometry: Geometry,
    precision: str,
) -> TileConfig | None:
    """As :func:`tuned`, for a convolution: its first tensor, the second's shape, the length of its
    result or source, its geometry and its dot's precision."""
    stride, padding, dilation, groups = geometry
    sizes = (*first.shape, *second, length, stride, *padding, dilation, groups)
    layout = "last" if is_channels_last(first) else "first"
    aligned = "aligned" if tiled(first, groups) is not None else "unaligned"
    return tuned(target, launcher, first.dtype, (*sizes, precision, layout, aligned))


@contextmanager
def asked() -> Iterator[list[str]]:
    """Collects the keys that launchers look up inside the block, for whoever writes a table."""
    global _asked
    found: list[str] = []
    _asked = found
    try:
        yield found
    finally:
        _asked = None


def check_named_tables() -> None:
    """Raise ValueError where TLAZY_TILES names what is no table of tiles, for whatever device."""
    for file in _named(os.environ.get(VARIABLE, "")):
        _read(file)


def _named(value: str) -> list[Path]:
    return [Path(name) for name in value.split(os.pathsep) if name]


@functools.cache
def _tiles(device: str, more: str) -> Mapping[str, TileConfig]:
    """Tiles by key of all tables for a device; those named first are looked at first."""
    tiles: dict[str, TileConfig] = {}
    for file in (*sorted(FOLDER.glob("*.json")), *reversed(_named(more))):
        of, found = _read(file)
        if of == device:
            tiles |= found
    return tiles


def _read(file: Path) -> tuple[str, dict[str, TileConfig]]:
    """A table's device, and its tiles by key."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        return table["device"], {
            entry["key"]: TileConfig(**entry["config"])
            for entry in table["entries"]
            if entry["config"] is not None
        }
    except OSError as error:
        raise ValueError(f"{VARIABLE} names {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not a table of tiles as tlazy bench --tune writes: {error!r}; "
            f"take it out of {VARIABLE}"
        ) from error
