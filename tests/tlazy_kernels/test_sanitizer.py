"""ttsem sees planted faults: that it reports none in the kernels means something."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

pytestmark = pytest.mark.emulated


@triton.jit
def _fill_kernel(out_ptr, SIZE: tl.constexpr, MASKED: tl.constexpr, STEP: tl.constexpr):
    at = tl.program_id(0) * STEP + tl.arange(0, SIZE)
    mask = (at < 10) | (not MASKED)
    tl.store(out_ptr + at, tl.program_id(0), mask=mask)


@triton.jit
def _read_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out_ptr + at, tl.load(x_ptr + at + 7), mask=at < 10)


def test_a_kernel_without_faults_passes():
    out = torch.zeros(10, dtype=torch.int32, device="cuda")
    _fill_kernel[(2,)](out, SIZE=8, MASKED=True, STEP=8)
    assert out.tolist() == [0] * 8 + [1] * 2


def test_a_store_past_the_end_is_reported():
    out = torch.zeros(10, dtype=torch.int32, device="cuda")
    with pytest.raises(Exception, match=r"writes 6 element\(s\) past the end.*`out_ptr`"):
        _fill_kernel[(2,)](out, SIZE=8, MASKED=False, STEP=8)


def test_a_load_past_the_end_is_reported():
    x, out = (torch.zeros(10, device="cuda") for _ in range(2))
    with pytest.raises(Exception, match=r"reads 13 element\(s\) past the end.*`x_ptr`"):
        _read_kernel[(1,)](x, out, SIZE=16)


def test_two_programs_that_store_to_one_element_are_reported():
    out = torch.zeros(10, dtype=torch.int32, device="cuda")
    with pytest.raises(Exception, match=r"program instances .* both touch element 4 of `out_ptr`"):
        _fill_kernel[(2,)](out, SIZE=8, MASKED=True, STEP=4)
