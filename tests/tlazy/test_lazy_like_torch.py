"""What torch documents of its lazy layers holds for tlazy's."""

import pickle

import pytest
import torch
from torch.nn.parameter import UninitializedParameter, is_lazy

from tests.tlazy.snapshot import refused
from tlazy import nn

LAYERS = [
    (lambda lib: lib.LazyLinear(10), lambda lib: lib.Linear(5, 10), (4, 5)),
    (lambda lib: lib.LazyConv1d(16, 3, stride=2), lambda lib: lib.Conv1d(6, 16, 3, 2), (9, 6, 50)),
    (lambda lib: lib.LazyConv1d(16, 3, bias=False), lambda lib: lib.Conv1d(6, 16, 3), (6, 50)),
    (
        lambda lib: lib.LazyConvTranspose1d(16, 3, 3, groups=2),
        lambda lib: lib.ConvTranspose1d(6, 16, 3, 3, groups=2),
        (9, 6, 50),
    ),
]


@pytest.mark.parametrize("lib", [nn, torch.nn])
@pytest.mark.parametrize(("lazy", "eager", "shape"), LAYERS)
class TestTorchsOwnBehaviour:
    """What torch documents of its lazy layers holds for ours put in their place."""

    def test_parameters_are_uninitialized_until_the_first_call(self, lib, lazy, eager, shape):
        layer = lazy(lib)
        kind = type(layer)
        assert issubclass(kind, torch.nn.modules.lazy.LazyModuleMixin)
        assert all(isinstance(p, UninitializedParameter) for p in layer.parameters())
        assert layer.has_uninitialized_params()
        x = torch.ones(shape)
        layer(x)
        assert type(layer) is kind.cls_to_become is type(eager(lib))
        assert layer.weight.shape == eager(lib).weight.shape
        assert not any(map(is_lazy, layer.parameters()))
        function = (torch.nn.functional.linear, torch.nn.functional.conv1d)[len(shape) > 2]
        if len(shape) > 2 and layer.stride == (2,):
            torch.testing.assert_close(layer(x), function(x, layer.weight, layer.bias, 2))

    def test_pickles_keep_the_class_and_what_is_lazy(self, lib, lazy, eager, shape):
        layer = pickle.loads(pickle.dumps(lazy(lib)))
        assert type(layer) is type(lazy(lib))
        assert layer.has_uninitialized_params()
        layer(torch.ones(shape))
        again = pickle.loads(pickle.dumps(layer))
        assert type(again) is type(eager(lib))
        assert torch.equal(again.weight, layer.weight)

    def test_state_dicts_go_between_lazy_and_eager(self, lib, lazy, eager, shape):
        donor, layer = eager(lib), lazy(lib)
        state = donor.state_dict()
        if layer.bias is None:
            del state["bias"]
        layer.load_state_dict(state)
        assert not layer.has_uninitialized_params()
        assert torch.equal(layer.weight, donor.weight)
        layer(torch.ones(shape))
        state = lazy(lib).state_dict()
        with refused(donor, RuntimeError, match="shape of an uninitialized"):
            donor.load_state_dict(state)
        waiting = lazy(lib)
        waiting.load_state_dict(lazy(lib).state_dict())
        assert waiting.has_uninitialized_params()
        waiting(torch.ones(shape))

    def test_hooks_run_once_per_call(self, lib, lazy, eager, shape):
        layer, seen = lazy(lib), []
        layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
        layer.register_forward_hook(lambda module, args, out: seen.append("after"))
        layer(torch.ones(shape))
        assert seen == ["before", "after"]

    def test_placeholders_convert_and_refuse_as_torchs(self, lib, lazy, eager, shape):
        layer = lazy(lib).double()
        assert layer.weight.dtype is torch.float64
        for use in (lambda p: p + p, torch.zeros_like, lambda p: p.view(-1)):
            with refused(layer, ValueError, match="uninitialized parameter"):
                use(layer.weight)
        with refused(layer, RuntimeError, match="share memory on an uninitialized"):
            layer.share_memory()
        layer(torch.ones(shape, dtype=torch.float64))
        assert layer.weight.dtype is torch.float64

    def test_norms_of_the_weight_are_refused(self, lib, lazy, eager, shape):
        layer = lazy(lib)
        for norm in (torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm):
            with refused(layer, ValueError, match="uninitialized parameters"):
                norm(layer)

    def test_placeholders_can_be_materialized_by_hand(self, lib, lazy, eager, shape):
        layer = lazy(lib).half()
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        layer.weight.materialize(10)
        assert (type(layer.weight), layer.weight.dtype) == (torch.nn.Parameter, torch.float16)
        layer.weight.data.zero_()
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
        assert layer.weight.max() < 0

    def test_layers_follow_one_another(self, lib, lazy, eager, shape):
        net = torch.nn.Sequential(lazy(lib), lib.LazyLinear(3), lib.LazyLinear(2))
        assert net(torch.ones(shape)).shape[-1] == 2
        assert net[2].in_features == 3
