"""A record is whole after every row, and two of them can be compared."""

import json
import time
from types import SimpleNamespace

import pytest

import tlazy.nn.functional
from tests.tlazy.benchmarks import CPU, SteadyTimer, measured, small_linear, wrong_by_a_percent
from tlazy import report
from tlazy.bench import measuring
from tlazy.bench.machine import Ceilings
from tlazy.bench.measuring import Settings, measure
from tlazy.bench.record import Record, common, compare, load
from tlazy.bench.timing import HostTimer
from tlazy.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_record_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "record.json"
    first = measured(small_linear(passes=("forward",)), path)
    again = Record.reopen(path)
    seen = []
    settings = Settings(
        CPU,
        peers=("tlazy", "eager"),
        timer=SteadyTimer(),
        notify=lambda p, which: seen.append(which),
    )
    assert measure([small_linear()], again, settings)
    assert seen == ["full"]
    assert again.rows[:2] == first.rows


def test_the_file_is_whole_after_every_row(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    contents = []

    class Stopping(SteadyTimer):
        def prepare(self, calls):
            contents.append(report.load(path))
            if len(contents) == 3:
                raise KeyboardInterrupt
            return super().prepare(calls)

    with pytest.raises(KeyboardInterrupt):
        measured(small_linear(), path, timer=Stopping())
    content = load(path)
    assert not content["complete"]
    assert states(path) == ("ok", "ok", measuring.UNFINISHED, measuring.UNFINISHED)
    assert [row["status"] for row in content["rows"]] == ["ok"] * 2 + ["not measured"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_the_file_says_who_runs_until_each_has_a_time_with_few_writes(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    seen, writes = [], counted_writes(monkeypatch)

    class Looking(SteadyTimer):
        def prepare(self, calls):
            sample, note = super().prepare(calls)
            return lambda seconds: (seen.append(states(path)), sample(seconds))[1], note

    record = measured(small_linear(passes=("forward",)), path, Looking(), rounds=3)
    tried, waiting, timed = measuring.TRIED, measuring.UNFINISHED, "ok"
    assert seen == [(tried, waiting), (timed, tried), *[(timed, timed)] * 4]
    assert len(writes) == 1 + 2 * 2 + 2
    assert load(path) == record.content


def counted_writes(monkeypatch):
    """A list that grows with each write of a record."""
    writes, write = [], Record.write
    monkeypatch.setattr(Record, "write", lambda record: (writes.append(1), write(record)))
    return writes


def states(path):
    rows = load(path)["rows"]
    return tuple(row["status"] if row["status"] == "ok" else row["note"] for row in rows)


def test_a_row_that_is_refused_does_not_stay_tried(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    writes = counted_writes(monkeypatch)
    monkeypatch.setattr(tlazy.nn.functional, "linear", wrong_by_a_percent)
    measured(small_linear(passes=("forward",)), path, peers=("eager", "tlazy"), rounds=1)
    assert [row["status"] for row in load(path)["rows"]] == ["ok", "wrong"]
    assert len(writes) == 1 + 2 + 1 + 1  # all are tried, each is, one is timed, the end


def test_what_is_interrupted_leaves_what_is_known(tmp_path):
    path = tmp_path / "record.json"

    class Stopping(SteadyTimer):
        def prepare(self, calls):
            sample, note = super().prepare(calls)
            turns = iter([sample, sample])  # the third raises

            def take(seconds):
                for turn in turns:
                    return turn(seconds)
                raise KeyboardInterrupt

            return take, note

    with pytest.raises(KeyboardInterrupt):
        measured(small_linear(passes=("forward",)), path, Stopping(), rounds=3)
    assert [row["samples"] for row in load(path)["rows"]] == [50, 50]


def test_a_record_has_a_line_for_each_row_and_a_head_to_be_read(tmp_path):
    path = tmp_path / "record.json"
    record = measured(small_linear(), path)
    record.content["noted"] = {"by": "hand"}
    record.finish()
    assert load(path) == record.content
    lines = path.read_text().splitlines()
    assert [json.loads(line.strip().rstrip(",")) for line in lines[-6:-2]] == record.rows
    assert ' "complete": true,' in lines
    assert '  "by": "hand"' in lines


def test_a_record_without_rows_is_valid(tmp_path):
    path = tmp_path / "record.json"
    Record("tlazy bench", CPU, Ceilings(), path).write()
    assert load(path)["rows"] == []


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
    flagged = {row["peer"]: row for row in compare(before.content, after.content)}
    assert "times as long" in flagged["tlazy"]["why"]
    assert flagged["tlazy"]["was_us"] == before.rows[0]["median_us"]
    assert compare(after.content, after.content) == []


@pytest.mark.parametrize(
    ("factor", "is_flagged"), [(1.5, True), (1.1, True), (1.03, False), (0.5, False)]
)
def test_only_what_is_slower_beyond_spread_and_five_percent_is_flagged(factor, is_flagged):
    old = measured(small_linear(), timer=SteadyTimer(100))
    new = measured(small_linear(), timer=SteadyTimer(100 * factor))
    assert bool(compare(old.content, new.content)) == is_flagged


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
    monkeypatch.setattr(measuring, "time", clock)
    late = Record("tlazy bench", CPU, Ceilings())
    settings = Settings(CPU, peers=("tlazy", "eager"), timer=Late(clock), deadline=1.0)
    assert not measure([problem], late, settings)
    assert [(row["status"], row["note"]) for row in late.rows] == [
        ("ok", ""),
        ("not measured", "the run ended first"),
    ]
    assert compare(old.content, late.content) == []
    assert len(common(old.content, late.rows)) == 1


def test_what_was_right_and_is_wrong_now_is_flagged(monkeypatch):
    old = measured(small_linear(passes=("forward",)))
    monkeypatch.setattr(tlazy.nn.functional, "linear", wrong_by_a_percent)
    new = measured(small_linear(passes=("forward",)))
    (flagged,) = compare(old.content, new.content)
    assert flagged["why"].startswith("was ok, is wrong: relative error")


def test_records_of_different_devices_are_not_compared():
    old, new = (measured(small_linear(passes=("forward",))) for _ in range(2))
    new.content["machine"]["device"] = "NVIDIA H200"
    with pytest.raises(UserError, match=r"records of different devices: .* and NVIDIA H200"):
        compare(old.content, new.content)
