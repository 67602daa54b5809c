"""Inputs of all kinds, and those that are refused early (rows 18 and 19)."""

import pytest
import torch

import tlazy
from tests.tlazy.lazy_models import unlike_torch
from tests.tlazy.snapshot import refused
from tlazy import nn

SAMPLES = {  # arguments of the layer, shapes of inputs
    "LazyLinear": {
        "batches": ((4,), [(3,), (2, 3), (2, 5, 3), (0, 3), (1, 1)]),
        "no bias": ((4, False), [(3,), (2, 3)]),
        "no inputs": ((4,), [(0,), (2, 0)]),
    },
    "LazyConv1d": {
        "batches": ((4, 3), [(2, 9), (5, 2, 9), (0, 2, 9), (1, 1, 3)]),
        "stride": ((4, 3, 2, 1), [(2, 9), (5, 2, 10)]),
        "dilation": ((4, 3, 1, 2, 2), [(2, 9), (5, 2, 5)]),
        "groups": ((6, 2, 1, 0, 1, 3), [(3, 9), (2, 6, 5)]),
        "depthwise": ((4, 5, 1, "same", 1, 4, False), [(4, 7), (2, 4, 9)]),
        "a longer kernel": ((2, 4, 1, "same", 3), [(2, 3), (2, 2, 5)]),
        "circular": ((4, 3, 1, 1, 1, 1, True, "circular"), [(2, 9), (2, 2, 9)]),
    },
}


@pytest.mark.parametrize(
    ("kind", "arguments", "shape"),
    [
        pytest.param(kind, arguments, shape, id=f"{kind} {name} {shape}")
        for kind, samples in SAMPLES.items()
        for name, (arguments, shapes) in samples.items()
        for shape in shapes
    ],
)
@pytest.mark.parametrize("strided", [False, True])
def test_row_18_inputs_of_all_kinds_give_what_torchs_layer_gives(kind, arguments, shape, strided):
    layer, theirs = getattr(nn, kind)(*arguments), getattr(torch.nn, kind)(*arguments)
    x = torch.randn(*shape, 2)[..., 1] if strided else torch.randn(shape)
    tlazy.materialize(theirs, x)
    theirs.load_state_dict(tlazy.materialize(layer, x).model.state_dict())
    x, same = x.detach().requires_grad_(), x.detach().requires_grad_()
    y, expected = layer(x), theirs(same)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, same.grad)
    assert repr(layer) == repr(theirs)


@unlike_torch
def test_row_19_groups_are_checked_early(lib):
    with pytest.raises(ValueError, match="out_channels"):
        lib.LazyConv1d(4, 3, groups=3)


@unlike_torch
def test_row_19_a_first_call_with_the_wrong_channels_changes_nothing(lib):
    layer = lib.LazyConv1d(6, 3, groups=3)
    with refused(layer, ValueError, match="in_channels"):
        layer(torch.ones(2, 4, 9))
