"""What may be done to a lazy layer before its first call (rows 12, 13, 15, 16 and 17)."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch.nn.parameter import UninitializedParameter, is_lazy

import tlazy
from tests.tlazy.lazy_models import X, trained_once, two_layers, unlike_torch
from tests.tlazy.snapshot import refused
from tlazy import nn

OPTIMIZERS = [
    kind
    for kind in vars(torch.optim).values()
    if inspect.isclass(kind)
    and issubclass(kind, torch.optim.Optimizer)
    and kind is not torch.optim.Optimizer
]


class Embeds(torch.nn.Module):
    """Sparse gradients, for the optimizer that wants no others."""

    def forward(self, x):
        index = torch.arange(len(x)) % self.weight.shape[0]
        return torch.nn.functional.embedding(index, self.weight, sparse=True)


class LazyEmbeds(nn.LazyModuleMixin, Embeds):
    cls_to_become = Embeds

    def __init__(self):
        super().__init__()
        self.add_placeholders(False, None, None)

    def initialize_parameters(self, x):
        self.weight.materialize((4, x.shape[-1]))
        torch.nn.init.ones_(self.weight)


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_row_12_an_optimizer_built_first_steps_as_for_an_eager_model_or_refuses(kind):
    if kind is torch.optim.SparseAdam:
        models = [nn.Sequential(LazyEmbeds()), nn.Sequential(LazyEmbeds())]
    else:
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            models.append(nn.Sequential(nn.LazyLinear(4, False), nn.LazyLinear(2, False)))
    tlazy.materialize(models[1], X)
    arguments = {"lr": 0.1} if kind is torch.optim.SGD else {}
    if kind in (torch.optim.Adagrad, torch.optim.Muon):
        words = r"0\.weight: call tlazy\.materialize"
        with refused(models[0], (ValueError, RuntimeError), match=words):
            kind(models[0].parameters(), **arguments)
        return
    for net in models:
        optimizer = kind(net.parameters(), **arguments)

        def closure(net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = net(X).square().sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@unlike_torch
@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.Muon])
def test_row_12_an_optimizer_that_cannot_wait_names_the_next_step(lib, kind):
    net = lib.Sequential(lib.LazyLinear(4, False))
    with refused(net, (ValueError, RuntimeError), match=r"0\.weight: call tlazy\.materialize"):
        kind(net.parameters())
    net(X)
    kind(net.parameters())


CONVERSIONS = {
    "bfloat16": lambda net: net.bfloat16(),
    "type": lambda net: net.type(torch.bfloat16),
    "freeze": lambda net: net.requires_grad_(False).bfloat16(),
    "to_empty": lambda net: net.bfloat16().to_empty(device="cpu"),
    "meta and back": lambda net: net.bfloat16().to("meta").to_empty(device="cpu"),
}


@unlike_torch
@pytest.mark.parametrize("conversion", CONVERSIONS.values(), ids=CONVERSIONS)
def test_row_13_converting_before_the_first_call_lasts(lib, conversion):
    net = two_layers(lib)
    conversion(net)
    frozen = [not p.requires_grad for p in net.parameters()]
    net(X.bfloat16())
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert [not p.requires_grad for p in net.parameters()] == frozen
    assert net[0].weight.shape == (4, 3)


@unlike_torch
@pytest.mark.parametrize("kind", ["overwrite", "swap"])
def test_row_13_converting_under_torchs_future_flags_lasts(lib, kind, monkeypatch):
    change = getattr(torch.__future__, f"set_{kind}_module_params_on_conversion")
    change(True)
    try:
        net = two_layers(lib).double()
        net(X.double())
    finally:
        change(False)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert net[0].weight.shape == (4, 3)
    assert trained_once(net, torch.randn(64, 3).double())


@unlike_torch
def test_row_13_a_tensor_hook_set_before_the_first_call_runs(lib):
    net, seen = two_layers(lib), []
    net[0].weight.register_hook(lambda grad: seen.append(grad.shape))
    net[0].bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.shape))
    net(X).sum().backward()
    assert sorted(seen) == [(4,), (4, 3)]


class Plus100(nn.LazyLinear):
    def forward(self, input):
        return super().forward(input) + 100


class TorchsPlus100(torch.nn.LazyLinear):
    def forward(self, input):
        return super().forward(input) + 100


@unlike_torch
def test_row_15_a_subclass_keeps_its_forward(lib):
    layer = Plus100(3) if lib is tlazy.nn else TorchsPlus100(3)
    early = pickle.loads(pickle.dumps(layer))
    first = layer(X)
    assert torch.equal(layer(X), first)
    assert first.min() > 50
    for other in (early, pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(X), first)
        assert torch.equal(other(X), first)


def saved(weights_only):
    def duplicate(state):
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=weights_only)

    return duplicate


@unlike_torch
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state)), saved(True), saved(False)],
)
def test_row_16_copies_keep_what_a_placeholder_knows(lib, duplicate):
    net = lib.Sequential(lib.LazyLinear(4, device="meta", dtype=torch.bfloat16))
    early = duplicate(net.state_dict())["0.weight"]
    assert isinstance(early, UninitializedParameter)
    assert (early.device.type, early.dtype) == ("meta", torch.bfloat16)
    net = lib.Sequential(torch.nn.LazyBatchNorm1d(), lib.LazyLinear(4))
    if duplicate is copy.deepcopy:
        assert is_lazy(copy.deepcopy(net)[0].running_mean)
    net(X)
    late = duplicate(net.state_dict())
    assert torch.equal(late["1.weight"], net[1].weight)


@unlike_torch
def test_row_17_tied_lazy_layers_are_one_parameter(lib):
    first, second = lib.LazyLinear(3), lib.LazyLinear(3)
    second.weight = first.weight
    net = lib.Sequential(first, second)
    net(X)
    assert first.weight is second.weight
    assert (first.in_features, second.in_features) == (3, 3)
    assert trained_once(net, torch.randn(64, 3))
