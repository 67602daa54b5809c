"""Models that several tests of lazy layers build, and torch's layers as the twins of tlazy's.

Tests of promises are named after the rows of the table in the project's notes on lazy layers. A
twin is an expected failure, strict: should torch learn one of these, its test there turns red.
"""

import pytest
import torch

import tlazy
from tlazy import nn

unlike_torch = pytest.mark.parametrize(
    "lib",
    [
        pytest.param(tlazy.nn, id="tlazy"),
        pytest.param(torch.nn, id="torch", marks=pytest.mark.xfail(strict=True)),
    ],
)


like_torch = pytest.mark.parametrize("lib", [tlazy.nn, torch.nn], ids=["tlazy", "torch"])


def two_layers(lib, width=4):
    return lib.Sequential(lib.LazyLinear(width), torch.nn.ReLU(), lib.LazyLinear(2))


def trained_once(net, x):
    """Whether one more step of training changes every parameter."""
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(x).square().sum().backward()
    optimizer.step()
    return all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class Watch(torch.nn.Module):
    def __init__(self, action):
        super().__init__()
        self.action = action

    def forward(self, x):
        self.action(x)
        return x


def grown(lib):
    """A model whose list and whose inner Sequential got their layers after its constructor."""

    class Grows(lib.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList()
            self.head = lib.Sequential()

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    net = Grows()
    net.layers.append(torch.nn.LazyLinear(6))
    net.layers.extend([torch.nn.Dropout(0.5), lib.LazyLinear(4)])
    net.head.append(lib.LazyLinear(2))
    net.head.insert(0, torch.nn.LazyBatchNorm1d())
    return net


class Normal(nn.LazyLinear):
    def reset_parameters(self):
        super().reset_parameters()
        if not self.has_uninitialized_params():
            torch.nn.init.normal_(self.weight)
            self.weight.data.add_(self.weight.data)


WAY_OUT = r"call tlazy\.materialize\(model, example_input\)"


def nested(lib):
    net = lib.Sequential()
    net.encoder = lib.Sequential(lib.LazyLinear(4))
    return net


def fcn():
    return nn.Sequential(
        nn.LazyConv1d(6, 5, padding="same"),
        torch.nn.LazyBatchNorm1d(),
        torch.nn.ReLU(),
        nn.LazyConv1d(4, 3, padding="causal", activation="relu"),
        torch.nn.AdaptiveAvgPool1d(1),
        torch.nn.Flatten(),
        nn.LazyLinear(3),
    )


def series(batch=2, channels=3, length=17):
    return torch.randn(batch, channels, length, generator=torch.Generator().manual_seed(1))


def hooks_of(model):
    return [
        hook
        for module in model.modules()
        for hook in (
            *module._forward_pre_hooks.values(),
            *module._load_state_dict_pre_hooks.values(),
        )
    ]


class Scale(torch.nn.Module):
    def forward(self, x):
        return x * self.weight


class LazyScale(torch.nn.modules.lazy.LazyModuleMixin, Scale):
    """A user's own lazy module, by torch's mixin."""

    cls_to_become = Scale

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.UninitializedParameter()

    def initialize_parameters(self, x):
        self.width = x.shape[-1]
        self.weight.materialize((self.width,))
        torch.nn.init.constant_(self.weight, 3)
