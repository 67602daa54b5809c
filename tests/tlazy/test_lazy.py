import copy
import gc
import io
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn.parameter import UninitializedParameter, is_lazy

import tlazy
from tests.tlazy.snapshot import refused, snapshot
from tlazy import nn


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


def test_the_first_call_materializes_the_whole_tree_and_leaves_no_hook():
    net = fcn()
    assert net(series()).shape == (2, 3)
    kinds = [type(m) for m in net]
    assert kinds[0] is kinds[3] is nn.Conv1d
    assert kinds[1] is torch.nn.BatchNorm1d
    assert kinds[6] is nn.Linear
    assert (net[0].in_channels, net[1].num_features, net[6].in_features) == (3, 6, 4)
    assert hooks_of(net) == []
    assert int(net[1].num_batches_tracked) == 1


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList()
        for _ in range(2):
            self.layers.append(nn.LazyLinear(5))
        self.conv = torch.nn.LazyConv2d(2, 3)
        self.unused = nn.LazyLinear(1)
        self.calls = []
        self.count = 0

    def forward(self, x, *, image, extra):
        self.calls.append(1)
        self.count += 1
        for layer in self.layers:
            x = layer(x)
        return layer(x) + extra["bias"], self.conv(image)


def branching_input():
    return (torch.ones(2, 4),), {"image": torch.ones(1, 3, 6, 6), "extra": {"bias": 1.0}}


def test_a_custom_forward_with_keywords_lists_and_shared_layers_is_traced_once():
    net = Branching()
    args, kwargs = branching_input()
    out = net(*args, **kwargs)
    assert out[0].shape == (2, 5)
    assert (net.calls, net.count) == ([1], 1)
    assert net.layers[0].in_features == 4
    assert net.conv.in_channels == 3
    assert net.unused.has_uninitialized_params()
    assert net.unused(torch.ones(7)).shape == (1,)


@pytest.mark.parametrize("width", [6, 3])
@pytest.mark.parametrize("layer", range(4))
def test_a_first_call_that_fails_at_any_layer_changes_nothing(layer, width):
    class Breaks(torch.nn.Module):
        def forward(self, x):
            if broken:
                raise ArithmeticError("here")
            return x

    parts = [nn.LazyLinear(width), torch.nn.LazyBatchNorm1d(), nn.LazyLinear(2)]
    parts.insert(layer, Breaks())
    net = nn.Sequential(*parts)
    broken = True
    with refused(net, ArithmeticError, match=rf"here\n  in {layer} \(Breaks\)"):
        net(torch.ones(4, 5))
    broken = False
    assert net(torch.ones(4, 5)).shape == (4, 2)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_initializer_that_raises_at_any_layer_changes_nothing(error):
    for fatal in range(4):
        net = fcn()
        seen = []

        def init(module, seen=seen, fatal=fatal):
            torch.rand(3)
            seen.append(module)
            if len(seen) > fatal:
                raise error("stop")

        with refused(net, error):
            tlazy.materialize(net, series(), init=init)
    assert net(series()).shape == (2, 3)


def test_a_lazy_layer_inside_someone_elses_tree_materializes_itself():
    net = torch.nn.Sequential(nn.LazyLinear(4), torch.nn.Sequential(nn.LazyConv1d(2, 3)))
    before = snapshot(net[1])
    with pytest.raises(RuntimeError):  # the output is shorter than the kernel
        net(torch.ones(3, 1, 1, 1))
    assert snapshot(net[1])[0] == before[0]
    assert net(torch.ones(3, 5, 1)).shape == (3, 2, 2)
    assert hooks_of(net) == []


def test_eight_threads_may_make_the_first_call():
    script = """
    import sys, threading, torch
    from tlazy import nn
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-6)
    x = torch.randn(3, 16)
    for run in range(8):
        layers = [nn.LazyLinear(64), torch.nn.LazyBatchNorm1d().eval(), nn.LazyLinear(64)]
        net = (nn if run % 2 else torch.nn).Sequential(*layers[:: 2 - run % 2])
        start, outputs = threading.Barrier(8), [None] * 8
        def call(i):
            start.wait()
            outputs[i] = net(x)
        threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert all(torch.equal(y, net(x)) for y in outputs), run
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


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


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("cpu"),
    ],
)
def test_a_first_call_in_any_mode_leaves_a_model_that_trains(context):
    net = fcn()
    with context():
        net(series())
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    net(series()).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_first_call_under_vmap_or_grad_leaves_a_model_that_trains():
    for transform in (torch.func.vmap, lambda f: torch.func.grad(lambda x: f(x).sum())):
        net = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(2))
        transform(net)(torch.ones(3, 5))
        assert net[0].weight.shape == (4, 5)
        net(torch.ones(3, 5)).sum().backward()
        assert net[0].weight.grad is not None


def test_a_first_call_under_activation_checkpointing_gives_the_gradients_of_a_warm_one():
    from torch.utils.checkpoint import checkpoint

    gradients = []
    for warm in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.LazyLinear(32), torch.nn.Dropout(0.5), nn.LazyLinear(2))
        if warm:
            tlazy.materialize(net, torch.ones(4, 5))
        checkpoint(net, torch.ones(4, 5), use_reentrant=False).sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.LazyLinear(3), nn.LazyLinear(4)

    def forward(self, x):
        return self.up(x) if x.sum() > 0 else self.down(x)


def test_control_flow_on_values_takes_one_real_dry_run_and_says_so():
    net = DataDependent()
    with pytest.warns(UserWarning, match=r"depends on the values.*run once for real"):
        assert net(torch.ones(2, 5)).shape == (2, 3)
    assert net.down.has_uninitialized_params()
    assert net(-torch.ones(2, 5)).shape == (2, 4)
    assert hooks_of(net) == []
    net = DataDependent()
    with refused(net, tlazy.UntraceableError, match="depends on the values"):
        tlazy.trace(net, tlazy.Spec(2, 5))
    with pytest.warns(UserWarning, match="run once for real"):
        plan = tlazy.trace(DataDependent(), torch.ones(2, 5))
    assert "dry run: the forward of DataDependent" in str(plan)
    assert plan.to_dict()["dry_run"] == plan.dry_run


class AsksForANumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(3)

    def forward(self, x):
        return self.layer(x) * x.max().item()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda net, x: net(x),
        lambda net, x: tlazy.trace(net, x),
        lambda net, x: tlazy.materialize(net, x),
    ],
    ids=["first call", "trace", "materialize"],
)
def test_the_warning_of_a_dry_run_points_at_the_line_that_made_the_call(call, inside):
    net = torch.nn.Sequential(AsksForANumber()) if inside else AsksForANumber()
    with pytest.warns(UserWarning, match="run once for real") as caught:
        call(net, torch.ones(2, 5))
    (warning,) = caught
    assert warning.filename == __file__
    assert warning.lineno == call.__code__.co_firstlineno
    assert ".." not in str(warning.message)


@pytest.mark.parametrize("ask", [torch.Tensor.item, torch.Tensor.numpy])
def test_the_reason_of_a_dry_run_ends_in_one_full_stop(ask):
    class Asks(nn.LazyLinear):
        def forward(self, input):
            ask(input.detach().max())
            return super().forward(input)

    with pytest.warns(UserWarning, match=r"[^.]\. It is run once for real instead$"):
        Asks(3)(torch.ones(2, 5))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_with_a_scripted_part_takes_a_real_dry_run():
    net = nn.Sequential(nn.LazyLinear(4), torch.jit.script(torch.nn.Linear(4, 3)))
    with pytest.warns(UserWarning, match="1 is a ScriptModule"):
        assert net(torch.ones(2, 5)).shape == (2, 3)
    assert net[0].in_features == 5


def test_a_layer_added_after_construction_is_found():
    net = nn.Sequential(nn.Linear(3, 4))
    assert hooks_of(net) == []
    net.append(nn.LazyLinear(5))
    net.head = nn.LazyLinear(6)
    assert net(torch.ones(2, 3)).shape == (2, 6)
    assert hooks_of(net) == []


def test_sums_and_multiples_of_sequentials_are_one_tree():
    part = nn.Sequential(nn.LazyLinear(4))
    for net in (part + torch.nn.Sequential(torch.nn.LazyLinear(3)), part * 2, 2 * part):
        assert type(net) is nn.Sequential
        net.append(torch.nn.Linear(9, 1))
        with refused(net, RuntimeError, match="no parameter has been created"):
            net(torch.ones(2, 4))


def test_a_layer_for_a_list_that_has_left_the_tree_arms_nothing():
    net = nn.Module()
    net.layers = layers = torch.nn.ModuleList()
    del net.layers
    layers.append(nn.LazyLinear(4))
    assert hooks_of(net) == []


def test_a_model_without_lazy_layers_never_gets_a_hook():
    net = nn.Sequential(nn.Linear(3, 4), torch.nn.Sequential(nn.Linear(4, 2)))
    assert hooks_of(net) == []


def test_the_materialized_network_compiles_and_exports():
    net = fcn().eval()
    x = series()
    expected = net(x)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), expected)


@pytest.mark.parametrize("lib", [nn, torch.nn])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiling_a_lazy_network_materializes_it_before_the_graph(lib, dynamic):
    torch._dynamo.reset()
    net = lib.Sequential(nn.LazyLinear(4), lib.Sequential(nn.LazyLinear(2)))
    compiled = torch.compile(net, backend="eager", fullgraph=True, dynamic=dynamic)
    x = torch.ones(2, 3)
    assert torch.equal(compiled(x), net(x))
    assert net[0].in_features == 3
    assert hooks_of(net) == []


def test_a_lazy_layer_in_a_tree_of_torchs_exports_strictly():
    net = torch.nn.Sequential(nn.LazyLinear(4))
    x = torch.ones(2, 3)
    assert torch.equal(torch.export.export(net, (x,), strict=True).module()(x), net(x))


def test_using_a_placeholder_names_the_way_out():
    layer = nn.LazyLinear(4)
    with refused(layer, ValueError, match=r"tlazy.materialize\(model, example_input\)"):
        layer.weight + 1
    with refused(layer, RuntimeError, match=r"tlazy.materialize\(model, example_input\)"):
        _ = layer.weight.shape


@pytest.mark.parametrize("interrupted", [False, True])
def test_nothing_keeps_the_model_alive_after_its_first_call(interrupted):
    import weakref

    class Stop(torch.nn.Module):
        def forward(self, x):
            if interrupted and type(x) is torch.Tensor:
                raise KeyboardInterrupt
            return x

    net = nn.Sequential(nn.LazyLinear(3), Stop())
    try:
        net(torch.ones(2, 3))
    except KeyboardInterrupt:
        assert interrupted
    assert type(net[0]) is nn.Linear  # torch runs no hook after an interrupt: it stands
    fcn()(series())  # any first call sees that the other one has ended
    assert hooks_of(net) == []
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


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


def test_a_functional_call_of_a_lazy_model_is_refused_and_breaks_nothing():
    net = nn.Sequential(nn.LazyLinear(4))
    with refused(net, RuntimeError, match=r"call tlazy\.materialize"):
        torch.func.functional_call(net, {"0.weight": torch.ones(4, 3)}, (torch.ones(2, 3),))
    assert net(torch.ones(2, 3)).shape == (2, 4)


@pytest.mark.parametrize("mixin", [nn.LazyModuleMixin, torch.nn.modules.lazy.LazyModuleMixin])
def test_a_lazy_module_without_parameters_is_called_as_any_other(mixin):
    class Shows(mixin, torch.nn.Module):
        def initialize_parameters(self, x):
            self.width = x.shape[-1]

        def forward(self, x):
            return x

    before, after = Shows(), Shows()
    before.register_forward_pre_hook(lambda module, args: args[0] + 1)
    after.register_forward_hook(lambda module, args, out: out + 1)
    for module in (before, after):
        assert torch.equal(module(torch.zeros(2, 2)), torch.ones(2, 2))
        assert module.width == 2


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
