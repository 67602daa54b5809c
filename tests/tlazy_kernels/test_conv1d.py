from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from tests.tlazy_kernels.agreement import DTYPES, SMALL, assert_agrees, bits, random, spread
from tests.tlazy_kernels.convolutions import (
    Convolution,
    assert_all_agree,
    channels_last,
    kernels_of,
)
from tlazy_kernels import conv1d_gather, copy_cost, launch, reference
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.conv1d import conv1d_forward, conv1d_grad_input, conv1d_grad_weight
from tlazy_kernels.conv1d_configs import subtiles
from tlazy_kernels.conv1d_tiles import load_rows, rows_of
from tlazy_kernels.targets import STAND_IN, TARGETS

ACTIVATIONS = (None, *reference.ACTIVATIONS)

CASES = [
    Convolution(1, 2, 1, 1, 1),  # one sample, one tap
    Convolution(2, 3, 5, 7, 1),  # pointwise
    Convolution(3, 5, 2, 63, 3),  # fewer filters than channels
    Convolution(2, 17, 18, 40, 3, padding=(1, 1)),
    Convolution(2, 3, 20, 25, 8, padding=(3, 4)),  # "same" of an even kernel
    Convolution(2, 20, 3, 21, 4, padding=(6, 0), dilation=2),  # causal
    Convolution(1, 2, 3, 20, 3, padding=(0, 9)),
    Convolution(2, 4, 6, 31, 3, stride=2, padding=(1, 1)),
    Convolution(2, 2, 3, 41, 5, stride=3, padding=(2, 0)),
    Convolution(2, 3, 2, 30, 2, stride=5),  # samples that no tap reads
    Convolution(1, 4, 4, 50, 4, stride=2, padding=(3, 5), dilation=3),
    Convolution(2, 2, 5, 4, 9, padding=(4, 4)),  # kernel longer than the input
    Convolution(2, 3, 2, 1, 7, padding=(3, 3)),  # one sample, all else padding
    Convolution(2, 3, 2, 3, 2, padding=(9, 9), dilation=4),  # outputs of padding alone
    Convolution(1, 3, 4, 12, 12),  # one output
    Convolution(2, 6, 4, 23, 3, padding=(1, 1), groups=2),
    Convolution(2, 10, 15, 18, 2, groups=5),
    Convolution(1, 34, 36, 17, 2, groups=2),  # groups of several tiles
    Convolution(1, 6, 9, 29, 4, stride=2, padding=(2, 1), dilation=2, groups=3),
    Convolution(0, 3, 4, 10, 3, padding=(1, 1)),  # no samples in the batch
]

# Channels of whole 16-byte units, which tensor descriptors can read.
TILED_CASES = [
    Convolution(2, 16, 24, 33, 3, padding=(1, 1)),
    Convolution(3, 8, 8, 24, 1),
    Convolution(2, 8, 20, 40, 5, padding=(8, 0), dilation=2),  # causal
    Convolution(2, 8, 8, 31, 3, stride=2),  # a last row that is not whole, and read
    Convolution(2, 8, 8, 32, 3, stride=2, padding=(2, 1)),
    Convolution(1, 16, 8, 50, 4, stride=3, padding=(4, 5), dilation=2),
    Convolution(2, 8, 16, 49, 6, stride=3, padding=(4, 5), dilation=2),  # 2 taps for each residue
    Convolution(2, 8, 8, 37, 5, stride=4, padding=(1, 1), dilation=6),  # two residues of four
    Convolution(2, 8, 8, 30, 2, stride=5),  # samples that no tap reads
    Convolution(2, 8, 8, 3, 2, stride=7, padding=(9, 9), dilation=4),  # rows without samples
    Convolution(2, 48, 40, 23, 3, padding=(1, 1), groups=2),  # groups of several tiles
    Convolution(2, 24, 12, 29, 4, stride=2, padding=(2, 1), groups=3),
    Convolution(7, 8, 8, 4, 3, padding=(1, 1)),  # several series a tile
]


pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("config", [SMALL, None], ids=["small tiles", "default tiles"])
def test_all_three_agree_for_every_setting(case, config, dtype, device):
    assert_all_agree(case, case.operands(dtype, device), config)


@pytest.mark.parametrize("case", TILED_CASES, ids=str)
@pytest.mark.parametrize("last", [(True, True), (False, True), (True, False)], ids=str)
def test_all_three_agree_where_tiles_can_be_read(case, last, dtype, device):
    x, weight, bias, grad = case.operands(dtype, device)
    x, grad = (channels_last(t) if cl else t for t, cl in zip((x, grad), last, strict=True))
    assert_all_agree(case, (x, weight, bias, grad), activation="silu")


@pytest.mark.parametrize("case", TILED_CASES[::3], ids=str)
def test_default_tiles_agree_where_tiles_can_be_read(case, dtype, device):
    x, weight, bias, grad = case.operands(dtype, device)
    assert_all_agree(case, (channels_last(x), weight, bias, channels_last(grad)), None)


# Rows of samples in whole units, which threads read by words where there is no TMA.
WORD_CASES = [
    Convolution(2, 16, 24, 32, 3, padding=(1, 1)),
    Convolution(2, 5, 3, 40, 4, padding=(7, 2), dilation=3),
    Convolution(1, 3, 2, 8, 12, padding=(9, 2)),  # filter longer than the input
    Convolution(3, 40, 36, 24, 2, padding=(0, 1), groups=2),
    Convolution(2, 18, 20, 24, 2, padding=(0, 1), groups=2),  # which share tiles
    Convolution(2, 4, 6, 16, 5, stride=3, padding=(33, 5), dilation=2),  # on the way back
    Convolution(1, 33, 17, 136, 1),  # several tiles
]


BY_THREADS = "channels_last_by_threads"


@pytest.mark.parametrize("case", WORD_CASES, ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["dense", "rows apart"])
def test_rows_of_samples_are_read_by_words_where_there_is_no_tma(
    case, padded, dtype, device, monkeypatch
):
    monkeypatch.setattr(launch, "target_of", lambda device: TARGETS["sm_80"])
    monkeypatch.setattr(launch, "_plans", {})
    if padded:  # rows of x end within a unit, those of the output do not
        (left, right), word = case.padding, 8 // dtype.itemsize
        case = replace(case, length=case.length - word, padding=(left, right + word))
    x, weight, bias, grad = case.operands(dtype, device)
    x[0, 1, 0], x[-1, 0, -1], grad[0, 1, -1], grad[-1, 0, 0] = torch.inf, torch.nan, torch.nan, 3
    if padded:
        x, grad = apart(x), apart(grad)
    assert_all_agree(case, (x, weight, bias, grad), activation="relu")
    if not padded:
        assert_all_agree(case, (x, weight, bias, grad), None)
    steps = [step for plan in launch._plans.values() for step in plan.steps]
    by_words = {step.kernel.fn.__name__ for step in steps if "words" in step.constants.values()}
    both = {"_conv1d_tiled_kernel", "_grad_weight_tiled_kernel"}
    assert by_words == (both if case.stride == 1 else {"_conv1d_tiled_kernel"})


@pytest.mark.parametrize(
    "case",
    [
        Convolution(3, 16, 24, 9, 3, stride=2, padding=(2, 1), dilation=3),  # series share tiles
        Convolution(2, 32, 16, 37, 4, padding=(1, 2), groups=2),
    ],
    ids=str,
)
def test_threads_read_channels_last_where_there_is_no_tma(case, dtype, device, monkeypatch):
    monkeypatch.setattr(launch, "target_of", lambda device: TARGETS["sm_80"])
    monkeypatch.setattr(launch, "_plans", {})
    x, weight, bias, grad = case.operands(dtype, device)
    assert_all_agree(case, (channels_last(x), weight, bias, channels_last(grad)), None)
    steps = [step for plan in launch._plans.values() for step in plan.steps]
    named = {s.kernel.fn.__name__ for s in steps if BY_THREADS in s.constants.values()}
    assert named == {"_conv1d_tiled_kernel", "_grad_weight_tiled_kernel"}


@pytest.mark.parametrize(
    "case",
    [
        Convolution(2, 20, 70, 44, 3, stride=3, padding=(2, 1), dilation=4),
        Convolution(2, 24, 48, 30, 5, stride=2, padding=(1, 2), groups=2),
        Convolution(2, 16, 8, 21, 1, stride=2),  # packed as they lie
    ],
    ids=str,
)
@pytest.mark.parametrize("config", [SMALL, None], ids=["small tiles", "its tile"])
def test_large_gathers_pack_the_filters(case, config, dtype, device, monkeypatch):
    monkeypatch.setattr(conv1d_gather, "LEAST_COPY", 1)
    monkeypatch.setattr(launch, "_plans", {})
    operands = case.operands(dtype, device)
    assert_all_agree(case, operands, config, activation="relu")
    steps = [step for plan in launch._plans.values() for step in plan.steps]
    packed = [s.constants["W_UNIT"] for s in steps if "W_UNIT" in s.constants]
    assert packed == [16 // dtype.itemsize] * 2


def test_rows_of_samples_may_end_within_a_unit(dtype, device):
    case = Convolution(2, 16, 16, 22, 3, padding=(1, 0))
    x, weight, bias, grad = case.operands(dtype, device)
    assert_all_agree(case, (apart(x), weight, bias, apart(grad)))


@triton.jit
def _tile_of_words_kernel(x_ptr, out_ptr, length, row):
    rows = rows_of(x_ptr, 1, length, 1, 1, 0, 0, 0, 1, "words", 1, 16, 16)
    tile = load_rows(rows, 0, row, 0, 0, 0, "words", 1, 16, 16)
    places = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out_ptr + places, tile)


def test_words_are_found_in_rows_of_two_billion_samples(dtype, device, vast):
    pieces = vast(random(3, 32, dtype=dtype, device=device))
    row = pieces.as_strided((2**31 - 16,), (1,))
    tile = torch.empty(16, 16, dtype=dtype, device=device)
    for skipped in range(5):
        _tile_of_words_kernel[(1,)](row, tile, len(row), 2**30 + skipped)
        assert torch.equal(tile[:, 0], pieces[1, skipped : skipped + 16])
        assert not tile[:, 1:].any()


def apart(x: torch.Tensor) -> torch.Tensor:
    """x, whose rows begin with units of 16 bytes and have NaN behind them."""
    unit = 16 // x.element_size()
    *outer, length = x.shape
    room = x.new_full((*outer, (length // unit + 1) * unit), torch.nan)
    return room[:, :, :length].copy_(x)


@pytest.mark.parametrize("last", [False, True], ids=["NCL", "NLC"])
@pytest.mark.parametrize("stride", [1, 2])
def test_tiles_that_are_stored_in_parts_agree(stride, last, dtype, device):
    case = Convolution(2, 16, 40, 72, 3, stride=stride, padding=(1, stride), dilation=1)
    operands = case.operands(dtype, device)
    x, weight, bias, grad = (channels_last(t) if last and t.dim() == 3 else t for t in operands)
    four = TileConfig(64, 32, 16, num_warps=1)  # 16 elements of each thread a part
    assert subtiles(four, STAND_IN) == 4
    assert_all_agree(case, (x, weight, bias, grad), four, "silu")
    kept = {"activation": "gelu", "save_preactivation": True, "config": four}
    assert_agrees(conv1d_forward, x, weight, bias, *case.settings, **kept)


# Groups of fewer channels than a product's contraction is long, several of which share a tile.
SMALL_GROUPS = [
    Convolution(2, 32, 32, 37, 3, padding=(1, 1), groups=8),
    Convolution(2, 32, 64, 21, 3, stride=2, padding=(2, 1), groups=8),
    Convolution(3, 24, 24, 17, 3, padding=(1, 0), dilation=2, groups=12),
    Convolution(1, 80, 160, 16, 2, groups=20),  # 4 together: 5 would tear units
]


@pytest.mark.parametrize("case", SMALL_GROUPS, ids=str)
@pytest.mark.parametrize("special", [False, True], ids=["finite", "infinite and NaN"])
def test_small_groups_share_tiles_and_keep_apart(case, special, dtype, device):
    x, weight, bias, grad = (t.clone() for t in case.operands(dtype, device))
    if special:
        x[0, 1, 3], x[-1, 5, 2], grad[0, 2, 1] = torch.inf, torch.nan, -torch.inf
    x, grad = channels_last(x), channels_last(grad)
    settings = case.settings
    forward = kernels_of(lambda: conv1d_forward(x, weight, bias, *settings))
    assert forward == {"_block_diagonal_kernel", "_conv1d_tiled_kernel"}
    assert_all_agree(case, (x, weight, bias, grad), None, activation="relu")
    in_parts = TileConfig(64, 32, 32, num_warps=1)
    assert subtiles(in_parts, STAND_IN) > 1
    kept = {"activation": "silu", "save_preactivation": True, "config": in_parts}
    assert_agrees(conv1d_forward, x, weight, bias, *settings, **kept)
    assert_agrees(conv1d_grad_weight, grad, x, case.taps, *settings, config=in_parts)


@pytest.mark.parametrize("stride", [1, 2])
def test_channels_last_memory_is_read_in_tiles_and_without_a_copy(stride, dtype, device):
    case = Convolution(2, 16, 8, 21, 3, stride=stride, padding=(1, 1))
    x, weight, bias, grad = case.operands(dtype, device)
    x, grad = channels_last(x), channels_last(grad)
    weight = weight.permute(2, 0, 1).contiguous().permute(1, 2, 0)  # in the order of tiles already
    settings = case.settings
    forward = kernels_of(lambda: conv1d_forward(x, weight, bias, *settings, config=SMALL))
    assert forward == {"_conv1d_tiled_kernel"}
    found = kernels_of(lambda: conv1d_grad_weight(grad, x, 3, *settings, config=SMALL))
    assert found <= {"_grad_weight_tiled_kernel", "_sum_kernel"}


@pytest.mark.parametrize(
    "case",
    [
        Convolution(2, 5, 7, 40, 17, stride=2, padding=(3, 9)),
        Convolution(2, 6, 9, 41, 9, padding=(4, 4), groups=3),
    ],
    ids=str,
)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_what_tiles_cannot_read_is_copied_where_that_pays(case, last, dtype, device, monkeypatch):
    monkeypatch.setattr(copy_cost, "LEAST_COPY", 1)
    monkeypatch.setattr(launch, "_plans", {})
    x, weight, bias, grad = case.operands(dtype, device)
    if last:
        x, grad = channels_last(x), channels_last(grad)
    assert_all_agree(case, (x, weight, bias, grad))
    ran = {step.kernel.fn.__name__ for plan in launch._plans.values() for step in plan.steps}
    wanted = {"_copy_kernel", "_conv1d_tiled_kernel", "_grad_weight_tiled_kernel"}
    assert ran - {"_sum_kernel", "_block_diagonal_kernel"} == wanted


@pytest.mark.parametrize("last", [False, True], ids=["NCL", "NLC"])
@pytest.mark.parametrize("stride", [1, 5])
def test_the_way_back_from_many_filters_to_one_channel_is_by_tiles(
    last, stride, dtype, device, monkeypatch
):
    monkeypatch.setattr(copy_cost, "LEAST_COPY", 0)
    case = Convolution(2, 1, 16, 45, 10, stride=stride, padding=(1, 0))
    _, weight, _, grad = case.operands(dtype, device)
    grad = channels_last(grad) if last else grad
    ran = kernels_of(lambda: conv1d_grad_input(grad, weight, case.length, *case.settings))
    assert ran == {"_conv1d_tiled_kernel", "_copy_kernel"}
    assert_agrees(conv1d_grad_input, grad, weight, case.length, *case.settings)


def test_a_copy_reads_series_that_lie_a_broken_unit_apart(dtype, device, monkeypatch):
    monkeypatch.setattr(copy_cost, "LEAST_COPY", 1)
    case = Convolution(2, 5, 7, 40, 17, stride=2, padding=(3, 9))
    x, weight, bias, grad = case.operands(dtype, device)
    room = torch.full((2, 5 * 40 + 4 // dtype.itemsize), torch.nan, dtype=dtype, device=device)
    apart = room[:, :200].view(2, 5, 40).copy_(x)
    ran = kernels_of(lambda: conv1d_forward(apart, weight, bias, *case.settings))
    assert "_copy_kernel" in ran
    assert_all_agree(case, (apart, weight, bias, grad))


@pytest.mark.parametrize("groups", [1, 2], ids=["dense", "grouped"])
def test_outputs_have_the_memory_layout_of_their_input(groups, dtype, device):
    case = Convolution(2, 4, 8, 21, 3, padding=(1, 1), groups=groups)
    x, weight, bias, grad = case.operands(dtype, device)
    for form in (channels_last, torch.Tensor.contiguous):
        y, z = conv1d_forward(form(x), weight, bias, *case.settings, save_preactivation=True)
        assert z is not None
        assert y.stride() == z.stride() == form(y).stride()
        dx = conv1d_grad_input(form(grad), weight, 21, *case.settings)
        assert dx.stride() == form(dx).stride()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_infinite_and_nan_samples_stay_in_their_rows_and_groups_in_tiles(
    stride, groups, dtype, device
):
    case = Convolution(3, 16, 16, 11, 3, stride=stride, padding=(2, 0), groups=groups)
    x, weight, bias, grad = case.operands(dtype, device)
    x[0, 1, 0], x[1, 0, 10], x[2, 15, 4] = torch.inf, -torch.inf, torch.nan
    grad[0, 1, 4], grad[1, 0, -1], grad[2, 12, 3] = torch.inf, -torch.inf, torch.nan
    operands = channels_last(x), weight, bias, channels_last(grad)
    assert_all_agree(case, operands, activation="relu")


@pytest.mark.parametrize(("stride", "right", "last"), [(1, 3, False), (1, 3, True), (9, 12, True)])
def test_a_nan_gradient_reaches_weights_that_meet_padding_alone(stride, right, last, dtype, device):
    case = Convolution(2, 16, 16, 8, 20, stride=stride, padding=(16, right))
    x, weight, bias, grad = case.operands(dtype, device)
    x[0, 1, 0], grad[1, 0, 0], grad[0, 2, -1] = torch.inf, torch.nan, torch.inf
    if last:
        x, grad = channels_last(x), channels_last(grad)
    found = kernels_of(lambda: conv1d_grad_weight(grad, x, 20, *case.settings, config=SMALL))
    assert "_grad_weight_tiled_kernel" in found
    assert_all_agree(case, (x, weight, bias, grad))


@pytest.mark.parametrize("padding", [(0, 0), (0, 3), (2, 0)], ids=str)
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_rows_a_stride_apart_end_where_the_series_does(stride, padding, dtype, device, monkeypatch):
    """Series of every residue of the stride, between which and around which there is NaN."""
    monkeypatch.setattr(launch, "_plans", {})
    weight = random(16, 16, 5, dtype=dtype, device=device)
    for length in range(16, 16 + stride):
        room = torch.full((4, length + 8, 16), torch.nan, dtype=dtype, device=device)
        x = room.mT[1:3, :, 4 : 4 + length]
        x.copy_(random(2, 16, length, dtype=dtype, device=device))
        for dilation in (1, 2):
            assert_agrees(conv1d_forward, x, weight, None, stride, padding, dilation)
        *_, plan = launch._plans.values()
        *_, product = plan.steps
        assert product.constants["WHOLE"] == (length % stride == 0 or padding[0] == 0)


def test_the_first_tap_of_a_residue_is_found_far_inside_the_padding(dtype, device):
    """Its number times the inverse of the dilation would not fit 32 bits."""
    taps = stride = 101
    padding = (101 * 425_000 + 185, 0)
    unit = 16 // dtype.itemsize
    shape = (1, unit, (16 + padding[0] - 2 * (taps - 1) - 1) // stride + 1)
    grad = channels_last(random(*shape, dtype=dtype, device=device))
    weight = random(unit, unit, taps, dtype=dtype, device=device)
    settings = (stride, padding, 2)
    assert_agrees(conv1d_grad_input, grad, weight, 16, *settings)


def test_channels_that_lie_beside_a_slice_are_not_read(dtype, device):
    """Descriptors reach to whole units of 16 bytes, which a slice of the channels may tear."""
    whole = random(2, 24, 16, dtype=dtype, device=device)
    whole[:, :, 12:] = torch.nan
    x = whole[:, :, :12].transpose(1, 2)
    weight = random(16, 12, 3, dtype=dtype, device=device)
    assert_agrees(conv1d_forward, x, weight, None, 1, (1, 1))
    grad, other = x, random(12, 16, 3, dtype=dtype, device=device)
    assert_agrees(conv1d_grad_input, grad, other, 24, 1, (1, 1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_forward_agrees_for_every_activation_with_and_without_bias(
    activation, with_bias, dtype, device
):
    case = Convolution(2, 3, 19, 20, 3, padding=(1, 1))
    x, weight, bias, _ = case.operands(dtype, device)
    assert_agrees(
        conv1d_forward,
        x,
        weight,
        bias if with_bias else None,
        *case.settings,
        activation=activation,
        save_preactivation=with_bias,
    )


def test_tiles_may_be_of_unequal_sides(dtype, device):
    case = Convolution(2, 40, 20, 30, 3, stride=2, padding=(1, 2))
    assert_all_agree(case, case.operands(dtype, device), TileConfig(rows=64, cols=16, depth=32))
    assert_all_agree(case, case.operands(dtype, device), TileConfig(rows=16, cols=32, depth=16))


def test_default_tiles_agree_where_there_are_several(dtype, device):
    case = Convolution(5, 40, 70, 31, 2, padding=(1, 0))
    assert_all_agree(case, case.operands(dtype, device), None, "silu")


def test_the_weight_gradient_sums_its_splits(dtype, device):
    case = Convolution(7, 2, 3, 33, 2, padding=(1, 1))
    x, _, _, grad = case.operands(dtype, device)
    assert 7 * case.out_length > 3 * 4 * SMALL.depth  # three splits at least
    assert_agrees(conv1d_grad_weight, grad, x, 2, *case.settings)


def test_the_weight_gradient_sums_its_splits_in_tiles(dtype, device):
    case = Convolution(2, 16, 16, 16 * 9, taps=3, padding=(1, 1))
    x, _, _, grad = case.operands(dtype, device)
    x, grad = channels_last(x), channels_last(grad)
    call = lambda: conv1d_grad_weight(grad, x, 3, 1, (1, 1), config=SMALL)  # noqa: E731
    assert kernels_of(call) == {"_grad_weight_tiled_kernel", "_sum_kernel"}
    assert_agrees(conv1d_grad_weight, grad, x, 3, 1, (1, 1), config=SMALL)


@pytest.mark.parametrize(
    "dims", [(0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0)], ids=["NCL", "NLC", "CLN", "LCN"]
)
@pytest.mark.parametrize("groups", [1, 2])
def test_operands_may_have_any_memory_layout(dims, groups, dtype, device):
    case = Convolution(3, 4, 6, 19, 3, stride=2, padding=(1, 2), groups=groups)
    x, weight, bias, grad = case.operands(dtype, device)
    x, weight, grad = (spread(t, dims) for t in (x, weight, grad))
    assert_all_agree(case, (x, weight, spread(bias, (0,)), grad))


def test_batch_length_channel_arrays_may_be_passed_as_transposed_views(dtype, device):
    case = Convolution(2, 18, 20, 21, 3, padding=(1, 1))
    x, weight, bias, grad = case.operands(dtype, device)
    x, grad = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, grad))
    assert_all_agree(case, (x, weight, bias, grad), None)


@pytest.mark.parametrize("ones", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_expanded_gradients_are_read_with_stride_zero(ones, dtype, device):
    case = Convolution(3, 4, 6, 19, 3, padding=(1, 1), groups=2)
    x, weight, bias, grad = case.operands(dtype, device)
    shape = [1 if d in ones else size for d, size in enumerate(grad.shape)]
    grad = random(*shape, dtype=dtype, device=device).expand(grad.shape)
    assert_all_agree(case, (x, weight, bias, grad))


def test_infinite_and_nan_samples_reach_the_outputs_that_read_them_and_no_others(dtype, device):
    """The samples beside them in a tile are padding, or belong to other rows and groups."""
    case = Convolution(3, 6, 5, 9, 3, padding=(2, 1), groups=1)
    x, weight, bias, grad = case.operands(dtype, device)
    x[0, 1, 0], x[1, 0, 8], x[2, 5, 4] = torch.inf, -torch.inf, torch.nan
    grad[0, 1, 4], grad[1, 0, 5], grad[2, 4, 3] = torch.inf, -torch.inf, torch.nan
    for activation in (None, "relu", "gelu", "sigmoid", "tanh"):
        assert_all_agree(case, (x, weight, bias, grad), activation=activation)
    assert conv1d_forward(x, weight, None, *case.settings)[0][0, :, 3:].isfinite().all()


def test_an_infinite_weight_gives_nan_where_its_tap_meets_padding_or_a_gap_and_there_alone(
    dtype, device
):
    """As conv1d.py says; an explicitly padded convolution does the same."""
    case = Convolution(1, 2, 2, 6, 3, stride=2, padding=(1, 1))
    x, weight, _, grad = case.operands(dtype, device)
    weight[0, 0, 0] = torch.inf
    y, _ = conv1d_forward(x, weight, None, *case.settings, config=SMALL)
    assert y[0, 0].isnan().tolist() == [True, False, False]
    assert y[0, 0, 1:].isinf().all()
    dx = conv1d_grad_input(grad, weight, 6, *case.settings, config=SMALL)
    assert dx[0, 0].isnan().tolist() == [True, False, True, False, True, True]
    assert dx[0, 0, [1, 3]].isinf().all()
    assert y[0, 1].isfinite().all()
    assert dx[0, 1].isfinite().all()


def test_a_batch_without_samples_has_a_weight_gradient_of_zero(dtype, device):
    case = Convolution(0, 3, 4, 10, 3)
    x, _, _, grad = case.operands(dtype, device)
    found = conv1d_grad_weight(grad, x, 3, *case.settings)
    assert found.shape == (4, 3, 3)
    assert (found == 0).all()


def test_no_input_channels_leave_the_bias(dtype, device):
    x, weight, bias, grad = Convolution(2, 0, 4, 10, 3).operands(dtype, device)
    y, _ = conv1d_forward(x, weight, bias, config=SMALL)
    assert torch.equal(y, bias[None, :, None].expand(2, 4, 8))
    assert conv1d_grad_input(grad, weight, 10).shape == (2, 0, 10)
    assert conv1d_grad_weight(grad, x, 3).shape == (4, 0, 3)


def test_results_are_bitwise_the_same_twice(dtype, device):
    case = Convolution(5, 3, 20, 30, 3, padding=(1, 1))
    x, weight, bias, grad = case.operands(dtype, device)
    for call in (
        lambda: conv1d_forward(x, weight, bias, *case.settings, activation="silu", config=SMALL)[0],
        lambda: conv1d_grad_input(grad, weight, 30, *case.settings, config=SMALL),
        lambda: conv1d_grad_weight(grad, x, 3, *case.settings, config=SMALL),
    ):
        assert torch.equal(bits(call()), bits(call()))


@pytest.mark.parametrize("groups", [1, 4], ids=["dense", "depthwise"])
def test_elements_beyond_two_billion_are_found(groups, dtype, device, vast):
    """Sample 2 of the batch lies 2**31 elements behind sample 0."""
    case = Convolution(3, 4, 4, 9, 3, padding=(1, 1), groups=groups)
    x, weight, bias, grad = case.operands(dtype, device)
    calls = (
        lambda x, grad: conv1d_forward(x, weight, bias, *case.settings)[0],
        lambda x, grad: conv1d_grad_input(grad, weight, 9, *case.settings),
        lambda x, grad: conv1d_grad_weight(grad, x, 3, *case.settings),
    )
    far = vast(x), vast(grad)
    for call in calls:
        torch.testing.assert_close(call(*far), call(x, grad), rtol=0, atol=0)


def test_series_may_lie_apart_further_than_int32_reaches(dtype, device, vast):
    """Where tiles are read in place: series 1 starts 2**31 elements behind series 0."""
    case = Convolution(3, 8, 8, 9, 3, padding=(1, 1))
    x, weight, bias, grad = case.operands(dtype, device)
    far_x, far_grad = (vast(t.mT.contiguous()).mT[::2] for t in (x, grad))
    calls = (
        lambda x, grad: conv1d_forward(x, weight, bias, *case.settings)[0],
        lambda x, grad: conv1d_grad_input(grad, weight, 9, *case.settings),
        lambda x, grad: conv1d_grad_weight(grad, x, 3, *case.settings),
    )
    near = channels_last(x[::2]), channels_last(grad[::2])
    for call in calls:
        torch.testing.assert_close(call(far_x, far_grad), call(*near), rtol=0, atol=0)


@pytest.mark.parametrize("groups", [1, 3], ids=["dense", "depthwise"])
def test_a_filter_may_lie_apart_further_than_int32_reaches(groups, dtype, device, vast):
    """Tap 2 lies 2**31 elements behind tap 0."""
    case = Convolution(2, 3, 3, 9, 3, padding=(1, 0), groups=groups)
    x, weight, bias, _ = case.operands(dtype, device)
    far = vast(weight.permute(2, 0, 1)).permute(1, 2, 0)
    found = conv1d_forward(x, far, bias, *case.settings)[0]
    expected = conv1d_forward(x, weight, bias, *case.settings)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("groups", [1, 3], ids=["dense", "depthwise"])
def test_a_dilation_may_reach_further_than_int32(groups, dtype, device):
    """All taps but the last read padding, which costs no memory: one tap is left."""
    far = 1, (2**31, 0), 2**30, groups
    near = 1, (0, 0), 1, groups
    x, weight, bias, grad = Convolution(2, 3, 3, 5, 3, padding=(1, 1), groups=groups).operands(
        dtype, device
    )
    last = weight[:, :, 2:]
    found = conv1d_forward(x, weight, bias, *far)[0]
    assert torch.equal(found, conv1d_forward(x, last, bias, *near)[0])
    found = conv1d_grad_input(grad, weight, 5, *far)
    assert torch.equal(found, conv1d_grad_input(grad, last, 5, *near))
    found = conv1d_grad_weight(grad, x, 3, *far)
    expected = conv1d_grad_weight(grad, x, 1, *near)  # by another kernel, in another order
    torch.testing.assert_close(found[:, :, 2:], expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert (found[:, :, :2] == 0).all()
