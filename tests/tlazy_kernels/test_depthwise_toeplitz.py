"""Long depthwise filters, which 16-bit tensors multiply as matrices."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests import EMULATED
from tests.tlazy_kernels.agreement import SMALL, assert_agrees, bits, exact, random
from tests.tlazy_kernels.convolutions import Convolution, assert_all_agree, kernels_of
from tlazy_kernels import configs, launch, reference
from tlazy_kernels.conv1d import conv1d_forward, conv1d_grad_input, conv1d_grad_weight

# The interpreter computes bfloat16 wrong, ttsem right.
DTYPES = [torch.bfloat16 if EMULATED else torch.float16]

CASES = [
    Convolution(3, 2, 2, 200, 31, padding=(15, 15), groups=2),  # blocks of several samples
    Convolution(2, 2, 2, 136, 9, padding=(8, 0), groups=2),  # causal
    Convolution(1, 3, 3, 131, 12, padding=(3, 7), groups=3),  # no multiple of a vector
    Convolution(2, 2, 2, 64, 15, padding=(14, 14), dilation=2, groups=2),
    Convolution(1, 2, 2, 80, 100, padding=(60, 60), groups=2),  # kernel longer than the input
    Convolution(1, 2, 2, 80, 99, padding=(50, 48), groups=2),  # whole vectors, three blocks read
    Convolution(1, 1, 1, 300, 65, padding=(70, 3), dilation=2),  # more padding than it reaches
    Convolution(2, 2, 6, 72, 11, padding=(5, 5), groups=2),  # three filters a channel
    Convolution(70, 1, 1, 16, 10, padding=(9, 0)),  # more samples than a tile has blocks
]

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_long_filters_agree(case, dtype, device):
    assert_all_agree(case, case.operands(dtype, device), None, "tanh")


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_the_preactivation_is_an_output_too(activation, dtype, device):
    case = Convolution(2, 3, 3, 80, 10, padding=(9, 0), groups=3)
    x, weight, bias, _ = case.operands(dtype, device)
    assert_agrees(
        conv1d_forward,
        x,
        weight,
        bias,
        *case.settings,
        activation=activation,
        save_preactivation=True,
        config=None,
    )


def test_a_tile_that_is_asked_for_is_used_by_a_kernel_that_takes_tiles(dtype, device):
    case = Convolution(2, 3, 3, 80, 10, padding=(9, 0), groups=3)
    x, weight, bias, grad = operands = case.operands(dtype, device)
    assert_all_agree(case, operands, SMALL)
    calls = (
        lambda config: conv1d_forward(x, weight, bias, *case.settings, config=config),
        lambda config: conv1d_grad_input(grad, weight, 80, *case.settings, config=config),
        lambda config: conv1d_grad_weight(grad, x, 10, *case.settings, config=config),
    )
    for call in calls:
        own, asked = (kernels_of(partial(call, config)) for config in (None, SMALL))
        assert any("toeplitz" in kernel for kernel in own)
        assert not any("toeplitz" in kernel for kernel in asked)


def test_infinite_and_nan_samples_reach_the_outputs_that_read_them_and_no_others(dtype, device):
    """In a product with the zeros of the matrix they would reach the whole block."""
    case = Convolution(2, 4, 4, 200, 12, padding=(11, 0), groups=4)
    x, weight, bias, grad = case.operands(dtype, device)
    x[0, 1, 100], x[1, 0, 3], x[1, 2, 199] = torch.inf, -torch.inf, torch.nan
    grad[0, 1, 50], grad[1, 3, 100] = torch.inf, torch.nan
    assert_all_agree(case, (x, weight, bias, grad), None)
    y, _ = conv1d_forward(x, weight, None, *case.settings)
    assert (~y.isfinite()).sum() == 12 + 12 + 1


def test_padding_times_an_infinite_weight_or_gradient_is_zero(dtype, device):
    case = Convolution(1, 3, 3, 72, 10, padding=(9, 0), groups=3)
    x, weight, _, grad = case.operands(dtype, device)
    weight[0, 0, 0] = grad[0, 1, 0] = torch.inf
    y, _ = conv1d_forward(x, weight, None, *case.settings)
    assert y[0, 0].isinf().tolist() == [False] * 9 + [True] * 63
    dx = conv1d_grad_input(grad, weight, 72, *case.settings)
    assert dx[0, 0].isinf().tolist() == [True] * 63 + [False] * 9
    dw = conv1d_grad_weight(grad, x, 10, *case.settings)
    assert dw[1, 0].isinf().tolist() == [False] * 9 + [True]
    assert not torch.cat([t.flatten() for t in (y, dx, dw)]).isnan().any()


@pytest.mark.parametrize("programs", [1, 2, 1000])
def test_sums_do_not_depend_on_their_split_and_are_bitwise_the_same_twice(
    programs, dtype, device, monkeypatch
):
    """Whole numbers of size 1: their sums are exact in any order."""
    case = Convolution(40, 2, 2, 320, 9, padding=(8, 0), groups=2)
    grad, x = (
        random(*shape, dtype=torch.float32, device=device, seed=i).sign().to(dtype)
        for i, shape in enumerate([(40, 2, 320), (40, 2, 320)])
    )
    expected = reference.conv1d_grad_weight(exact(grad), exact(x), 9, *case.settings).to(dtype)
    monkeypatch.setattr(configs, "TARGET_PROGRAMS", programs)
    monkeypatch.setattr(launch, "_plans", {})
    first, second = (conv1d_grad_weight(grad, x, 9, *case.settings) for _ in range(2))
    assert torch.equal(bits(first), bits(second))
    assert torch.equal(first.cpu(), expected)
