"""Forwards that shapes do not lead through are run once for real, as a copy."""

import pytest
import torch

import tlazy
from tests.tlazy.lazy_models import hooks_of
from tests.tlazy.snapshot import refused
from tlazy import nn


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
