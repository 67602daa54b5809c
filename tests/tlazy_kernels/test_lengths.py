"""A length never seen before costs no compilation beyond a few shape buckets.

Buckets are the alignment of a row, and the tiles that the chooser takes: for short recordings
smaller ones than for long ones. Nothing else that follows from a length is compiled in.
"""

from __future__ import annotations

import json
from functools import cache

import pytest

from tests.tlazy_kernels.lengths import LAYERS
from tests.tlazy_kernels.subprocesses import output, start

pytestmark = pytest.mark.compiles

# Variants of each kernel over 80 lengths of eight octaves.
MOST = {
    "_conv1d_tiled_kernel": 10,  # forward and input gradient: few tiles, aligned, whole or neither
    "_depthwise_time_kernel": 7,  # four widths of a vector, in several tiles
    "_depthwise_time_backward_kernel": 6,
    "_depthwise_toeplitz_kernel": 8,  # forward and input gradient, four widths of a vector
    "_depthwise_toeplitz_grad_weight_kernel": 5,
    "_epilogue_backward_kernel": 6,  # four pieces of a row, aligned or not
}
MOST_OTHERS = 4


@cache
def counted() -> dict[str, dict[str, int]]:
    return json.loads(output(start("tests.tlazy_kernels.lengths")))


@pytest.mark.parametrize("last", ["first", "last"])
@pytest.mark.parametrize("layer", LAYERS)
def test_lengths_share_a_few_compiled_kernels(layer, last):
    found = counted()[f"{layer}, channels {last}"]
    assert len(found) >= 3
    assert {k: n for k, n in found.items() if n > MOST.get(k, MOST_OTHERS)} == {}
