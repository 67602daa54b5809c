"""Convolutions padded by the series' own samples: reflected, replicated or in a circle.

A convolution is linear in the padded series, which is the series with zeros around it plus the
padding with zeros in the series' place. No output but the few at the borders sees the padding: it
costs convolutions of a few samples, and the series is not copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tlazy_kernels.layouts import is_channels_last
from tlazy_kernels.positions import Geometry


class Window(NamedTuple):
    """A convolution of some samples of the padded series alone, with zeros around them.

    Attributes:
        outputs: those of the whole convolution that see any of the samples, and perhaps one before.
        geometry: of the convolution that gives the samples' part of these outputs.
    """

    outputs: slice
    geometry: Geometry


class Border(NamedTuple):
    """One side's padding.

    Attributes:
        right: whether it follows the series.
        samples: that it has, at least 1.
        source: the samples of the series that it is made of.
        window: of the padding.
    """

    right: bool
    samples: int
    source: slice
    window: Window


def window(start: int, stop: int, length: int, taps: int, geometry: Geometry) -> Window | None:
    """That of samples [start, stop), or None where no output sees them.

    Args:
        start, stop: counted from the first of a series of `length`; before it are the left
            padding's, with negative numbers.
    """
    stride, (left, right), dilation, _ = geometry
    start, stop = start + left, stop + left
    reach = dilation * (taps - 1) + 1
    out_length = (left + length + right - reach) // stride + 1
    # The first that reaches the samples; none that begins behind the first of them.
    first = min(max(0, -(-(start - reach + 1) // stride)), start // stride)
    last = min(out_length - 1, (stop - 1) // stride)
    if start >= stop or last < first:
        return None
    zeros = start - first * stride, max(0, last * stride + reach - stop)
    return Window(slice(first, last + 1), geometry._replace(padding=zeros))


def borders(length: int, taps: int, geometry: Geometry, mode: str) -> Iterator[Border]:
    """The sides of a series of `length` samples whose padding reaches outputs."""
    left, right = geometry.padding
    for is_right, start, stop in ((False, -left, 0), (True, length, length + right)):
        found = window(start, stop, length, taps, geometry)
        if found is not None:
            source = _source(length, is_right, stop - start, mode)
            yield Border(is_right, stop - start, source, found)


def border_inputs(
    x: Tensor, taps: int, geometry: Geometry, mode: str
) -> Iterator[tuple[Tensor, slice]]:
    """What the outputs at the borders read of padded x (N, C, L), copied in its layout; which."""
    stride, dilation = geometry.stride, geometry.dilation
    for border in borders(x.shape[2], taps, geometry, mode):
        outputs = border.window.outputs
        start = outputs.start * stride
        stop = (outputs.stop - 1) * stride + dilation * (taps - 1) + 1
        yield _padded(x, geometry.padding, mode, start, stop), outputs


def padding_samples(x: Tensor, right: bool, samples: int, mode: str) -> Tensor:
    """The padding on one side of x (N, C, L)."""
    source = x[:, :, _source(x.shape[2], right, samples, mode)]
    return source.flip(2) if mode == "reflect" else source.expand(-1, -1, samples)


def by_source(sides: Sequence[Border]) -> list[list[Border]]:
    """The sides together that are made of some of the same samples."""
    if len(sides) == 2:
        (_, _, one, _), (_, _, other, _) = sides
        if one.start < other.stop and other.start < one.stop:
            return [[*sides]]
    return [[side] for side in sides]


def grad_of_source(grad_padding: Tensor, mode: str) -> Tensor:
    """What the gradient of one side's padding adds to that of the samples it is made of."""
    if mode == "reflect":
        return grad_padding.flip(2)
    return grad_padding.sum(2, keepdim=True) if mode == "replicate" else grad_padding


def _source(length: int, right: bool, samples: int, mode: str) -> slice:
    """The samples of a series that its padding on one side is made of."""
    if mode == "replicate":
        return slice(length - 1, length) if right else slice(0, 1)
    if mode == "reflect":
        return slice(length - 1 - samples, length - 1) if right else slice(1, samples + 1)
    return slice(0, samples) if right else slice(length - samples, length)


def _padded(x: Tensor, padding: tuple[int, int], mode: str, start: int, stop: int) -> Tensor:
    """Samples [start, stop) of padded x (N, C, L), in its layout."""
    left, right = padding
    before, after = padding_samples(x, False, left, mode), padding_samples(x, True, right, mode)
    pieces = []
    for piece in (before, x, after):
        size = piece.shape[2]
        pieces.append(piece[:, :, min(max(start, 0), size) : min(max(stop, 0), size)])
        start, stop = start - size, stop - size
    if is_channels_last(x):
        return torch.cat([piece.mT for piece in pieces], 1).mT
    return torch.cat(pieces, 2)
