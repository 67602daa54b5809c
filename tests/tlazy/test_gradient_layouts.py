"""Memory layouts of gradients: an input's gradient lies as the input does, whatever the loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as tF
from torch import Tensor

import tlazy
import tlazy.nn.functional as F
from tests.tlazy_kernels.agreement import random
from tests.tlazy_kernels.convolutions import channels_last
from tlazy_kernels import copy_cost, launch
from tlazy_kernels.layouts import is_channels_last
from tlazy_kernels.reference import ACTIVATIONS

# (the weight's shape for 8 input channels, settings); of conv_transpose1d where that says so.
CONVOLUTIONS: dict[str, tuple[tuple[int, int, int], dict[str, int]]] = {
    "dense": ((12, 8, 3), {"padding": 1}),
    "strided": ((12, 8, 4), {"stride": 2, "padding": 1}),
    "grouped": ((12, 4, 3), {"groups": 2}),
    "small groups": ((16, 2, 3), {"groups": 4, "dilation": 2}),
    "one filter": ((1, 8, 3), {}),
    "depthwise": ((8, 1, 4), {"groups": 8, "padding": 3}),
    "depthwise of two filters": ((16, 1, 3), {"groups": 8, "stride": 2}),
    "transposed": ((8, 12, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "transposed depthwise": ((8, 1, 3), {"groups": 8, "stride": 2}),
}
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels first": Tensor.contiguous,
    "channels last": channels_last,
}
# The gradients of these losses have strides of 0, lie channels first, and channels last.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": Tensor.sum,
    "flattened": lambda y: (y.flatten(1) * torch.arange(y[0].numel()).to(y)).sum(),
    "transposed": lambda y: y.mT.contiguous().square().sum(),
}

form_by_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
loss_by_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
case_by_case = pytest.mark.parametrize("name", CONVOLUTIONS)


def operands(name: str, form: Callable[[Tensor], Tensor], device: str) -> tuple[Tensor, Tensor]:
    """(x, weight), which take gradients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, 11, generator=generator)
    weight = torch.randn(*CONVOLUTIONS[name][0], generator=generator)
    return form(x.to(device)).requires_grad_(), weight.to(device).requires_grad_()


def functions(name: str, activation: str | None = None) -> tuple[Callable, Callable]:
    """Ours and torch's, of (x, weight)."""
    noun = "conv_transpose1d" if name.startswith("transposed") else "conv1d"
    settings = CONVOLUTIONS[name][1]
    act = ACTIVATIONS[activation] if activation else lambda z: z
    ours = partial(getattr(F, noun), **settings, activation=activation)
    return ours, lambda x, w: act(getattr(tF, noun)(x, w, **settings))


@case_by_case
@form_by_form
@loss_by_loss
@pytest.mark.parametrize(
    ("activation", "frozen"), [(None, True), ("gelu", False)], ids=["weight frozen", "gelu"]
)
def test_an_inputs_gradient_lies_as_the_input_whatever_the_loss(
    name, form, loss, activation, frozen, device, exact_fp32
):
    x, weight = operands(name, form, device)
    wanted = (x,) if frozen else (x, weight)
    ours, theirs = functions(name, activation)
    with tlazy.backend("triton"):
        found = torch.autograd.grad(loss(ours(x, weight.requires_grad_(not frozen))), wanted)
    assert found[0].stride() == x.stride()
    doubles = [t.detach().double().requires_grad_() for t in (x, weight)]
    expected = torch.autograd.grad(loss(theirs(*doubles)), doubles[: len(wanted)])
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=1e-4, atol=1e-4)


@case_by_case
@form_by_form
def test_gradients_of_gradients_lie_as_the_input_too(name, form, device, exact_fp32):
    x, weight = operands(name, form, device)
    ours, theirs = functions(name, "silu")

    def second(function: Callable, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.autograd.grad(function(x, weight).sum(), (x, weight), create_graph=True)
        assert function is theirs or first[0].stride() == x.stride()
        return torch.autograd.grad(sum(g.sin().sum() for g in first), (x, weight))

    with tlazy.backend("triton"):
        found = second(ours, x, weight)
    assert found[0].stride() == x.stride()
    expected = second(theirs, *(t.detach().double().requires_grad_() for t in (x, weight)))
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=1e-3, atol=1e-3)


@case_by_case
@form_by_form
def test_compiled_gradients_lie_as_the_input(name, form, device, exact_fp32):
    x, weight = operands(name, form, device)
    ours, _ = functions(name, "relu")
    torch.compiler.reset()
    with tlazy.backend("triton"):
        expected = torch.autograd.grad(ours(x, weight).sum(), (x, weight))
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
        found = torch.autograd.grad(compiled(x, weight).sum(), (x, weight))
    assert found[0].stride() == x.stride()
    torch.testing.assert_close(found, expected)


@pytest.fixture
def copied(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of what copies read, of tensors of any size."""
    found: list[tuple[int, ...]] = []
    run = launch.Step.run

    def noted(step: Any, tensors: Any, *args: Any, **named: Any) -> None:
        if step.kernel.fn.__name__ == "_copy_kernel":
            found.append(tuple(tensors[step.tensors[0]].shape))
        run(step, tensors, *args, **named)

    monkeypatch.setattr(copy_cost, "LEAST_COPY", 1)
    monkeypatch.setattr(launch, "_plans", {})
    monkeypatch.setattr(launch.Step, "run", noted)
    return found


@loss_by_loss
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("noun", "shape", "settings", "length"),
    [
        ("conv1d", (8, 8, 6), {}, 7),
        ("conv1d", (8, 520, 1), {"padding": 1}, 14),
        ("conv_transpose1d", (8, 8, 6), {}, 17),
        ("conv_transpose1d", (8, 8, 10), {"stride": 2}, 32),
    ],
    ids=str,
)
def test_an_output_gradient_that_tiles_cannot_be_of_is_not_copied(
    noun, shape, settings, length, bias, activation, loss, copied, device, exact_fp32
):
    """The pass that computes it leaves it as the products of both gradients read it: with channels
    for neighbours, where rows are no whole units, or read a stride apart."""
    x = random(3, shape[1], 12, dtype=torch.float32, device=device).requires_grad_()
    weight = random(*shape, dtype=torch.float32, device=device, seed=1)
    weight = (weight / (shape[1] * shape[2]) ** 0.5).requires_grad_()
    b = random(8, dtype=torch.float32, device=device, seed=2).requires_grad_() if bias else None
    with tlazy.backend("triton"):
        y = getattr(F, noun)(x, weight, b, activation=activation, **settings)
        assert y.shape[2] == length
        copied.clear()
        loss(y).backward()
    assert tuple(y.shape) not in copied
    assert x.grad.stride() == x.stride()
    leaves = [t.detach().double().requires_grad_() for t in (x, weight, b) if t is not None]
    z = getattr(tF, noun)(*leaves[:2], *(leaves[2:] or [None]), **settings)
    loss(z if activation is None else ACTIVATIONS[activation](z)).backward()
    for found, expected in zip((x, weight, b), leaves, strict=False):
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "settings", "needs", "is_copied"),
    [
        ((8, 8, 6), {}, "bias", False),
        ((8, 64, 1), {}, "all", False),
        ((8, 64, 3), {"padding": 1}, "all", False),
        ((8, 8, 6), {"padding": 1, "dilation": 2, "stride": 2}, "all", False),
        ((16, 4, 6), {}, "all", True),
        ((6, 8, 6), {}, "all", True),
    ],
    ids=[
        "for the bias alone",
        "one tap",
        "three taps of float32",
        "whole",
        "perhaps a first layer's",
        "no whole units of channels",
    ],
)
def test_a_gradient_that_need_not_be_left_for_tiles_or_cannot_be_stays_as_it_is(
    shape, settings, needs, is_copied, copied, device, monkeypatch, exact_fp32
):
    turned = []
    run = launch.Step.run

    def noted(step: Any, *args: Any) -> None:
        if step.kernel.fn.__name__ == "_epilogue_backward_kernel":
            turned.append(step.constants["HAS_OUT"])
        run(step, *args)

    monkeypatch.setattr(launch.Step, "run", noted)
    length = 15 if settings else 12
    x = random(3, shape[1], length, dtype=torch.float32, device=device)
    x.requires_grad_(needs == "all")
    weight = random(*shape, dtype=torch.float32, device=device).requires_grad_(needs == "all")
    bias = random(shape[0], dtype=torch.float32, device=device).requires_grad_()
    with tlazy.backend("triton"):
        y = F.conv1d(x, weight, bias, **settings)
        copied.clear()
        y.backward(random(*y.shape, dtype=torch.float32, device=device))
    assert turned == [False]
    assert (tuple(y.shape) in copied) == is_copied


@pytest.mark.parametrize("names", [("dense", "dense"), ("strided", "transposed")], ids=str)
def test_a_stack_over_channels_last_memory_copies_no_samples(names, device, monkeypatch):
    """Filters are put in the tiles' order by copies; samples are read where they lie."""
    monkeypatch.setattr(copy_cost, "LEAST_COPY", 1)
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(16, 16, 3 + (name == "transposed"), generator=generator)
        .to(device)
        .requires_grad_()
        for name in names
    ]
    x = channels_last(torch.randn(3, 16, 12, generator=generator).to(device)).requires_grad_()
    copied: list[torch.Size] = []
    ran: set[str] = set()
    run = launch.Step.run

    def noted(step: Any, tensors: Any, *args: Any, **named: Any) -> None:
        ran.add(step.kernel.fn.__name__)
        if step.kernel.fn.__name__ == "_copy_kernel":
            copied.append(tensors[step.tensors[0]].shape)
        run(step, tensors, *args, **named)

    with tlazy.backend("triton"), mock.patch.object(launch.Step, "run", noted):
        y = x
        for name, weight in zip(names, weights, strict=True):
            y = functions(name, "relu")[0](y, weight)
        y.sum().backward()
    assert is_channels_last(y)
    assert is_channels_last(x.grad)
    tiles = {"_conv1d_tiled_kernel", "_grad_weight_tiled_kernel"}
    assert ran - {"_copy_kernel", "_sum_kernel", "_epilogue_backward_kernel"} == tiles
    assert set(copied) <= {weight.shape for weight in weights}
