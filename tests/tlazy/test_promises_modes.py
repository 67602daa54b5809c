"""First calls under checkpointing, transforms and modes leave ordinary models (rows 5 and 6)."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import tlazy
from tests.tlazy.lazy_models import X, grown, like_torch, trained_once, two_layers, unlike_torch
from tests.tlazy.snapshot import refused, snapshot


@unlike_torch
@pytest.mark.parametrize("ours", [True, False])
def test_row_05_activation_checkpointing_gives_the_gradients_of_a_warm_run(lib, ours):
    layers = lib if ours else torch.nn  # torch's own lazy layers in a tlazy tree too
    gradients = []
    for warm in (False, True):
        torch.manual_seed(0)
        net = lib.Sequential(layers.LazyLinear(64), torch.nn.Dropout(0.5), layers.LazyLinear(2))
        if warm:
            net(X)
        torch.manual_seed(1)
        out = checkpoint(net, X, use_reentrant=False)
        torch.manual_seed(1)
        expected = torch.autograd.grad(net(X).square().sum(), net[0].weight)[0]
        out.square().sum().backward()
        gradients.append(net[0].weight.grad)
        torch.testing.assert_close(net[0].weight.grad, expected)
    torch.testing.assert_close(*gradients)


@unlike_torch
def test_row_05_layers_that_a_list_got_later_do_not_shift_dropout(lib):
    net = grown(lib)
    if lib is tlazy.nn:
        net.layers.insert(0, torch.nn.LazyLinear(3))  # torch tells nobody
    torch.manual_seed(1)
    checkpoint(net, X, use_reentrant=False).square().sum().backward()
    net.head[0].reset_running_stats()
    torch.manual_seed(1)
    expected = torch.autograd.grad(net(X).square().sum(), net.layers[0].weight)[0]
    torch.testing.assert_close(net.layers[0].weight.grad, expected)


@unlike_torch
def test_row_06_inference_mode_gives_a_layer_that_trains(lib):
    net = two_layers(lib)
    with torch.inference_mode():
        net(X)
    assert trained_once(net, torch.randn(64, 3))


@unlike_torch
def test_row_06_what_is_constructed_in_inference_mode_trains(lib):
    with torch.inference_mode():
        net = lib.Sequential(lib.LazyLinear(4), torch.nn.LazyLinear(2))
        net(X)
    assert trained_once(net, torch.randn(64, 3))


@unlike_torch
def test_row_06_a_first_call_under_vmap_or_grad_gives_a_layer_that_trains(lib):
    for transform in (torch.func.vmap, lambda f: torch.func.grad(lambda x: f(x).sum())):
        net = two_layers(lib, 64)
        transform(net)(X)
        assert trained_once(net, torch.randn(64, 3))


@like_torch
@pytest.mark.parametrize("mode", [torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_row_06_no_grad_and_autocast_leave_nothing_behind(lib, mode):
    net = two_layers(lib, 64)
    with mode():
        net(X)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert trained_once(net, torch.randn(64, 3))


@unlike_torch
@pytest.mark.parametrize("swap", [torch.nn.Parameter, torch.Tensor.detach])
def test_row_06_a_functional_call_with_all_weights_computes_and_changes_nothing(lib, swap):
    donor = two_layers(torch.nn)
    expected = donor(X)
    net = two_layers(lib)
    before = snapshot(net)
    weights = {name: swap(p) for name, p in donor.named_parameters()}
    got = torch.func.functional_call(net, weights, (X,))
    torch.testing.assert_close(got, expected)
    assert snapshot(net) == before
    net(torch.ones(64, 7))
    assert trained_once(net, torch.randn(64, 7))


@unlike_torch
@pytest.mark.parametrize("swap", [torch.nn.Parameter, torch.Tensor.detach])
def test_row_06_a_functional_call_with_some_weights_is_refused(lib, swap):
    net = two_layers(lib)
    weights = {"0.weight": swap(torch.ones(4, 3))}
    with refused(net, RuntimeError, match=r"weight of a lazy .*tlazy\.materialize(.|\n)*in 0 \("):
        torch.func.functional_call(net, weights, (X,))
    assert net(X).shape == (5, 2)


@like_torch
def test_row_06_a_functional_call_that_swaps_nothing_lazy_materializes(lib):
    net = two_layers(lib)
    torch.func.functional_call(net, dict(net.named_parameters()), (X,))
    assert net[0].in_features == 3
    assert trained_once(net, torch.randn(64, 3))
