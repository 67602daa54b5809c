"""The twins, to which all else is compared, are right: by autograd and by finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tlazy_kernels import test_conv1d, test_depthwise
from tests.tlazy_kernels.agreement import exact, random
from tests.tlazy_kernels.convolutions import Convolution
from tlazy_kernels import reference
from tlazy_kernels.reference import NEEDS_PREACTIVATION

CASES = [*test_conv1d.CASES, *test_depthwise.CASES]

every_activation = pytest.mark.parametrize("activation", [None, *reference.ACTIVATIONS])


def float64(*shapes: tuple[int, ...]) -> list[Tensor]:
    tensors = (random(*s, dtype=torch.float64, device="cpu", seed=i) for i, s in enumerate(shapes))
    return [t.requires_grad_() for t in tensors]


def backward_of_epilogue(
    grad: Tensor, saved: dict[str, Tensor], activation: str | None
) -> tuple[Tensor, Tensor | None]:
    """(g, bias gradient) from what a forward pass with this activation would have kept."""
    read = saved["z" if activation in NEEDS_PREACTIVATION else "y"] if activation else None
    g, grad_bias = reference.epilogue_backward(grad, read, activation, bias=True)
    return grad if g is None else g, grad_bias


class Linear(torch.autograd.Function):
    """The linear twins as one differentiable function."""

    @staticmethod
    def forward(ctx, x, weight, bias, activation):
        y, z = reference.linear_forward(
            x, weight, bias, activation=activation, save_preactivation=True
        )
        ctx.save_for_backward(x, weight, y, z)
        ctx.activation = activation
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, y, z = ctx.saved_tensors
        saved = {"y": y[:, :, None], "z": z[:, :, None]}
        g, grad_bias = backward_of_epilogue(grad[:, :, None], saved, ctx.activation)
        g = g[:, :, 0]
        return (
            reference.linear_grad_input(g, weight),
            reference.linear_grad_weight(g, x),
            grad_bias,
            None,
        )


class Conv1d(torch.autograd.Function):
    """The conv1d twins as one differentiable function."""

    @staticmethod
    def forward(ctx, x, weight, bias, settings, activation):
        y, z = reference.conv1d_forward(
            x, weight, bias, *settings, activation=activation, save_preactivation=True
        )
        ctx.save_for_backward(x, weight, y, z)
        ctx.settings, ctx.activation = settings, activation
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, y, z = ctx.saved_tensors
        g, grad_bias = backward_of_epilogue(grad, {"y": y, "z": z}, ctx.activation)
        return (
            reference.conv1d_grad_input(g, weight, x.shape[2], *ctx.settings),
            reference.conv1d_grad_weight(g, x, weight.shape[2], *ctx.settings),
            grad_bias,
            None,
            None,
        )


@every_activation
def test_the_linear_twins_pass_gradcheck(activation):
    x, weight, bias = float64((3, 4), (5, 4), (5,))
    assert torch.autograd.gradcheck(Linear.apply, (x, weight, bias, activation))


@every_activation
def test_the_conv1d_twins_pass_gradcheck(activation):
    case = Convolution(2, 4, 6, 7, 3, stride=2, padding=(1, 2), dilation=2, groups=2)
    x, weight, bias = float64((2, 4, 7), (6, 2, 3), (6,))
    assert torch.autograd.gradcheck(Conv1d.apply, (x, weight, bias, case.settings, activation))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_conv1d_twins_are_torchs_convolution_and_its_gradients(case):
    x, weight, bias, grad = (exact(t) for t in case.operands(torch.float32, "cpu"))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = F.conv1d(F.pad(x, case.padding), weight, bias, case.stride, 0, case.dilation, case.groups)
    expected = torch.autograd.grad(y, leaves, grad)
    found = (
        reference.conv1d_forward(x, weight, bias, *case.settings)[0],
        reference.conv1d_grad_input(grad, weight, case.length, *case.settings),
        reference.conv1d_grad_weight(grad, x, case.taps, *case.settings),
        reference.epilogue_backward(grad, None, None, bias=True)[1],
    )
    torch.testing.assert_close(found, (y, *expected))


@pytest.mark.parametrize("shape", [(7, 5, 4), (1, 1, 1), (0, 5, 4), (7, 0, 4)], ids=str)
def test_the_linear_twins_are_torchs_linear_and_its_gradients(shape):
    m, k, n = shape
    x, weight, bias, grad = float64((m, k), (n, k), (n,), (m, n))
    y = F.linear(x, weight, bias)
    expected = torch.autograd.grad(y, (x, weight, bias), grad)
    found = (
        reference.linear_forward(x, weight, bias)[0],
        reference.linear_grad_input(grad, weight),
        reference.linear_grad_weight(grad, x),
        reference.epilogue_backward(grad, None, None, bias=True)[1],
    )
    torch.testing.assert_close(found, (y, *expected))


@every_activation
def test_the_preactivation_is_given_where_asked_for(activation):
    x, weight, bias = float64((3, 4), (5, 4), (5,))
    y, z = reference.linear_forward(x, weight, bias, activation=activation, save_preactivation=True)
    torch.testing.assert_close(z, F.linear(x, weight, bias))
    assert reference.linear_forward(x, weight, bias, activation=activation)[1] is None
    if activation:
        torch.testing.assert_close(y, reference.ACTIVATIONS[activation](z))
