"""What kernels are told to divide sizes and strides does divide them."""

from __future__ import annotations

import pytest
import torch

from tests.tlazy_kernels.agreement import DTYPES, SMALL, assert_agrees, random
from tests.tlazy_kernels.convolutions import Convolution, assert_all_agree, channels_last
from tlazy_kernels.conv1d import conv1d_grad_weight
from tlazy_kernels.conv1d_gather import gather_steps
from tlazy_kernels.epilogue import epilogue_backward
from tlazy_kernels.positions import Geometry
from tlazy_kernels.targets import STAND_IN
from tlazy_kernels.units import units

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.parametrize(
    ("sizes", "strides", "found"),
    [
        ((6, 1000), (6000, 1000, 1), (1, 8)),
        ((6, 1004), (6024, 1004, 1), (1, 1)),  # a length is a whole number of vectors or it is not
        ((1000, 6), (6000, 1, 1000), (8, 1)),
        ((1004, 6), (6024, 1, 1004), (4, 1)),
        ((16, 16), (8 * 71, 8, 8 * 9), (8, 8)),
        ((16, 16), (0, 0, 0), (8, 8)),
        ((16, 16), (8 * 71 + 4, 8, 8 * 9), (4, 1)),
        ((16, 16), (8 * 71 + 1, 8, 8 * 9), (1, 1)),
    ],
)
def test_units_divide_sizes_and_the_strides_of_other_dimensions(sizes, strides, found):
    assert tuple(units(*sizes, 2, strides).values()) == found


def test_units_divide_the_strides_of_all_tensors():
    assert units(8, 8, 2, (64, 8, 1), (60, 1, 12)) == {"C_UNIT": 1, "L_UNIT": 1}
    assert units(8, 8, 4, (64, 8, 1), (60, 12, 1)) == {"C_UNIT": 1, "L_UNIT": 4}


@every_dtype
def test_strides_that_both_units_divide_are_kept_whole(dtype, device):
    x = random(2, 1, 16, dtype=dtype, device=device)
    grad = random(2, 16, 16, dtype=dtype, device=device, seed=1)
    strides = 8 * 273, 8, 8 * 17  # 8 divides them, 64 does not
    apart = grad.new_empty(4400).as_strided(grad.shape, strides).copy_(grad)
    assert min(units(16, 16, dtype.itemsize, strides).values()) == 16 // dtype.itemsize
    for config in (None, SMALL):  # the first layer's kernel, and the one for any strides
        assert_agrees(conv1d_grad_weight, apart, x, 3, 1, (1, 1), config=config)


# Lengths and channels that are multiples of 8 and not of 16, and as many rows as tiles do not fill.
SHAPES = [(3, 5, 24), (3, 24, 5), (40, 24, 1), (1, 5, 1032), (2, 3, 520)]


@every_dtype
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_epilogue_agrees_where_rows_are_whole_vectors(shape, last, dtype, device):
    grad, z = (random(*shape, dtype=dtype, device=device, seed=i) for i in range(2))
    if last:
        grad, z = channels_last(grad), channels_last(z)
    assert_agrees(epilogue_backward, grad, z, "gelu", bias=True, config=None)
    assert_agrees(epilogue_backward, grad, None, None, bias=True, config=None)


LAYERS = [
    Convolution(2, 16, 24, 40, 3, padding=(1, 1)),
    Convolution(2, 24, 40, 48, 4, stride=2, padding=(1, 1)),
    Convolution(2, 2, 24, 40, 3, padding=(1, 1)),  # a first layer
    Convolution(2, 16, 24, 40, 3, padding=(1, 1), groups=2),
]


@every_dtype
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_convolutions_agree_where_rows_are_whole_vectors(layer, last, dtype, device):
    x, weight, bias, grad = layer.operands(dtype, device)
    if last:
        x, grad = channels_last(x), channels_last(grad)
    assert_all_agree(layer, (x, weight, bias, grad), None, "relu")


def test_the_stride_of_a_single_channel_is_of_no_account(device):
    """Its samples are the neighbours, whatever PyTorch calls the layout."""
    grad, weight, y = (
        torch.empty(shape, dtype=torch.float16, device=device)
        for shape in ((2, 24, 40), (24, 1, 3), (2, 40, 1))
    )
    geometry = Geometry(1, (1, 1), 1, 1)
    _, (step,) = gather_steps(
        STAND_IN,
        grad,
        weight,
        None,
        y.transpose(1, 2),
        None,
        geometry,
        transposed=True,
        activation=None,
        precision="ieee",
        config=None,
    )
    assert step.scalars[-3:] == (40, 0, 1)
    assert step.constants["L_UNIT"] == 8
