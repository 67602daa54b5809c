from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.tlazy_kernels.agreement import DTYPES, SMALL, assert_agrees, bits, random, spread
from tlazy_kernels import checks, layouts, reference
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.conv1d import conv1d_forward, conv1d_grad_input, conv1d_grad_weight
from tlazy_kernels.conv_transpose1d import conv_transpose1d_forward

ACTIVATIONS = (None, *reference.ACTIVATIONS)


@dataclass(frozen=True)
class Transposed:
    """Sizes and settings of a transposed convolution."""

    batch: int
    in_channels: int
    out_channels: int
    length: int
    taps: int
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    dilation: int = 1
    groups: int = 1

    def __str__(self) -> str:
        return (
            f"{self.batch}x{self.in_channels}x{self.length} to {self.out_channels} k{self.taps} "
            f"s{self.stride} p{self.padding}+{self.output_padding} d{self.dilation} g{self.groups}"
        )

    @property
    def settings(self) -> tuple[int, int, int, int, int]:
        """As the launcher takes them, after the tensors."""
        return self.stride, self.padding, self.output_padding, self.dilation, self.groups

    @property
    def out_length(self) -> int:
        reach = (self.length - 1) * self.stride + self.dilation * (self.taps - 1) + 1
        return reach - 2 * self.padding + self.output_padding

    def operands(self, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """(x, weight, bias), random."""
        shapes = (
            (self.batch, self.in_channels, self.length),
            (self.in_channels, self.out_channels // self.groups, self.taps),
            (self.out_channels,),
        )
        x, weight, bias = (
            random(*shape, dtype=dtype, device=device, seed=i) for i, shape in enumerate(shapes)
        )
        return x, weight, bias


CASES = [
    Transposed(1, 2, 1, 1, 1),  # one sample, one tap
    Transposed(2, 3, 5, 7, 1),  # pointwise
    Transposed(3, 2, 5, 63, 3),  # more filters than channels
    Transposed(2, 18, 17, 40, 3, padding=1),
    Transposed(2, 4, 6, 31, 4, stride=2, padding=1),
    Transposed(2, 4, 6, 16, 3, stride=2, padding=1, output_padding=1),
    Transposed(2, 3, 20, 9, 2, stride=5),  # samples that no tap reaches
    Transposed(2, 3, 2, 9, 2, stride=5, output_padding=4),  # more of them at the end
    Transposed(1, 4, 4, 10, 4, stride=2, padding=2, dilation=3, output_padding=2),
    Transposed(2, 3, 4, 7, 3, dilation=4, output_padding=3),  # output padding beyond the stride
    Transposed(2, 2, 5, 4, 9, padding=4),  # kernel longer than the input
    Transposed(2, 3, 2, 1, 7, stride=3),  # one sample
    Transposed(1, 3, 2, 1, 1, padding=2, dilation=5, output_padding=4),  # nothing but the bias
    Transposed(2, 3, 2, 8, 3, padding=4),  # the ends reach nothing that is left
    Transposed(2, 6, 4, 11, 3, stride=2, padding=1, groups=2),
    Transposed(2, 10, 15, 8, 2, groups=5),
    Transposed(1, 34, 36, 9, 2, stride=2, groups=2),  # groups of several tiles
    Transposed(2, 5, 5, 9, 4, stride=2, padding=1, groups=5),  # depthwise
    Transposed(2, 20, 20, 9, 3, stride=3, dilation=2, output_padding=2, groups=20),
    Transposed(2, 6, 3, 9, 3, stride=2, padding=1, groups=3),  # two channels into each
    Transposed(2, 3, 1, 9, 3, stride=2),  # one filter, all channels: depthwise kernels too
    Transposed(0, 3, 4, 10, 3, padding=1),  # no samples in the batch
]

# Whole units of 16 bytes in either layout, which tensor descriptors can read.
ALIGNED = [
    Transposed(3, 16, 24, 24, 4, stride=2, padding=1),
    Transposed(2, 32, 16, 40, 3, stride=3, padding=2, output_padding=2, dilation=2),
    Transposed(2, 16, 16, 16, 3, dilation=4, output_padding=3),  # output padding beyond the stride
    Transposed(2, 16, 24, 16, 2, stride=5, output_padding=4),  # samples that no tap reaches
    Transposed(1, 32, 48, 24, 7, stride=4, padding=5, dilation=2, groups=2),  # likewise
    Transposed(5, 16, 16, 8, 16, stride=8, padding=4),
    Transposed(2, 32, 32, 8, 3, padding=3, output_padding=0, groups=2),
    Transposed(1, 16, 16, 8, 1, padding=7, dilation=9, output_padding=8),  # the bias at the end
]

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)
case_by_case = pytest.mark.parametrize("case", CASES, ids=str)


@case_by_case
@pytest.mark.parametrize("config", [SMALL, None], ids=["small tiles", "default tiles"])
def test_it_agrees_for_every_setting(case, config, dtype, device):
    x, weight, bias = case.operands(dtype, device)
    assert_agrees(conv_transpose1d_forward, x, weight, bias, *case.settings, config=config)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("groups", [1, 2, 20], ids=["dense", "grouped", "depthwise"])
def test_it_agrees_for_every_activation_with_and_without_bias(
    activation, with_bias, groups, dtype, device
):
    case = Transposed(2, 20, 20, 9, 4, stride=2, padding=1, output_padding=1, groups=groups)
    x, weight, bias = case.operands(dtype, device)
    assert_agrees(
        conv_transpose1d_forward,
        x,
        weight,
        bias if with_bias else None,
        *case.settings,
        activation=activation,
        save_preactivation=with_bias,
    )


@pytest.mark.parametrize(
    "dims", [(0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0)], ids=["NCL", "NLC", "CLN", "LCN"]
)
@pytest.mark.parametrize("groups", [1, 2, 4], ids=["dense", "grouped", "depthwise"])
def test_operands_may_have_any_memory_layout(dims, groups, dtype, device):
    case = Transposed(3, 4, 8, 9, 3, stride=2, padding=1, groups=groups)
    x, weight, bias = case.operands(dtype, device)
    x, weight, bias = spread(x, dims), spread(weight, dims), spread(bias, (0,))
    assert_agrees(conv_transpose1d_forward, x, weight, bias, *case.settings)


@pytest.mark.parametrize("case", ALIGNED, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["NCL", "NLC"])
def test_aligned_operands_agree_in_both_layouts(case, channels_last, dtype, device):
    x, weight, bias = case.operands(dtype, device)
    if channels_last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    settings = {"activation": "silu", "save_preactivation": True, "config": None}
    assert_agrees(conv_transpose1d_forward, x, weight, bias, *case.settings, **settings)
    for output in conv_transpose1d_forward(x, weight, bias, *case.settings, **settings):
        assert layouts.is_channels_last(output) == channels_last


@case_by_case
def test_its_gradients_are_the_adjoint_convolution_and_that_ones_weight_gradient(
    case, dtype, device
):
    """Of exactly its sizes, which conv1d's own launchers check."""
    x, weight, _ = case.operands(dtype, device)
    shape = (case.batch, case.out_channels, case.out_length)
    grad = random(*shape, dtype=dtype, device=device, seed=3)
    samples, padding = checks.adjoint_conv1d(case.out_length, case.padding, case.output_padding)
    settings = (case.stride, padding, case.dilation, case.groups)
    g = grad[:, :, :samples]
    leaves = [t.cpu().double().requires_grad_() for t in (x, weight)]
    y = reference.conv_transpose1d_forward(*leaves, None, *case.settings)[0]
    grad_x, grad_weight = torch.autograd.grad(y, leaves, grad.cpu().double())
    assert_agrees(conv1d_forward, g, weight, None, *settings)
    assert_agrees(conv1d_grad_weight, x, g, case.taps, *settings)
    twin = reference.conv1d_forward(g.cpu().double(), leaves[1], None, *settings)[0]
    torch.testing.assert_close(twin, grad_x)
    twin = reference.conv1d_grad_weight(leaves[0], g.cpu().double(), case.taps, *settings)
    torch.testing.assert_close(twin, grad_weight)


@case_by_case
def test_without_bias_it_is_bitwise_that_convolutions_input_gradient(case, dtype, device):
    x, weight, _ = case.operands(dtype, device)
    samples, padding = checks.adjoint_conv1d(case.out_length, case.padding, case.output_padding)
    if samples != case.out_length:
        # Rows then have other places in their tiles, on which NumPy's rounding of a product in the
        # interpreter depends: whole numbers need none.
        x, weight = x.round(), weight.round()
    y = conv_transpose1d_forward(x, weight, None, *case.settings, config=SMALL)[0]
    settings = (case.stride, padding, case.dilation, case.groups)
    dx = conv1d_grad_input(x, weight, samples, *settings, config=SMALL)
    assert torch.equal(bits(y[:, :, :samples]), bits(dx))
    assert (y[:, :, samples:] == 0).all()


def test_infinite_and_nan_samples_reach_the_outputs_that_gather_them_and_no_others(dtype, device):
    case = Transposed(3, 6, 5, 9, 3, padding=1)
    x, weight, bias = case.operands(dtype, device)
    x[0, 1, 0], x[1, 0, 8], x[2, 5, 4] = torch.inf, -torch.inf, torch.nan
    for activation in (None, "relu", "gelu", "sigmoid", "tanh"):
        assert_agrees(
            conv_transpose1d_forward, x, weight, bias, *case.settings, activation=activation
        )
    y = conv_transpose1d_forward(x, weight, None, *case.settings)[0]
    assert y[0, :, 2:].isfinite().all()
    assert y[2, :, 3:6].isnan().all()


def test_results_are_bitwise_the_same_twice(dtype, device):
    case = Transposed(5, 20, 3, 30, 4, stride=2, padding=1)
    x, weight, bias = case.operands(dtype, device)
    first, second = (
        conv_transpose1d_forward(x, weight, bias, *case.settings, activation="silu", config=SMALL)
        for _ in range(2)
    )
    assert torch.equal(bits(first[0]), bits(second[0]))


@pytest.mark.parametrize("groups", [1, 4], ids=["dense", "depthwise"])
def test_elements_beyond_two_billion_are_found(groups, dtype, device, vast):
    """Sample 2 of the batch lies 2**31 elements behind sample 0."""
    case = Transposed(3, 4, 4, 9, 3, stride=2, groups=groups)
    x, weight, bias = case.operands(dtype, device)
    near, far = (conv_transpose1d_forward(t, weight, bias, *case.settings) for t in (x, vast(x)))
    assert torch.equal(bits(far[0]), bits(near[0]))


@st.composite
def transposed(draw: st.DrawFn) -> Transposed:
    groups = draw(st.integers(1, 5))
    stride, dilation, taps = (draw(st.integers(1, n)) for n in (4, 4, 6))
    length = draw(st.integers(1, 20))
    output_padding = draw(st.integers(0, max(stride, dilation) - 1))
    whole = (length - 1) * stride + dilation * (taps - 1) + 1 + output_padding
    return Transposed(
        batch=draw(st.integers(0, 3)),
        in_channels=groups * draw(st.integers(1, 18)),
        out_channels=groups * draw(st.integers(1, 18)),
        length=length,
        taps=taps,
        stride=stride,
        padding=draw(st.integers(0, (whole - 1) // 2)),
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
    )


@pytest.mark.parametrize("search", ["short", pytest.param("long", marks=pytest.mark.thorough)])
@given(
    case=transposed(),
    order=st.permutations(range(3)),
    activation=st.sampled_from(ACTIVATIONS),
    with_bias=st.booleans(),
    rows=st.sampled_from([16, 32]),
)
def test_it_agrees_for_any_sizes(search, case, order, activation, with_bias, rows, dtype, device):
    x, weight, bias = case.operands(dtype, device)
    assert_agrees(
        conv_transpose1d_forward,
        spread(x, tuple(order)),
        weight,
        bias if with_bias else None,
        *case.settings,
        activation=activation,
        save_preactivation=True,
        config=TileConfig(rows, 16, 16),
    )
