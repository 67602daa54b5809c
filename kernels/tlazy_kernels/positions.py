"""Where a convolution's rows are and what they read; shared by all conv1d launchers and kernels.

A row is an output position: batch and time flattened, so that short series fill tiles too. All
arithmetic is in int64: tensors may have more than 2**31 elements.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Geometry(NamedTuple):
    """How a convolution's filters lie over its samples; all but `groups` in samples.

    Attributes:
        padding: zeros (left, right).
    """

    stride: int
    padding: tuple[int, int]
    dilation: int
    groups: int


@triton.jit
def source_position(position, tap, stride, padding, dilation, length, TRANSPOSED: tl.constexpr):
    """The sample that `tap` of the filter multiplies for output `position`, and whether it exists.

    `position` is int64, and the tap's offset is made so: a dilation may reach past 2**31 samples.

    Forward: sample = position * stride - padding + tap * dilation. TRANSPOSED is the way back,
    from an input sample to the output position that used it by this tap: the inverse, which
    exists only where the stride divides.
    """
    offset = tap.to(tl.int64) * dilation
    if TRANSPOSED:
        strided = position + padding - offset
        source = strided // stride
        exists = (strided >= 0) & (source < length) & (source * stride == strided)
    else:
        source = position * stride - padding + offset
        exists = (source >= 0) & (source < length)
    return source, exists
