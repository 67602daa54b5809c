"""What lazy layers promise, row by row; where torch's own fail the same test, they are its twin.

The rows are those of the table in the project's notes on lazy layers. A twin is an expected
failure, strict: should torch learn one of these, its test here turns red.
"""

import copy
import inspect
import io
import pickle
import subprocess
import sys
import textwrap

import numpy
import pytest
import torch
from safetensors.torch import load_model, save_model
from torch.distributed import checkpoint as checkpoints
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.utils.checkpoint import checkpoint

import tlazy
from tests.tlazy.lazy_models import LazyScale, Scale
from tests.tlazy.snapshot import refused, snapshot
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


@unlike_torch
def test_row_01_the_first_call_materializes_the_whole_tree(lib):
    waiting = []
    net = lib.Sequential(torch.nn.Identity(), lib.LazyLinear(4), lib.Sequential(lib.LazyLinear(2)))

    def look(module, args, out):
        if type(out) is torch.Tensor:
            waiting.append(sum(map(is_lazy, net.parameters())))

    net[0].register_forward_hook(look)
    net(X)
    assert waiting[-1] == 0


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


@unlike_torch
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("duplicate", [lambda net: net, copy.deepcopy])
def test_row_01_layers_that_a_list_got_later_belong_to_the_tree(lib, called, duplicate):
    net, waiting = duplicate(grown(lib)), []
    if called:
        net(X)
        net.layers.extend([lib.LazyLinear(5), torch.nn.LazyLinear(4)])

    def look(module, args, out):
        if type(out) is torch.Tensor:
            waiting.append(sum(map(is_lazy, net.parameters())))

    net.layers[0].register_forward_hook(look)
    assert net(X).shape == (5, 2)
    assert waiting == [0]
    assert not any(m._forward_pre_hooks for m in net.modules())


@unlike_torch
def test_row_03_layers_that_a_list_got_later_stay_lazy_together(lib):
    net = grown(lib)
    net(X)
    net.layers.extend([lib.LazyLinear(5), torch.nn.LazyLinear(4), torch.nn.Linear(9, 4)])
    with refused(net, RuntimeError, match=r"9, 4|9x4"):
        net(X)


@unlike_torch
def test_row_01_keywords_several_inputs_and_shared_layers_are_one_tree(lib):
    waiting = []

    class Two(lib.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.other = lib.LazyLinear(4), lib.Sequential(lib.LazyConv1d(4, 1))

        def forward(self, x, *, series):
            if type(x) is torch.Tensor:
                waiting.append(sum(map(is_lazy, self.parameters())))
            return self.shared(x), self.shared(2 * x), self.other(series["a"][0])

    net = Two()
    first, double, other = net(X, series={"a": [torch.ones(5, 7)]})
    assert (first.shape, double.shape, other.shape) == ((5, 4), (5, 4), (4, 7))
    assert waiting == [0]


def shapes_only(lib, net, *shape):
    if lib is tlazy.nn:
        return tlazy.trace(net, tlazy.Spec(*shape)).output.shape
    with torch._subclasses.FakeTensorMode():
        return net(torch.empty(shape)).shape


@unlike_torch
def test_row_02_a_trace_computes_nothing_and_changes_nothing(lib):
    net = lib.Sequential(
        torch.nn.BatchNorm1d(3),  # which counts batches
        torch.nn.Linear(3, 1 << 30, device="meta"),
        torch.nn.Dropout(0.5),
        lib.LazyLinear(1 << 30),
        torch.nn.LazyBatchNorm1d(),
    )
    seen = []
    net[2].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    before = snapshot(net)
    assert shapes_only(lib, net, 8, 3) == (8, 1 << 30)
    assert snapshot(net) == before
    assert seen == []


@unlike_torch
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_row_03_a_first_call_that_fails_changes_nothing(lib, layer):
    def fail(x):
        if broken and not isinstance(x, torch._subclasses.FakeTensor):
            raise ArithmeticError

    net = two_layers(lib)
    net.insert(layer, Watch(fail))
    net.append(torch.nn.LazyBatchNorm1d())
    broken = True
    with refused(net, ArithmeticError):
        net(X)
    broken = False
    assert net(torch.randn(5, 7)).shape == (5, 2)


@unlike_torch
@pytest.mark.parametrize("alone", [True, False])
def test_row_03_an_input_that_only_the_kernel_refuses_changes_nothing(lib, alone):
    net = lib.LazyLinear(4) if alone else two_layers(lib)
    with refused(net, RuntimeError):
        net(torch.ones(5, 3, dtype=torch.long))
    assert net(torch.ones(5, 7)).shape[0] == 5
    assert not net._forward_hooks


@unlike_torch
def test_row_03_memory_that_ends_in_the_middle_changes_nothing(lib):
    net = lib.Sequential(lib.LazyLinear(4), torch.nn.LazyBatchNorm1d(), lib.LazyLinear(1 << 50))
    with refused(net, RuntimeError, match="can't allocate memory"):
        net(X)
    net[2].out_features = 2
    assert net(X).shape == (5, 2)


def test_row_03_what_another_thread_uses_is_not_taken_back():
    import threading

    inside, done = threading.Event(), threading.Event()

    def wait(x):
        first = threading.current_thread() is not threading.main_thread()
        if first and not isinstance(x, torch._subclasses.FakeTensor):
            inside.set()
            done.wait(60)
            raise ArithmeticError

    net = nn.Sequential(nn.LazyLinear(4), Watch(wait))
    failed = []

    def call():
        try:
            net(X)
        except ArithmeticError as error:
            failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert inside.wait(60)
    expected = net(X)
    done.set()
    thread.join()
    assert len(failed) == 1
    assert torch.equal(net(X), expected)
    assert not net._forward_hooks
    assert not net._forward_pre_hooks


@unlike_torch
def test_row_04_eight_threads_may_make_the_first_call(lib):
    script = f"""
    import sys, threading, torch
    from {lib.__name__.rpartition(".")[0]} import nn
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-6)
    x = torch.randn(3, 16)
    for run in range(50):
        net = nn.Sequential(nn.LazyLinear(512), nn.LazyLinear(8)) if run % 2 else nn.LazyLinear(512)
        start, outputs = threading.Barrier(8), [None] * 8
        def call(i):
            start.wait()
            outputs[i] = net(x)
        threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert all(y is not None and torch.equal(y, net(x)) for y in outputs), run
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


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


class Normal(nn.LazyLinear):
    def reset_parameters(self):
        super().reset_parameters()
        if not self.has_uninitialized_params():
            torch.nn.init.normal_(self.weight)
            self.weight.data.add_(self.weight.data)


@unlike_torch
def test_row_09_a_checkpoint_materializes_fully(lib, monkeypatch):
    donor = [torch.nn.Conv1d(4, 6, 3, groups=2), torch.nn.Linear(7, 2), torch.nn.Linear(2, 3)]
    donor = torch.nn.Sequential(*donor)
    net = lib.Sequential(lib.LazyConv1d(6, 3, groups=2), lib.LazyLinear(2), torch.nn.LazyLinear(3))
    monkeypatch.setattr(tlazy.init, "fan_in_uniform_", None)
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", None)
    monkeypatch.setattr(torch.nn.init, "uniform_", None)
    net.load_state_dict(donor.state_dict())
    assert repr(net) == repr(donor)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
    assert (net[0].in_channels, net[1].in_features) == (4, 7)
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), donor(x))


@unlike_torch
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        (lambda lib: lib.LazyLinear(8), torch.ones(9, 5)),
        (lambda lib: lib.LazyLinear(8), torch.ones(8, 5, 3)),
        (lambda lib: lib.LazyConv1d(8, 5), torch.ones(8, 4, 3)),
    ],
)
def test_row_10_a_checkpoint_is_checked_against_the_constructor(lib, layer, weight, strict):
    net = lib.Sequential(layer(lib))
    shape = ", ".join(map(str, weight.shape))
    with refused(net, RuntimeError, match=rf"0\.weight: .*\({shape}\).*\(8, "):
        net.load_state_dict({"0.weight": weight, "0.bias": torch.ones(8)}, strict=strict)


@unlike_torch
@pytest.mark.parametrize("whole", [True, False])
def test_row_10_a_missing_bias_leaves_the_layer_as_it_was(lib, whole):
    net = (lib if whole else torch.nn).Sequential(lib.LazyLinear(4))
    with refused(net, RuntimeError, match=r"Missing key.*0\.bias"):
        net.load_state_dict({"0.weight": torch.ones(4, 3)})


def test_row_10_an_eager_part_keeps_its_values_when_loading_fails():
    net = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    state = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)).state_dict()
    for assign in (False, True):
        with refused(net, RuntimeError, match=r"Missing key.*2\.weight"):
            net.load_state_dict(state, assign=assign)


@unlike_torch
@pytest.mark.parametrize("whole", [True, False])
def test_row_10_assign_keeps_what_an_optimizer_holds(lib, whole):
    net = (lib if whole else torch.nn).Sequential(lib.LazyLinear(4), lib.LazyLinear(2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    donor = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double()
    state = donor.state_dict()
    net.load_state_dict(state, assign=True)
    assert net[0].weight.data_ptr() == state["0.weight"].data_ptr()
    assert net[0].weight.dtype is torch.float64
    before = [p.detach().clone() for p in net.parameters()]
    net(X.double()).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert type(net[0]) is lib.Linear


@unlike_torch
def test_row_11_safetensors_go_straight_in(lib, tmp_path):
    donor = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    save_model(donor, str(tmp_path / "m.safetensors"))
    net = lib.Sequential(lib.LazyLinear(4), lib.LazyLinear(2))
    load = tlazy.load if lib is tlazy.nn else load_model
    load(net, str(tmp_path / "m.safetensors"))
    assert torch.equal(net(X), donor(X))


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


@unlike_torch
def test_row_14_a_custom_initializer_may_be_given_before_shapes_are_known(lib):
    seen = []

    def ones(module):
        if isinstance(module, torch.nn.Linear):
            seen.append(tuple(module.weight.shape))
            torch.nn.init.ones_(module.weight)

    net = two_layers(lib)
    net[2].requires_grad_(False)
    if lib is tlazy.nn:
        tlazy.materialize(net, X, init=ones)
    else:
        net.apply(ones)
        net(X)
    assert seen == [(4, 3), (2, 4)]
    assert all(net[i].weight.unique().tolist() == [1.0] for i in (0, 2))
    assert [p.requires_grad for p in net.parameters()] == [True, True, False, False]


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


SAMPLES = {  # arguments of the layer, shapes of inputs
    "LazyLinear": {
        "batches": ((4,), [(3,), (2, 3), (2, 5, 3), (0, 3), (1, 1)]),
        "no bias": ((4, False), [(3,), (2, 3)]),
        "no inputs": ((4,), [(0,), (2, 0)]),
    },
    "LazyConv1d": {
        "batches": ((4, 3), [(2, 9), (5, 2, 9), (0, 2, 9), (1, 1, 3)]),
        "stride": ((4, 3, 2, 1), [(2, 9), (5, 2, 10)]),
        "dilation": ((4, 3, 1, 2, 2), [(2, 9), (5, 2, 5)]),
        "groups": ((6, 2, 1, 0, 1, 3), [(3, 9), (2, 6, 5)]),
        "depthwise": ((4, 5, 1, "same", 1, 4, False), [(4, 7), (2, 4, 9)]),
        "a longer kernel": ((2, 4, 1, "same", 3), [(2, 3), (2, 2, 5)]),
        "circular": ((4, 3, 1, 1, 1, 1, True, "circular"), [(2, 9), (2, 2, 9)]),
    },
}


@pytest.mark.parametrize(
    ("kind", "arguments", "shape"),
    [
        pytest.param(kind, arguments, shape, id=f"{kind} {name} {shape}")
        for kind, samples in SAMPLES.items()
        for name, (arguments, shapes) in samples.items()
        for shape in shapes
    ],
)
@pytest.mark.parametrize("strided", [False, True])
def test_row_18_inputs_of_all_kinds_give_what_torchs_layer_gives(kind, arguments, shape, strided):
    layer, theirs = getattr(nn, kind)(*arguments), getattr(torch.nn, kind)(*arguments)
    x = torch.randn(*shape, 2)[..., 1] if strided else torch.randn(shape)
    tlazy.materialize(theirs, x)
    theirs.load_state_dict(tlazy.materialize(layer, x).model.state_dict())
    x, same = x.detach().requires_grad_(), x.detach().requires_grad_()
    y, expected = layer(x), theirs(same)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, same.grad)
    assert repr(layer) == repr(theirs)


@unlike_torch
def test_row_19_groups_are_checked_early(lib):
    with pytest.raises(ValueError, match="out_channels"):
        lib.LazyConv1d(4, 3, groups=3)


@unlike_torch
def test_row_19_a_first_call_with_the_wrong_channels_changes_nothing(lib):
    layer = lib.LazyConv1d(6, 3, groups=3)
    with refused(layer, ValueError, match="in_channels"):
        layer(torch.ones(2, 4, 9))


USES = {
    "shape": lambda p: p.shape,
    "size": lambda p: p.size(),
    "numel": lambda p: p.numel(),
    "nbytes": lambda p: p.nbytes,
    "ndim": lambda p: p.ndim,
    "transpose": lambda p: p.mT,
    "add": lambda p: p + 1,
    "stack": lambda p: torch.stack([p, p]),
    "initializer": lambda p: torch.nn.init.ones_(p),
    "share_memory_": lambda p: p.share_memory_(),
    "copy_": lambda p: p.copy_(torch.ones(())),
    "copy_ from": lambda p: torch.ones(()).copy_(p),
    "parameters_to_vector": lambda p: torch.nn.utils.parameters_to_vector([p]),
}
WAY_OUT = r"call tlazy\.materialize\(model, example_input\)"


def nested(lib):
    net = lib.Sequential()
    net.encoder = lib.Sequential(lib.LazyLinear(4))
    return net


@unlike_torch
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_row_20_errors_name_the_path_and_the_next_step(lib, use):
    net = nested(lib)
    with refused(net, (RuntimeError, ValueError), match=rf"encoder\.0\.weight: {WAY_OUT}"):
        use(net.encoder[0].weight)


def test_row_20_layers_know_their_path_in_a_tree_of_torchs_and_in_a_list_that_grew():
    theirs = torch.nn.Sequential(torch.nn.ReLU(), nn.LazyLinear(4))
    theirs = torch.nn.ModuleList([torch.nn.ModuleDict({"encoder": theirs})])
    ours = nn.Sequential(nn.Sequential(torch.nn.ModuleDict({"encoder": nn.Sequential()})))
    ours[0][0]["encoder"].extend([torch.nn.ReLU(), torch.nn.LazyLinear(4)])
    for net, path in ((theirs, "0.encoder.1"), (ours, "0.0.encoder.1")):
        weight = net.get_submodule(path).weight
        with refused(net, ValueError, match=rf" {path}\.weight: {WAY_OUT}"):
            weight.clone()


@pytest.fixture
def one_process():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


WRAPPERS = {
    "DDP": lambda net: torch.nn.parallel.DistributedDataParallel(net),
    "export": lambda net: torch.export.export(net, (X,)),
    "jit.trace": lambda net: torch.jit.trace(net, X),
    "jit.script": lambda net: torch.jit.script(net),
    "fx": lambda net: torch.fx.symbolic_trace(torch.nn.Sequential(net.encoder)),
    "onnx": lambda net: torch.onnx.export(net, (X,), io.BytesIO(), dynamo=False),
}


@unlike_torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_row_20_what_wraps_a_model_is_told_the_path_and_the_next_step(lib, wrap, one_process):
    net = nested(lib)
    with refused(net, (RuntimeError, ValueError), match=rf"0\.weight.*: {WAY_OUT}"):
        wrap(net)
    assert net(X).shape == (5, 4)


@unlike_torch
def test_row_20_fully_shard_tells_the_path_and_the_next_step(lib, one_process):
    net = nested(lib)
    with pytest.raises(RuntimeError, match=rf"encoder\.0\.weight: {WAY_OUT}"):
        fully_shard(net)  # which has begun to change the model by then
    assert all(map(is_lazy, net.parameters()))


def test_row_20_strict_export_of_a_waiting_tree_names_the_next_step():
    net = nested(nn)
    with refused(net, RuntimeError, match=WAY_OUT):
        torch.export.export(net, (X,), strict=True)


@unlike_torch
@pytest.mark.filterwarnings("ignore::UserWarning")  # no process group: one process
@pytest.mark.parametrize("action", [checkpoints.load, checkpoints.save])
def test_row_20_distributed_checkpoints_of_a_lazy_model_name_the_next_step(lib, action, tmp_path):
    net = nested(lib)
    eager = copy.deepcopy(net)
    eager(X)
    checkpoints.save({"model": eager.state_dict()}, checkpoint_id=tmp_path / "eager")
    place = tmp_path / ("eager" if action is checkpoints.load else "lazy")
    with refused(net, CheckpointException, match=rf"encoder\.0\.weight: {WAY_OUT}"):
        action({"model": net.state_dict()}, checkpoint_id=place)
    set_model_state_dict(net, eager.state_dict())
    assert torch.equal(net(X), eager(X))


@unlike_torch
def test_row_20_an_average_of_a_lazy_model_names_the_next_step(lib):
    net = nested(lib)
    average = torch.optim.swa_utils.AveragedModel(net)
    net(X)
    with refused(average.module, ValueError, match=rf"encoder\.0\.weight: {WAY_OUT}"):
        average.update_parameters(net)
    average(X)
    average.update_parameters(net)
    assert torch.equal(average(X), net(X))


def test_row_20_a_placeholder_can_be_shown():
    assert f"{nested(nn).encoder[0].weight:>30}" == "<UninitializedParameter>".rjust(30)


def test_row_20_labels_are_gone_once_shapes_are_known():
    net = two_layers(nn)
    net(X)
    assert all(vars(p) == {} for p in net.parameters())


@unlike_torch
def test_row_21_torchs_own_lazy_modules_go_through_the_same_step(lib):
    def fail(x):
        if not isinstance(x, torch._subclasses.FakeTensor):
            raise ArithmeticError

    net = lib.Sequential(
        torch.nn.LazyConv2d(4, 3),
        torch.nn.LazyBatchNorm2d(),
        torch.nn.Flatten(),
        LazyScale(),
        torch.nn.LazyLinear(3),
        Watch(fail),
    )
    with refused(net, ArithmeticError):
        net(torch.ones(2, 3, 8, 8))
    net.pop(5)
    assert net(torch.ones(2, 3, 8, 8)).shape == (2, 3)
    assert [type(m) for m in net] == [
        torch.nn.Conv2d,
        torch.nn.BatchNorm2d,
        torch.nn.Flatten,
        Scale,
        torch.nn.Linear,
    ]
    assert net[3].weight.tolist() == [3.0] * 144


class Decides(nn.Module):
    def __init__(self, broken=False):
        super().__init__()
        self.first, self.up, self.down = nn.LazyLinear(4), nn.LazyLinear(3), nn.LazyLinear(2)
        self.norm = torch.nn.BatchNorm1d(4)
        self.broken = broken

    def forward(self, x):
        x = self.norm(self.first(x))
        if self.broken:
            raise ArithmeticError
        return self.up(x) if x[0, 0] > x.mean() - 100 else self.down(x)


def test_row_22_control_flow_on_values_takes_one_dry_run_all_or_nothing():
    net = Decides()
    random_state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"Decides.*run once for real"):
        net(X)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert int(net.norm.num_batches_tracked) == 1
    assert net.down.has_uninitialized_params()
    broken = Decides(broken=True)
    with refused(broken, ArithmeticError):
        broken(X)


class Leaves(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.layer, self.way = nn.LazyLinear(4), way

    def forward(self, x):
        return self.layer(self.way(x.detach()))


@pytest.mark.parametrize(
    "way",
    [lambda x: torch.from_numpy(x.numpy()), lambda x: torch.from_numpy(numpy.asarray(x))],
    ids=["numpy", "array"],
)
def test_row_22_values_that_leave_torch_take_one_dry_run(way):
    with pytest.warns(UserWarning, match=r"Leaves.*takes the values.*run once for real"):
        assert Leaves(way)(X).shape[1] == 4
    net = Leaves(way)
    with refused(net, tlazy.UntraceableError, match="takes the values"):
        tlazy.trace(net, tlazy.Spec(5, 3))


def test_row_23_branches_that_are_never_visited_are_reported():
    net = Decides()
    with pytest.warns(UserWarning, match="run once for real"):
        plan = tlazy.trace(net, X)
    assert plan.unvisited == ["down"]
    assert plan.to_dict()["unvisited"] == ["down"]


@unlike_torch
def test_row_24_a_model_that_has_only_shapes_can_be_sharded_and_trained(lib, one_process):
    torch.manual_seed(0)
    net = two_layers(lib)
    if lib is tlazy.nn:
        tlazy.trace(net, tlazy.Spec(5, 3)).materialize(device="meta")
    fully_shard(net)
    net.to_empty(device="cpu")
    if lib is tlazy.nn:
        tlazy.initialize(net, seed=0)
        expected = tlazy.materialize(two_layers(lib), X, seed=0).model.state_dict()
        for name, part in net.state_dict().items():
            assert torch.equal(part.full_tensor(), expected[name])
    before = [p.full_tensor().detach().clone() for p in net.parameters()]
    net(X).square().sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    now = [p.full_tensor() for p in net.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, now, strict=True))


def test_row_25_a_wrong_first_batch_can_be_taken_back():
    torch.manual_seed(0)
    expected = two_layers(nn)
    torch.manual_seed(0)
    net = two_layers(nn)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    held = list(net.parameters())
    lazy = repr(net)
    net(torch.randn(5, 9)).sum().backward()
    assert tlazy.dematerialize(net) == ["0", "2"]
    assert repr(net) == lazy
    assert all(map(is_lazy, net.parameters()))
    assert all(p.grad is None for p in net.parameters())
    assert tlazy.dematerialize(net) == []
    copied = copy.deepcopy(net)
    for model in (net, copied, expected):
        assert torch.equal(model(X), expected(X))
    assert all(a is b for a, b in zip(held, net.parameters(), strict=True))
    net(X).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net[0].weight, expected[0].weight)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


def test_row_25_an_optimizer_that_has_stepped_is_built_anew_for_another_width():
    net = two_layers(nn, 64)
    optimizer = torch.optim.AdamW(net.parameters())
    net(X).square().sum().backward()
    optimizer.step()
    tlazy.dematerialize(net)
    net(torch.randn(5, 9)).square().sum().backward()
    with pytest.raises(RuntimeError, match=r"\(3\) must match .* \(9\)"):
        optimizer.step()
    held = [p.detach().clone() for p in net.parameters()]
    torch.optim.AdamW(net.parameters()).step()
    assert not any(torch.equal(a, b) for a, b in zip(held, net.parameters(), strict=True))


def test_row_25_torchs_layers_meta_parameters_and_tied_ones_are_taken_back_too():
    first, second = nn.LazyLinear(3), nn.LazyLinear(3)
    second.weight = first.weight
    net = nn.Sequential(torch.nn.LazyBatchNorm1d(), first, second, Normal(2))
    tlazy.trace(net, tlazy.Spec(5, 3)).materialize(device="meta")
    assert tlazy.dematerialize(net) == ["0", "1", "2", "3"]
    assert first.weight is second.weight
    assert type(net[0]) is torch.nn.LazyBatchNorm1d
    net.to_empty(device="cpu")
    net(X)
    assert trained_once(net, torch.randn(64, 3))
    assert type(net[3]) is Normal


def test_row_25_what_has_changed_since_is_refused():
    net = two_layers(nn)
    net(X)
    net[2].weight = torch.nn.UninitializedParameter()
    with refused(net, RuntimeError, match=r"cannot make 2 \(Linear\) lazy again: its weight"):
        tlazy.dematerialize(net)
    assert net[0].in_features == 3


@like_torch
def test_row_26_no_hook_and_no_attribute_is_left(lib):
    net = lib.Sequential(torch.nn.LazyBatchNorm1d(), lib.LazyLinear(4), lib.Sequential())
    net(X)
    eager = lib.Sequential(torch.nn.BatchNorm1d(3), lib.Linear(3, 4), lib.Sequential())
    eager(X)
    for a, b in zip(net.modules(), eager.modules(), strict=True):
        assert type(a) is type(b)
        assert vars(a).keys() == vars(b).keys()
