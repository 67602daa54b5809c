"""When copying a tensor pays, ahead of products that then read it in tiles and not one by one."""

from __future__ import annotations

from torch import Tensor

from tlazy_kernels.layouts import UNIT_BYTES, is_channels_last

# Elements from which on a copy takes longer than its launch.
LEAST_COPY = 1 << 18

# Bytes that a copy moves in the time of a gather's load of one element, masked or not, from its
# instructions on sm_90: of 2 bytes or of 4.
LOAD_BYTES = 2.3

# Channels that a gather's tile writes at most, and loads each of its elements once for.
WIDEST = 128

# Dense convolutions of one group and so few channels on a side may be a first layer, or a last one
# that is transposed: those have kernels of their own, which read rows as they lie.
FEW_CHANNELS = 4


def copy_pays(x: Tensor, reads: float) -> bool:
    """Whether to copy x for tiles, where a gather would load each of its elements so many times.

    A copy moves an element's bytes twice through memory.
    """
    return x.numel() >= LEAST_COPY and reads * LOAD_BYTES >= 2 * x.element_size()


def products_copy(
    g: Tensor, *, groups: int, step: int, across: int, taps: int, other_length: int
) -> bool:
    """Whether the products that read an output gradient of a convolution would copy one with the
    shape and the layout of g (N, C, L) to channels last, so far as g alone can tell.

    Args:
        step: samples from a row that they read to the next.
        across: channels of a group on the convolution's other side, which has `other_length`.

    Returns:
        False for sizes that a compiler does not know yet.
    """
    _, channels, length = g.shape
    if not isinstance(g.numel(), int) or is_channels_last(g):
        return False
    unit = UNIT_BYTES // g.element_size()
    in_tiles = step == 1 and length % unit == 0 and (g.stride(2) == 1 or length == 1)
    few = groups == 1 and min(across, channels) <= FEW_CHANNELS
    if in_tiles or few or channels // groups % unit or g.numel() < LEAST_COPY:
        return False
    reads = taps * min(1.0, other_length / length) * -(-across // WIDEST)
    return copy_pays(g, reads)
