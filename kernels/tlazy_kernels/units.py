"""What divides the sizes and strides of a tensor (N, C, L), told to the compiler.

It joins the elements of a thread into one access of up to 16 bytes where it knows that they are
neighbours, that the first is aligned, and that a mask holds for all of them or none. Of an argument
Triton asks only whether it is 1 and whether 16 divides it: of rows of 1000 elements it knows
nothing. Where a kernel is given the units, arguments need not be specialized on alignment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels.layouts import UNIT_BYTES


def units(channels: int, length: int, itemsize: int, *strides: Sequence[int]) -> dict[str, int]:
    """The constants C_UNIT and L_UNIT for tensors of these sizes and strides (N, C, L).

    C_UNIT divides `channels` and all strides but those of channels, L_UNIT divides `length` and all
    strides but those of positions. Both are powers of two, at most the elements in 16 bytes; L_UNIT
    is as many or 1, for lengths vary, and each is a kernel of its own.

    >>> units(6, 1000, 2, (6000, 1000, 1))
    {'C_UNIT': 1, 'L_UNIT': 8}
    """
    most = UNIT_BYTES // itemsize
    of_channels = [stride for n, _, position in strides for stride in (n, position)]
    of_positions = [stride for n, channel, _ in strides for stride in (n, channel)]
    return {
        "C_UNIT": math.gcd(most, channels, *of_channels),
        "L_UNIT": most if math.gcd(most, length, *of_positions) == most else 1,
    }


def strides_of(x: Tensor) -> tuple[int, ...]:
    """Strides, and 0 for dimensions of size 1: theirs are of no account, and 1 would tell Triton
    that their elements are neighbours.

    >>> import torch
    >>> strides_of(torch.empty(3, 1, 5).transpose(1, 2))
    (5, 1, 0)
    """
    return tuple(n if size > 1 else 0 for n, size in zip(x.stride(), x.shape, strict=True))


@triton.jit
def element(
    n,
    c,
    position,
    stride_n,
    stride_c,
    stride_l,
    C_UNIT: tl.constexpr,
    L_UNIT: tl.constexpr,
):
    """How far from the first an element lies; indices are int64, of shapes that broadcast."""
    N_UNIT: tl.constexpr = max(C_UNIT, L_UNIT)
    stride_n = stride_n // N_UNIT * N_UNIT
    stride_c = stride_c // L_UNIT * L_UNIT
    stride_l = stride_l // C_UNIT * C_UNIT
    return (n * stride_n + position * stride_l) + c * stride_c
