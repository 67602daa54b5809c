"""What holds for any shape, stride, dtype and argument: searched for, not listed.

The same examples every time, and 50 times as many, other ones each time, with ``-m thorough``.
New memory is full of NaN in all of these tests, so that an element left unwritten shows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.tlazy_kernels.agreement import DTYPES, assert_agrees, bits, random, spread
from tests.tlazy_kernels.convolutions import Convolution, assert_all_agree
from tests.tlazy_kernels.test_activations import saved_for
from tlazy_kernels import configs, epilogue, reference
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.conv1d import conv1d_forward, conv1d_grad_input, conv1d_grad_weight
from tlazy_kernels.depthwise import depthwise_backward
from tlazy_kernels.layouts import empty_like
from tlazy_kernels.linear import linear_forward, linear_grad_input, linear_grad_weight

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)
searched = pytest.mark.parametrize(
    "search", ["short", pytest.param("long", marks=pytest.mark.thorough)]
)

sides = st.sampled_from([16, 32])
tiles = st.builds(TileConfig, rows=sides, cols=sides, depth=st.just(16))
names = st.sampled_from((None, *reference.ACTIVATIONS))
sizes = st.integers(1, 40)


@st.composite
def layouts(draw: st.DrawFn, dims: int) -> dict[str, Any]:
    """How a tensor lies in memory, as ``spread`` takes it."""
    order = tuple(draw(st.permutations(range(dims))))
    return {"dims": order, "offset": draw(st.integers(0, 5)), "step": draw(st.integers(1, 3))}


@st.composite
def convolutions(draw: st.DrawFn, *, depthwise: bool) -> Convolution:
    """Any convolution of small tensors: no samples, more taps than samples, and so on."""
    groups = draw(st.integers(1, 20 if depthwise else 3))
    taps, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    padding = draw(st.tuples(st.integers(0, 7), st.integers(0, 7)))
    shortest = max(1, dilation * (taps - 1) + 1 - sum(padding))
    return Convolution(
        batch=draw(st.integers(0, 3)),
        in_channels=groups * (1 if depthwise else draw(st.integers(2, 18))),
        out_channels=groups * draw(st.integers(1, 3 if depthwise else 18)),
        length=draw(st.integers(shortest, shortest + 20)),
        taps=taps,
        stride=draw(st.integers(1, 4)),
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


def with_specials(x: Tensor, places: list[tuple[int, float]]) -> Tensor:
    """A copy with these values in these places, which are counted around."""
    x = x.clone()
    for place, value in places:
        if x.numel():
            x.view(-1)[place % x.numel()] = value
    return x


specials = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from([torch.nan, torch.inf, -torch.inf])),
    max_size=3,
)


@searched
@given(
    shape=st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40)),
    layout=layouts(2),
    activation=names,
    with_bias=st.booleans(),
    tile=tiles,
    places=specials,
)
def test_linear_agrees(search, shape, layout, activation, with_bias, tile, places, dtype, device):
    m, k, n = shape
    x, weight, grad = (
        random(*s, dtype=dtype, device=device, seed=i)
        for i, s in enumerate(((m, k), (n, k), (m, n)))
    )
    x, grad = (spread(with_specials(t, places), **layout) for t in (x, grad))
    bias = random(n, dtype=dtype, device=device) if with_bias else None
    assert_agrees(
        linear_forward, x, weight, bias, activation=activation, save_preactivation=True, config=tile
    )
    assert_agrees(linear_grad_input, grad, weight, config=tile)
    assert_agrees(linear_grad_weight, grad, x, config=tile)


@searched
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense and grouped", "depthwise"])
@given(
    data=st.data(),
    layout=layouts(3),
    activation=names,
    with_bias=st.booleans(),
    tile=tiles,
    places=specials,
)
def test_conv1d_agrees(
    search, depthwise, data, layout, activation, with_bias, tile, places, dtype, device
):
    """A depthwise weight gradient leaves padding out, where the twin's 0 * NaN is NaN."""
    case = data.draw(convolutions(depthwise=depthwise))
    x, weight, bias, grad = case.operands(dtype, device)
    x = spread(with_specials(x, places), **layout)
    grad = spread(grad if case.depthwise else with_specials(grad, places), **layout)
    operands = x, spread(weight, **layout), bias if with_bias else None, grad
    assert_all_agree(case, operands, tile, activation)


@searched
@given(
    data=st.data(),
    layout=layouts(3),
    mode=st.sampled_from(["reflect", "replicate", "circular"]),
    depthwise=st.booleans(),
    tile=tiles,
)
def test_padding_of_samples_agrees(search, data, layout, mode, depthwise, tile, dtype, device):
    case = data.draw(convolutions(depthwise=depthwise))
    most = case.length - (mode == "reflect")  # as far as padding by samples can reach
    left, right = case.padding
    case = replace(case, padding=(min(left, most), min(right, most)))
    assume(case.out_length > 0)
    x, weight, bias, grad = case.operands(dtype, device)
    x, grad = spread(x, **layout), spread(grad, **layout)
    settings = (*case.settings, mode)
    assert_agrees(conv1d_forward, x, weight, bias, *settings, config=tile)
    assert_agrees(conv1d_grad_input, grad, weight, case.length, *settings, config=tile)
    assert_agrees(conv1d_grad_weight, grad, x, case.taps, *settings, config=tile)


@searched
@given(
    data=st.data(),
    lies=layouts(3),
    x_lies=layouts(3),
    activation=st.sampled_from([None, "relu"]),  # others' separate passes round dL/dz between them
    needs=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    tile=tiles,
    places=specials,
)
def test_all_gradients_of_a_depthwise_convolution_agree(
    search, data, lies, x_lies, activation, needs, tile, places, dtype, device
):
    case = data.draw(convolutions(depthwise=True))
    x, weight, _, grad = case.operands(dtype, device)
    saved = saved_for(activation, random(*grad.shape, dtype=dtype, device=device, seed=9))
    saved = None if saved is None else spread(saved, **lies)
    x = spread(with_specials(x, places) if needs[1] else x, **x_lies)
    tensors = spread(grad, **lies), saved, x if needs[1] else None, weight if needs[0] else None
    sizes = (case.length, case.taps, *case.settings)
    settings = {"activation": activation, "needs": needs, "config": tile}
    like = next(t for t in (x if needs[1] else None, saved, tensors[0]) if t is not None)
    assert_agrees(depthwise_backward, *tensors, *sizes, **settings, like=like)


@searched
@given(
    shape=st.tuples(st.integers(0, 4), sizes, sizes),
    layout=layouts(3),
    activation=names,
    bias=st.booleans(),
    for_tiles=st.booleans(),
    tile=st.none() | tiles,
    places=specials,
)
def test_the_epilogue_agrees(
    search, shape, layout, activation, bias, for_tiles, tile, places, dtype, device
):
    grad, z = (random(*shape, dtype=dtype, device=device, seed=i) for i in range(2))
    saved = saved_for(activation, z)
    grad = spread(with_specials(grad, places), **layout)
    settings = {"bias": bias, "for_tiles": for_tiles, "config": tile}
    like = empty_like(shape, grad, channels_last=True) if for_tiles else None
    assert_agrees(epilogue.epilogue_backward, grad, saved, activation, **settings, like=like)


def whole_numbers(*shape: int, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Numbers from -3 to 3: sums of their products are exact in float32, in any order."""
    return (
        random(*shape, dtype=torch.float32, device=device, seed=seed).round().clamp(-3, 3).to(dtype)
    )


def every_reduction(operands: tuple[Tensor, ...], tile: TileConfig) -> list[Tensor]:
    """All outputs whose sums may be split, of tensors of at most 200 rows."""
    x, weight, bias, grad, rows, row_grad = operands
    outputs = [
        linear_forward(rows, weight[:, :, 0], bias, config=tile)[0],
        linear_grad_weight(row_grad, rows, config=tile),
        conv1d_forward(x, weight, bias, config=tile)[0],
        conv1d_grad_input(grad, weight, x.shape[2], config=tile),
        conv1d_grad_weight(grad, x, weight.shape[2], config=tile),
        conv1d_grad_weight(
            grad[:, : x.shape[1]], x, weight.shape[2], groups=x.shape[1], config=tile
        ),
        epilogue.epilogue_backward(grad, None, None, bias=True, config=tile)[1],
    ]
    return [output for output in outputs if output is not None]


def split_operands(make: Any, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    shapes = ((4, 3, 50), (5, 3, 2), (5,), (4, 5, 49), (200, 3), (200, 5))
    return tuple(make(*s, dtype=dtype, device=device, seed=i) for i, s in enumerate(shapes))


@pytest.mark.parametrize("programs", [3, 1000])
def test_exact_sums_are_bitwise_the_same_however_they_are_split(
    programs, dtype, device, monkeypatch
):
    """A row that a split left out, or that two took, would show; so would an atomic sum's order."""
    operands = split_operands(whole_numbers, dtype, device)
    expected = every_reduction(operands, TileConfig(16, 16, 16))
    monkeypatch.setattr(configs, "TARGET_PROGRAMS", programs)
    for tile in (TileConfig(16, 16, 16), TileConfig(32, 16, 32)):
        for found, wanted in zip(every_reduction(operands, tile), expected, strict=True):
            assert torch.equal(bits(found), bits(wanted))


def test_rounded_sums_split_otherwise_differ_by_rounding_alone(dtype, device, monkeypatch):
    """Another split is another order of the same float32 sum; twice the same is bitwise equal."""
    operands = split_operands(random, dtype, device)
    tile = TileConfig(16, 16, 16)
    whole, again = every_reduction(operands, tile), every_reduction(operands, tile)
    monkeypatch.setattr(configs, "TARGET_PROGRAMS", 1)
    unsplit = every_reduction(operands, tile)
    unit = torch.finfo(dtype).eps
    for first, second, other in zip(whole, again, unsplit, strict=True):
        assert torch.equal(bits(first), bits(second))
        scale = first.abs().max().item()
        torch.testing.assert_close(other, first, rtol=unit, atol=200 * 2**-24 * scale)
