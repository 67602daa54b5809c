"""What computes wrong values gets no time."""

import pytest
import torch

import tlazy.nn.functional
from tests.tlazy.benchmarks import (
    OPERATIONS,
    draw,
    identity,
    measured,
    small_linear,
    wrong_by_a_percent,
)
from tlazy import report
from tlazy.bench import correctness
from tlazy.bench.operations import Conv1d, Linear
from tlazy.bench.suites import Problem

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
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 0.99

    stock = torch.nn.functional.linear
    kernel = lambda x, w, b, activation: Halved.apply(torch.relu(stock(x, w, b)))  # noqa: E731
    monkeypatch.setattr(tlazy.nn.functional, "linear", kernel)
    record = measured(small_linear(passes=("forward", "full")))
    found = {(row["pass"], row["status"]) for row in record.rows if row["peer"] == "tlazy"}
    assert found == {("forward", "ok"), ("full", "wrong")}


def test_outputs_left_unwritten_are_not_mistaken_for_right_ones():
    wanted = [torch.randn(500, 500, dtype=torch.float64)]
    right = wanted[0].float()
    del right
    correctness.poison(wanted, torch.float32)
    assert not correctness.error([torch.empty(500, 500)], wanted) <= 1e-4


@pytest.mark.parametrize("operation", OPERATIONS[:6], ids=identity)
def test_float64_by_parts_is_float64_at_once(operation, monkeypatch):
    tensors = [t.requires_grad_() for t in operation.tensors(draw())]
    gradient = operation.output_gradient(draw(), operation.stock(*tensors))
    whole = correctness.expected(operation, tensors, gradient, "full")
    monkeypatch.setattr(correctness, "PART_BYTES", 200)
    parts = correctness.expected(operation, tensors, gradient, "full")
    assert correctness.error(parts, whole) < 1e-14
    parts[-1][-1] *= 1.5
    assert correctness.error(parts, whole) > 1e-3


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
