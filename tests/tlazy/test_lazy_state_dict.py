"""A state dict gives lazy layers their shapes, or is refused."""

import pytest
import torch

from tests.tlazy.lazy_models import fcn, hooks_of, series
from tests.tlazy.snapshot import refused
from tlazy import nn


def test_loading_a_state_dict_materializes_class_and_sizes():
    net = fcn()
    net(series())
    for root in (fcn(), torch.nn.Sequential(*fcn()[:1])):
        state = {k: v for k, v in net.state_dict().items() if len(root) > 1 or k[0] == "0"}
        root.load_state_dict(state)
        assert type(root[0]) is nn.Conv1d
        assert root[0].in_channels == 3
        assert torch.equal(root[0].weight, net[0].weight)
        assert hooks_of(root) == []
        if len(root) > 1:
            assert (root[1].num_features, root[6].in_features) == (6, 4)
            assert torch.equal(root.eval()(series()), net.eval()(series()))
            net.train()


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("root", [nn.Sequential, torch.nn.Sequential])
@pytest.mark.parametrize(
    ("layer", "bad"),
    [
        (lambda: nn.LazyLinear(8), nn.Linear(5, 9)),
        (lambda: nn.LazyLinear(8), nn.Conv1d(5, 8, 3)),
        (lambda: nn.LazyConv1d(8, 5), nn.Conv1d(4, 8, 3)),
        (lambda: nn.LazyConvTranspose1d(8, 5), nn.ConvTranspose1d(4, 8, 3)),
    ],
)
def test_a_state_dict_that_contradicts_the_constructor_is_refused(layer, bad, root, strict):
    net = root(layer())
    state = {f"0.{name}": tensor for name, tensor in bad.state_dict().items()}
    with refused(net, RuntimeError, match=r"size mismatch for 0\.weight: .*\(\d+, .*8, "):
        net.load_state_dict(state, strict=strict)


def test_a_state_dict_that_lacks_a_key_leaves_the_lazy_layers_lazy():
    net = nn.Sequential(nn.LazyLinear(4))
    with refused(net, RuntimeError, match=r"Missing key.*0\.bias"):
        net.load_state_dict({"0.weight": torch.ones(4, 3)})
    net.load_state_dict({"0.weight": torch.ones(4, 3)}, strict=False)
    assert torch.equal(net[0].weight, torch.ones(4, 3))
    assert net[0].bias.abs().max() <= 3**-0.5


def test_a_lazy_state_dict_does_not_go_into_an_eager_model():
    eager, state = nn.Linear(5, 4), nn.LazyLinear(4).state_dict()
    with refused(eager, RuntimeError, match="shape of an uninitialized"):
        eager.load_state_dict(state)
    layer = nn.LazyLinear(4)
    layer.load_state_dict(nn.LazyLinear(4).state_dict())
    assert layer.has_uninitialized_params()
