"""Padding modes by the kernels: values, gradients and their gradients against torch's layers."""

from __future__ import annotations

import pytest
import torch

import tlazy
import tlazy.nn.functional as F
from tests.tlazy_kernels.convolutions import channels_last
from tlazy import nn
from tlazy_kernels.reference import ACTIVATIONS

MODES = ("reflect", "replicate", "circular")
# Arguments of a layer of 8 channels.
LAYERS = {
    "same": {"kernel_size": 4, "padding": "same"},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 3, "dilation": 2},
    "grouped": {"kernel_size": 3, "padding": 2, "groups": 2},
    "depthwise": {"kernel_size": 4, "padding": 3, "groups": 8},
    "longer than the input": {"kernel_size": 9, "padding": 6},
}
mode_by_mode = pytest.mark.parametrize("mode", MODES)
layer_by_layer = pytest.mark.parametrize("name", LAYERS)


def pair(name, mode, device, activation=None):
    """Our layer, and torch's in float64 with the same parameters, followed by the activation."""
    torch.manual_seed(0)
    ours = nn.Conv1d(8, 8, **LAYERS[name], padding_mode=mode, activation=activation, device=device)
    theirs = torch.nn.Conv1d(8, 8, **LAYERS[name], padding_mode=mode).double()
    theirs.load_state_dict(ours.state_dict())
    act = ACTIVATIONS.get(activation, lambda z: z)
    return ours, theirs, lambda x: act(theirs(x))


def derivatives(call, x, parameters):
    """The value, its gradients, and the gradients of a function of those."""
    inputs = [x, *parameters]
    y = call(x)
    first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.sin().sum() for g in first), inputs)
    return [y, *first, *second]


@mode_by_mode
@layer_by_layer
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_derivatives_equal_torchs(name, mode, last, device, exact_fp32):
    ours, theirs, call = pair(name, mode, device, None if last else "gelu")
    x = torch.randn(2, 8, 7)
    lain = (channels_last(x) if last else x).to(device).requires_grad_()
    with tlazy.backend("triton"):
        found = derivatives(ours, lain, list(ours.parameters()))
        once = torch.autograd.grad(ours(lain).square().sum(), (lain, *ours.parameters()))
    expected = derivatives(call, x.double().requires_grad_(), list(theirs.parameters()))
    for f, e in zip([*found, *once], [*expected, *expected[1:4]], strict=True):
        error = (f.double().cpu() - e).detach().norm() / (e.detach().norm() + 1e-30)
        assert float(error) < 1e-5
    assert once[0].stride() == lain.stride()
    if last:
        assert found[0].mT.is_contiguous()


@mode_by_mode
@pytest.mark.parametrize("name", ["same", "depthwise"])
def test_compiled_and_exported_layers_pad_likewise(name, mode, device):
    ours, _, _ = pair(name, mode, device, "relu")
    x = torch.randn(2, 8, 11, device=device, requires_grad=True)
    torch.compiler.reset()
    with tlazy.backend("triton"):
        expected = ours(x)
        wanted = torch.autograd.grad(expected.sum(), (x, ours.weight))
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)(x)
        found = torch.autograd.grad(compiled.sum(), (x, ours.weight))
        exported = torch.export.export(ours, (x.detach(),)).module()(x.detach())
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", ["triton", "aten"])
@pytest.mark.parametrize(
    ("mode", "length", "padding"), [("reflect", 4, 4), ("circular", 3, 4), ("replicate", 0, 2)]
)
def test_a_series_too_short_for_its_padding_is_refused(mode, length, padding, backend, device):
    x, weight = torch.ones(2, 3, length, device=device), torch.ones(4, 3, 3, device=device)
    with pytest.raises(RuntimeError):
        torch.nn.functional.pad(x, (padding, padding), mode)
    with tlazy.backend(backend), pytest.raises(RuntimeError, match=f"got {length}: pad less"):
        F.conv1d(x, weight, padding=padding, padding_mode=mode)


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_an_unknown_mode_is_refused(backend, device):
    x, weight = torch.ones(2, 3, 9, device=device), torch.ones(4, 3, 3, device=device)
    with tlazy.backend(backend), pytest.raises(ValueError, match="got 'mirror'"):
        F.conv1d(x, weight, padding=1, padding_mode="mirror")
