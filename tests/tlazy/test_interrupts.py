"""Ctrl-C in the middle of what changes a model: it happens whole or not at all."""

import linecache
import logging
import sys
import threading
from contextlib import contextmanager

import pytest
import torch
from torch.nn.parameter import is_lazy
from torch.utils import _python_dispatch as dispatch

import tlazy
from tests.tlazy.snapshot import snapshot
from tlazy import nn
from tlazy.nn import pending, staging

X = torch.ones(4, 3)
NEVER = 1_000_000


def lazy():
    return nn.Sequential(nn.LazyLinear(2), torch.nn.LazyBatchNorm1d().eval())


class InterruptAt:
    """A trace function that raises KeyboardInterrupt before the n-th line of tlazy that runs."""

    def __init__(self, line):
        self.left = line
        self.place = None

    def __call__(self, frame, event, arg):
        code = frame.f_code
        if "/tlazy/" not in code.co_filename or "/tests/" in code.co_filename:
            return None
        # C++ asks a fake tensor for its device where no exception may pass: torch would abort.
        if code.co_name == "__torch_dispatch__" and frame.f_locals["func"].namespace == "prim":
            return None
        return self.at_line

    def at_line(self, frame, event, arg):
        place = frame.f_code.co_filename, frame.f_lineno
        # Python handles no signal at a bare try, nor from a block's end to an exit that is in C.
        source = linecache.getline(*place).strip()
        unreachable = source in ("try:", "with materializing:") or "with torch._C." in source
        if event == "line" and not unreachable:
            self.left -= 1
            if self.left < 0:
                self.place = place
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.at_line


def surroundings():
    """What an interrupt must not leave behind in this thread."""
    free = []

    def try_lock():
        free.append(pending.materializing.acquire(blocking=False))
        if free[0]:
            pending.materializing.release()

    other = threading.Thread(target=try_lock)
    other.start()
    other.join()
    return {
        "modes": dispatch._get_current_dispatch_mode_stack(),
        "notes of modes": [vars(dispatch)[n] for n in vars(dispatch) if n.startswith("_is_in")],
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "transforms": torch._C._functorch.peek_interpreter_stack(),
        "torch functions": torch._C._is_torch_function_enabled(),
        "lifting": torch._C._only_lift_cpu_tensors(),
        "saved tensors": torch._C._autograd._top_saved_tensors_default_hooks(True),
        "log filters": list(logging.getLogger("torch._subclasses.fake_tensor").filters),
        "lock is free": free,
    }


def materialized_with(scale):
    net = lazy()
    net(X)
    return {name: tensor * scale for name, tensor in net.state_dict().items()}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(3)
    return materialized_with(2)


@pytest.fixture(scope="module")
def path(state, tmp_path_factory):
    net = lazy()
    net.load_state_dict(state)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    tlazy.save(net, path)
    return path


def called(net):
    net(X)
    return net


ACTIONS = {
    "first call": lambda net, state, path: net(X),
    "load_state_dict": lambda net, state, path: net.load_state_dict(state),
    "load_state_dict assign": lambda net, state, path: net.load_state_dict(state, assign=True),
    "load": lambda net, state, path: tlazy.load(net, path),
    "materialize": lambda net, state, path: tlazy.materialize(net, X, seed=0),
    "materialize on meta": lambda net, state, path: tlazy.materialize(net, X, device="meta"),
    "materialize from a file": lambda net, state, path: tlazy.materialize(net, X, checkpoint=path),
    "dematerialize": lambda net, state, path: tlazy.dematerialize(net),
}


@contextmanager
def interrupted_by(stop):
    """Trace the block by `stop`, and expect that an interrupt leaves it where `stop` raised one."""
    came = False
    sys.settrace(stop)
    try:
        yield
    except KeyboardInterrupt:
        came = True
    finally:
        sys.settrace(None)
    assert came is (stop.place is not None), stop.place


def interrupted(name, state, path, line):
    """A model in the middle of whose change an interrupt came, its snapshot before, and where."""
    net = called(lazy()) if name == "dematerialize" else lazy()
    before, stop = snapshot(net), InterruptAt(line)
    with interrupted_by(stop):
        ACTIONS[name](net, state, path)
    return net, before, stop


def lines_of(name, state, path):
    interrupted(name, state, path, NEVER)  # what is imported or cached the first time
    return NEVER - interrupted(name, state, path, NEVER)[2].left


def sweep(name, state, path, lines):
    """Interrupt the action before each of `lines`; return how often it happened all the same."""
    outside, happened = surroundings(), 0
    for line in lines:
        net, before, stop = interrupted(name, state, path, line)
        assert stop.place
        assert surroundings() == outside, stop.place
        if snapshot(net) != before:
            happened += 1
            assert_happened(name, net, state, stop.place)
        if not any(p.is_meta for p in net.parameters()):
            assert net(X).shape == (4, 2)
            hooks = [(*m._forward_pre_hooks, *m._forward_hooks) for m in net.modules()]
            assert not any(hooks), stop.place
        assert not pending.trials
    return happened


def assert_happened(name, net, state, place):
    assert all(is_lazy(p) is (name == "dematerialize") for p in net.parameters()), place
    if name.startswith("load") or name.endswith("file"):
        now = net.state_dict()
        assert all(torch.equal(now[key], state[key]) for key in state), place


@pytest.mark.parametrize("name", ACTIONS)
def test_an_interrupt_at_some_lines_does_all_or_nothing(name, state, path):
    lines = lines_of(name, state, path)
    step = lines // 25
    offset = step * list(ACTIONS).index(name) // len(ACTIONS)
    assert sweep(name, state, path, range(offset, lines, step)) <= 1


@pytest.mark.thorough
@pytest.mark.parametrize("name", ACTIONS)
def test_an_interrupt_at_any_line_does_all_or_nothing(name, state, path):
    lines = lines_of(name, state, path)
    assert lines > 300
    assert sweep(name, state, path, range(lines)) < lines // 20


def test_a_second_interrupt_waits_until_the_first_one_has_been_undone(monkeypatch):
    def first(*_):
        frame = sys._getframe(1)
        while frame:  # those that run already
            frame.f_trace = stop(frame, "call", None)
            frame = frame.f_back
        sys.settrace(stop)
        raise KeyboardInterrupt

    monkeypatch.setattr(staging, "settle", first)  # the last step of a commit
    outside = surroundings()
    for line in range(1000):
        net, stop = lazy(), InterruptAt(line)
        plan = tlazy.trace(net, X)
        before = snapshot(net)
        with pytest.raises(KeyboardInterrupt):
            plan.materialize()
        sys.settrace(None)
        assert surroundings() == outside, stop.place
        assert snapshot(net) == before, stop.place
        if stop.place is None:
            break
    assert 30 < line < 999
