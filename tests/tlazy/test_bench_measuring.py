"""Peers side by side, on the same inputs, in turns."""

import itertools
import time

import pytest
import torch

import tlazy.nn.functional
from tests.tlazy.benchmarks import (
    CPU,
    SteadyTimer,
    measured,
    rows_by_peer,
    small_linear,
    wrong_by_a_percent,
)
from tlazy import report
from tlazy.bench import correctness, inputs, peers
from tlazy.bench.machine import Ceilings
from tlazy.bench.measuring import measure
from tlazy.bench.networks import Network
from tlazy.bench.operations import Conv1d, Unsupported, depthwise
from tlazy.bench.problems import Problem
from tlazy.bench.record import Record
from tlazy.bench.settings import Settings
from tlazy.bench.timing import FirstCallTimer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("which", ["forward", "backward", "full"])
def test_a_row_has_all_that_a_report_needs(which, tmp_path):
    path = tmp_path / "record.json"
    record = measured(small_linear(passes=(which,)), path)
    record.finish()
    content = report.load(path)
    assert content == record.content
    for row in content["rows"]:
        assert row["status"] == "ok"
        assert row["backend"] == "aten"
        assert row["pass"] == which
        assert 0 < row["error"] < 1e-5
        assert row["median_us"] == pytest.approx(100, rel=0.01)
        assert row["tflops"] == pytest.approx(row["flops"] / row["median_us"] / 1e6)
        assert row["floor_fraction"] == pytest.approx(row["floor_us"] / row["median_us"])
    assert [row["peer"] for row in content["rows"]] == ["tlazy", "eager"]


def test_a_kernel_that_raises_is_failed_with_its_reason(monkeypatch):
    def broken(*tensors, **options):
        raise RuntimeError("out of\n registers")

    monkeypatch.setattr(tlazy.nn.functional, "linear", broken)
    tlazy_row, eager = measured(small_linear(passes=("forward",))).rows
    assert (tlazy_row["status"], tlazy_row["note"]) == ("failed", "out of registers")
    assert eager["status"] == "ok"


def test_what_a_peer_cannot_do_is_unsupported_with_its_reason():
    names = ("eager", "eager-channels-last", "causal-conv1d", "fla", "cudnn-benchmark")
    rows = rows_by_peer(measured(small_linear(passes=("forward",)), peers=names))
    assert rows["eager-channels-last"]["note"] == "channels last is a memory layout of convolutions"
    for name in names[1:]:
        assert rows[name]["status"] == "unsupported"
        assert rows[name]["note"]


def test_a_peer_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "causal_conv1d", None)
    with pytest.raises(Unsupported, match="cannot import causal_conv1d"):
        peers.PEERS["causal-conv1d"](depthwise(2, 8, 50, 4), torch.empty(0))


@pytest.mark.parametrize("name", ["mlp", "fcn"])
def test_a_network_is_measured_forward_and_backward(name):
    problem = Problem("shape", name, Network(name, 4, 1, 16), torch.float32, ("forward", "full"))
    for row in measured(problem).rows:
        assert row["status"] == "ok", row["note"]


def test_peers_take_turns_on_the_same_inputs():
    order = []

    class Watching(SteadyTimer):
        def prepare(self, calls):
            sample, note = super().prepare(calls)
            number = next(counter)
            return lambda seconds: (order.append(number), sample(seconds))[1], note

    counter = itertools.count()
    measured(small_linear(passes=("forward",)), timer=Watching(), rounds=3)
    assert order == [0, 1, 1, 0, 0, 1]


def test_a_clock_that_stands_still_gives_no_time():
    for row in measured(small_linear(), timer=SteadyTimer(0.0)).rows:
        assert (row["status"], row["median_us"]) == ("failed", None)
        assert row["note"] == "the clock gave 0.0 seconds for a call"


class Drifting:
    """Says that all calls take longer each time that somebody comes to measure them."""

    def __init__(self, levels):
        self.levels = iter(levels)

    def prepare(self, calls):
        calls[0]()
        level = next(self.levels) * 1e-6
        return lambda seconds: [level] * 10, ""


def test_a_second_visit_comes_after_all_other_problems_and_widens_the_spread():
    seen = []
    problem = small_linear(passes=("forward", "full"))
    record = measured(
        problem,
        timer=Drifting([100, 100, 100, 100, 130, 130, 100, 100]),
        visits=2,
        notify=lambda problem, which, peer: seen.append((which, peer)),
    )
    steps = (None, "tlazy", "eager")
    assert seen == [(which, peer) for which in ("forward", "full") for peer in steps] * 2
    for row in record.rows:
        assert row["samples"] == 40
        assert (row["q20_us"], row["q80_us"]) == pytest.approx(
            (100, 130) if row["pass"] == "forward" else (100, 100)
        )


def test_visits_share_the_samples_of_one(monkeypatch):
    asked = []

    class Noting(SteadyTimer):
        def prepare(self, calls):
            sample, note = super().prepare(calls)
            return lambda seconds: (asked.append(seconds), sample(seconds))[1], note

    for visits in (1, 2):
        measured(small_linear(passes=("forward",)), timer=Noting(), visits=visits, seconds=0.2)
        assert sum(asked) == pytest.approx(2 * 0.2)
        asked.clear()


def test_what_is_wrong_at_the_second_visit_loses_its_time(monkeypatch):
    def again(problem, which, peer):
        if len(seen) == 3:
            monkeypatch.setattr(tlazy.nn.functional, "linear", wrong_by_a_percent)
        seen.append(peer)

    seen = []
    record = measured(small_linear(passes=("forward",)), visits=2, notify=again)
    ours, eager = record.rows
    assert (ours["status"], ours["median_us"], ours["samples"]) == ("wrong", None, 0)
    assert eager["status"] == "ok"


def test_inputs_or_a_reference_that_fail_at_the_second_visit_leave_what_was_measured(monkeypatch):
    def again(problem, which, peer):
        if len(seen) == 3:
            monkeypatch.setattr(correctness, "expected", failing)
        seen.append(peer)

    def failing(*_):
        raise torch.OutOfMemoryError("somebody else's memory")

    seen = []
    once = measured(small_linear(passes=("forward",)))
    twice = measured(small_linear(passes=("forward",)), visits=2, notify=again)
    assert seen == [None, "tlazy", "eager", None]
    for row, first in zip(twice.rows, once.rows, strict=True):
        assert (row["status"], row["samples"]) == ("ok", first["samples"] / 2)


def new_lengths():
    conv = Conv1d(2, 4, 50, 4, 3, padding=1)
    return Problem("shape", "lengths", conv, torch.float32, ("forward",), timed="new length")


def test_what_is_wrong_at_a_new_length_alone_gets_no_time(monkeypatch):
    right = tlazy.nn.functional.conv1d
    factor = lambda x: 1 if x.shape[-1] == 50 else 7  # noqa: E731
    wrong = lambda x, *rest, **options: factor(x) * right(x, *rest, **options)  # noqa: E731
    monkeypatch.setattr(tlazy.nn.functional, "conv1d", wrong)
    rows = rows_by_peer(measured(new_lengths(), timer=FirstCallTimer()))
    assert (rows["tlazy"]["status"], rows["tlazy"]["median_us"]) == ("wrong", None)
    assert rows["eager"]["status"] == "ok"


def test_lengths_are_new_to_a_second_run_too(monkeypatch):
    right, seen = tlazy.nn.functional.conv1d, []

    def noting(x, *rest, **options):
        seen.append(x.shape[-1])
        return right(x, *rest, **options)

    monkeypatch.setattr(tlazy.nn.functional, "conv1d", noting)
    met = []
    for _ in range(2):
        (row,) = measured(new_lengths(), timer=FirstCallTimer(), peers=("tlazy",)).rows
        assert row["samples"] == inputs.NEW_LENGTHS
        met.append(set(seen) - {50})
        seen.clear()
    assert len(met[0]) == len(met[1]) == inputs.NEW_LENGTHS
    assert len(met[0] & met[1]) <= 2


def test_nothing_starts_after_the_deadline():
    record = Record("tlazy bench", CPU, Ceilings())
    settings = Settings(CPU, deadline=time.monotonic() - 1, timer=SteadyTimer())
    assert not measure([small_linear()], record, settings)
    assert record.rows == []
