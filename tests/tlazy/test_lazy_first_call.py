"""First calls of trees: what they make, what stops them, and in which surroundings."""

import gc
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import tlazy
from tests.tlazy.lazy_models import fcn, hooks_of, series
from tests.tlazy.snapshot import refused, snapshot
from tlazy import nn


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


# A first call that waits, once it is computed with values and no longer traced, until it may go on.
WAITING = """
import _thread, os, sys, threading, time, torch
from tlazy import nn
from tlazy.nn.pending import trials
computes, go_on = threading.Event(), threading.Event()
class Waits(torch.nn.Module):
    def forward(self, x):
        if type(x) is torch.Tensor:
            computes.set()
            assert go_on.wait(60)
            if leave: raise SystemExit
        return x
x, leave = torch.randn(3, 16), False
net = nn.Sequential(nn.LazyLinear(4), Waits())
def call(): net(x)
"""


def test_first_calls_and_threads_that_start_do_not_wait_for_each_other():
    # sys._current_frames, for one, holds a lock of the interpreter's that a starting thread needs.
    in_a_process(
        WAITING,
        """
    from tlazy.nn.first_call import first_call
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-6)
    threading.excepthook = lambda raised: (sys.__excepthook__(*raised[:3]), os._exit(1))
    first = threading.Thread(target=call)
    first.start()
    assert computes.wait(60) and len(trials) == 1
    end, counts = time.monotonic() + 3, [0] * 5
    def calls(i):
        net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.BatchNorm1d(16).eval())
        net.register_forward_pre_hook(first_call, with_kwargs=True)
        while time.monotonic() < end:
            net(x)
            counts[i] += 1
    def starts(i):
        net = torch.nn.Identity()
        while time.monotonic() < end:
            few = [threading.Thread(target=first_call, args=(net, ())) for _ in range(4)]
            for thread in few: thread.start()
            for thread in few: thread.join()
            counts[i] += 1
    tasks = [calls] * 4 + [starts]
    threads = [threading.Thread(target=task, args=(i,)) for i, task in enumerate(tasks)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert min(counts) > 0 and len(trials) == 1, (counts, len(trials))
    go_on.set()
    first.join()
    assert not trials
    """,
    )


def test_a_first_call_ends_with_its_thread_whoever_started_that():
    in_a_process(
        WAITING,
        """
    leave = True
    _thread.start_new_thread(call, ())
    assert computes.wait(60) and len(trials) == 1
    go_on.set()
    end = time.monotonic() + 60
    while trials:
        nn.LazyLinear(2)(x)
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not net._forward_pre_hooks and not net._forward_hooks
    """,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_in_the_middle_of_another_threads_first_call_goes_on():
    in_a_process(
        WAITING,
        """
    torch.set_num_threads(1)
    for start in (lambda: _thread.start_new_thread(call, ()), threading.Thread(target=call).start):
        net = nn.Sequential(nn.LazyLinear(4), Waits())
        computes.clear(), go_on.clear()
        start()
        assert computes.wait(60) and len(trials) == 1
        child = os.fork()
        if child == 0:
            y = nn.LazyLinear(2)(x)
            os._exit(0 if y.shape == (3, 2) and not trials else 3)
        assert os.waitpid(child, 0)[1] == 0
        assert len(trials) == 1
        go_on.set()
        while trials:
            nn.LazyLinear(2)(x)
            time.sleep(0.01)
    """,
    )


def in_a_process(*scripts):
    """Run the scripts as one; a process that hangs ends with the stacks of its threads."""
    ending = "import faulthandler; faulthandler.dump_traceback_later(100, exit=True)"
    code = "\n".join([ending, *map(textwrap.dedent, scripts)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-8000:]


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
