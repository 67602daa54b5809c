"""Bad arguments: torch's exception types, the offending values in the message, nothing allocated.

Every launcher and its twin raise the same error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from tlazy_kernels import (
    conv1d,
    conv_transpose1d,
    depthwise,
    environment,
    epilogue,
    linear,
    reference,
)

ONE_DEVICE = "every tensor says that it is on the pretended GPU"


class _Allocations(TorchFunctionMode):
    """Counts the calls that give new memory."""

    NAMES = frozenset({"empty", "empty_like", "new_empty", "new_zeros", "zeros", "zeros_like"})

    def __init__(self) -> None:
        self.found: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in self.NAMES:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def refused(error: type[Exception], *values: object) -> Iterator[None]:
    """Assert that the block raises `error`, naming `values`, and allocates nothing before."""
    with _Allocations() as allocations, pytest.raises(error) as caught:
        yield
    assert type(caught.value) is error
    assert allocations.found == []
    for value in values:
        assert str(value) in str(caught.value)


def both(module: Any, name: str) -> list[Any]:
    return [
        pytest.param(getattr(module, name), id=name),
        pytest.param(getattr(reference, name), id=f"reference.{name}"),
    ]


def each(module: Any, name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("call", both(module, name))


@pytest.fixture
def ones(device: str) -> Callable[..., torch.Tensor]:
    return lambda *shape, **settings: torch.ones(shape, device=device, **settings)


@each(linear, "linear_forward")
def test_linear_refuses_what_does_not_fit(call, ones):
    x, weight = ones(2, 3), ones(4, 3)
    with refused(RuntimeError, (2, 3), (4, 5), "(=3)", "(=5)"):
        call(x, ones(4, 5))
    with refused(RuntimeError, (3,), (4, 3)):
        call(ones(3), weight)
    with refused(RuntimeError, (2, 3), (3,)):
        call(x, ones(3))
    with refused(RuntimeError, "(4,)", (5,)):
        call(x, weight, ones(5))
    with refused(RuntimeError, "(4,)", (4, 1)):
        call(x, weight, ones(4, 1))
    with refused(RuntimeError, "weight is torch.float16", "x is torch.float32"):
        call(x, weight.half())
    with refused(RuntimeError, "bias is torch.float64"):
        call(x, weight, ones(4, dtype=torch.float64))
    with refused(RuntimeError, "torch.int64"):
        call(x.long(), weight.long())
    with refused(ValueError, "'swish'", "'silu'"):
        call(x, weight, activation="swish")


@each(linear, "linear_forward")
def test_linear_refuses_tensors_on_two_devices(call, ones):
    x, weight = ones(2, 3), torch.ones(4, 3, device="meta")
    if weight.is_cuda:
        pytest.skip(ONE_DEVICE)
    with refused(RuntimeError, "weight is meta"):
        call(x, weight)


@each(linear, "linear_grad_input")
def test_linear_grad_input_refuses_what_does_not_fit(call, ones):
    with refused(RuntimeError, (2, 4), (5, 3)):
        call(ones(2, 4), ones(5, 3))
    with refused(RuntimeError, (4,), (4, 3)):
        call(ones(4), ones(4, 3))
    with refused(RuntimeError, "weight is torch.float16"):
        call(ones(2, 4), ones(4, 3).half())


@each(linear, "linear_grad_weight")
def test_linear_grad_weight_refuses_what_does_not_fit(call, ones):
    with refused(RuntimeError, (2, 4), (3, 3)):
        call(ones(2, 4), ones(3, 3))
    with refused(RuntimeError, (2, 4), (2,)):
        call(ones(2, 4), ones(2))
    with refused(RuntimeError, "x is torch.float16"):
        call(ones(2, 4), ones(2, 3).half())


@each(conv1d, "conv1d_forward")
def test_conv1d_refuses_what_does_not_fit(call, ones):
    x, weight = ones(2, 4, 9), ones(6, 4, 3)
    with refused(RuntimeError, (4, 9), (6, 4, 3)):
        call(ones(4, 9), weight)
    with refused(RuntimeError, (2, 4, 9), (6, 4)):
        call(x, ones(6, 4))
    with refused(RuntimeError, "expects 5 input channels", (2, 4, 9), "with 4"):
        call(x, ones(6, 5, 3))
    with refused(RuntimeError, "(=5)", "(=2)"):
        call(x, ones(5, 2, 3), groups=2)
    with refused(RuntimeError, "at least 1 output channel", (0, 4, 3)):
        call(x, ones(0, 4, 3))
    with refused(RuntimeError, "kernel_size=11", "11 samples", "(9)"):
        call(x, ones(6, 4, 11))
    with refused(RuntimeError, "dilation=5", "11 samples", "(10)"):
        call(x, weight, None, 1, (1, 0), 5)
    with refused(RuntimeError, "kernel_size=0"):
        call(x, ones(6, 4, 0))
    with refused(RuntimeError, "(6,)", (4,)):
        call(x, weight, ones(4))
    with refused(RuntimeError, "weight is torch.float16"):
        call(x, weight.half())
    with refused(RuntimeError, "torch.int64"):
        call(x.long(), weight.long())
    with refused(ValueError, "'swish'"):
        call(x, weight, activation="swish")


@each(conv1d, "conv1d_forward")
@pytest.mark.parametrize("setting", ["stride", "dilation", "groups"])
@pytest.mark.parametrize("value", [0, -2])
def test_conv1d_refuses_settings_below_one(call, setting, value, ones):
    with refused(RuntimeError, setting, value):
        call(ones(2, 4, 9), ones(6, 4, 3), **{setting: value})


@each(conv1d, "conv1d_forward")
@pytest.mark.parametrize("padding", [(-1, 0), (0, -3), (1,), (1, 2, 3)], ids=str)
def test_conv1d_refuses_padding_that_is_not_two_sizes(call, padding, ones):
    with refused(RuntimeError, padding):
        call(ones(2, 4, 9), ones(6, 4, 3), padding=padding)


@each(conv1d, "conv1d_grad_input")
def test_conv1d_grad_input_refuses_what_does_not_fit(call, ones):
    grad, weight = ones(2, 6, 7), ones(6, 4, 3)
    with refused(RuntimeError, "(N, 6, 8)", (2, 6, 7)):
        call(grad, weight, 10)
    with refused(RuntimeError, "(N, 5, 7)", (2, 6, 7)):
        call(grad, ones(5, 4, 3), 9)
    with refused(RuntimeError, (6, 7)):
        call(grad[0], weight, 9)
    with refused(RuntimeError, (6, 4)):
        call(grad, weight[..., 0], 9)
    with refused(RuntimeError, "groups=4"):
        call(grad, weight, 9, groups=4)
    with refused(RuntimeError, "stride", 0):
        call(grad, weight, 9, stride=0)
    with refused(RuntimeError, "weight is torch.float16"):
        call(grad, weight.half(), 9)


@each(conv1d, "conv1d_grad_weight")
def test_conv1d_grad_weight_refuses_what_does_not_fit(call, ones):
    grad, x = ones(2, 6, 7), ones(2, 4, 9)
    with refused(RuntimeError, (2, 6, 7), (3, 4, 9)):
        call(grad, ones(3, 4, 9), 3)
    with refused(RuntimeError, (4, 9)):
        call(grad, x[0], 3)
    with refused(RuntimeError, "(N, 6, 6)", (2, 6, 7)):
        call(grad, x, 4)
    with refused(RuntimeError, "(=4)", "(=3)"):
        call(grad, x, 3, groups=3)
    with refused(RuntimeError, "(=0)"):
        call(grad, x, 3, groups=0)
    with refused(RuntimeError, "x is torch.float16"):
        call(grad, x.half(), 3)


@each(conv_transpose1d, "conv_transpose1d_forward")
def test_conv_transpose1d_refuses_what_does_not_fit(call, ones):
    x, weight = ones(2, 4, 9), ones(4, 6, 3)
    with refused(RuntimeError, (4, 9), (4, 6, 3)):
        call(ones(4, 9), weight)
    with refused(RuntimeError, (2, 4, 9), (4, 6)):
        call(x, ones(4, 6))
    with refused(RuntimeError, "expects 5 input channels", (2, 4, 9), "with 4"):
        call(x, ones(5, 6, 3))
    with refused(RuntimeError, "in_channels (=4)", "groups (=3)"):
        call(x, weight, groups=3)
    for bad in (ones(4, 0, 3), ones(4, 6, 0), ones(0, 6, 3)):
        with refused(RuntimeError, tuple(bad.shape), "size 0"):
            call(x[:, : len(bad)], bad)
    with refused(RuntimeError, (2, 4, 0), "at least 1 sample"):
        call(x[:, :, :0], weight)
    with refused(RuntimeError, "kernel_size=3", "give 11", "padding (=6) cuts off 12"):
        call(x, weight, padding=6)
    with refused(RuntimeError, "(12,)", (6,)):
        call(x, weight, ones(6), groups=2)
    with refused(RuntimeError, "weight is torch.float16"):
        call(x, weight.half())
    with refused(RuntimeError, "torch.int64"):
        call(x.long(), weight.long())
    with refused(ValueError, "'swish'"):
        call(x, weight, activation="swish")


@each(conv_transpose1d, "conv_transpose1d_forward")
@pytest.mark.parametrize(
    ("setting", "value"),
    [("stride", 0), ("dilation", -2), ("groups", 0), ("padding", -1), ("output_padding", -1)],
)
def test_conv_transpose1d_refuses_settings_out_of_range(call, setting, value, ones):
    with refused(RuntimeError, f"conv_transpose1d: {setting}", value):
        call(ones(2, 4, 9), ones(4, 6, 3), **{setting: value})


@each(conv_transpose1d, "conv_transpose1d_forward")
def test_output_padding_is_smaller_than_stride_or_dilation(call, ones):
    x, weight = ones(2, 4, 9), ones(4, 6, 3)
    with refused(RuntimeError, "stride (=2)", "dilation (=3)", "got 3"):
        call(x, weight, stride=2, dilation=3, output_padding=3)
    assert call(x, weight, stride=2, dilation=3, output_padding=2)[0].shape == (2, 6, 25)


@each(epilogue, "epilogue_backward")
def test_epilogue_backward_refuses_what_does_not_fit(call, ones):
    grad = ones(2, 3, 4)
    with refused(RuntimeError, (2,)):
        call(grad[:, 0, 0], None, None, bias=True)
    with refused(RuntimeError, "'gelu'", (2, 3, 4), "None"):
        call(grad, None, "gelu", bias=True)
    with refused(RuntimeError, (2, 3, 4), (2, 3, 5)):
        call(grad, ones(2, 3, 5), "relu", bias=True)
    with refused(RuntimeError, "saved is torch.float16"):
        call(grad, grad.half(), "relu", bias=True)
    with refused(RuntimeError, "for_tiles", (2, 3)):
        call(grad[:, :, 0], None, None, bias=True, for_tiles=True)
    with refused(ValueError, "'swish'"):
        call(grad, grad, "swish", bias=True)


@pytest.mark.parametrize(
    "settings",
    [{"stride": 0}, {"dilation": 0}, {"groups": 0}, {"padding": -1}, {"groups": 3}],
    ids=str,
)
def test_torch_raises_the_same_type_for_bad_settings(settings):
    x, weight = torch.ones(2, 4, 9), torch.ones(6, 4, 3)
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        F.conv1d(x, weight, **settings)
    if "padding" in settings:
        settings = {"padding": (settings["padding"],) * 2}
    with pytest.raises(Exception) as ours:  # noqa: PT011
        reference.conv1d_forward(x, weight, **settings)
    assert type(ours.value) is type(theirs.value)


# What torch's own tests of conv1d call an error (OpInfo.error_inputs), in float32: shapes of x and
# weight, dtypes of x and weight and of the bias, settings.
OPINFO_ERRORS = [
    ((1, 1, 4), (1, 1, 2), torch.int64, torch.float32, {}),
    ((1, 1, 4), (1, 1, 2), torch.float32, torch.complex64, {}),
    ((1, 1, 4), (1, 2, 2), torch.float32, torch.float32, {"stride": -1}),
    ((1, 1, 4), (1, 2, 2), torch.float32, torch.float32, {"padding": -1}),
    ((1, 1, 4), (1, 1, 2), torch.float32, torch.float32, {"dilation": -1}),
    ((1, 1, 4), (1, 2), torch.float32, torch.float32, {}),
    ((2, 2, 4), (2, 2, 2), torch.float32, torch.float32, {"groups": 3}),
    ((2, 2, 4), (2, 2, 2), torch.float32, torch.float32, {"groups": -1}),
    ((2, 2, 4), (2, 2, 2), torch.float32, torch.float32, {"groups": 0}),
]


@each(conv1d, "conv1d_forward")
@pytest.mark.parametrize(
    ("shape", "weight_shape", "dtype", "bias_dtype", "settings"), OPINFO_ERRORS
)
def test_conv1d_refuses_what_torchs_own_tests_know_as_errors(
    call, shape, weight_shape, dtype, bias_dtype, settings, ones
):
    x, weight = ones(*shape, dtype=dtype), ones(*weight_shape, dtype=dtype)
    bias = ones(weight_shape[0], dtype=bias_dtype)
    with pytest.raises(RuntimeError):
        F.conv1d(x, weight, bias, **settings)
    if "padding" in settings:
        settings = {"padding": (settings["padding"],) * 2}
    with refused(RuntimeError, *settings.values()):
        call(x, weight, bias, **settings)


@each(depthwise, "depthwise_backward")
def test_depthwise_backward_refuses_an_unbatched_gradient(call, ones):
    with refused(RuntimeError, "3 dimensions", (4, 8)):
        call(ones(4, 8), None, ones(1, 4, 8), ones(4, 1, 3), 8, 3, 1, (1, 1), 1, 4)


LAUNCHES = {
    "linear_forward": lambda t: linear.linear_forward(t(2, 3), t(4, 3)),
    "linear_grad_input": lambda t: linear.linear_grad_input(t(2, 4), t(4, 3)),
    "linear_grad_weight": lambda t: linear.linear_grad_weight(t(2, 4), t(2, 3)),
    "conv1d_forward": lambda t: conv1d.conv1d_forward(t(2, 3, 5), t(4, 3, 2)),
    "conv1d_grad_input": lambda t: conv1d.conv1d_grad_input(t(2, 4, 4), t(4, 3, 2), 5),
    "conv1d_grad_weight": lambda t: conv1d.conv1d_grad_weight(t(2, 4, 4), t(2, 3, 5), 2),
    "conv_transpose1d_forward": lambda t: conv_transpose1d.conv_transpose1d_forward(
        t(2, 3, 5), t(3, 4, 2)
    ),
    "epilogue_backward": lambda t: epilogue.epilogue_backward(t(2, 3, 4), None, None, bias=True),
}
every_launch = pytest.mark.parametrize("launched", LAUNCHES.values(), ids=LAUNCHES)


@every_launch
def test_kernels_refuse_dtypes_that_they_would_compute_in_float32(launched, ones):
    with refused(RuntimeError, "torch.float64", "float32, float16 and bfloat16"):
        launched(lambda *shape: ones(*shape, dtype=torch.float64))


@every_launch
def test_the_interpreter_refuses_bfloat16_which_it_gets_wrong(launched, ones, monkeypatch):
    monkeypatch.setattr(environment, "INTERPRETED", True)
    with refused(RuntimeError, "interpreter", "torch.bfloat16"):
        launched(lambda *shape: ones(*shape, dtype=torch.bfloat16))


@every_launch
def test_kernels_refuse_devices_that_are_not_gpus(launched, monkeypatch):
    monkeypatch.setattr(environment, "INTERPRETED", False)
    if torch.ones(1, device="meta").is_cuda:
        pytest.skip(ONE_DEVICE)
    with refused(RuntimeError, "meta", "TRITON_INTERPRET=1"):
        launched(lambda *shape: torch.ones(shape, device="meta"))
