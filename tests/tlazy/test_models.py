import pytest
import torch
from torch.nn.parameter import is_lazy

import tlazy
from tlazy.models import MODELS

# Weights and biases of each network for one input channel, 50 steps and 3 classes, counted by hand
# from the papers' layer tables.
FCN = (8 + 1) * 128 + (5 * 128 + 1) * 256 + (3 * 256 + 1) * 128 + 2 * (128 + 256 + 128) + 129 * 3
MLP = 51 * 500 + 2 * 501 * 500 + 501 * 3


def resnet_parameters():
    total, inputs = 0, 1
    for c in (64, 128, 128):
        convolutions = (8 * inputs + 1) * c + (5 * c + 1) * c + (3 * c + 1) * c
        total += convolutions + inputs * c + 4 * 2 * c
        inputs = c
    return total + 129 * 3


def inception_parameters():
    total, inputs = 0, 1
    for _ in range(6):
        total += inputs * 32 + (40 + 20 + 10) * 32 * 32 + inputs * 32 + 2 * 128
        inputs = 128
    return total + (1 + 128) * 128 + 2 * 2 * 128 + 129 * 3


COUNTS = {
    "fcn": FCN,
    "mlp": MLP,
    "resnet": resnet_parameters(),
    "inception": inception_parameters(),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_waits_for_the_first_call_and_the_input_says_the_rest(name):
    for shape in ((4, 1, 50), (4, 3, 21)):
        net = MODELS[name](5)
        assert all(is_lazy(p) for p in net.parameters())
        assert net(torch.randn(shape)).shape == (4, 5)
        assert not any(is_lazy(p) for p in net.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_parameters_is_the_papers(name):
    net = MODELS[name](3)
    net(torch.randn(2, 1, 50))
    assert sum(p.numel() for p in net.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", ["fcn", "resnet", "inception"])
def test_convolutional_networks_take_any_length_and_average_over_it(name):
    net = MODELS[name](3)
    net(torch.randn(2, 1, 50))
    net.eval()
    assert net(torch.randn(2, 1, 7)).shape == (2, 3)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(name):
    net = MODELS[name](3)
    net(torch.randn(4, 2, 30)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_gives_the_same_weights_again_and_another_seed_others(name):
    first, again, other = (MODELS[name](3) for _ in range(3))
    for net, seed in ((first, 7), (again, 7), (other, 8)):
        tlazy.materialize(net, torch.zeros(2, 1, 50), seed=seed)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert any(
        not torch.equal(value, other.state_dict()[key]) for key, value in first.state_dict().items()
    )


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_the_network_that_ships_compiles_whole_and_exports(device, backend):
    net = MODELS["fcn"](2).to(device).eval()
    x = torch.randn(3, 1, 10, device=device)
    with tlazy.backend(backend), torch.no_grad():
        expected = net(x)
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
        exported = torch.export.export(net, (x,)).module()(x)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)
