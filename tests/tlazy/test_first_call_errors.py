"""A first call that fails says where, with what, that nothing has changed, and what to do."""

import copy
import threading

import pytest
import torch

from tests.tlazy.snapshot import refused
from tlazy import nn
from tlazy.failure import UNCHANGED, UNDONE


class Projects(torch.nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width, 2))

    def forward(self, x):
        return x @ self.weight


class _Shapes:
    def initialize_parameters(self, x):
        self.weight.materialize((x.shape[-1], 2))
        torch.nn.init.ones_(self.weight)


class LazyProjects(_Shapes, nn.LazyModuleMixin, Projects):
    cls_to_become = Projects

    def __init__(self):
        super().__init__()
        self.add_placeholders(False, None, None)


class TorchsLazyProjects(_Shapes, torch.nn.modules.lazy.LazyModuleMixin, Projects):
    cls_to_become = Projects

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.UninitializedParameter()


class Kind:
    """A lazy layer, its eager form of torch's, a right shape, and what torch refuses."""

    def __init__(self, lazy, eager, right, rank=None, refused=("integers", "half", "rank")):
        self.lazy, self.eager = lazy, eager
        self.right, self.rank, self.refused = right, rank, refused


KINDS = {
    "LazyLinear": Kind(
        lambda: nn.LazyLinear(4),
        lambda: torch.nn.Linear(3, 4),
        (5, 3),
        (),
        ("integers", "half", "device", "rank"),
    ),
    "LazyConv1d": Kind(
        lambda: nn.LazyConv1d(4, 3), lambda: torch.nn.Conv1d(3, 4, 3), (2, 3, 9), (2, 3, 9, 1)
    ),
    "LazyConvTranspose1d": Kind(
        lambda: nn.LazyConvTranspose1d(4, 3),
        lambda: torch.nn.ConvTranspose1d(3, 4, 3),
        (2, 3, 9),
        (3,),
    ),
    "LazyBatchNorm1d": Kind(
        torch.nn.LazyBatchNorm1d,
        lambda: torch.nn.BatchNorm1d(3),
        (2, 3, 9),
        (3,),
        ("integers", "device", "rank"),
    ),
    "LazyProjects": Kind(LazyProjects, Projects, (5, 3), None, ("integers", "half")),
    "TorchsLazyProjects": Kind(TorchsLazyProjects, Projects, (5, 3), None, ("integers", "half")),
}
TORCHS = ("LazyBatchNorm1d", "TorchsLazyProjects")  # in a tree of torch's they are its own affair

# a tree with the layer in it, the layer's path
TREES = {
    "tlazy": (lambda layer: nn.Sequential(torch.nn.Identity(), layer), "1"),
    "nested": (lambda layer: nn.Sequential(nn.Sequential(torch.nn.Identity(), layer)), "0.1"),
    "in torch's": (lambda layer: torch.nn.Sequential(torch.nn.Identity(), layer), "1"),
    "in torch's, nested": (
        lambda layer: torch.nn.Sequential(torch.nn.Sequential(nn.Sequential(layer))),
        "0.0.0",
    ),
}

CONVERT = "convert the input by x.to(torch.float32)"
WRONG = {
    "integers": (torch.int64, "cpu", CONVERT),
    "half": (torch.float16, "cpu", f"{CONVERT}, or the model by model.to(torch.float16)"),
    "device": (
        torch.float32,
        "meta",
        "move the input by x.to('cpu'), or the model by model.to('meta')",
    ),
    "rank": (torch.float32, "cpu", "call again with an input that fits"),
}


@pytest.mark.parametrize(
    ("name", "tree", "wrong"),
    [
        (name, tree, wrong)
        for name, kind in KINDS.items()
        for tree in TREES
        for wrong in kind.refused
        if name not in TORCHS or tree != "in torch's"
    ],
)
def test_a_first_call_refuses_what_torch_refuses_and_says_all(name, tree, wrong):
    kind, (make, path), (dtype, device, way_out) = KINDS[name], TREES[tree], WRONG[wrong]
    shape = kind.rank if wrong == "rank" else kind.right
    x = torch.ones(shape, dtype=dtype, device=device)
    with pytest.raises((RuntimeError, ValueError)) as torchs:
        kind.eager()(x)
    net = make(kind.lazy())
    with refused(net, torchs.type) as caught:
        net(x)
    assert caught.type is torchs.type
    _, place, rest = str(caught.value).rsplit("\n", 2)
    given = f"{str(dtype).removeprefix('torch.')} {shape} on {device}"
    assert place == f"  in {path} ({name}), called with {given}; its parameters are float32 on cpu"
    assert rest in (f"  {UNCHANGED}: {way_out}", f"  {UNDONE}: {way_out}")
    assert net(torch.ones(kind.right)).shape[0] == kind.right[0]


def test_the_innermost_call_that_failed_is_named_though_its_forward_makes_modules():
    class Makes(torch.nn.Module):
        def forward(self, x):
            return torch.nn.Linear(7, 2)(x)

    net = nn.Sequential(nn.LazyLinear(4), Makes())
    with refused(net, RuntimeError, match=r"\n  in 1 \(Makes\), called with float32 \(5, 4\)"):
        net(torch.ones(5, 3))


class Raises(torch.nn.Module):
    def __init__(self, error, fake):
        super().__init__()
        self.error, self.fake = error, fake

    def forward(self, x):
        if self.fake or not isinstance(x, torch._subclasses.FakeTensor):
            raise copy.copy(self.error)
        return x


@pytest.mark.parametrize("fake", [True, False])
@pytest.mark.parametrize("error", [KeyError("key"), OSError(2, "nothing"), ArithmeticError()])
def test_an_exception_with_arguments_of_its_own_keeps_them(error, fake):
    net = nn.Sequential(nn.LazyLinear(4), Raises(error, fake))
    with refused(net, type(error)) as caught:
        net(torch.ones(5, 3))
    assert caught.value.args == error.args
    notes = getattr(caught.value, "__notes__", None)
    if notes is not None:  # Python 3.10 has none
        assert len(notes) == 1
        assert notes[0].startswith("  in 1 (Raises), called with float32 (5, 4) on cpu\n")
        assert (UNCHANGED if fake else UNDONE) in notes[0]


def test_a_first_call_inside_of_a_first_call_says_it_once():
    class Skips(nn.Module):
        """Calls a part that its trace does not reach."""

        def __init__(self):
            super().__init__()
            self.first, self.late = nn.LazyLinear(3), nn.Sequential(nn.LazyLinear(4))

        def forward(self, x):
            x = self.first(x)
            return x if isinstance(x, torch._subclasses.FakeTensor) else self.late(x.long())

    net = Skips()
    with refused(net, RuntimeError) as caught:
        net(torch.ones(5, 3))
    assert [str(caught.value).count(said) for said in (UNCHANGED, UNDONE)] in ([1, 0], [0, 1])
    assert "in late.0 (LazyLinear), called with int64 (5, 3)" in str(caught.value)


def test_nothing_is_promised_of_what_another_thread_relies_on():
    inside, done = threading.Event(), threading.Event()

    class Waits(torch.nn.Module):
        def forward(self, x):
            first = threading.current_thread() is not threading.main_thread()
            if first and not isinstance(x, torch._subclasses.FakeTensor):
                inside.set()
                done.wait(60)
                raise RuntimeError("here")
            return x

    net, failed = nn.Sequential(nn.LazyLinear(4), Waits()), []

    def other():
        try:
            net(torch.ones(5, 3))
        except RuntimeError as error:
            failed.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(60)
    net(torch.ones(5, 3))
    done.set()
    thread.join()
    assert failed == ["here"]
