"""Convolutions of one to four input channels with many filters."""

from __future__ import annotations

import pytest
import torch

from tests.tlazy_kernels.agreement import DTYPES, assert_agrees, bits, random, spread
from tests.tlazy_kernels.convolutions import Convolution, assert_all_agree, channels_last
from tlazy_kernels import configs, launch, reference
from tlazy_kernels.conv1d import conv1d_forward, conv1d_grad_weight
from tlazy_kernels.first_layer import BLOCK_F, BLOCK_L

ACTIVATIONS = (None, *reference.ACTIVATIONS)

CASES = [
    Convolution(2, 1, 16, 40, 10, stride=5),  # raw audio
    Convolution(1, 1, BLOCK_F + 3, BLOCK_L + 5, 3, padding=(1, 1)),  # tiles that end early
    Convolution(2, 4, 20, 33, 7, padding=(3, 3)),
    Convolution(2, 3, 17, 30, 5, stride=2, padding=(4, 0), dilation=2),
    Convolution(1, 2, 16, 5, 32, padding=(20, 20)),  # the longest, longer than the input
    Convolution(3, 4, 16, 9, 1),
    Convolution(0, 1, 16, 10, 3),
]

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("lies", [torch.clone, channels_last], ids=["NCL", "NLC"])
def test_all_three_agree_for_every_setting_in_both_layouts(case, lies, dtype, device):
    x, weight, bias, grad = case.operands(dtype, device)
    assert_all_agree(case, (lies(x), weight, bias, lies(grad)), None)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_forward_agrees_for_every_activation_with_and_without_bias(
    activation, with_bias, dtype, device
):
    case = Convolution(2, 2, 18, 20, 3, padding=(1, 1))
    x, weight, bias, _ = case.operands(dtype, device)
    assert_agrees(
        conv1d_forward,
        x,
        weight,
        bias if with_bias else None,
        *case.settings,
        activation=activation,
        save_preactivation=with_bias,
        config=None,
    )


@pytest.mark.parametrize("dims", [(0, 2, 1), (2, 1, 0)], ids=["NLC", "LCN"])
def test_operands_may_have_any_memory_layout(dims, dtype, device):
    case = Convolution(3, 2, 16, 19, 3, stride=2, padding=(1, 2))
    x, weight, bias, grad = case.operands(dtype, device)
    x, weight, grad = (spread(t, dims) for t in (x, weight, grad))
    assert_all_agree(case, (x, weight, spread(bias, (0,)), grad), None)


def test_filters_are_shared_out_where_positions_are_few(dtype, device, monkeypatch):
    case = Convolution(1, 1, 3 * BLOCK_F, 20, 3)
    x, weight, bias, grad = case.operands(dtype, device)
    for programs in (1, 1000):
        monkeypatch.setattr(configs, "TARGET_PROGRAMS", programs)
        monkeypatch.setattr(launch, "_plans", {})
        assert_all_agree(case, (x, weight, bias, grad), None)


@pytest.mark.parametrize("programs", [1, 2, 1000])
def test_sums_do_not_depend_on_their_split_and_are_bitwise_the_same_twice(
    programs, dtype, device, monkeypatch
):
    """Whole numbers of size 1: their sums are exact in any order."""
    grad, x = (
        random(*shape, dtype=torch.float32, device=device, seed=i).sign().to(dtype)
        for i, shape in enumerate([(12, 16, 198), (12, 1, 200)])
    )
    expected = reference.conv1d_grad_weight(grad.double(), x.double(), 3).to(dtype)
    monkeypatch.setattr(configs, "TARGET_PROGRAMS", programs)
    monkeypatch.setattr(launch, "_plans", {})
    first, second = (conv1d_grad_weight(grad, x, 3) for _ in range(2))
    assert torch.equal(bits(first), bits(second))
    assert torch.equal(first, expected)


def test_sums_are_kept_in_float32(dtype, device, monkeypatch):
    """Rounded at each of 48 steps, they would be off by more than one rounding."""
    grad, x = (
        random(*shape, dtype=dtype, device=device, seed=i)
        for i, shape in enumerate([(12, 16, 198), (12, 1, 200)])
    )
    monkeypatch.setattr(configs, "TARGET_PROGRAMS", 1)
    monkeypatch.setattr(launch, "_plans", {})
    assert_agrees(conv1d_grad_weight, grad, x, 3, config=None)
