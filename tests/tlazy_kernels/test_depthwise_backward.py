"""All gradients of a depthwise convolution in one pass, where the tensors allow it."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.tlazy_kernels.agreement import DTYPES, SMALL, assert_agrees, bits, exact, random, spread
from tests.tlazy_kernels.convolutions import Convolution, channels_last
from tests.tlazy_kernels.test_activations import saved_for
from tlazy_kernels import configs, launch, reference
from tlazy_kernels.depthwise import depthwise_backward

ACTIVATIONS = (None, *reference.ACTIVATIONS)

CASES = [
    Convolution(1, 1, 1, 1, 1),  # one of everything
    Convolution(2, 20, 20, 21, 4, padding=(3, 0), groups=20),  # causal, no multiple of a vector
    Convolution(3, 5, 5, 40, 4, padding=(3, 0), groups=5),  # causal, vectors of samples
    Convolution(2, 24, 24, 24, 3, padding=(1, 1), groups=24),  # vectors either way
    Convolution(2, 16, 16, 32, 8, padding=(3, 4), groups=16),  # "same" of an even kernel
    Convolution(2, 8, 8, 48, 3, padding=(9, 9), dilation=9, groups=8),
    Convolution(1, 8, 8, 24, 3, padding=(4, 0), dilation=2, groups=8),
    Convolution(2, 8, 8, 16, 5, padding=(4, 4), groups=8),  # outputs longer than inputs
    Convolution(2, 8, 8, 16, 3, padding=(7, 9), groups=8),  # more padding than the filter reaches
    Convolution(2, 8, 8, 24, 3, padding=(1, 1), dilation=2, groups=8),  # no tap in its own place
    Convolution(2, 3, 3, 8, 9, padding=(4, 4), groups=3),  # more taps than one pass takes
    Convolution(2, 3, 6, 20, 3, padding=(1, 1), groups=3),  # two filters a channel
    Convolution(2, 4, 4, 20, 3, stride=2, padding=(1, 1), groups=4),
    Convolution(0, 4, 4, 10, 3, groups=4),
]

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def operands(case, dtype, device, activation=None):
    """(grad, saved, x, weight), random."""
    x, weight, _, grad = case.operands(dtype, device)
    saved = saved_for(activation, random(*grad.shape, dtype=dtype, device=device, seed=9))
    return grad, saved, x, weight


def assert_backward_agrees(case, tensors, activation=None, config=SMALL, **settings):
    sizes = (case.length, case.taps, *case.settings)
    assert_agrees(
        depthwise_backward, *tensors, *sizes, activation=activation, config=config, **settings
    )


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("lies", [torch.clone, channels_last], ids=["NCL", "NLC"])
def test_gradients_agree_for_every_setting_in_both_layouts(case, lies, dtype, device):
    """With an activation whose derivative is exact: separate passes round dL/dz between them."""
    grad, saved, x, weight = operands(case, dtype, device, "relu")
    tensors = lies(grad), lies(saved), lies(x), weight
    assert_backward_agrees(case, tensors, "relu", None)
    assert_backward_agrees(case, tensors, "relu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("lies", [torch.clone, channels_last], ids=["NCL", "NLC"])
def test_gradients_agree_for_every_activation(activation, lies, dtype, device):
    case = Convolution(3, 8, 8, 24, 3, padding=(1, 1), groups=8)
    grad, saved, x, weight = operands(case, dtype, device, activation)
    saved = None if saved is None else lies(saved)
    assert_backward_agrees(case, (lies(grad), saved, lies(x), weight), activation)


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("lies", [torch.clone, channels_last], ids=["NCL", "NLC"])
def test_only_what_is_needed_is_read_and_given(needs, lies, dtype, device):
    case = Convolution(2, 8, 8, 16, 4, padding=(3, 0), groups=8)
    grad, saved, x, weight = operands(case, dtype, device, "relu")
    tensors = lies(grad), lies(saved), lies(x) if needs[1] else None, weight if needs[0] else None
    assert_backward_agrees(case, tensors, "relu", needs=needs)


@pytest.mark.parametrize("dims", [(0, 2, 1), (2, 1, 0)], ids=["NLC", "LCN"])
def test_tensors_may_lie_in_different_layouts(dims, dtype, device):
    case = Convolution(3, 4, 4, 19, 3, padding=(1, 1), groups=4)
    grad, saved, x, weight = operands(case, dtype, device, "relu")
    assert_backward_agrees(case, (spread(grad, dims), saved, x, weight), "relu")
    assert_backward_agrees(case, (grad, saved, spread(x, dims), spread(weight, dims)), "relu")


def test_a_gradient_of_stride_zero_is_read_as_it_is(dtype, device):
    case = Convolution(3, 4, 4, 16, 3, padding=(1, 1), groups=4)
    grad, saved, x, weight = operands(case, dtype, device, "relu")
    grad = grad[:1, :1, :1].expand(grad.shape)
    assert_backward_agrees(case, (grad, saved, x, weight), "relu")


def test_positions_may_lie_apart_further_than_int32_reaches(dtype, device, vast):
    """Position 2 lies 2**31 elements behind position 0, of which it is one dilation away."""
    case = Convolution(2, 3, 3, 3, 2, padding=(2, 0), dilation=2, groups=3)
    grad, _, x, weight = (t if t is None else t.round() for t in operands(case, dtype, device))
    sizes = (case.length, case.taps, *case.settings)
    far = (vast(t.permute(2, 0, 1)).permute(1, 2, 0) for t in (grad, x))
    found = depthwise_backward(next(far), None, next(far), weight, *sizes, config=SMALL)
    near = channels_last(grad), None, channels_last(x), weight
    expected = depthwise_backward(*near, *sizes, config=SMALL)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("lies", [torch.clone, channels_last], ids=["NCL", "NLC"])
def test_infinite_values_beside_padding_leave_it_out(lies, dtype, device):
    """As in the separate launchers: what does not exist is no 0 to multiply with."""
    case = Convolution(1, 8, 8, 16, 3, padding=(1, 1), groups=8)
    grad, _, x, weight = operands(case, dtype, device)
    weight[0, 0, 0] = grad[0, 1, 0] = x[0, 2, 15] = torch.inf
    dx, dw, _ = depthwise_backward(
        lies(grad), None, lies(x), weight, 16, 3, *case.settings, config=SMALL
    )
    assert dx[0, 0].isinf().tolist() == [True] * 15 + [False]
    assert not dx[0, 0].isnan().any()
    assert dw[1, 0].isinf().tolist() == [False, True, True]
    assert dw[2, 0].isinf().tolist() == [False, True, True]
    assert not dw.isnan().any()


@pytest.mark.parametrize("lies", [torch.clone, channels_last], ids=["NCL", "NLC"])
@pytest.mark.parametrize("programs", [1, 2, 1000])
def test_sums_do_not_depend_on_their_split_and_are_bitwise_the_same_twice(
    lies, programs, dtype, device, monkeypatch
):
    """Whole numbers: their sums are exact in any order, so that a row left out would show."""
    case = Convolution(6, 3, 3, 40, 3, padding=(2, 0), groups=3)
    grad, _, x, weight = (t if t is None else t.round() for t in operands(case, dtype, device))
    call = (lies(grad), None, lies(x), weight, 40, 3, *case.settings)
    expected = reference.depthwise_backward(*map(exact, call))
    monkeypatch.setattr(configs, "TARGET_PROGRAMS", programs)
    monkeypatch.setattr(launch, "_plans", {})
    first, second = (depthwise_backward(*call, config=SMALL) for _ in range(2))
    for found, again, wanted in zip(first, second, expected, strict=True):
        assert torch.equal(bits(found), bits(again))
        assert torch.equal(found.cpu(), wanted.to(dtype))
