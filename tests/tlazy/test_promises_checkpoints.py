"""A checkpoint materializes, and is checked before anything changes (rows 9 to 11)."""

import pytest
import torch
from safetensors.torch import load_model, save_model

import tlazy
from tests.tlazy.lazy_models import X, unlike_torch
from tests.tlazy.snapshot import refused
from tlazy import nn


@unlike_torch
def test_row_09_a_checkpoint_materializes_fully(lib, monkeypatch):
    donor = [torch.nn.Conv1d(4, 6, 3, groups=2), torch.nn.Linear(7, 2), torch.nn.Linear(2, 3)]
    donor = torch.nn.Sequential(*donor)
    net = lib.Sequential(lib.LazyConv1d(6, 3, groups=2), lib.LazyLinear(2), torch.nn.LazyLinear(3))
    monkeypatch.setattr(tlazy.init, "fan_in_uniform_", None)
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", None)
    monkeypatch.setattr(torch.nn.init, "uniform_", None)
    net.load_state_dict(donor.state_dict())
    assert repr(net) == repr(donor)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
    assert (net[0].in_channels, net[1].in_features) == (4, 7)
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), donor(x))


@unlike_torch
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        (lambda lib: lib.LazyLinear(8), torch.ones(9, 5)),
        (lambda lib: lib.LazyLinear(8), torch.ones(8, 5, 3)),
        (lambda lib: lib.LazyConv1d(8, 5), torch.ones(8, 4, 3)),
    ],
)
def test_row_10_a_checkpoint_is_checked_against_the_constructor(lib, layer, weight, strict):
    net = lib.Sequential(layer(lib))
    shape = ", ".join(map(str, weight.shape))
    with refused(net, RuntimeError, match=rf"0\.weight: .*\({shape}\).*\(8, "):
        net.load_state_dict({"0.weight": weight, "0.bias": torch.ones(8)}, strict=strict)


@unlike_torch
@pytest.mark.parametrize("whole", [True, False])
def test_row_10_a_missing_bias_leaves_the_layer_as_it_was(lib, whole):
    net = (lib if whole else torch.nn).Sequential(lib.LazyLinear(4))
    with refused(net, RuntimeError, match=r"Missing key.*0\.bias"):
        net.load_state_dict({"0.weight": torch.ones(4, 3)})


def test_row_10_an_eager_part_keeps_its_values_when_loading_fails():
    net = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    state = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)).state_dict()
    for assign in (False, True):
        with refused(net, RuntimeError, match=r"Missing key.*2\.weight"):
            net.load_state_dict(state, assign=assign)


@unlike_torch
@pytest.mark.parametrize("whole", [True, False])
def test_row_10_assign_keeps_what_an_optimizer_holds(lib, whole):
    net = (lib if whole else torch.nn).Sequential(lib.LazyLinear(4), lib.LazyLinear(2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    donor = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double()
    state = donor.state_dict()
    net.load_state_dict(state, assign=True)
    assert net[0].weight.data_ptr() == state["0.weight"].data_ptr()
    assert net[0].weight.dtype is torch.float64
    before = [p.detach().clone() for p in net.parameters()]
    net(X.double()).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert type(net[0]) is lib.Linear


@unlike_torch
def test_row_11_safetensors_go_straight_in(lib, tmp_path):
    donor = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    save_model(donor, str(tmp_path / "m.safetensors"))
    net = lib.Sequential(lib.LazyLinear(4), lib.LazyLinear(2))
    load = tlazy.load if lib is tlazy.nn else load_model
    load(net, str(tmp_path / "m.safetensors"))
    assert torch.equal(net(X), donor(X))
