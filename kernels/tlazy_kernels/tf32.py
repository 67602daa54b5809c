"""Rounding float32 to tf32, of which the matrix units otherwise cut 13 bits off.

Cut off, a product of two is too small by 7e-4 of itself on average; rounded, it is off by 3e-4, to
either side. Values that pass registers on their way to a product are rounded there.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def to_tf32(x):
    """Each element of a float32 tile rounded to 10 bits of mantissa, the half away from zero."""
    rounded = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)  # of a NaN it may be none
