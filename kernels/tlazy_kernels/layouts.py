"""How an (N, C, L) tensor lies in memory, and which layouts tensor descriptors can read.

Channels first is PyTorch's own: samples are neighbours in memory. Channels last is what a
(batch, length, channels) array is when it is seen transposed: channels are neighbours. A
convolution's output has the layout of its input, so that a stack of layers never transposes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from tlazy_kernels.environment import INTERPRETED

# Tensor descriptors take addresses and strides of whole units, and sizes below 2**31.
UNIT_BYTES = 16

# Of the words that tiles are put together from: half a unit, as conv1d_tiles.py takes them.
WORD_BYTES = 8

# A tile may start at any element of a row that begins with a unit; Triton's interpreter denies it.
ANY_START = not INTERPRETED


class Tiled(NamedTuple):
    """A tensor whose tiles can be read in place.

    Attributes:
        form: what lies side by side, and is read as one: ``"channels_last"``: channels, by a
            descriptor; ``"channels_first"``: samples, by a descriptor; ``"words"``: samples, from
            any one on by the words of 8 bytes that hold them.
        stride_n: units from a series to the next.
        stride_g: from a group's first channel to the next group's.
        stride_t: from a sample (channels last) or a channel to the next.
    """

    form: Literal["channels_last", "channels_first", "words"]
    stride_n: int
    stride_g: int
    stride_t: int

    @property
    def channels_last(self) -> bool:
        return self.form == "channels_last"


def is_channels_last(x: Tensor) -> bool:
    """Whether x, of shape (N, C, L), has its channels as neighbours in memory.

    >>> import torch
    >>> is_channels_last(torch.empty(2, 100, 3).transpose(1, 2))
    True
    """
    return x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()


def strides_like(
    shape: Sequence[int], x: Tensor, channels_last: bool | None = None
) -> tuple[int, int, int]:
    """Strides of a dense tensor of this shape (N, C, L) in the layout of `x`, or the one told."""
    _, channels, length = shape
    if is_channels_last(x) if channels_last is None else channels_last:
        return channels * length, 1, channels
    return channels * length, length, 1


def empty_like(shape: Sequence[int], x: Tensor, channels_last: bool | None = None) -> Tensor:
    """A new tensor of this shape (N, C, L) and `x`'s dtype and device, in the layout of `x`, or
    the one told."""
    return x.new_empty_strided(tuple(shape), strides_like(shape, x, channels_last))


def dense_like(y: Tensor, x: Tensor, channels_last: bool | None = None) -> Tensor:
    """`y`, copied if it is not dense in the layout of `x`, or the one told."""
    if is_channels_last(x) if channels_last is None else channels_last:
        return y.transpose(1, 2).contiguous().transpose(1, 2)
    return y.contiguous()


def tiled(x: Tensor, groups: int) -> Tiled | None:
    """How descriptors can read x (N, C, L), a group's channels at a time, or None."""
    batch, channels, length = x.shape
    channels_last = is_channels_last(x)
    inner, outer = (1, 2) if channels_last else (2, 1)
    stride_g = channels // groups * x.stride(1)
    strides = in_units(
        x, (x.stride(0), batch), (stride_g, groups), (x.stride(outer), x.shape[outer])
    )
    # Descriptors reach to whole units of channels: what lies behind a group's must be its own.
    torn = channels_last and channels // groups % (UNIT_BYTES // x.element_size())
    if (
        strides is None
        or torn
        or x.stride(inner) != 1
        or x.data_ptr() % UNIT_BYTES
        or max(batch, channels, length) >= 2**31
    ):
        return None
    return Tiled("channels_last" if channels_last else "channels_first", *strides)


def in_units(x: Tensor, *dimensions: tuple[int, int]) -> tuple[int, ...] | None:
    """Strides of (stride, size) in whole units of `x`'s elements, or None where one is not.

    The stride of a dimension of size 1 is of no account.
    """
    unit = UNIT_BYTES // x.element_size()
    strides = [stride if size > 1 else unit for stride, size in dimensions]
    if any(stride <= 0 or stride % unit for stride in strides):
        return None
    return tuple(stride // unit for stride in strides)
