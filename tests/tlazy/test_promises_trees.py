"""Other people's lazy modules, and forwards that shapes do not lead through (rows 21 to 23)."""

import numpy
import pytest
import torch

import tlazy
from tests.tlazy.lazy_models import LazyScale, Scale, Watch, X, unlike_torch
from tests.tlazy.snapshot import refused
from tlazy import nn


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
