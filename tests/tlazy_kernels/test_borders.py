"""Convolutions whose padding is made of samples: launchers against twins that pad by a copy."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch

from tests.tlazy_kernels.agreement import DTYPES, SMALL, assert_agrees
from tests.tlazy_kernels.convolutions import Convolution, channels_last
from tlazy_kernels import launch
from tlazy_kernels.borders import borders
from tlazy_kernels.conv1d import conv1d_forward, conv1d_grad_input, conv1d_grad_weight
from tlazy_kernels.layouts import strides_like
from tlazy_kernels.positions import Geometry

MODES = ("reflect", "replicate", "circular")
CASES = [
    Convolution(2, 3, 5, 13, 3, padding=(1, 1)),
    Convolution(2, 16, 24, 33, 3, padding=(1, 1)),  # in tiles
    Convolution(2, 8, 8, 40, 5, padding=(8, 0), dilation=2),  # causal
    Convolution(2, 8, 8, 31, 4, stride=3, padding=(5, 4), dilation=2),
    Convolution(2, 4, 6, 31, 3, stride=2, padding=(0, 1), groups=2),
    Convolution(1, 32, 32, 21, 3, padding=(2, 1), groups=8),  # groups that share a tile
    Convolution(2, 3, 4, 9, 1, stride=4, padding=(7, 6)),  # outputs of padding alone
    Convolution(2, 3, 2, 5, 2, stride=7, padding=(4, 4)),  # samples that no tap reads
    Convolution(2, 3, 4, 5, 9, padding=(4, 4)),  # every output sees both sides
    Convolution(2, 3, 4, 3, 5, padding=(1, 2), dilation=1, stride=4),  # one output
    Convolution(2, 3, 4, 7, 1, stride=5, padding=(2, 2)),  # outputs of padding, none of its sources
    Convolution(2, 1, 12, 40, 10, stride=5, padding=(4, 3)),  # as a model's first layer
    Convolution(2, 8, 8, 29, 4, padding=(3, 0), groups=8),
    Convolution(2, 8, 16, 29, 3, stride=2, padding=(1, 2), groups=8),
    Convolution(1, 8, 8, 150, 31, padding=(15, 15), groups=8),
]
LAYOUTS = {"channels first": torch.Tensor.contiguous, "channels last": channels_last}

mode_by_mode = pytest.mark.parametrize("mode", MODES)


# Each case in both layouts and two modes, in turn.
TURNS = [
    pytest.param(case, mode, layout, id=f"{case} {mode} {layout}")
    for (case, layout), mode in zip(
        itertools.product(CASES, LAYOUTS), itertools.cycle(MODES), strict=False
    )
]


@pytest.mark.parametrize(("case", "mode", "layout"), TURNS)
@pytest.mark.parametrize("dtype", DTYPES[:1], ids=str)
def test_all_three_agree_in_every_mode(case, mode, layout, dtype, device):
    x, weight, bias, grad = case.operands(dtype, device)
    x, grad = (LAYOUTS[layout](t) for t in (x, grad))
    settings = (*case.settings, mode)
    saved = {"activation": "silu", "save_preactivation": True}
    assert_agrees(conv1d_forward, x, weight, bias, *settings, config=None, **saved)
    assert_agrees(conv1d_grad_input, grad, weight, case.length, *settings, config=None)
    assert_agrees(conv1d_grad_weight, grad, x, case.taps, *settings, config=SMALL)
    y, z = conv1d_forward(x, weight, bias, *settings, save_preactivation=True)
    assert y.stride() == z.stride() == strides_like(y.shape, x)


@pytest.mark.parametrize("mode", ["replicate", "circular"])
def test_padding_on_both_sides_may_be_made_of_one_sample(mode, device):
    case = Convolution(2, 3, 4, 1, 3, padding=(1, 1))
    x, weight, bias, grad = case.operands(torch.float32, device)
    settings = (*case.settings, mode)
    assert_agrees(conv1d_forward, x, weight, bias, *settings)
    assert_agrees(conv1d_grad_input, grad, weight, case.length, *settings)
    assert_agrees(conv1d_grad_weight, grad, x, case.taps, *settings)


@mode_by_mode
def test_only_the_borders_are_copied(mode, device):
    case = Convolution(3, 16, 16, 200, 3, padding=(1, 1))
    x, weight, bias, _ = case.operands(torch.float32, device)
    sizes = []
    run = launch.launch

    def noted(plan, tensors, *args):
        sizes.append(tensors[0].shape[2])
        return run(plan, tensors, *args)

    with mock.patch("tlazy_kernels.conv1d.launch", noted):
        conv1d_forward(channels_last(x), weight, bias, *case.settings, mode)
    assert sizes == [200, 3, 3]


@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("padding", [(1, 1), (0, 3), (5, 0), (4, 6)], ids=str)
@pytest.mark.parametrize(("taps", "dilation"), [(1, 1), (2, 3), (5, 1), (3, 4)])
@pytest.mark.parametrize("length", [1, 4, 11, 24])
def test_a_border_has_all_outputs_that_see_the_padding(length, taps, dilation, padding, stride):
    left, right = padding
    count = (left + length + right - dilation * (taps - 1) - 1) // stride + 1
    if count < 1:
        pytest.skip("no output")
    read = [{i * stride + k * dilation for k in range(taps)} for i in range(count)]
    sides = {False: set(range(left)), True: set(range(left + length, left + length + right))}
    geometry = Geometry(stride, padding, dilation, 1)
    found = {b.right: b for b in borders(length, taps, geometry, "replicate")}
    for side, positions in sides.items():
        seeing = {i for i in range(count) if read[i] & positions}
        chosen = set(range(count)[found[side].window.outputs]) if side in found else set()
        assert seeing <= chosen
        if side in found:
            zeros, samples = found[side].window.geometry.padding, found[side].samples
            assert min(zeros) >= 0
            outputs = (sum(zeros) + samples - dilation * (taps - 1) - 1) // stride + 1
            assert outputs == len(chosen)
