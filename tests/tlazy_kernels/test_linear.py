from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tlazy_kernels.agreement import (
    DTYPES,
    SMALL,
    assert_agrees,
    bits,
    random,
    spread,
)
from tlazy_kernels import launch, linear, reference
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.linear import linear_forward, linear_grad_input, linear_grad_weight
from tlazy_kernels.matmul import specializes
from tlazy_kernels.targets import STAND_IN, TARGETS

ACTIVATIONS = (None, *reference.ACTIVATIONS)

# (M, K, N)
SHAPES = [
    (1, 1, 1),
    (2, 3, 1),
    (63, 31, 10),
    (37, 50, 33),
    (17, 1, 40),
    (1, 100, 3),
    (0, 5, 3),  # no rows
    (4, 0, 3),  # nothing to sum
    (4, 3, 0),  # no outputs
]

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def operands(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> tuple:
    """(x, weight, bias, grad) of a linear layer."""
    m, k, n = shape
    shapes = ((m, k), (n, k), (n,), (m, n))
    return tuple(random(*s, dtype=dtype, device=device, seed=i) for i, s in enumerate(shapes))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_forward_agrees_for_every_activation_with_and_without_bias(
    activation, with_bias, dtype, device
):
    x, weight, bias, _ = operands((19, 35, 21), dtype, device)
    assert_agrees(
        linear_forward,
        x,
        weight,
        bias if with_bias else None,
        activation=activation,
        save_preactivation=with_bias,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("config", [SMALL, None], ids=["small tiles", "default tiles"])
def test_all_three_agree_for_every_shape(shape, config, dtype, device):
    x, weight, bias, grad = operands(shape, dtype, device)
    assert_agrees(linear_forward, x, weight, bias, config=config)
    assert_agrees(linear_grad_input, grad, weight, config=config)
    assert_agrees(linear_grad_weight, grad, x, config=config)


def test_tiles_may_be_of_unequal_sides(dtype, device):
    x, weight, bias, grad = operands((40, 70, 20), dtype, device)
    config = TileConfig(rows=16, cols=64, depth=32)
    assert_agrees(linear_forward, x, weight, bias, config=config)
    assert_agrees(linear_grad_input, grad, weight, config=config)
    assert_agrees(linear_grad_weight, grad, x, config=config)


def test_default_tiles_agree_where_there_are_several(dtype, device):
    x, weight, bias, grad = operands((150, 70, 140), dtype, device)
    assert_agrees(linear_forward, x, weight, bias, activation="gelu", config=None)
    assert_agrees(linear_grad_input, grad, weight, config=None)
    assert_agrees(linear_grad_weight, grad, x, config=None)


# (M, K, N) of which every row is a multiple of 16 bytes, as tensor descriptors need: several tiles
# of each side with SMALL, none of them full.
ALIGNED = (40, 72, 24)


def kernels(planner, *arguments) -> list[str]:
    """Names of the device functions that a launcher's plan runs."""
    return [step.kernel.__name__ for step in planner(STAND_IN, *arguments).steps]


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    return x if layout == "rows" else x.t().contiguous().t()


@pytest.mark.parametrize("second", ["rows", "columns"])
@pytest.mark.parametrize("first", ["rows", "columns"])
@pytest.mark.parametrize("config", [SMALL, None], ids=["small tiles", "default tiles"])
def test_descriptors_read_operands_with_either_dimension_contiguous(
    first, second, config, dtype, device
):
    x, weight, bias, grad = operands(ALIGNED, dtype, device)
    x, grad = laid_out(x, first), laid_out(grad, first)
    weight = laid_out(weight, second)
    plain = ("ieee", config)
    assert kernels(linear._plan_forward, x, weight, bias, "gelu", True, *plain)[0] == (
        "_matmul_descriptor_kernel"
    )
    assert kernels(linear._plan_grad_input, grad, weight, *plain)[0] == "_matmul_descriptor_kernel"
    assert kernels(linear._plan_grad_weight, grad, x, *plain)[0] == "_matmul_descriptor_kernel"
    for activation in ("gelu", None):
        options = {"activation": activation, "save_preactivation": True, "config": config}
        assert_agrees(linear_forward, x, weight, bias, **options)
    assert_agrees(linear_grad_input, grad, weight, config=config)
    assert_agrees(linear_grad_weight, grad, x, config=config)


@pytest.mark.parametrize(
    "spoilt", ["offset", "stride", "outputs"], ids=lambda spoilt: f"odd {spoilt}"
)
def test_what_descriptors_cannot_read_goes_by_pointers(spoilt, dtype, device):
    m, k, n = ALIGNED
    x, weight, bias, _ = operands((m, k, n + (spoilt == "outputs")), dtype, device)
    if spoilt == "offset":
        x = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(m, k)
    elif spoilt == "stride":
        x = torch.nn.functional.pad(x, (0, 1))[:, :k]
    names = kernels(linear._plan_forward, x, weight, bias, None, False, "ieee", SMALL)
    assert names[0] == "_matmul_pointer_kernel"
    assert_agrees(linear_forward, x, weight, bias, activation="silu", config=SMALL)


def test_tiles_may_be_stored_in_halves(dtype, device):
    x, weight, bias, grad = operands((40, 32, 136), dtype, device)
    config = TileConfig(rows=16, cols=128, depth=16)
    options = {"activation": "gelu", "save_preactivation": True, "config": config}
    assert_agrees(linear_forward, x, weight, bias, **options)
    assert_agrees(linear_grad_input, grad, weight, config=config)


@pytest.mark.parametrize("inputs", [1040, 1037], ids=["descriptors", "pointers"])
def test_a_long_contraction_is_split_and_its_sum_has_the_epilogue(inputs, dtype, device):
    x, weight, bias, _ = operands((8, inputs, 24), dtype, device)
    names = kernels(linear._plan_forward, x, weight, bias, "gelu", True, "ieee", SMALL)
    assert names[1:] == ["_sum_kernel"]
    for options in (
        {"activation": "gelu", "save_preactivation": True},
        {"activation": "relu"},
        {},
    ):
        assert_agrees(linear_forward, x, weight, bias, **options, config=SMALL)
    assert_agrees(linear_forward, x, weight, config=SMALL)


@pytest.mark.parametrize("specialized", [False, True], ids=["plain", "specialized"])
def test_a_program_may_walk_several_tiles(specialized, dtype, device, monkeypatch):
    target = replace(STAND_IN, processors=1)
    monkeypatch.setattr(launch, "target_of", lambda device: target)
    monkeypatch.setattr(launch, "_plans", {})
    x, weight, bias, grad = operands((16 * 5, 48, 16 * 11), dtype, device)
    config = TileConfig(64, 64, 16, num_warps=4, num_stages=3, specialized=specialized)
    if specialized and not specializes(target, config):
        pytest.skip("this version of Triton does not specialize warps")
    (step,) = linear._plan_forward(target, x, weight, bias, None, False, "ieee", config).steps
    assert step.grid[0] < 2 * 3
    assert_agrees(linear_forward, x, weight, bias, activation="gelu", config=config)
    assert_agrees(linear_grad_weight, grad, x, config=config)
    halves = replace(config, cols=128)
    assert halves.subtiles == 2
    kept = {"activation": "gelu", "save_preactivation": True, "config": halves}
    assert_agrees(linear_forward, x, weight, bias, **kept)


def test_specialization_that_would_have_no_effect_is_refused(dtype, device):
    x, weight, _, _ = operands(ALIGNED, dtype, device)
    with pytest.raises(ValueError, match="4 warps"):
        linear_forward(x, weight, config=TileConfig(64, 64, 16, num_warps=8, specialized=True))


def test_the_weight_gradient_sums_its_splits(dtype, device):
    x, _, _, grad = operands((16 * 4 * 3 - 5, 7, 5), dtype, device)
    assert_agrees(linear_grad_weight, grad, x, config=SMALL)


@pytest.mark.parametrize("dims", [(0, 1), (1, 0)], ids=["rows", "columns"])
def test_operands_may_have_any_strides_and_offsets(dims, dtype, device):
    x, weight, bias, grad = operands((21, 18, 35), dtype, device)
    x, weight, grad = (spread(t, dims) for t in (x, weight, grad))
    bias = spread(bias, (0,))
    assert not x.is_contiguous()
    assert_agrees(linear_forward, x, weight, bias, activation="silu", save_preactivation=True)
    assert_agrees(linear_grad_input, grad, weight)
    assert_agrees(linear_grad_weight, grad, x)


def test_expanded_gradients_are_read_with_stride_zero(dtype, device):
    x, weight, _, _ = operands((21, 18, 35), dtype, device)
    for grad in (
        random(1, 1, dtype=dtype, device=device).expand(21, 35),
        random(21, 1, dtype=dtype, device=device).expand(21, 35),
        random(1, 35, dtype=dtype, device=device).expand(21, 35),
    ):
        assert_agrees(linear_grad_input, grad, weight)
        assert_agrees(linear_grad_weight, grad, x)


def test_an_operand_may_be_expanded_or_overlap_itself(dtype, device):
    _, weight, bias, _ = operands((21, 18, 35), dtype, device)
    row = random(30, dtype=dtype, device=device)
    assert_agrees(linear_forward, row[:18].expand(21, 18), weight, bias)
    assert_agrees(linear_forward, row.unfold(0, 18, 1), weight, bias)


def test_nan_and_infinity_stay_in_their_rows(dtype, device):
    x, weight, bias, _ = operands((20, 35, 21), dtype, device)
    x[2, 3], x[5, 0], x[19, 34] = torch.nan, torch.inf, -torch.inf
    for activation in ACTIVATIONS:
        assert_agrees(linear_forward, x, weight, bias, activation=activation)


def test_infinity_times_zero_is_nan(dtype, device):
    x, weight, bias, _ = operands((20, 35, 21), dtype, device)
    x[3, 4], weight[:, 4] = torch.inf, 0.0
    assert_agrees(linear_forward, x, weight, bias)
    assert linear_forward(x, weight, config=SMALL)[0][3].isnan().all()


def test_masked_columns_of_an_infinite_operand_do_not_reach_the_sum(dtype, device):
    """K = 17 leaves 15 masked columns beside the infinite one."""
    x, weight, bias, grad = operands((5, 17, 3), dtype, device)
    x[:, 16], weight[1, 16] = torch.inf, -torch.inf
    assert_agrees(linear_forward, x, weight, bias)
    assert_agrees(linear_grad_weight, grad, x)


@pytest.mark.parametrize("shape", [(40, 24, 72), (24, 72, 40), (17, 40, 8), (8, 16, 20)], ids=str)
def test_sizes_of_whole_units_agree_where_descriptors_become_pointers(
    shape, dtype, device, monkeypatch
):
    """There the kernel says what divides rows and their ends, which 16 does not."""
    monkeypatch.setattr(launch, "target_of", lambda device: TARGETS["sm_80"])
    monkeypatch.setattr(launch, "_plans", {})
    x, weight, bias, grad = operands(shape, dtype, device)
    assert_agrees(linear_forward, x, weight, bias, activation="silu", config=SMALL)
    assert_agrees(linear_grad_input, grad, weight, config=SMALL)
    assert_agrees(linear_grad_weight, grad, x, config=SMALL)
    torn = random(shape[0], shape[1] + 24, dtype=dtype, device=device)[:, : shape[1] + 5]
    assert_agrees(linear_forward, torn, torn, config=SMALL)  # rows end within a unit
    assert_agrees(linear_grad_weight, torn, x, config=SMALL)


def test_results_are_bitwise_the_same_twice(dtype, device):
    x, weight, bias, grad = operands((200, 20, 20), dtype, device)
    for call in (
        lambda: linear_forward(x, weight, bias, activation="tanh", config=SMALL)[0],
        lambda: linear_grad_input(grad, weight, config=SMALL),
        lambda: linear_grad_weight(grad, x, config=SMALL),
    ):
        assert torch.equal(bits(call()), bits(call()))


def test_sums_are_kept_in_float32(dtype, device):
    """In 16 bits, 2048 + 1 is 2048: a sum in the operands' dtype would stop growing."""
    x = torch.ones(1, 3000, dtype=dtype, device=device)
    config = TileConfig(rows=16, cols=16, depth=64)
    assert_agrees(linear_forward, x, x, config=config)
    assert_agrees(linear_grad_weight, x.t(), x.t(), config=config)


def test_float16_overflows_to_infinity(dtype, device):
    x = torch.full((3, 20), 300.0, dtype=dtype, device=device)
    y, z = linear_forward(x, x, save_preactivation=True, config=SMALL)
    assert y.isinf().all() == z.isinf().all() == (dtype == torch.float16)


def test_elements_beyond_two_billion_are_found(dtype, device, vast):
    """Row 2 of each operand lies 2**31 elements behind row 0."""
    x, weight, _, grad = operands((3, 5, 3), dtype, device)
    far = [vast(t) for t in (x, weight, grad)]
    assert_same = lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0)  # noqa: E731
    assert_same(linear_forward(far[0], far[1])[0], linear_forward(x, weight)[0])
    assert_same(linear_grad_input(far[2], far[1]), linear_grad_input(grad, weight))
    assert_same(linear_grad_weight(far[2], far[0]), linear_grad_weight(grad, x))
