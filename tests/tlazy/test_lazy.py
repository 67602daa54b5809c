"""Lazy layers by themselves: what they show, accept, copy and refuse."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn.parameter import UninitializedParameter

import tlazy
from tests.tlazy.lazy_models import fcn, hooks_of, series
from tests.tlazy.snapshot import refused, snapshot
from tlazy import nn


@pytest.mark.parametrize(
    ("ours", "theirs", "x"),
    [
        (nn.LazyLinear(4), torch.nn.LazyLinear(4), torch.ones(2, 3)),
        (nn.LazyLinear(4, bias=False), torch.nn.LazyLinear(4, bias=False), torch.ones(3)),
        (nn.LazyConv1d(4, 3), torch.nn.LazyConv1d(4, 3), torch.ones(2, 6, 9)),
        (
            nn.LazyConv1d(4, 3, 2, 1, 2, 2, False, "circular"),
            torch.nn.LazyConv1d(4, 3, 2, 1, 2, 2, False, "circular"),
            torch.ones(6, 9),
        ),
        (
            nn.LazyConvTranspose1d(4, 3, 3, 1, 2, 2, False, 2),
            torch.nn.LazyConvTranspose1d(4, 3, 3, 1, 2, 2, False, 2),
            torch.ones(2, 6, 9),
        ),
    ],
)
def test_lazy_layers_show_what_torchs_show_before_and_after(ours, theirs, x):
    ours, theirs = copy.deepcopy(ours), copy.deepcopy(theirs)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, torch.nn.modules.lazy.LazyModuleMixin)
    assert ours.has_uninitialized_params()
    assert isinstance(ours.weight, UninitializedParameter)
    assert repr(ours.weight) == repr(theirs.weight)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours(x).shape == theirs(x).shape
    assert repr(ours) == repr(theirs)
    assert type(ours) in (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)
    assert isinstance(ours, type(theirs))
    assert ours.weight.shape == theirs.weight.shape
    assert vars(ours).keys() - {"activation"} == vars(theirs).keys()
    assert hooks_of(ours) == []


def test_initialize_parameters_can_be_called_directly():
    layer = nn.LazyLinear(4)
    layer.initialize_parameters(torch.ones(2, 3))
    assert not layer.has_uninitialized_params()
    assert layer.weight.shape == (4, 3)
    assert layer(torch.ones(2, 3)).shape == (2, 4)


def test_an_optimizer_built_before_the_first_call_trains_the_same_parameters():
    torch.manual_seed(0)
    net = fcn()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    net(series()).sum().backward()
    assert all(a is b for a, b in zip(held, net.parameters(), strict=True))
    before = [p.detach().clone() for p in held]
    optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert sum(changed) > len(changed) // 2


@pytest.mark.parametrize(
    "convert",
    [
        lambda net: net.double(),
        lambda net: net.bfloat16().double(),
        lambda net: net.to(torch.float64),
        lambda net: net.to("meta").to_empty(device="cpu").double(),
        lambda net: net.half().type(torch.float64),
    ],
)
def test_freezing_and_converting_before_the_first_call_last(convert):
    net = fcn()
    convert(net)
    net[3:].requires_grad_(False)
    net(series().double())
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert net[1].running_mean.dtype is torch.float64
    assert [p.requires_grad for p in net.parameters()] == [True] * 4 + [False] * 4


def pickled(net):
    return pickle.loads(pickle.dumps(net))


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved])
def test_copies_taken_before_and_after_the_first_call_give_the_same(duplicate):
    net = fcn().double()
    net[6].requires_grad_(False)
    early = duplicate(net)
    x = series().double()
    expected = net(x)
    late = duplicate(net)
    assert torch.equal(early(x), expected)
    assert early[0].weight.dtype is torch.float64
    assert not early[6].weight.requires_grad
    assert hooks_of(early) == hooks_of(late) == []
    assert torch.equal(late.train()(x), expected)
    assert early[0].weight.data_ptr() != net[0].weight.data_ptr()


class Plus100(nn.LazyLinear):
    def forward(self, input):
        return super().forward(input) + 100


def test_a_subclass_keeps_its_forward():
    for net in (Plus100(3), nn.Sequential(Plus100(3))):
        x = torch.ones(2, 4)
        first = net(x)
        assert first.min() > 50
        assert torch.equal(net(x), first)
        assert torch.equal(pickle.loads(pickle.dumps(net))(x), first)
        assert hooks_of(net) == []


def test_tied_lazy_layers_share_one_parameter():
    first, second = nn.LazyLinear(5), nn.LazyLinear(5)
    second.weight = first.weight
    net = nn.Sequential(first, second)
    net(torch.ones(2, 5))
    assert first.weight is second.weight
    assert first.in_features == second.in_features == 5
    assert sum(p.numel() for p in net.parameters()) == 35


def test_tied_layers_with_inputs_of_different_width_are_refused():
    first, second = nn.LazyLinear(5), nn.LazyLinear(5)
    second.weight = first.weight
    net = nn.Sequential(first, second)
    with refused(net, RuntimeError, match=r"\(5, 5\).*already has shape \(5, 7\)"):
        net(torch.ones(2, 7))


@pytest.mark.parametrize("make", [nn.LazyConv1d, nn.LazyConvTranspose1d])
def test_groups_are_checked_as_early_as_can_be(make):
    with pytest.raises(ValueError, match=r"out_channels \(=4\).*groups \(=3\)"):
        make(4, 3, groups=3)
    layer = make(6, 3, groups=3)
    with refused(layer, ValueError, match=r"in_channels \(=4\).*groups \(=3\)"):
        layer(torch.ones(2, 4, 9))
    assert layer(torch.ones(2, 6, 9)).shape[:2] == (2, 6)


def autoencoder():
    return nn.Sequential(
        nn.LazyConv1d(8, 4, stride=2, activation="gelu"),
        nn.LazyConvTranspose1d(4, 4, stride=2, groups=2, activation="relu"),
        nn.LazyConvTranspose1d(3, 1),
    )


def test_transposed_layers_in_a_tree_trace_materialize_and_load():
    net, x = autoencoder(), series(2, 3, 18)
    before = snapshot(net)
    plan = tlazy.trace(net, x)
    assert snapshot(net) == before
    assert [row.outputs[0] for row in plan.rows if row.path] == [(2, 8, 8), (2, 4, 18), (2, 3, 18)]
    assert [row.flops for row in plan.rows if row.path] == [
        2 * 2 * 8 * (3 * 8 * 4),
        2 * 2 * 8 * (8 * 2 * 4),
        2 * 2 * 18 * (4 * 3),
    ]
    plan.materialize(seed=0)
    assert [type(m) for m in net] == [nn.Conv1d, nn.ConvTranspose1d, nn.ConvTranspose1d]
    assert net[1].weight.shape == (8, 2, 4)
    assert net[1].weight.abs().max() <= (2 * 4) ** -0.5
    fresh = autoencoder()
    fresh.load_state_dict(net.state_dict())
    assert (type(fresh[1]), fresh[1].in_channels) == (nn.ConvTranspose1d, 8)
    assert torch.equal(fresh(x), net(x))
    assert repr(fresh) == repr(net)


def test_the_first_call_of_a_transposed_layer_may_choose_its_length():
    layer = nn.LazyConvTranspose1d(4, 3, stride=3)
    assert layer(torch.ones(2, 6, 5), output_size=[17]).shape == (2, 4, 17)
    assert type(layer) is nn.ConvTranspose1d


def test_a_lazy_transposed_layer_draws_the_weights_of_an_eager_one():
    torch.manual_seed(0)
    lazy = nn.LazyConvTranspose1d(4, 3)
    lazy(torch.ones(2, 6, 5))
    torch.manual_seed(0)
    eager = nn.ConvTranspose1d(6, 4, 3)
    assert torch.equal(lazy.weight, eager.weight)
    assert torch.equal(lazy.bias, eager.bias)


@pytest.mark.parametrize("name", ["LazyConv1d", "LazyConvTranspose1d"])
def test_an_input_of_wrong_dimension_is_refused_as_by_torch(name):
    for lib in (nn, torch.nn):
        layer = getattr(lib, name)(4, 3)
        with refused(layer, RuntimeError, match=r"Expected 2D \(unbatched\) or 3D \(batched\)"):
            layer(torch.ones(1, 2, 3, 4))


def test_using_a_placeholder_names_the_way_out():
    layer = nn.LazyLinear(4)
    with refused(layer, ValueError, match=r"tlazy.materialize\(model, example_input\)"):
        layer.weight + 1
    with refused(layer, RuntimeError, match=r"tlazy.materialize\(model, example_input\)"):
        _ = layer.weight.shape
