"""How many programs share the fused depthwise backward pass."""

from __future__ import annotations

import math

import pytest

from tlazy_kernels.depthwise_backward import parts_of, whole_waves
from tlazy_kernels.targets import TARGETS


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("at_once", [2, 3, 4, 6])
def test_the_programs_of_a_long_pass_fill_whole_waves(at_once, target):
    channel_blocks = 32
    parts, steps_per_part = parts_of(1366, channel_blocks, whole_waves(TARGETS[target]))
    assert (parts - 1) * steps_per_part < 1366 <= parts * steps_per_part
    waves = channel_blocks * parts / (at_once * TARGETS[target].processors)
    assert waves / math.ceil(waves) > 0.94
