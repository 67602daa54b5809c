"""What the initial values depend on, and who gives them (rows 7, 8 and 14)."""

import copy

import pytest
import torch

import tlazy
from tests.tlazy.lazy_models import Normal, X, two_layers, unlike_torch
from tlazy import nn


@unlike_torch
def test_row_07_the_seed_is_drawn_at_construction(lib):
    weights = []
    for order in ((0, 1), (1, 0)):
        torch.manual_seed(0)
        layers = lib.LazyLinear(3), lib.LazyConv1d(3, 2)
        for i in order:
            torch.rand(order[0])
            layers[i](torch.ones(2, 4, 4))
        weights.append([p for layer in layers for p in layer.parameters()])
    torch.manual_seed(0)
    eager = lib.Linear(4, 3), lib.Conv1d(4, 3, 2)
    weights.append([p for layer in eager for p in layer.parameters()])
    for a, b, c in zip(*weights, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@unlike_torch
def test_row_07_a_first_call_draws_nothing_and_a_copy_gets_the_same_weights(lib):
    net = two_layers(lib)
    early = copy.deepcopy(net)
    before = torch.get_rng_state()
    net(X)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(early(X), net(X))


def test_row_08_a_given_seed_keys_each_parameter_by_its_path():
    def net(order):
        parts = {"a": nn.LazyLinear(3), "b": torch.nn.LazyLinear(3), "c": Normal(3)}
        return torch.nn.ModuleDict({name: parts[name] for name in order})

    got = []
    for order in ("abc", "cba"):
        model = net(order)
        model.forward = lambda x, model=model: [model[name](x) for name in "bca"]
        tlazy.materialize(model, X, seed=7)
        got.append({name: p.detach() for name, p in model.named_parameters()})
    for name, value in got[0].items():
        assert torch.equal(value, got[1][name])
    assert len({float(p.flatten()[0]) for p in got[0].values()}) == 6


@unlike_torch
@pytest.mark.parametrize("frozen", [False, True])
def test_row_14_a_custom_initializer_may_be_given_before_shapes_are_known(lib, frozen):
    seen = []

    def ones(module):
        if isinstance(module, torch.nn.Linear):
            seen.append(tuple(module.weight.shape))
            torch.nn.init.ones_(module.weight)

    net = two_layers(lib)
    if frozen:
        net[2].requires_grad_(False)
    if lib is tlazy.nn:
        tlazy.materialize(net, X, init=ones)
    else:
        net.apply(ones)
        net(X)
    assert seen == [(4, 3), (2, 4)]
    assert all(net[i].weight.unique().tolist() == [1.0] for i in (0, 2))
    assert [p.requires_grad for p in net.parameters()] == [True, True] + 2 * [not frozen]
