from __future__ import annotations

import pytest
import torch

from tests.tlazy_kernels.agreement import (
    DTYPES,
    SMALL,
    TOLERANCES,
    assert_agrees,
    assert_close,
    bits,
    exact,
    random,
    spread,
)
from tlazy_kernels import launch, reference
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.epilogue import epilogue_backward
from tlazy_kernels.layouts import is_channels_last
from tlazy_kernels.linear import linear_forward
from tlazy_kernels.reference import NEEDS_PREACTIVATION

NAMES = tuple(reference.ACTIVATIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_activation = pytest.mark.parametrize("activation", NAMES)

# Five units in the last place of 1, for what a GPU's exp2 and rsqrt may be off by.
UNITS = 6e-7


def saved_for(activation: str | None, z: torch.Tensor) -> torch.Tensor | None:
    """What the backward pass reads of a forward pass: z, or y = act(z), in z's dtype."""
    if activation is None or activation in NEEDS_PREACTIVATION:
        return None if activation is None else z
    return reference.ACTIVATIONS[activation](z.float()).to(z.dtype)


def forward(z: torch.Tensor, activation: str, config: TileConfig | None = SMALL) -> torch.Tensor:
    """act(z) by a kernel: the epilogue of a product with nothing to sum."""
    empty = z.new_empty(1, 0), z.new_empty(z.numel(), 0)
    return linear_forward(*empty, z, activation=activation, config=config)[0][0]


def of_every_size() -> torch.Tensor:
    """Float32 numbers of all exponents, subnormal ones too, and densely those up to 20."""
    patterns = torch.arange(0, 0x7F80_0000, 0x7_FFFF, dtype=torch.int32)
    sizes = torch.cat((patterns.view(torch.float32), torch.linspace(0, 20, 4096)))
    return torch.cat((sizes, -sizes))


@every_dtype
@pytest.mark.parametrize("activation", [None, *NAMES])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(2, 19, 21), (40, 33), (1, 1, 1), (3, 1, 50)], ids=str)
def test_the_backward_pass_agrees(shape, bias, activation, dtype, device):
    grad = random(*shape, dtype=dtype, device=device)
    z = random(*shape, dtype=dtype, device=device, seed=1)
    assert_agrees(epilogue_backward, grad, saved_for(activation, z), activation, bias=bias)


@every_dtype
def test_default_tiles_agree_where_there_are_several(dtype, device):
    grad, z = (random(3, 40, 150, dtype=dtype, device=device, seed=i) for i in range(2))
    assert_agrees(epilogue_backward, grad, z, "silu", bias=True, config=None)


def test_a_bias_gradient_of_one_part_takes_no_second_launch(device, monkeypatch):
    monkeypatch.setattr(launch, "_plans", {})
    for rows, launches in ((16, 1), (4096, 2)):
        launch.forget_plans()
        epilogue_backward(
            random(rows, 8, dtype=torch.float32, device=device), None, None, bias=True
        )
        (plan,) = launch._plans.values()
        assert len(plan.steps) == launches


@every_dtype
@pytest.mark.parametrize("shape", [(0, 3, 5), (3, 0, 5), (3, 5, 0)], ids=str)
def test_without_elements_the_bias_gradient_is_zero(shape, dtype, device):
    grad = random(*shape, dtype=dtype, device=device)
    assert_agrees(epilogue_backward, grad, grad, "relu", bias=True)
    assert_agrees(epilogue_backward, grad, None, None, bias=True)


@every_dtype
@pytest.mark.parametrize("dims", [(0, 2, 1), (1, 0, 2), (2, 1, 0)], ids=str)
def test_gradients_may_have_any_strides(dims, dtype, device):
    grad, z = (random(3, 18, 20, dtype=dtype, device=device, seed=i) for i in range(2))
    assert_agrees(epilogue_backward, spread(grad, dims), z, "gelu", bias=True)
    assert_agrees(epilogue_backward, grad, spread(z, dims), "gelu", bias=True)


@every_dtype
@pytest.mark.parametrize("activation", [None, "silu", "relu"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("config", [SMALL, None], ids=["small", "own"])
@pytest.mark.parametrize("length", [71, 72])
def test_what_convolutions_read_in_tiles_lies_channels_last(
    config, bias, activation, length, dtype, device
):
    grad, z = (random(3, 24, length, dtype=dtype, device=device, seed=i) for i in range(2))
    saved = saved_for(activation, z)
    last = {"like": grad.mT.contiguous().mT, "config": config}
    for read in (grad, spread(grad, (0, 2, 1)), grad[:1, :1, :1].expand(z.shape)):
        assert_agrees(epilogue_backward, read, saved, activation, bias, True, **last)
    g, _ = epilogue_backward(grad, saved, activation, bias, for_tiles=True, config=config)
    assert is_channels_last(g)


@every_dtype
def test_matrices_may_have_any_strides(dtype, device):
    grad, z = (random(18, 20, dtype=dtype, device=device, seed=i) for i in range(2))
    every_other = random(18, 40, dtype=dtype, device=device)[:, ::2]
    assert_agrees(epilogue_backward, grad.t().contiguous().t(), z, "gelu", bias=True)
    assert_agrees(epilogue_backward, grad[:1].expand_as(z), every_other, "relu", bias=True)


@every_dtype
def test_expanded_gradients_are_read_with_stride_zero(dtype, device):
    z = random(3, 18, 20, dtype=dtype, device=device)
    grad = random(1, 1, 1, dtype=dtype, device=device).expand(z.shape)
    assert_agrees(epilogue_backward, grad, z, "gelu_tanh", bias=True)
    assert_agrees(epilogue_backward, grad, None, None, bias=True)


@every_dtype
@every_activation
def test_nan_and_infinity_pass_as_in_aten(activation, dtype, device):
    """Compared in float64: ATen's float32 gelu(inf) is NaN on the CPU, and there alone."""
    special = [
        torch.nan,
        torch.inf,
        -torch.inf,
        0.0,
        -0.0,
        60000.0,
        -60000.0,
        1e-7,
        -1e-7,
        5.0,
        -5.0,
    ]
    z = torch.tensor(special, dtype=dtype, device=device)
    assert_close(forward(z, activation), reference.ACTIVATIONS[activation](exact(z)))
    z, grad = (t.reshape(1, 1, -1) for t in torch.meshgrid(z, z[:6], indexing="ij"))
    saved = saved_for(activation, z)
    assert_agrees(epilogue_backward, grad, saved, activation, bias=False)


@every_activation
def test_float32_is_exact_for_small_and_large_inputs(activation, device):
    """Elementwise: no cancellation near 0, where a norm over all inputs would hide it."""
    for size in (1e-30, 1e-6, 1e-3, 0.1, 0.24, 0.26, 1.0, 3.0):
        z = torch.linspace(-size, size, 33).to(device)
        expected = reference.ACTIVATIONS[activation](exact(z))
        error = (exact(forward(z, activation)) - expected).abs().max()
        assert error <= TOLERANCES[torch.float32].relative * expected.abs().max()


@every_activation
def test_float32_is_within_a_few_units_of_float64_from_the_smallest_to_the_largest(
    activation, device
):
    z = of_every_size()
    wide = TileConfig(rows=16, cols=256, depth=16)
    error = exact(forward(z.to(device), activation, wide)) - reference.ACTIVATIONS[activation](
        exact(z)
    )
    assert (error.abs() <= UNITS * exact(z).abs().clamp(min=1)).all()


@every_activation
def test_derivatives_in_float32_are_within_a_few_units_of_float64(activation, device):
    """Up to 1e9, beyond which the square of z, and with it gelu_tanh's derivative, overflows."""
    z = of_every_size()
    z = z[z.abs() < 1e9].reshape(-1, 1)
    saved, grad = saved_for(activation, z), torch.ones_like(z)
    found, _ = epilogue_backward(grad.to(device), saved.to(device), activation, bias=False)
    expected, _ = reference.epilogue_backward(exact(grad), exact(saved), activation, bias=False)
    assert ((exact(found) - expected).abs() <= UNITS).all()


def test_gelu_of_negative_numbers_has_digits_of_its_own(device):
    """As z (1 + erf) / 2 has not: of what cancels there, a fifth is left at -5."""
    z = torch.linspace(-5, -1, 999)
    expected = reference.ACTIVATIONS["gelu"](exact(z))
    error = exact(forward(z.to(device), "gelu")) - expected
    assert (error.abs() <= 1e-3 * expected.abs()).all()


@every_activation
def test_results_are_bitwise_the_same_twice(activation, device):
    grad, z = (random(40, 5, 20, dtype=torch.float32, device=device, seed=i) for i in range(2))
    first, second = (
        epilogue_backward(grad, z, activation, bias=True, config=SMALL) for _ in range(2)
    )
    assert torch.equal(bits(first[0]), bits(second[0]))
    assert torch.equal(bits(first[1]), bits(second[1]))


@every_dtype
def test_elements_beyond_two_billion_are_found(dtype, device, vast):
    grad, z = (random(3, 2, 5, dtype=dtype, device=device, seed=i) for i in range(2))
    found = epilogue_backward(vast(grad), vast(z), "silu", bias=True)
    expected = epilogue_backward(grad, z, "silu", bias=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.thorough
def test_rows_of_almost_two_billion_positions_are_summed_whole(device):
    """The gradient of a sum is one element, expanded; its memory is not what limits it."""
    length = 2**31 - 8
    grad = torch.ones(1, device=device).expand(1, 1, length)
    _, bias = epilogue_backward(grad, None, None, bias=True, config=TileConfig(2**20, 1, 1))
    assert bias is not None
    assert bias.item() == pytest.approx(length, rel=1e-6)


@every_activation
def test_the_twin_has_the_derivative_that_autograd_finds(activation):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 3, 20, dtype=torch.float64, generator=generator).requires_grad_()
    grad = torch.randn(z.shape, dtype=torch.float64, generator=generator)
    y = reference.ACTIVATIONS[activation](z)
    (expected,) = torch.autograd.grad(y, z, grad)
    saved = z if activation in NEEDS_PREACTIVATION else y
    found, bias = reference.epilogue_backward(grad, saved.detach(), activation, bias=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(bias, expected.sum((0, 2)))


@every_activation
def test_the_activations_have_the_derivatives_that_finite_differences_find(activation):
    z = torch.linspace(-2.9, 2.9, 18, dtype=torch.float64).requires_grad_()  # without 0
    assert torch.autograd.gradcheck(reference.ACTIVATIONS[activation], z)
