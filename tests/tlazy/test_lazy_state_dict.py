"""A state dict gives lazy layers their shapes, or is refused."""

from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

import tlazy
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


@pytest.mark.parametrize(
    ("layer", "state"),
    [
        (lambda: nn.LazyLinear(4), {"0.bias": torch.ones(4)}),
        (lambda: nn.LazyConv1d(4, 3), {"0.bias": torch.ones(4)}),
        (torch.nn.LazyBatchNorm1d, {"0.num_batches_tracked": torch.tensor(3)}),
    ],
    ids=["linear", "conv1d", "batch norm"],
)
def test_no_number_of_inputs_is_made_up(layer, state):
    net = nn.Sequential(layer())
    words = r"holds (bias|num_batches_tracked) of .*how many inputs.*\n  in 0 \(Lazy"
    with refused(net, RuntimeError, match=words):
        net.load_state_dict(state, strict=False)


@pytest.mark.parametrize("turned", [False, True])
def test_layers_that_share_a_weight_need_it_once_in_a_file(tmp_path, turned):
    def tied():
        one, other = nn.LazyLinear(2), nn.LazyLinear(2)
        other.weight = one.weight
        parts = {"a": one, "b": other}
        return nn.Sequential(OrderedDict(sorted(parts.items(), reverse=turned)))

    state = {"a.weight": torch.eye(2), "a.bias": torch.ones(2), "b.bias": torch.zeros(2)}
    save_file(state, tmp_path / "tied.safetensors")
    net = tied()
    tlazy.load(net, tmp_path / "tied.safetensors")
    assert net.a.weight is net.b.weight
    assert torch.equal(net(torch.tensor([[1.0, 2.0]])), torch.tensor([[2.0, 3.0]]))
