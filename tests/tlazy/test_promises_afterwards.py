"""Sharding, the way back, and nothing that is left behind (rows 24 to 26)."""

import copy

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parameter import is_lazy

import tlazy
from tests.tlazy.lazy_models import Normal, X, like_torch, trained_once, two_layers, unlike_torch
from tests.tlazy.snapshot import refused
from tlazy import nn


@unlike_torch
def test_row_24_a_model_that_has_only_shapes_can_be_sharded_and_trained(lib, one_process):
    torch.manual_seed(0)
    net = two_layers(lib)
    if lib is tlazy.nn:
        tlazy.trace(net, tlazy.Spec(5, 3)).materialize(device="meta")
    fully_shard(net)
    net.to_empty(device="cpu")
    if lib is tlazy.nn:
        tlazy.initialize(net, seed=0)
        expected = tlazy.materialize(two_layers(lib), X, seed=0).model.state_dict()
        for name, part in net.state_dict().items():
            assert torch.equal(part.full_tensor(), expected[name])
    before = [p.full_tensor().detach().clone() for p in net.parameters()]
    net(X).square().sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    now = [p.full_tensor() for p in net.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, now, strict=True))


def test_row_25_a_wrong_first_batch_can_be_taken_back():
    torch.manual_seed(0)
    expected = two_layers(nn)
    torch.manual_seed(0)
    net = two_layers(nn)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    held = list(net.parameters())
    lazy = repr(net)
    net(torch.randn(5, 9)).sum().backward()
    assert tlazy.dematerialize(net) == ["0", "2"]
    assert repr(net) == lazy
    assert all(map(is_lazy, net.parameters()))
    assert all(p.grad is None for p in net.parameters())
    assert tlazy.dematerialize(net) == []
    copied = copy.deepcopy(net)
    for model in (net, copied, expected):
        assert torch.equal(model(X), expected(X))
    assert all(a is b for a, b in zip(held, net.parameters(), strict=True))
    net(X).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net[0].weight, expected[0].weight)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


def test_row_25_an_optimizer_that_has_stepped_is_built_anew_for_another_width():
    net = two_layers(nn, 64)
    optimizer = torch.optim.AdamW(net.parameters())
    net(X).square().sum().backward()
    optimizer.step()
    tlazy.dematerialize(net)
    net(torch.randn(5, 9)).square().sum().backward()
    with pytest.raises(RuntimeError, match=r"\(3\) must match .* \(9\)"):
        optimizer.step()
    held = [p.detach().clone() for p in net.parameters()]
    torch.optim.AdamW(net.parameters()).step()
    assert not any(torch.equal(a, b) for a, b in zip(held, net.parameters(), strict=True))


def test_row_25_torchs_layers_meta_parameters_and_tied_ones_are_taken_back_too():
    first, second = nn.LazyLinear(3), nn.LazyLinear(3)
    second.weight = first.weight
    net = nn.Sequential(torch.nn.LazyBatchNorm1d(), first, second, Normal(2))
    tlazy.trace(net, tlazy.Spec(5, 3)).materialize(device="meta")
    assert tlazy.dematerialize(net) == ["0", "1", "2", "3"]
    assert first.weight is second.weight
    assert type(net[0]) is torch.nn.LazyBatchNorm1d
    net.to_empty(device="cpu")
    net(X)
    assert trained_once(net, torch.randn(64, 3))
    assert type(net[3]) is Normal


def test_row_25_what_has_changed_since_is_refused():
    net = two_layers(nn)
    net(X)
    net[2].weight = torch.nn.UninitializedParameter()
    with refused(net, RuntimeError, match=r"cannot make 2 \(Linear\) lazy again: its weight"):
        tlazy.dematerialize(net)
    assert net[0].in_features == 3


@like_torch
def test_row_26_no_hook_and_no_attribute_is_left(lib):
    net = lib.Sequential(torch.nn.LazyBatchNorm1d(), lib.LazyLinear(4), lib.Sequential())
    net(X)
    eager = lib.Sequential(torch.nn.BatchNorm1d(3), lib.Linear(3, 4), lib.Sequential())
    eager(X)
    for a, b in zip(net.modules(), eager.modules(), strict=True):
        assert type(a) is type(b)
        assert vars(a).keys() == vars(b).keys()
