"""Vectors in registers: the last dimension of a tile taken apart into tiles, and put together.

A thread loads a vector of samples by one instruction and then needs each by itself, because the
taps of a filter meet them shifted. Splitting a dimension that lies within a thread moves nothing.
"""

# mypy: disable-error-code="annotation-unchecked"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unpack(x):
    """The x.shape[2] tiles of shape (A, B) in a tile of shape (A, B, 1, 2, 4 or 8)."""
    A: tl.constexpr = x.shape[0]
    B: tl.constexpr = x.shape[1]
    if x.shape[2] == 1:
        parts = (tl.reshape(x, (A, B)),)
    elif x.shape[2] == 2:
        first, second = tl.split(x)
        parts = (first, second)
    else:
        even, odd = tl.split(tl.reshape(x, (A, B, x.shape[2] // 2, 2)))
        even, odd = unpack(even), unpack(odd)
        parts = ()
        for i in tl.static_range(x.shape[2] // 2):
            parts += (even[i], odd[i])
    return parts


@triton.jit
def pack(parts):
    """The inverse of unpack: a tile of shape (A, B, 1, 2, 4 or 8) of so many tiles."""
    A: tl.constexpr = parts[0].shape[0]
    B: tl.constexpr = parts[0].shape[1]
    if len(parts) == 1:
        x = tl.expand_dims(parts[0], 2)
    elif len(parts) == 2:
        x = tl.join(parts[0], parts[1])
    elif len(parts) == 4:
        x = tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3]))
        x = tl.reshape(x, (A, B, 4))
    else:
        even = tl.join(tl.join(parts[0], parts[4]), tl.join(parts[2], parts[6]))
        odd = tl.join(tl.join(parts[1], parts[5]), tl.join(parts[3], parts[7]))
        x = tl.reshape(tl.join(even, odd), (A, B, 8))
    return x
