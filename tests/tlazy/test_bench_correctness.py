"""What computes wrong values gets no time."""

import math

import pytest
import torch

import tlazy.nn.functional
from tests.tlazy.benchmarks import (
    CPU,
    OPERATIONS,
    draw,
    identity,
    measured,
    small_linear,
    wrong_by_a_percent,
)
from tlazy import report
from tlazy.bench import correctness
from tlazy.bench.inputs import input_set
from tlazy.bench.networks import Network
from tlazy.bench.operations import Conv1d, Draw, Linear
from tlazy.bench.problems import Problem
from tlazy.models import MODELS

pytestmark = pytest.mark.usefixtures("one_thread")


def with_a_nan(x, weight, bias=None, **options):
    y = torch.relu(torch.nn.functional.linear(x, weight, bias))
    return y + torch.where(torch.arange(y.shape[1]) == 5, float("nan"), 0.0)


def of_another_shape(x, weight, bias=None, **options):
    return torch.relu(torch.nn.functional.linear(x, weight, bias))[1:]


@pytest.mark.parametrize("kernel", [wrong_by_a_percent, with_a_nan, of_another_shape])
def test_a_wrong_kernel_gets_no_time(kernel, monkeypatch):
    monkeypatch.setattr(tlazy.nn.functional, "linear", kernel)
    record = measured(small_linear(passes=("forward",)))
    wrong, right = record.rows
    assert (wrong["peer"], wrong["status"], wrong["median_us"]) == ("tlazy", "wrong", None)
    assert "relative error" in wrong["note"]
    assert right["status"] == "ok"
    report.check(record.content)


def test_a_kernel_with_a_wrong_gradient_gets_no_time(monkeypatch):
    stock = torch.nn.functional.linear
    kernel = lambda x, w, b, activation: Scaled.apply(torch.relu(stock(x, w, b)), 0.99)  # noqa: E731
    monkeypatch.setattr(tlazy.nn.functional, "linear", kernel)
    record = measured(small_linear(passes=("forward", "full")))
    found = {(row["pass"], row["status"]) for row in record.rows if row["peer"] == "tlazy"}
    assert found == {("forward", "ok"), ("full", "wrong")}


NETWORKS = [(name, which) for name in MODELS for which in ("forward", "full")]
BATCH_NORMED = [(name, which) for name, which in NETWORKS if name in ("fcn", "resnet")]


def status_of(name, which):
    """What becomes of tlazy's network."""
    problem = Problem("shape", name, Network(name, 4, 1, 16), torch.float32, (which,))
    (row,) = measured(problem, peers=("tlazy",)).rows
    return row["status"], row["note"]


@pytest.mark.parametrize(("name", "which"), NETWORKS)
def test_a_right_network_gets_a_time(name, which):
    assert status_of(name, which) == ("ok", "")


@pytest.mark.parametrize(("name", "which"), BATCH_NORMED)
def test_a_network_whose_output_is_wrong_gets_no_time(name, which, monkeypatch):
    right = Network.fused
    monkeypatch.setattr(Network, "fused", lambda self, *t: 1.5 * right(self, *t) + 1)
    assert status_of(name, which)[0] == "wrong"


@pytest.mark.parametrize("name", ["fcn", "resnet"])
@pytest.mark.parametrize("parameter", ["weight", "bias of a batch norm"])
def test_a_network_with_one_wrong_gradient_gets_no_time(name, parameter, monkeypatch):
    right = Network.fused
    names = list(Network(name, 4, 1, 16).net.state_dict())
    weight = next(i for i, n in enumerate(names, 1) if n.endswith("weight"))
    # After it come its bias, whose gradient is zero, and its norm's weight and bias.
    place = weight if parameter == "weight" else weight + 3

    def one_wrong(self, *tensors):
        wrong = Scaled.apply(tensors[place], 1.05)
        return right(self, *tensors[:place], wrong, *tensors[place + 1 :])

    monkeypatch.setattr(Network, "fused", one_wrong)
    assert status_of(name, "full")[0] == "wrong"


class Scaled(torch.autograd.Function):
    """The identity, with a gradient that is wrong by a factor."""

    @staticmethod
    def forward(ctx, y, factor):
        ctx.factor = factor
        return y.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def test_a_relu_that_rounding_switches_makes_no_network_wrong():
    network = Network("fcn", 8, 1, 64)
    one = input_set(
        network, Draw(CPU, torch.float32, torch.Generator().manual_seed(1)), "full", gradients=True
    )
    wanted = correctness.expected(network, *one, "full")
    limits = correctness.limits(network, one, "full", wanted, "float32")
    with torch.backends.mkldnn.flags(enabled=False):  # it rounds elsewhere
        found = correctness.outputs(network.stock, *one, "full")
    errors = correctness.errors(found, wanted)
    assert all(error <= limit for error, limit in zip(errors, limits, strict=True))
    assert limits[0] < min(limits[1:])


def without_an_engine(monkeypatch, fails):
    """Have the stock convolution raise in float64 where `fails` says so of each try."""
    stock, tries = Conv1d.stock, []

    def picky(self, *tensors):
        if tensors[0].dtype == torch.float64:
            tries.append(torch.backends.cudnn.enabled)
            if fails():
                raise RuntimeError("GET was unable to find an engine to execute this computation")
        return stock(self, *tensors)

    monkeypatch.setattr(Conv1d, "stock", picky)
    conv = Conv1d(2, 6, 40, 4, 3)
    problem = Problem("shape", "conv", conv, torch.float32, ("full",), exact=True)
    return measured(problem).rows, tries


def test_a_reference_that_cudnn_cannot_compute_is_computed_without_it(monkeypatch):
    rows, tries = without_an_engine(monkeypatch, lambda: torch.backends.cudnn.enabled)
    assert tries == [True, False]
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert torch.backends.cudnn.enabled


def test_a_reference_that_fails_without_cudnn_too_fails_the_group_with_its_reason(monkeypatch):
    rows, tries = without_an_engine(monkeypatch, lambda: True)
    assert tries == [True, False]
    for row in rows:
        assert row["status"] == "failed"
        assert row["note"].startswith("GET was unable to find an engine")


def test_a_gradient_that_is_zero_is_held_against_the_others():
    wanted = [torch.ones(3), torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]), torch.zeros(4)]
    noise = [torch.zeros_like(y) for y in wanted[:-1]] + [torch.tensor([0.0, 1e-5, 0.0, 0.0])]
    found = [y + z for y, z in zip(wanted, noise, strict=True)]
    least = correctness.LEAST_PART * 5
    assert correctness.errors(found, wanted) == pytest.approx([0, 0, 0, 1e-5 / least])


def test_stock_layers_that_overflow_excuse_nothing(monkeypatch):
    network = Network("mlp", 4, 1, 16)
    one = input_set(network, draw(torch.float32), "forward")
    wanted = correctness.expected(network, *one, "forward")
    for value in (float("inf"), float("nan")):
        monkeypatch.setattr(Network, "stock", lambda self, *t, y=value: torch.full((4, 10), y))
        assert correctness.limits(network, one, "forward", wanted, "float32") == [1e-4]


@pytest.mark.parametrize(
    "errors", [[0.1, math.nan, 0.2], [math.nan, 1.0], [1.0, math.inf, math.nan]]
)
def test_no_error_is_larger_than_a_nan(errors):
    assert math.isnan(correctness.largest(errors))


def test_memory_is_poisoned_for_every_output_twice(monkeypatch):
    """A kernel that writes nothing would be given the outputs of the one that ran before it."""

    def noting(*arguments, **options):
        filled.append(full_like(*arguments, **options))
        return filled[-1]

    full_like, filled = torch.full_like, []
    monkeypatch.setattr(torch, "full_like", noting)
    wanted = [torch.zeros(shape, dtype=torch.float64) for shape in ((5, 4), (4,))]
    correctness.poison(wanted, torch.float32)
    assert [x.shape for x in filled] == [(5, 4)] * 2 + [(4,)] * 2
    assert all(x.dtype == torch.float32 and x.isnan().all() for x in filled)


def test_a_peer_is_checked_in_poisoned_memory(monkeypatch):
    def leaving(shapes, dtype):
        order.append("poisoned")

    def noting(*tensors, **options):
        order.append("called")
        return right(*tensors, **options)

    right, order = tlazy.nn.functional.linear, []
    monkeypatch.setattr(correctness, "poison", leaving)
    monkeypatch.setattr(tlazy.nn.functional, "linear", noting)
    measured(small_linear(passes=("forward",)), peers=("tlazy",))
    assert order[:2] == ["poisoned", "called"]


@pytest.mark.parametrize("operation", OPERATIONS[:6], ids=identity)
def test_float64_by_parts_is_float64_at_once(operation, monkeypatch):
    tensors = [t.requires_grad_() for t in operation.tensors(draw())]
    gradient = operation.output_gradient(draw())
    whole = correctness.expected(operation, tensors, gradient, "full")
    monkeypatch.setattr(correctness, "PART_BYTES", 200)
    parts = correctness.expected(operation, tensors, gradient, "full")
    assert max(correctness.errors(parts, whole)) < 1e-14
    parts[-1][-1] *= 1.5
    assert max(correctness.errors(parts, whole)) > 1e-3


def test_channels_last_of_eager_agrees_with_float64():
    conv = Conv1d(2, 6, 40, 4, 3, 2, 1, activation="gelu")
    problem = Problem("shape", "conv", conv, torch.float32, ("backward", "full"))
    for row in measured(problem, peers=("eager", "eager-channels-last")).rows:
        assert row["status"] == "ok", row["note"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_is_checked_by_its_own_tolerance(dtype):
    for row in measured(
        Problem("shape", "linear", Linear(33, 20, 70, activation="gelu"), dtype)
    ).rows:
        assert row["status"] == "ok", row["note"]
        assert row["error"] <= correctness.TOLERANCES[row["dtype"]]
