"""Where products of float32 may round to tf32, what can be rounded is, and not cut off."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.tlazy_kernels.agreement import assert_close, exact, random
from tlazy_kernels import conv1d, copy_cost, epilogue, reference
from tlazy_kernels.environment import INTERPRETED
from tlazy_kernels.tf32 import to_tf32


@triton.jit
def _rounding_kernel(x_ptr, y_ptr, COUNT: tl.constexpr):
    places = tl.arange(0, COUNT)
    tl.store(y_ptr + places, to_tf32(tl.load(x_ptr + places)))


def rounded(x: Tensor) -> Tensor:
    """`x` rounded to 10 bits of mantissa, the half away from zero, by way of float64."""
    mantissa, exponent = torch.frexp(x.double())
    steps = torch.sign(mantissa) * torch.floor(mantissa.abs() * 2**11 + 0.5)
    return torch.ldexp(steps / 2**11, exponent).float()


def test_each_element_is_rounded_to_the_nearest_and_what_is_no_number_stays_so(device):
    step = 2.0**-10
    ties = [1 + step / 2, 1 + 3 * step / 2, -1 - step / 2, 2 - step / 2, 1 + step / 2 - 2**-23]
    x = torch.tensor([*ties, 0.0, -0.0, 1.0, 1e-30, -3e38, float("inf"), -float("inf")] + [0.0] * 3)
    nans = torch.tensor([0x7FFFFFFF, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    x = torch.cat([x, nans, torch.randn(46)]).to(device)
    y = torch.empty_like(x)
    _rounding_kernel[(1,)](x, y, COUNT=len(x))
    assert y[:5].tolist() == [1 + step, 1 + 2 * step, -1 - step, 2.0, 1.0]
    finite = x.isfinite()
    assert torch.equal(y[finite].cpu(), rounded(x[finite].cpu()))
    assert torch.equal(y[x.isinf()], x[x.isinf()])
    assert y[x.isnan()].isnan().all()


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter alone multiplies what it is given")
@pytest.mark.parametrize("groups", [1, 4], ids=["packed", "packed block-diagonally"])
@pytest.mark.parametrize("layout", ["ncl", "nlc", "copied"])
def test_filters_are_rounded_and_so_are_samples_that_are_copied(layout, groups, monkeypatch):
    monkeypatch.setattr(conv1d, "dot_precision", lambda dtype, family: "tf32")
    monkeypatch.setattr(copy_cost, "LEAST_COPY", 1)
    length = 41 if layout == "copied" else 40
    x, weight = (
        random(*size, dtype=torch.float32, device="cpu")
        for size in ((2, 16, length), (16, 16 // groups, 5))
    )
    if layout == "nlc":
        x = x.mT.contiguous().mT
    y, _ = conv1d.conv1d_forward(x, weight, groups=groups)
    read = rounded(x) if layout == "copied" else x
    expected = reference.conv1d_forward(exact(read), exact(rounded(weight)), groups=groups)[0]
    assert_close(y, expected)
    plain = reference.conv1d_forward(exact(x), exact(weight), groups=groups)[0]
    assert (expected - plain).norm() > 5e-5 * plain.norm()


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter alone multiplies what it is given")
def test_a_gradient_that_is_read_in_tiles_is_rounded_and_its_sum_is_not(monkeypatch):
    monkeypatch.setattr(epilogue, "dot_precision", lambda dtype, family: "tf32")
    grad = random(2, 16, 41, dtype=torch.float32, device="cpu")
    g, bias = epilogue.epilogue_backward(grad, None, None, bias=True, for_tiles=True)
    assert torch.equal(g, rounded(grad))
    assert not torch.equal(g, grad)
    assert_close(bias, exact(grad).sum((0, 2)))
