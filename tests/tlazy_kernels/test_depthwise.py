"""Depthwise convolution, which the conv1d launchers hand to kernels of its own."""

from __future__ import annotations

import pytest
import torch

from tests.tlazy_kernels.agreement import DTYPES, SMALL, assert_agrees, bits, random, spread
from tests.tlazy_kernels.convolutions import Convolution, assert_all_agree, channels_last
from tlazy_kernels import reference
from tlazy_kernels.conv1d import conv1d_forward, conv1d_grad_input, conv1d_grad_weight

ACTIVATIONS = (None, *reference.ACTIVATIONS)

CASES = [
    Convolution(1, 1, 1, 1, 1),  # one of everything
    Convolution(2, 1, 20, 33, 5, stride=2),  # one channel, many filters
    Convolution(2, 1, 1, 40, 3, padding=(1, 1)),
    Convolution(2, 20, 20, 21, 4, padding=(3, 0), groups=20),  # causal
    Convolution(2, 5, 5, 30, 8, padding=(3, 4), groups=5),  # "same" of an even kernel
    Convolution(3, 6, 6, 25, 3, stride=2, padding=(1, 2), dilation=3, groups=6),
    Convolution(2, 7, 21, 18, 3, padding=(1, 1), groups=7),  # three filters a channel
    Convolution(2, 3, 6, 26, 4, stride=3, padding=(2, 0), dilation=2, groups=3),
    Convolution(2, 3, 3, 2, 5, padding=(2, 2), groups=3),  # kernel longer than the input
    Convolution(1, 4, 4, 1, 1, groups=4),
    Convolution(2, 3, 3, 11, 11, groups=3),  # one output
    Convolution(0, 4, 4, 10, 3, groups=4),
    Convolution(2, 24, 24, 40, 4, padding=(3, 0), groups=24),  # rows of vectors in either layout
    Convolution(2, 16, 16, 24, 9, padding=(4, 4), groups=16),
    Convolution(1, 8, 8, 48, 3, padding=(9, 9), dilation=9, groups=8),
    Convolution(2, 8, 16, 24, 3, padding=(1, 1), groups=8),
    Convolution(2, 8, 8, 32, 4, stride=2, padding=(1, 1), groups=8),
    Convolution(2, 4, 4, 40, 31, padding=(15, 15), groups=4),
    Convolution(1, 2, 2, 64, 40, padding=(39, 0), groups=2),
]

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("config", [SMALL, None], ids=["small tiles", "default tiles"])
def test_all_three_agree_for_every_setting(case, config, dtype, device):
    assert_all_agree(case, case.operands(dtype, device), config)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_channels_may_lie_side_by_side(case, dtype, device):
    x, weight, bias, grad = case.operands(dtype, device)
    assert_all_agree(case, (channels_last(x), weight, bias, channels_last(grad)), None, "relu")


@pytest.mark.parametrize("case", CASES[::3], ids=str)
@pytest.mark.parametrize("lies", [torch.clone, channels_last], ids=["NCL", "NLC"])
def test_the_preactivation_is_an_output_for_every_setting(case, lies, dtype, device):
    x, weight, bias, _ = case.operands(dtype, device)
    kept = {"activation": "gelu", "save_preactivation": True, "config": None}
    assert_agrees(conv1d_forward, lies(x), weight, bias, *case.settings, **kept)


@pytest.mark.parametrize("lies", [torch.clone, channels_last], ids=["NCL", "NLC"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_forward_agrees_for_every_activation_with_and_without_bias(
    activation, with_bias, lies, dtype, device
):
    case = Convolution(2, 16, 16, 24, 3, padding=(1, 1), groups=16)
    x, weight, bias, _ = case.operands(dtype, device)
    assert_agrees(
        conv1d_forward,
        lies(x),
        weight,
        bias if with_bias else None,
        *case.settings,
        activation=activation,
        save_preactivation=with_bias,
    )


def test_the_weight_gradient_sums_its_splits(dtype, device):
    case = Convolution(7, 3, 3, 33, 2, padding=(1, 1), groups=3)
    x, _, _, grad = case.operands(dtype, device)
    assert 7 * case.out_length > 3 * 4 * SMALL.rows  # three splits at least
    assert_agrees(conv1d_grad_weight, grad, x, 2, *case.settings)


@pytest.mark.parametrize("dims", [(0, 1, 2), (0, 2, 1), (2, 1, 0)], ids=["NCL", "NLC", "LCN"])
def test_operands_may_have_any_memory_layout(dims, dtype, device):
    case = Convolution(3, 4, 8, 19, 3, stride=2, padding=(1, 2), groups=4)
    x, weight, bias, grad = case.operands(dtype, device)
    x, weight, grad = (spread(t, dims) for t in (x, weight, grad))
    assert_all_agree(case, (x, weight, spread(bias, (0,)), grad))


def test_expanded_gradients_are_read_with_stride_zero(dtype, device):
    case = Convolution(3, 4, 4, 19, 3, padding=(1, 1), groups=4)
    x, weight, bias, grad = case.operands(dtype, device)
    grad = random(1, 1, 1, dtype=dtype, device=device).expand(grad.shape)
    assert_all_agree(case, (x, weight, bias, grad))


@pytest.mark.parametrize("lies", [torch.clone, channels_last], ids=["NCL", "NLC"])
def test_infinite_and_nan_samples_reach_the_outputs_that_read_them_and_no_others(
    lies, dtype, device
):
    case = Convolution(3, 5, 5, 9, 3, padding=(2, 1), groups=5)
    x, weight, bias, grad = case.operands(dtype, device)
    x, grad = lies(x), lies(grad)
    x[0, 1, 0], x[1, 0, 8], x[2, 4, 4] = torch.inf, -torch.inf, torch.nan
    grad[0, 1, 4], grad[1, 0, 5], grad[2, 4, 3] = torch.inf, -torch.inf, torch.nan
    assert_all_agree(case, (x, weight, bias, grad))
    found = conv1d_forward(x, weight, None, *case.settings)[0]
    assert (~found.isfinite()).sum() == 3 + 2 + 3  # the second is at the end: 2 taps reach it


@pytest.mark.parametrize("lies", [torch.clone, channels_last], ids=["NCL", "NLC"])
def test_padding_times_an_infinite_weight_or_gradient_is_zero(lies, dtype, device):
    """As ATen's own depthwise kernels, which skip the padding."""
    case = Convolution(1, 2, 2, 6, 3, padding=(1, 1), groups=2)
    x, weight, _, grad = case.operands(dtype, device)
    x, grad = lies(x), lies(grad)
    weight[0, 0, 0] = grad[0, 1, 0] = torch.inf
    y, _ = conv1d_forward(x, weight, None, *case.settings)
    assert y[0, 0, 0].isfinite()
    assert y[0, 0, 1:].isinf().all()
    dx = conv1d_grad_input(grad, weight, 6, *case.settings)
    assert dx[0, 0, 5].isfinite()
    dw = conv1d_grad_weight(grad, x, 3, *case.settings)
    assert dw[1, 0, 0].isfinite()
    assert dw[1, 0, 1:].isinf().all()


def test_results_are_bitwise_the_same_twice(dtype, device):
    case = Convolution(5, 3, 6, 30, 3, padding=(1, 1), groups=3)
    x, weight, bias, grad = case.operands(dtype, device)
    for call in (
        lambda: conv1d_forward(x, weight, bias, *case.settings, activation="silu", config=SMALL)[0],
        lambda: conv1d_grad_input(grad, weight, 30, *case.settings, config=SMALL),
        lambda: conv1d_grad_weight(grad, x, 3, *case.settings, config=SMALL),
    ):
        assert torch.equal(bits(call()), bits(call()))
