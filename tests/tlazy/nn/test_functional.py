"""linear, conv1d and conv_transpose1d against torch.nn.functional, on both implementations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as tF

import tlazy
import tlazy.nn.functional as F
from tlazy_kernels.reference import ACTIVATIONS


@pytest.fixture(params=["triton", "aten"])
def backend(request):
    with tlazy.backend(request.param):
        yield request.param


def assert_equal_to_torch(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (2, 0, 7), (0, 7)])
def test_linear_takes_any_number_of_batch_dimensions(
    backend, device, exact_fp32, shape, activation
):
    x, w, b = torch.randn(shape), torch.randn(4, 7), torch.randn(4)
    expected = tF.linear(x, w, b)
    expected = expected if activation is None else ACTIVATIONS[activation](expected)
    found = F.linear(x.to(device), w.to(device), b.to(device), activation=activation)
    assert_equal_to_torch(found.cpu(), expected)


def test_linear_takes_a_weight_vector(backend, device, exact_fp32):
    x, w = torch.randn(2, 3, 7), torch.randn(7)
    assert_equal_to_torch(F.linear(x.to(device), w.to(device)).cpu(), tF.linear(x, w))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 4)])
def test_linear_broadcasts_the_bias_as_torch(backend, device, exact_fp32, shape):
    x, w, b = torch.randn(5, 7), torch.randn(4, 7), torch.randn(shape, requires_grad=True)
    y = F.linear(x.to(device), w.to(device), b.to(device))
    assert_equal_to_torch(y.cpu(), tF.linear(x, w, b))
    (grad,) = torch.autograd.grad(y.sum(), b)
    torch.testing.assert_close(grad, torch.full(shape, 20.0 / max(1, b.numel())))


def test_settings_may_be_numpys_integers(backend, device, exact_fp32):
    x, w, two = torch.randn(2, 3, 9), torch.randn(4, 3, 3), np.int64(2)
    found = F.conv1d(x.to(device), w.to(device), None, two, two, (two,))
    assert_equal_to_torch(found.cpu(), tF.conv1d(x, w, None, 2, 2, 2))


def test_linear_without_input_features_is_the_bias(backend, device):
    b = torch.randn(4)
    y = F.linear(torch.randn(3, 0, device=device), torch.randn(4, 0, device=device), b.to(device))
    assert torch.equal(y.cpu(), b.expand(3, 4))


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, of its own copy
@pytest.mark.parametrize(
    ("padding", "stride"), [(0, 1), (3, 2), ((2,), 3), ("valid", 1), ("valid", 2), ("same", 1)]
)
@pytest.mark.parametrize("taps", [1, 3, 8])
@pytest.mark.parametrize("dilation", [1, (2,)])
def test_conv1d_pads_and_strides_as_torch(
    backend, device, exact_fp32, padding, stride, taps, dilation
):
    x, w, b = torch.randn(2, 3, 19), torch.randn(4, 3, taps), torch.randn(4)
    found = F.conv1d(x.to(device), w.to(device), b.to(device), stride, padding, dilation)
    assert_equal_to_torch(found.cpu(), tF.conv1d(x, w, b, stride, padding, dilation))


@pytest.mark.parametrize("stride", [1, 2])
def test_causal_convolution_never_looks_ahead(backend, device, exact_fp32, stride):
    x, w = torch.randn(2, 3, 12), torch.randn(4, 3, 4)
    found = F.conv1d(x.to(device), w.to(device), None, stride, "causal", 3).cpu()
    assert_equal_to_torch(found, tF.conv1d(tF.pad(x, (9, 0)), w, None, stride, 0, 3))
    x[:, :, 7:] = torch.nan
    changed = F.conv1d(x.to(device), w.to(device), None, stride, "causal", 3).cpu()
    seen = -(-7 // stride)
    assert torch.equal(found[:, :, :seen], changed[:, :, :seen])


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_conv1d_takes_groups_and_unbatched_input(backend, device, exact_fp32, groups):
    x, w = torch.randn(6, 10), torch.randn(12, 6 // groups, 3)
    found = F.conv1d(x.to(device), w.to(device), padding="same", groups=groups, activation="silu")
    assert_equal_to_torch(found.cpu(), tF.silu(tF.conv1d(x, w, padding="same", groups=groups)))


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 4), (0, 3, 4)], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": (2,), "padding": 2, "output_padding": (1,)},
        {"stride": 3, "padding": (1,), "output_padding": 2, "groups": 3, "dilation": (4,)},
        {"stride": 2, "padding": 1, "output_padding": 1, "dilation": 2},
        {"dilation": 3, "output_padding": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_conv_transpose1d_takes_what_torchs_takes(
    backend, device, exact_fp32, shape, settings, bias
):
    x, w = torch.randn(shape), torch.randn(3, 2, 4)
    b = torch.randn(2 * settings.get("groups", 1)) if bias else None
    expected = tF.conv_transpose1d(x, w, b, **settings)
    on_device = None if b is None else b.to(device)
    found = F.conv_transpose1d(x.to(device), w.to(device), on_device, **settings)
    assert_equal_to_torch(found.cpu(), expected)


def test_conv_transpose1d_takes_its_arguments_in_torchs_order(backend, device, exact_fp32):
    x, w, b = torch.randn(2, 6, 5), torch.randn(6, 2, 3), torch.randn(4)
    settings = (4, 1, 3, 2, 2)  # stride, padding, output_padding, groups, dilation
    found = F.conv_transpose1d(x.to(device), w.to(device), b.to(device), *settings)
    assert_equal_to_torch(found.cpu(), tF.conv_transpose1d(x, w, b, *settings))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conv_transpose1d_applies_the_activation(backend, device, exact_fp32, activation):
    x, w = torch.randn(2, 3, 9), torch.randn(3, 4, 4)
    found = F.conv_transpose1d(x.to(device), w.to(device), stride=2, activation=activation)
    expected = ACTIVATIONS[activation](tF.conv_transpose1d(x, w, stride=2))
    assert_equal_to_torch(found.cpu(), expected)


def test_channels_last_input_is_taken_as_it_lies(backend, device, exact_fp32):
    x, w = torch.randn(2, 10, 3).transpose(1, 2), torch.randn(4, 3, 3)
    assert_equal_to_torch(F.conv1d(x.to(device), w.to(device)).cpu(), tF.conv1d(x, w))
    w = torch.randn(3, 4, 3)
    found = F.conv_transpose1d(x.to(device), w.to(device), stride=2)
    assert_equal_to_torch(found.cpu(), tF.conv_transpose1d(x, w, stride=2))


def test_double_precision_runs_aten_where_nothing_else_is_asked_for(device):
    x, w = torch.randn(2, 3, 9, dtype=torch.float64), torch.randn(4, 3, 3, dtype=torch.float64)
    found = F.conv1d(x.to(device), w.to(device), activation="tanh").cpu()
    torch.testing.assert_close(found, torch.tanh(tF.conv1d(x, w)))


@pytest.mark.parametrize("function", ["linear", "conv1d", "conv_transpose1d"])
def test_autocast_sets_the_output_dtype(backend, device, function):
    dtype = torch.float16
    x, w = torch.randn(2, 3, 9, device=device), torch.randn(4, 3, 3, device=device)
    with torch.autocast(device, dtype):
        if function == "linear":
            assert F.linear(x, w[:, 0].repeat(1, 3), activation="relu").dtype is dtype
        elif function == "conv1d":
            assert F.conv1d(x, w, activation="relu").dtype is dtype
        else:
            assert F.conv_transpose1d(x, w[:3], activation="relu").dtype is dtype


def zeros(*shape):
    return torch.zeros(shape)


BAD_CALLS = {
    "linear: features": lambda: (F.linear, tF.linear, (zeros(2, 3), zeros(4, 5))),
    "linear: bias": lambda: (F.linear, tF.linear, (zeros(2, 3), zeros(4, 3), zeros(5))),
    "linear: dtype": lambda: (F.linear, tF.linear, (zeros(2, 3), zeros(4, 3).half())),
    "linear: scalar": lambda: (F.linear, tF.linear, (zeros(), zeros(4, 3))),
    "linear: weight dims": lambda: (F.linear, tF.linear, (zeros(2, 3), zeros(2, 4, 3))),
    "conv1d: channels": lambda: (F.conv1d, tF.conv1d, (zeros(2, 3, 9), zeros(4, 5, 3))),
    "conv1d: too short": lambda: (F.conv1d, tF.conv1d, (zeros(2, 3, 2), zeros(4, 3, 3))),
    "conv1d: bias": lambda: (F.conv1d, tF.conv1d, (zeros(2, 3, 9), zeros(4, 3, 3), zeros(5))),
    "conv1d: dims": lambda: (F.conv1d, tF.conv1d, (zeros(1, 2, 3, 9), zeros(4, 3, 3))),
    "conv1d: weight dims": lambda: (F.conv1d, tF.conv1d, (zeros(2, 3, 9), zeros(4, 3))),
    "conv1d: stride": lambda: (F.conv1d, tF.conv1d, (zeros(2, 3, 9), zeros(4, 3, 3), None, 0)),
    "conv1d: padding": lambda: (F.conv1d, tF.conv1d, (zeros(2, 3, 9), zeros(4, 3, 3), None, 1, -1)),
    "conv1d: same": lambda: (
        F.conv1d,
        tF.conv1d,
        (zeros(2, 3, 9), zeros(4, 3, 3), None, 2, "same"),
    ),
    "conv1d: word": lambda: (
        F.conv1d,
        tF.conv1d,
        (zeros(2, 3, 9), zeros(4, 3, 3), None, 1, "some"),
    ),
    "conv1d: groups": lambda: (
        F.conv1d,
        tF.conv1d,
        (zeros(2, 4, 9), zeros(3, 2, 3), None, 1, 0, 1, 2),
    ),
    "conv1d: no groups": lambda: (
        F.conv1d,
        tF.conv1d,
        (zeros(2, 4, 9), zeros(4, 4, 3), None, 1, 0, 1, 0),
    ),
    "conv1d: strides": lambda: (
        F.conv1d,
        tF.conv1d,
        (zeros(2, 3, 9), zeros(4, 3, 3), None, (1, 2)),
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments_raise_what_torch_raises(backend, device, name):
    function, torchs, args = BAD_CALLS[name]()
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
    with pytest.raises((RuntimeError, ValueError, TypeError)) as expected:
        torchs(*args)
    with pytest.raises(expected.type):
        function(*args)


# What does not fit x (2, 4, 5) and weight (4, 3, 3): other tensors, other settings.
BAD_TRANSPOSED = {
    "channels": {"weight": zeros(5, 3, 3)},
    "groups": {"groups": 3},
    "no groups": {"groups": 0},
    "bias": {"bias": zeros(4)},
    "bias of a group": {"bias": zeros(3), "groups": 2},
    "bias dims": {"bias": zeros(3, 1)},
    "stride": {"stride": 0},
    "dilation": {"dilation": 0},
    "padding": {"padding": -1},
    "output padding": {"output_padding": -1},
    "output padding of the stride": {"stride": 2, "output_padding": 2},
    "output padding of both": {"stride": 3, "output_padding": 3, "dilation": 3},
    "nothing left": {"padding": 4},
    "dims": {"x": zeros(1, 2, 4, 5)},
    "one dim": {"x": zeros(5)},
    "scalar": {"x": zeros()},
    "unbatched channels": {"x": zeros(5, 5)},
    "weight dims": {"weight": zeros(4, 3)},
    "more weight dims": {"weight": zeros(4, 3, 3, 1)},
    "dtype": {"weight": zeros(4, 3, 3).half()},
    "no samples": {"x": zeros(2, 4, 0)},
    "no channels": {"x": zeros(2, 0, 5), "weight": zeros(0, 3, 3)},
    "no filters": {"weight": zeros(4, 0, 3)},
    "no taps": {"weight": zeros(4, 3, 0)},
    "two strides": {"stride": (1, 2)},
    "no stride": {"stride": ()},
    "two output paddings": {"output_padding": (1, 1), "stride": 2},
    "word": {"padding": "same"},
}


@pytest.mark.parametrize("name", BAD_TRANSPOSED)
def test_conv_transpose1d_raises_what_torch_raises(backend, device, name):
    change = BAD_TRANSPOSED[name]
    settings = {"x": zeros(2, 4, 5), "weight": zeros(4, 3, 3), **change}
    settings = {k: v.to(device) if torch.is_tensor(v) else v for k, v in settings.items()}
    x, weight = settings.pop("x"), settings.pop("weight")
    try:
        tF.conv_transpose1d(x, weight, **settings)
    except (RuntimeError, TypeError) as error:
        expected = type(error)
    else:
        assert device != "cpu"
        pytest.skip("of nothing to compute cuDNN makes nothing, without an error")
    with pytest.raises(expected):
        F.conv_transpose1d(x, weight, **settings)


def test_unknown_activation_is_named_with_the_known_ones(backend, device):
    with pytest.raises(ValueError, match=r"'gelu_tanh'.*got 'swish'"):
        F.linear(
            torch.zeros(2, 3, device=device), torch.zeros(4, 3, device=device), activation="swish"
        )
