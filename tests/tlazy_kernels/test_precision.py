"""How far float32 products are from float64's, by PyTorch's own switch."""

from __future__ import annotations

import pytest
import torch

from tests.tlazy_kernels.agreement import exact, random
from tlazy_kernels import reference
from tlazy_kernels.conv1d import conv1d_forward, conv1d_grad_input, conv1d_grad_weight
from tlazy_kernels.environment import INTERPRETED
from tlazy_kernels.linear import linear_forward, linear_grad_input, linear_grad_weight

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter multiplies float32 in full")

LONG = 4096

# ||error|| / ||product||, at least and at most. One product of tf32's 11 bits has 2**-12 and more;
# three of them give what a float32 sum of so many terms has anyway.
BOUNDS = {"ieee": (0.0, 2e-6), "tf32": (1e-5, 1e-3)}


@pytest.mark.parametrize("switch", BOUNDS)
def test_a_long_float32_product_is_as_accurate_as_the_switch_asks(switch, device):
    torch.backends.cuda.matmul.fp32_precision = switch
    rows, others = (
        random(*s, dtype=torch.float32, device=device, seed=s[0]) for s in ((16, LONG), (24, LONG))
    )
    least, most = BOUNDS[switch]
    expected = exact(rows) @ exact(others).T
    for found in (
        linear_forward(rows, others)[0],
        linear_grad_input(rows, others.T),
        linear_grad_weight(rows.T, others.T),
    ):
        error = (exact(found) - expected).norm() / expected.norm()
        assert least <= error <= most


# Of a convolution (both ways) and of its weight gradient. Filters are rounded, and rows of samples:
# 3e-4. Channels are not, which makes it 5e-4; but a weight gradient turns both of its operands
# around then, and rounds them, and reads rows of samples as they lie: 8e-4.
TF32 = {"ncl": (4e-4, 1e-3), "nlc": (6e-4, 4e-4)}


@pytest.mark.parametrize("layout", TF32)
@pytest.mark.parametrize("switch", BOUNDS)
def test_a_float32_convolution_is_as_accurate_as_the_switch_asks(switch, layout, device):
    torch.backends.cudnn.conv.fp32_precision = switch
    x, weight, grad = (
        random(*size, dtype=torch.float32, device=device)
        for size in ((2, 256, 68), (64, 256, 5), (2, 64, 64))
    )
    if layout == "nlc":
        x, grad = x.mT.contiguous().mT, grad.mT.contiguous().mT
    least, most = BOUNDS[switch]
    both_ways, of_weight = TF32[layout] if switch == "tf32" else (most, most)
    for found, expected, allowed in (
        (
            conv1d_forward(x, weight)[0],
            reference.conv1d_forward(exact(x), exact(weight))[0],
            both_ways,
        ),
        (
            conv1d_grad_input(grad, weight, 68),
            reference.conv1d_grad_input(exact(grad), exact(weight), 68),
            both_ways,
        ),
        (
            conv1d_grad_weight(grad, x, 5),
            reference.conv1d_grad_weight(exact(grad), exact(x), 5),
            of_weight,
        ),
    ):
        error = (exact(found) - expected).norm() / expected.norm()
        assert least <= error <= allowed
