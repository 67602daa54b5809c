"""Convolutions padded by the series' own samples: reflected, replicated or in a circle.

A convolution is linear in the padded series, which is the series with zeros around it plus the
padding with zeros in the series' place. No output but the few at the borders sees the padding: it
costs convolutions of a few samples, and the series is not copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tlazy_kernels.layouts import is_channels_last
from tlazy_kernels.positions import Geometry


class Border(NamedTuple):
    """One side's padding.

    Attributes:
        right: whether it follows the series.
        samples: that it has, at least 1.
        outputs: those that see any of it, and perhaps one before.
        geometry: of the convolution of the padding alone that adds to them.
    """

    right: bool
    samples: int
    outputs: slice
    geometry: Geometry


def borders(length: int, taps: int, geometry: Geometry) -> Iterator[Border]:
    """The sides of a series of `length` samples whose padding reaches outputs."""
    stride, (left, right), dilation, _ = geometry
    reach = dilation * (taps - 1) + 1
    out_length = (left + length + right - reach) // stride + 1
    if left:
        last = min(-(-left // stride), out_length)
        zeros = 0, max(0, (last - 1) * stride + reach - left)
        yield Border(False, left, slice(0, last), geometry._replace(padding=zeros))
    # The first output that reaches the padding; none that begins behind the padding's first sample.
    first = min(max(0, -(-(left + length - reach + 1) // stride)), (left + length) // stride)
    if right and first < out_length:
        zeros = left + length - first * stride, 0
        yield Border(True, right, slice(first, out_length), geometry._replace(padding=zeros))


def border_inputs(
    x: Tensor, taps: int, geometry: Geometry, mode: str
) -> Iterator[tuple[Tensor, slice]]:
    """What the outputs at the borders read of padded x (N, C, L), copied in its layout; which."""
    stride, dilation = geometry.stride, geometry.dilation
    for border in borders(x.shape[2], taps, geometry):
        start = border.outputs.start * stride
        stop = (border.outputs.stop - 1) * stride + dilation * (taps - 1) + 1
        yield _padded(x, geometry.padding, mode, start, stop), border.outputs


def padding_samples(x: Tensor, right: bool, samples: int, mode: str) -> Tensor:
    """The padding on one side of x (N, C, L)."""
    source = x[:, :, _source(x.shape[2], right, samples, mode)]
    return source.flip(2) if mode == "reflect" else source.expand(-1, -1, samples)


def add_to_sources(grad_x: Tensor, grad_padding: Tensor, border: Border, mode: str) -> None:
    """Add the gradient of one side's padding to that of the samples it is made of."""
    source = _source(grad_x.shape[2], border.right, border.samples, mode)
    if mode == "reflect":
        grad_padding = grad_padding.flip(2)
    elif mode == "replicate":
        grad_padding = grad_padding.sum(2, keepdim=True)
    grad_x[:, :, source] += grad_padding


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
