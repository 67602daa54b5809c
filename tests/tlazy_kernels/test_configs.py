from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tlazy_kernels.convolutions import Convolution
from tlazy_kernels import conv1d, conv1d_tiled, copy_cost, environment
from tlazy_kernels.configs import (
    TARGET_PROGRAMS,
    TileConfig,
    dot_config,
    pointwise_config,
    product_tiles,
    row_piece,
    split_contraction,
    split_rows,
)
from tlazy_kernels.conv1d_configs import grad_weight_config, grad_weight_parts, programs_of
from tlazy_kernels.conv1d_tiled import _conv1d_tiled_kernel
from tlazy_kernels.positions import Geometry
from tlazy_kernels.targets import TARGETS

sizes = st.integers(0, 2**33)


def is_power_of_two(size: int) -> bool:
    return size > 0 and size & (size - 1) == 0


@given(sizes, sizes, sizes, st.sampled_from([2, 4]))
def test_dot_tiles_are_powers_of_two_that_tensor_cores_take(rows, cols, depth, itemsize):
    config = dot_config(rows, cols, depth, itemsize)
    for side in (config.rows, config.cols, config.depth):
        assert is_power_of_two(side)
        assert side >= 16
    assert config.rows * config.cols <= 128 * 64
    assert config == dot_config(rows, cols, depth, itemsize)


def test_a_tile_is_not_much_larger_than_the_product():
    config = dot_config(20, 3, 1, itemsize=2)
    assert (config.rows, config.cols, config.depth) == (32, 16, 16)


@given(sizes, sizes)
def test_pointwise_tiles_are_powers_of_two_of_bounded_size(rows, channels):
    config = pointwise_config(rows, channels, 2048)
    assert is_power_of_two(config.rows)
    assert is_power_of_two(config.cols)
    assert config.rows * config.cols <= 2048


@given(st.integers(1, 2**33), st.sampled_from([128, 1024, 2048]))
def test_a_piece_of_a_row_wastes_an_eighth_or_is_the_shortest(length, most):
    piece = row_piece(length, most)
    wasted = -length % piece
    assert wasted * 8 <= length or piece <= 8
    assert most % piece == 0
    longer = 4 * piece
    assert longer > most or -length % longer * 8 > length


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.sampled_from([1, 16, 32, 128]))
def test_splits_cover_every_row_once_and_none_is_empty(rows, tiles, step):
    splits, rows_per_split = split_rows(rows, tiles, step)
    assert splits >= 1
    assert rows_per_split % step == 0
    assert splits * rows_per_split >= rows
    assert (splits - 1) * rows_per_split < max(rows, 1)
    assert splits <= TARGET_PROGRAMS


def test_a_reduction_with_enough_tiles_is_not_split():
    assert split_rows(100_000, TARGET_PROGRAMS, 32)[0] == 1
    assert split_rows(100_000, 1, 32)[0] > 1


@given(
    st.integers(1, 10**6),
    st.integers(1, 20_000),
    st.integers(0, 10**6),
    st.sampled_from([(2, "ieee"), (4, "tf32"), (4, "tf32x3")]),
    st.sampled_from(sorted(TARGETS)),
    st.booleans(),
)
def test_a_chosen_tile_is_on_the_list_and_its_parts_cover_the_contraction(
    m, n, k, kind, target, described
):
    itemsize, precision = kind
    arguments = (m, n, k, itemsize, precision, TARGETS[target])
    split = split_contraction(*arguments, described=described)
    assert split.config in product_tiles(itemsize, TARGETS[target], described=described)
    assert split.depth % split.config.depth == 0
    assert split.parts * split.depth >= k
    assert (split.parts - 1) * split.depth < max(k, 1)
    assert split == split_contraction(*arguments, described=described)


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_large_products_get_the_tile_that_reads_least(activation):
    for m, n, k in ((4096, 4096, 4096), (8192, 8192, 8192), (65_536, 1024, 1024)):
        split = split_contraction(m, n, k, 2, "ieee", TARGETS["sm_90"], activation=activation)
        assert (split.config.rows, split.config.cols, split.parts) == (128, 256, 1)


@pytest.mark.parametrize("rows", [1, 16])
def test_a_few_rows_are_not_split_for_the_sake_of_rows_that_nobody_reads(rows):
    """With 4096 columns, narrow tiles occupy the device; partial sums would be another launch."""
    assert split_contraction(rows, 4096, 4096, 2, "ieee", TARGETS["sm_90"]).parts == 1


def test_a_product_of_few_tiles_is_split_until_it_fills_the_device():
    split = split_contraction(64, 64, 65_536, 2, "ieee", TARGETS["sm_90"])
    tiles = -(-64 // split.config.rows) * -(-64 // split.config.cols)
    assert split.parts * tiles > TARGETS["sm_90"].processors / 2


def test_a_processor_holds_two_convolutions_whose_tiles_leave_in_parts():
    """One's epilogue runs beside the other's products. As a whole, a tile would leave no room."""
    sm_90 = TARGETS["sm_90"]
    for tile in (TileConfig(128, 128, 64, 8, 3), TileConfig(128, 64, 64, 4, 4)):
        assert tile.programs(2, sm_90, parts=1) == 1
        assert programs_of(tile, 2, sm_90) == 2


def test_registers_limit_the_convolutions_that_a_processor_holds():
    sm_90, tile = TARGETS["sm_90"], TileConfig(128, 128, 64, 8, 3)
    assert programs_of(tile, 2, sm_90, series=8) == 1
    assert programs_of(tile, 2, sm_90, apart=True) == 1
    assert programs_of(replace(tile, depth=32), 4, sm_90) == 1
    assert programs_of(TileConfig(64, 64, 64, 4, 4), 2, sm_90) == 3
    assert programs_of(TileConfig(64, 64, 64, 4, 4), 2, sm_90, together=4) == 2


# Batch, output length, C_in, C_out, K of layers of published networks.
WEIGHT_GRADIENTS = {
    "Whisper": (16, 1500, 1280, 1280, 3),
    "1024 channels": (16, 4096, 1024, 1024, 3),
    "wav2vec2": (32, 15_999, 512, 512, 3),
    "DAC": (8, 24_000, 64, 64, 7),
    "WaveNet": (8, 16_000, 256, 512, 2),
    "UNet": (256, 128, 256, 256, 5),
    "EnCodec": (8, 12_000, 64, 128, 4),
}


@pytest.mark.parametrize(("itemsize", "precision"), [(2, "ieee"), (4, "tf32x3")])
@pytest.mark.parametrize("layer", WEIGHT_GRADIENTS)
def test_parts_of_a_weight_gradient_leave_no_tenth_of_the_processors_idle(
    layer, itemsize, precision
):
    target = TARGETS["sm_90"]
    batch, length, channels, filters, taps = WEIGHT_GRADIENTS[layer]
    tile = grad_weight_config(
        target,
        rows=batch * length,
        filters=filters,
        channels=channels,
        copies=taps,
        itemsize=itemsize,
        precision=precision,
        words=False,
    )
    tiles = -(-filters // tile.rows) * -(-channels // tile.cols) * taps
    steps = -(-length // tile.depth) * batch
    settings = target, tile, steps, tiles, filters * channels * taps, itemsize, precision
    found = grad_weight_parts(*settings)
    rounds = -(-tiles * found.parts // target.processors)
    assert tiles * steps >= 0.9 * rounds * target.processors * found.steps
    assert found == grad_weight_parts(*settings)


@given(
    st.integers(0, 10**6),
    st.integers(1, 10**4),
    st.sampled_from([(2, "ieee"), (4, "tf32"), (4, "tf32x3")]),
    st.sampled_from(sorted(TARGETS)),
)
def test_parts_of_a_weight_gradient_cover_every_step_and_none_is_empty(steps, tiles, kind, target):
    tile = TileConfig(64, 64, 32)
    found = grad_weight_parts(TARGETS[target], tile, steps, tiles, tiles * 64 * 64, *kind)
    assert found.parts * found.steps >= steps
    assert (found.parts - 1) * found.steps < max(steps, 1)
    assert found.steps >= min(steps, 4)


def test_a_gather_pays_for_the_taps_that_a_stride_skips(monkeypatch):
    """wav2vec2's first layer loads 10 taps of each of 5 residues, of which 2 each count."""
    seen: list[float] = []

    def pays(x: torch.Tensor, reads: float) -> bool:
        seen.append(reads)
        return True

    monkeypatch.setattr(conv1d_tiled, "copy_pays", pays)
    case = Convolution(32, 1, 512, 160_000, 10, stride=5)
    _, weight, _, grad = (torch.empty(s, device="meta") for s in case.shapes)
    geometry, how = Geometry(*case.settings), ("zeros", None, None, "ieee", None)
    planned = TARGETS["sm_90"], grad, weight, None, geometry, case.length, *how
    plan = conv1d._plan_grad_input(*planned)
    assert seen == [pytest.approx(50, rel=1e-3)]
    assert plan.steps[-1].kernel is _conv1d_tiled_kernel


@pytest.mark.parametrize(
    ("reads", "itemsize", "pays"), [(1.5, 2, False), (2, 2, True), (3, 4, False), (4, 4, True)]
)
def test_a_copy_pays_where_its_bytes_take_less_time_than_a_gathers_loads(reads, itemsize, pays):
    dtype = {2: torch.bfloat16, 4: torch.float32}[itemsize]
    assert copy_cost.copy_pays(torch.empty(1 << 20, dtype=dtype, device="meta"), reads) is pays
    assert not copy_cost.copy_pays(torch.empty(1 << 10, dtype=dtype, device="meta"), reads)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TileConfig(16, 16, 16).rows = 32


@pytest.fixture
def on_nvidia(monkeypatch):
    monkeypatch.setattr(environment, "INTERPRETED", False)
    monkeypatch.setattr(torch.version, "hip", None)


@pytest.mark.parametrize("family", ["matmul", "conv"])
@pytest.mark.parametrize(("switch", "precision"), [("tf32", "tf32"), ("ieee", "tf32x3")])
def test_float32_products_follow_their_own_switch(family, switch, precision, on_nvidia):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    own, other = (matmul, conv) if family == "matmul" else (conv, matmul)
    own.fp32_precision = switch
    other.fp32_precision = "ieee" if switch == "tf32" else "tf32"
    assert environment.dot_precision(torch.float32, family) == precision


@pytest.mark.parametrize(
    ("setting", "precision"), [("highest", "tf32x3"), ("high", "tf32"), ("medium", "tf32")]
)
def test_the_matmul_precision_setting_is_followed(setting, precision, on_nvidia):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        assert environment.dot_precision(torch.float32, "matmul") == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_only_float32_on_nvidia_has_a_choice(on_nvidia, monkeypatch):
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert environment.dot_precision(torch.float16, "matmul") == "ieee"
    assert environment.dot_precision(torch.bfloat16, "matmul") == "ieee"
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert environment.dot_precision(torch.float32, "matmul") == "ieee"
