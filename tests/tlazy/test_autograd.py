"""Gradients, and gradients of gradients, of the functions that call the kernels."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as tF
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import tlazy
import tlazy.nn.functional as F
from tlazy import autograd, ops
from tlazy_kernels.reference import ACTIVATIONS

ACTIVATION_CHOICES = [None, *ACTIVATIONS]
# (length, kernel_size, stride, padding, dilation, groups, out_channels) for 6 input channels
CONVOLUTIONS = {
    "plain": (11, 3, 1, [0, 0], 1, 1, 4),
    "same-even": (9, 8, 1, [3, 4], 1, 1, 4),
    "strided": (11, 3, 2, [1, 1], 1, 1, 4),
    "stride-skips-the-end": (12, 3, 4, [0, 0], 1, 1, 4),
    "dilated-causal": (10, 3, 1, [4, 0], 2, 1, 4),
    "grouped": (9, 3, 1, [1, 1], 1, 2, 4),
    "depthwise": (9, 4, 1, [3, 0], 1, 6, 6),
    "depthwise-multiplied": (9, 3, 2, [1, 1], 1, 6, 12),
    "kernel-longer-than-input": (2, 5, 1, [2, 2], 1, 1, 4),
}


# (length, kernel_size, stride, padding, output_padding, dilation, groups, out_channels) likewise
TRANSPOSED = {
    "plain": (7, 3, 1, 0, 0, 1, 1, 4),
    "upsampling": (6, 4, 2, 1, 0, 1, 1, 4),
    "output-padded": (6, 3, 2, 1, 1, 1, 1, 4),
    "samples-that-no-tap-reaches": (4, 2, 5, 0, 4, 1, 1, 4),
    "output-padding-beyond-the-stride": (4, 3, 1, 1, 3, 4, 1, 4),
    "bias-alone": (1, 1, 1, 2, 4, 5, 1, 4),
    "dilated": (5, 3, 2, 2, 0, 3, 1, 4),
    "grouped": (6, 3, 2, 1, 1, 1, 2, 4),
    "depthwise": (6, 4, 2, 1, 0, 1, 6, 6),
    "depthwise-divided": (6, 3, 2, 1, 0, 1, 2, 2),
}


def leaves(device, dtype):
    generator = torch.Generator().manual_seed(0)

    def make(*shape):
        return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()

    return make


@pytest.fixture
def leaf(device):
    return leaves(device, torch.float32)


@pytest.fixture
def cpu_leaf():
    """In float64 on the CPU, where the operators run the ATen twins."""
    return leaves("cpu", torch.float64)


class Recorder(TorchDispatchMode):
    """Names of tlazy's operators, in the order in which they were called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "tlazy":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def relative_error(found, expected):
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / (expected.norm() + 1e-30))


def derivatives(function, inputs):
    """The value, its gradients, and the gradients of the gradients' squared norm."""
    y = function(*inputs)
    first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [y, *first, *second]


def assert_derivatives_equal(function, reference, inputs):
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    for found, expected in zip(
        derivatives(function, inputs), derivatives(reference, doubles), strict=True
    ):
        assert found.shape == expected.shape
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("activation", ACTIVATION_CHOICES)
def test_linear_derivatives_equal_torch(leaf, activation, exact_fp32):
    act = ACTIVATIONS.get(activation, lambda z: z)
    with tlazy.backend("triton"):
        assert_derivatives_equal(
            lambda x, w, b: F.linear(x, w, b, activation=activation),
            lambda x, w, b: act(tF.linear(x, w, b)),
            [leaf(3, 5, 7), leaf(4, 7), leaf(4)],
        )


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv1d_derivatives_equal_torch(leaf, name, activation, exact_fp32):
    length, taps, stride, padding, dilation, groups, filters = CONVOLUTIONS[name]
    settings = (stride, padding, dilation, groups, "zeros")
    act = ACTIVATIONS.get(activation, lambda z: z)
    with tlazy.backend("triton"):
        assert_derivatives_equal(
            lambda x, w, b: autograd.conv1d(x, w, b, *settings, activation),
            lambda x, w, b: act(tF.conv1d(tF.pad(x, padding), w, b, stride, 0, dilation, groups)),
            [leaf(2, 6, length), leaf(filters, 6 // groups, taps), leaf(filters)],
        )


@pytest.mark.parametrize("activation", ACTIVATION_CHOICES)
def test_linear_operator_passes_gradcheck_in_float64(cpu_leaf, activation):
    inputs = [cpu_leaf(5, 4), cpu_leaf(3, 4), cpu_leaf(3)]
    call = lambda x, w, b: autograd.linear(x, w, b, activation)  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv1d_operator_passes_gradcheck_in_float64(cpu_leaf, name, activation):
    length, taps, *settings, groups, filters = CONVOLUTIONS[name]
    inputs = [cpu_leaf(2, 6, length), cpu_leaf(filters, 6 // groups, taps), cpu_leaf(filters)]
    call = lambda x, w, b: autograd.conv1d(x, w, b, *settings, groups, "zeros", activation)  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose1d_derivatives_equal_torch(leaf, name, activation, exact_fp32):
    length, taps, stride, padding, extra, dilation, groups, filters = TRANSPOSED[name]
    act = ACTIVATIONS.get(activation, lambda z: z)
    settings = (stride, padding, extra, groups, dilation)
    with tlazy.backend("triton"):
        assert_derivatives_equal(
            lambda x, w, b: F.conv_transpose1d(x, w, b, *settings, activation=activation),
            lambda x, w, b: act(tF.conv_transpose1d(x, w, b, *settings)),
            [leaf(2, 6, length), leaf(6, filters // groups, taps), leaf(filters)],
        )


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose1d_operator_passes_gradcheck_in_float64(cpu_leaf, name, activation):
    length, taps, *settings, groups, filters = TRANSPOSED[name]
    inputs = [cpu_leaf(2, 6, length), cpu_leaf(6, filters // groups, taps), cpu_leaf(filters)]

    def call(x, w, b):
        return autograd.conv_transpose1d(x, w, b, *settings, groups, activation)

    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose1d_passes_gradcheck_in_float64_on_aten(cpu_leaf, groups):
    inputs = [cpu_leaf(2, 6, 5), cpu_leaf(6, 4 // groups, 3), cpu_leaf(4)]

    def call(x, w, b):
        return F.conv_transpose1d(x, w, b, 2, 1, 1, groups, activation="silu")

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_stride_0_gradient_of_sum_gives_torchs_gradients(leaf, exact_fp32):
    x, w, b = leaf(2, 3, 9), leaf(4, 3, 3), leaf(4)
    with tlazy.backend("triton"):
        found = torch.autograd.grad(F.conv1d(x, w, b, activation="gelu").sum(), (x, w, b))
    expected = torch.autograd.grad(tF.gelu(tF.conv1d(x, w, b)).sum(), (x, w, b))
    for f, e in zip(found, expected, strict=True):
        assert relative_error(f, e) < 1e-5


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_only_the_wanted_gradient_is_computed(leaf, wanted):
    inputs = {"x": leaf(5, 7), "weight": leaf(4, 7), "bias": leaf(4)}
    for name, value in inputs.items():
        value.requires_grad_(name == wanted)
    with tlazy.backend("triton"), Recorder() as recorder:
        F.linear(*inputs.values()).sum().backward()
    needed = {"x": "linear_grad_input", "weight": "linear_grad_weight", "bias": "epilogue_backward"}
    assert recorder.names == ["linear_forward", needed[wanted]]
    assert inputs[wanted].grad is not None


@pytest.mark.parametrize("wanted", [("x",), ("x", "weight"), ("bias",), ("x", "weight", "bias")])
def test_a_depthwise_backward_pass_is_one_operator(leaf, wanted):
    inputs = {"x": leaf(2, 6, 9), "weight": leaf(6, 1, 3), "bias": leaf(6)}
    for name, value in inputs.items():
        value.requires_grad_(name in wanted)
    with tlazy.backend("triton"), Recorder() as recorder:
        F.conv1d(*inputs.values(), groups=6, activation="silu").sum().backward()
    assert recorder.names == ["conv1d_forward", "depthwise_backward"]
    assert [name for name, value in inputs.items() if value.grad is not None] == list(wanted)


def test_nothing_is_saved_that_no_gradient_needs(leaf):
    x, weight = leaf(5, 7), leaf(4, 7).detach()
    with tlazy.backend("triton"):
        y = F.linear(x, weight)
    assert [t is None for t in y.grad_fn.saved_tensors] == [True, False, True]


@pytest.mark.parametrize("grad", [True, False])
def test_the_preactivation_is_written_only_where_a_gradient_will_need_it(leaf, grad):
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.namespace == "tlazy":
                sizes.append(out[1].numel())
            return out

    with tlazy.backend("triton"), Sizes(), torch.set_grad_enabled(grad):
        F.linear(leaf(5, 7), leaf(4, 7), activation="gelu")
    assert sizes == [20 if grad else 0]


def test_an_eager_call_leaves_the_dispatcher_out(leaf, monkeypatch):
    """It costs more than all else on the way to a kernel."""
    ran = []
    device = "on_cuda" if leaf(1).is_cuda else "on_cpu"
    for name, operator in vars(ops).items():
        if isinstance(operator, ops.Operator):
            run = getattr(operator, device)
            seen = lambda *a, name=name, run=run: ran.append(name) or run(*a)  # noqa: E731
            monkeypatch.setattr(operator, device, seen)
    x, w, b = leaf(5, 7), leaf(4, 7), leaf(4)
    with tlazy.backend("triton"):
        F.linear(x, w, b, activation="relu").sum().backward()
        with torch.no_grad():
            F.linear(x, w, b)
    backward = ["epilogue_backward", "linear_grad_input", "linear_grad_weight"]
    assert ran == ["linear_forward", *backward, "linear_forward"]


def test_whoever_listens_to_operators_hears_of_them(leaf):
    x, w = leaf(5, 7), leaf(4, 7)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        tlazy.backend("triton"),
        torch.profiler.profile(activities=activities, acc_events=True) as profile,
    ):
        F.linear(x, w, activation="relu").sum().backward()
    names = {event.name for event in profile.events()}
    wanted = ("linear_forward", "epilogue_backward", "linear_grad_input", "linear_grad_weight")
    assert {f"tlazy::{name}" for name in wanted} <= names


def test_many_gradients_are_taken_at_once_as_one_by_one(leaf):
    """Then the backward pass runs under ``vmap``, whose tensors no kernel can read."""
    x, w, b = leaf(5, 7), leaf(4, 7), leaf(4)
    with tlazy.backend("triton"):
        y = F.linear(x, w, b, activation="relu")
        grads = torch.randn(3, *y.shape).to(y)
        found = torch.autograd.grad(y, (x, w, b), grads, is_grads_batched=True, retain_graph=True)
        singly = [torch.autograd.grad(y, (x, w, b), g, retain_graph=True) for g in grads]
    for batched, parts in zip(found, zip(*singly, strict=True), strict=True):
        torch.testing.assert_close(batched, torch.stack(parts))


def test_values_yet_to_be_negated_are(leaf):
    """``torch.imag`` of a conjugate is a view of them; no kernel can know."""

    def conjugated(*shape: int) -> torch.Tensor:
        x = torch.complex(leaf(*shape), leaf(*shape)).detach().conj().imag
        assert x.is_neg()
        return x

    x, w, b, dy = conjugated(5, 7), conjugated(4, 7), conjugated(4), conjugated(5, 4)
    found = []
    for backend in ("triton", "aten"):
        leaves = [t.detach().requires_grad_() for t in (x, w, b)]
        with tlazy.backend(backend):
            y = F.linear(*leaves, activation="relu")
            found.append((y, *torch.autograd.grad(y, leaves, dy)))
    for ours, atens in zip(*found, strict=True):
        torch.testing.assert_close(ours, atens)


class Kind(torch.Tensor):
    """A tensor of a kind of its own that sees the operators that take it."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if getattr(func, "namespace", "") == "tlazy":
            cls.seen.append(func._opname)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_kinds_of_tensors_see_the_operators_that_take_them(leaf):
    weight = leaf(4, 7).detach().as_subclass(Kind)
    with tlazy.backend("triton"):
        F.linear(leaf(5, 7).detach(), weight)
    assert Kind.seen == ["linear_forward"]


def test_a_mode_that_overrides_functions_sees_operators(leaf):
    class Names(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(getattr(func, "_opname", ""))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    with tlazy.backend("triton"), Names():
        F.linear(leaf(5, 7), leaf(4, 7))
    assert "linear_forward" in seen
