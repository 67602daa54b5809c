"""Two records of the same things: what became worse, and what says nothing."""

import re
import time
from types import SimpleNamespace

import pytest

import tlazy.nn.functional
from tests.tlazy.benchmarks import CPU, SteadyTimer, measured, small_linear, wrong_by_a_percent
from tlazy.bench import group, measuring
from tlazy.bench.machine import Ceilings
from tlazy.bench.measuring import measure
from tlazy.bench.record import Record
from tlazy.bench.settings import Settings
from tlazy.bench.timing import HostTimer
from tlazy.errors import UserError
from tlazy.report.earlier import changes

pytestmark = pytest.mark.usefixtures("one_thread")


def worse_than(old, new):
    return changes(old.content, new.content, "old.json").worse


def test_a_deliberately_slowed_kernel_is_flagged(monkeypatch):
    problem = small_linear(passes=("forward",))
    timer = HostTimer()
    before = measured(problem, timer=timer, seconds=0.05)
    fast = tlazy.nn.functional.linear

    def slowed(*tensors, **options):
        time.sleep(0.02)
        return fast(*tensors, **options)

    monkeypatch.setattr(tlazy.nn.functional, "linear", slowed)
    after = measured(problem, timer=timer, seconds=0.05)
    flagged = {worse.row["peer"]: worse for worse in worse_than(before, after)}
    assert re.match(r"small, forward, tlazy: [\d.]+ times as long$", str(flagged["tlazy"]))
    assert worse_than(after, after) == []


@pytest.mark.parametrize(
    ("factor", "is_flagged"), [(1.5, True), (1.1, True), (1.03, False), (0.5, False)]
)
def test_only_what_is_slower_beyond_spread_and_five_percent_is_flagged(factor, is_flagged):
    old = measured(small_linear(), timer=SteadyTimer(100))
    new = measured(small_linear(), timer=SteadyTimer(100 * factor))
    assert bool(worse_than(old, new)) == is_flagged


class Late(SteadyTimer):
    """The deadline comes while the first peer is being prepared."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def prepare(self, calls):
        self.clock.now = 2.0
        return super().prepare(calls)


def test_what_the_deadline_came_before_is_not_measured_and_no_worse_than_before(monkeypatch):
    problem = small_linear(passes=("forward",))
    old = measured(problem)
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    for module in (measuring, group):
        monkeypatch.setattr(module, "time", clock)
    late = Record("tlazy bench", CPU, Ceilings())
    settings = Settings(CPU, peers=("tlazy", "eager"), timer=Late(clock), deadline=1.0)
    assert not measure([problem], late, settings)
    assert [(row["status"], row["note"]) for row in late.rows] == [
        ("ok", ""),
        ("not measured", "the run ended first"),
    ]
    found = changes(old.content, late.content, "old.json")
    assert found.summary == "0 of 1 measurements that old.json has too are worse"


def test_what_was_right_and_is_wrong_now_is_flagged(monkeypatch):
    old = measured(small_linear(passes=("forward",)))
    monkeypatch.setattr(tlazy.nn.functional, "linear", wrong_by_a_percent)
    new = measured(small_linear(passes=("forward",)))
    (flagged,) = worse_than(old, new)
    assert flagged.why.startswith("was ok, is wrong: relative error")


def test_records_of_different_devices_are_not_compared():
    old, new = (measured(small_linear(passes=("forward",))) for _ in range(2))
    new.content["machine"]["device"] = "NVIDIA H200"
    with pytest.raises(UserError, match=r"records of different devices: .* and NVIDIA H200"):
        worse_than(old, new)
