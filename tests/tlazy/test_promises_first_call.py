"""What a first call promises: the whole tree or nothing, whoever else is calling (rows 1 to 4)."""

import copy
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn.parameter import is_lazy

import tlazy
from tests.tlazy.lazy_models import Watch, X, grown, two_layers, unlike_torch
from tests.tlazy.snapshot import refused, snapshot
from tlazy import nn


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
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        return net(torch.empty(shape)).shape


@unlike_torch
def test_row_02_a_trace_computes_nothing_and_changes_nothing(lib):
    net = lib.Sequential(
        torch.nn.BatchNorm1d(3),  # which counts batches
        torch.nn.Dropout(0.5),
        lib.LazyLinear(1 << 30),
        torch.nn.LazyBatchNorm1d(),
        lib.LazyLinear(1 << 30),
    )
    seen = []
    net[1].register_forward_hook(lambda module, args, out: seen.append(out.shape))
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
    import faulthandler, sys, threading, torch
    faulthandler.dump_traceback_later(100, exit=True)
    from {lib.__name__.rpartition(".")[0]} import nn
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-6)
    x = torch.randn(3, 16)
    lazy = lambda: (nn.LazyLinear(512), nn.LazyLinear(8))
    alone = lambda: nn.LazyLinear(512)
    pair = lambda: nn.Sequential(*lazy())
    foreign = lambda: torch.nn.Sequential(*lazy())
    normed = lambda: nn.Sequential(*lazy(), torch.nn.LazyBatchNorm1d().eval())
    for run, tree in enumerate([alone, pair] * 25 + [foreign, normed] * 4):
        net = tree()
        start, outputs = threading.Barrier(8), [None] * 8
        def call(i):
            start.wait()
            outputs[i] = net(x)
        threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert all(y is not None and torch.equal(y, net(x)) for y in outputs), run
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
