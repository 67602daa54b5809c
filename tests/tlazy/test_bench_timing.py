"""Clocks, spreads, and the ceilings that times are held against."""

import pytest
import torch

from tests.tlazy.benchmarks import CPU, SteadyTimer, draw
from tlazy.bench import inputs, machine
from tlazy.bench.machine import Ceilings, measure_ceilings
from tlazy.bench.operations import Conv1d, Linear
from tlazy.bench.timing import HostTimer, summarize
from tlazy_kernels.roofline import Cost

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_host_timer_takes_turns_with_the_inputs_and_divides_by_the_calls():
    now, calls = [0.0], []

    def call(i):
        calls.append(i)
        now[0] += 30e-6

    sample, _ = HostTimer(lambda: now[0]).prepare([lambda i=i: call(i) for i in range(3)])
    samples = sample(0.01)
    assert samples == pytest.approx([30e-6] * len(samples))
    assert calls == [i % 3 for i in range(len(calls))]
    assert len(samples) > 20


def test_the_spread_holds_three_fifths_of_the_samples():
    timing = summarize([float(i) for i in range(101)])
    assert (timing.median, timing.q20, timing.q80, timing.samples) == (50.0, 20.0, 80.0, 101)


@pytest.mark.parametrize("which", ["forward", "backward", "full"])
def test_what_a_pass_reads_of_all_input_sets_is_four_times_the_last_level_cache(which, monkeypatch):
    monkeypatch.setattr(machine, "last_level_cache", lambda device: 10_000)
    operation = Linear(16, 16, 16)
    sets = inputs.input_sets(operation, draw(torch.float32), which, gradients=True)
    read = [t for tensors, _ in sets for t in tensors]
    read += [gradient for _, gradient in sets if which != "forward"]
    one = sum(t.nbytes for t in read) / len(sets)
    assert 4 * 10_000 <= len(sets) * one < 4 * 10_000 + one
    assert len({t.data_ptr() for t in read}) == len(read)


@pytest.mark.parametrize("layout", ["ncl", "nlc"])
@pytest.mark.parametrize("which", ["forward", "full"])
def test_all_input_sets_are_alike_in_all_but_their_place(layout, which, monkeypatch):
    monkeypatch.setattr(machine, "last_level_cache", lambda device: 10_000)
    conv = Conv1d(2, 8, 50, 4, 3, layout=layout)
    first, *others = inputs.input_sets(conv, draw(), which, gradients=which != "forward")
    assert others
    for other in others:
        for one, copy in zip([*first[0], first[1]], [*other[0], other[1]], strict=True):
            torch.testing.assert_close(copy, one, rtol=0, atol=0, check_stride=True)
            assert copy.requires_grad == one.requires_grad
            assert copy.is_leaf


def test_outputs_much_larger_than_inputs_bound_the_number_of_sets(monkeypatch):
    monkeypatch.setattr(machine, "last_level_cache", lambda device: 10_000)
    operation = Conv1d(1, 1, 100, 100, 1)
    sets = inputs.input_sets(operation, draw(torch.float32), "forward")
    output = 4 * 100 * 100
    assert 320_000 / output - 1 < len(sets) <= 320_000 / output


def test_a_forward_pass_has_no_gradient_that_takes_memory():
    (_, gradient), *_ = inputs.input_sets(Linear(64, 64, 64), draw(torch.float32), "forward")
    assert gradient.shape == (64, 64)
    assert gradient.untyped_storage().nbytes() == 4


def test_the_floor_comes_from_what_was_measured_else_from_the_datasheet():
    cost = Cost(flops=10**12, bytes=10**9)
    assert Ceilings(1e12, {"bfloat16": 1e14}).floor(cost, "bfloat16", "NVIDIA H200") == 1e-2
    datasheet = Ceilings().floor(cost, "bfloat16", "NVIDIA H200")
    assert datasheet == pytest.approx(1e12 / 989e12)
    assert Ceilings().floor(cost, "bfloat16", "a CPU") is None


def test_float32_accuracy_by_three_tf32_products_bounds_float32():
    ceilings = Ceilings(1e15, {"float32": 5e13, "tf32": 4.5e14})
    assert ceilings.floor(Cost(15 * 10**13, 1), "float32", "") == pytest.approx(1.0)


def test_ceilings_are_measured_in_every_precision_asked_for():
    ceilings = measure_ceilings(CPU, ["float32", "bfloat16"], SteadyTimer(1000))
    assert ceilings.bandwidth == pytest.approx(2 * 2**27 / 1e-3, rel=0.02)
    assert set(ceilings.matmul) == {"float32", "bfloat16"}
    assert all(
        rate == pytest.approx(2 * 1024**3 / 1e-3, rel=0.02) for rate in ceilings.matmul.values()
    )
