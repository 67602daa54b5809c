import copy

import pytest
import torch

import tlazy
from tlazy import init, nn


def lazy():
    return nn.Sequential(nn.LazyConv1d(4, 3), torch.nn.Flatten(), nn.LazyLinear(5))


def eager():
    return nn.Sequential(nn.Conv1d(2, 4, 3), torch.nn.Flatten(), nn.Linear(24, 5))


X = torch.ones(3, 2, 8)


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def test_a_lazy_and_an_eager_model_have_the_same_weights_in_any_order_of_calls():
    reference = seeded(eager)
    first = seeded(lazy)
    torch.rand(7)
    first(X)
    second = seeded(lazy)
    second[2](torch.ones(3, 24))
    torch.rand(2)
    second[0](X)
    assert equal(reference, first)
    assert equal(reference, second)
    assert not equal(reference, seeded(eager, 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LazyLinear(3),
        lambda: nn.Linear(2, 3),
        lambda: nn.LazyConv1d(3, 5),
        lambda: nn.Conv1d(2, 3, 5),
    ],
)
def test_a_layer_draws_exactly_one_seed(make):
    torch.manual_seed(0)
    init.draw_seed()
    after_one = torch.get_rng_state()
    seeded(make)
    assert torch.equal(torch.get_rng_state(), after_one)


def test_the_first_call_draws_nothing():
    net = lazy()
    before = torch.get_rng_state()
    net(X)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_made_before_the_first_call_gets_the_same_weights():
    net = lazy()
    twin = copy.deepcopy(net)
    net(X)
    torch.rand(3)
    twin(X)
    assert equal(net, twin)


def test_two_layers_have_different_weights():
    net = nn.Sequential(nn.LazyLinear(5), nn.LazyLinear(5))
    net(torch.ones(2, 5))
    assert not torch.equal(net[0].weight, net[1].weight)


def test_reset_parameters_draws_new_values_after_materialization():
    net = lazy()
    net(X)
    old = net[2].weight.detach().clone()
    net[2].reset_parameters()
    assert not torch.equal(net[2].weight, old)


def named(order):
    net = nn.Module()
    for name in order:
        layer = nn.LazyLinear(4) if name == "a" else torch.nn.LazyConv1d(3, 2)
        net.add_module(name, layer)
    net.forward = lambda x: net.a(net.b(x))
    return net


def test_a_seed_keys_each_layer_by_its_path():
    first, second = named("ab"), named("ba")
    torch.rand(5)
    before = torch.get_rng_state()
    for net in (first, second):
        tlazy.materialize(net, X, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    for path in ("a", "b"):
        assert equal(first.get_submodule(path), second.get_submodule(path))
    other = named("ab")
    tlazy.materialize(other, X, seed=8)
    assert not torch.equal(other.a.weight, first.a.weight)
    assert not torch.equal(other.b.weight, first.b.weight)


def test_the_keyed_seed_never_changes():
    assert init.keyed_seed(0, "encoder.0") == 2471637830075693788
    assert init.keyed_seed(0, "encoder.0") != init.keyed_seed(1, "encoder.0")


def test_values_have_torchs_distribution():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(100, 400), torch.nn.Linear(100, 400)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.abs().max() <= 0.1
        torch.testing.assert_close(a.std(), b.std(), rtol=0.1, atol=0)


def test_a_layer_without_inputs_has_a_bias_of_zero_as_torchs():
    layer = nn.LazyLinear(3)
    layer(torch.ones(2, 0))
    assert layer.bias.tolist() == nn.Linear(0, 3).bias.tolist() == [0.0, 0.0, 0.0]


def test_half_precision_weights_are_the_rounded_ones():
    full = seeded(eager)
    half = seeded(lambda: lazy().half())
    tlazy.materialize(half, tlazy.Spec(3, 2, 8, dtype=torch.float16))
    assert equal(full.half(), half)


@pytest.mark.parametrize("grad", [True, False])
def test_an_initializer_may_leave_the_grad_mode_as_it_likes(grad):
    net = nn.Sequential(nn.LazyLinear(2), nn.LazyLinear(2))
    with torch.set_grad_enabled(grad):
        tlazy.materialize(net, tlazy.Spec(1, 3), init=lambda module: torch.set_grad_enabled(True))
        assert torch.is_grad_enabled() == grad
