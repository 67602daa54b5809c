"""A record is whole after every row, and goes on where it stopped."""

import json

import pytest

import tlazy.nn.functional
from tests.tlazy.benchmarks import CPU, SteadyTimer, measured, small_linear, wrong_by_a_percent
from tlazy import report
from tlazy.bench import rows
from tlazy.bench.machine import Ceilings
from tlazy.bench.measuring import measure
from tlazy.bench.record import Record
from tlazy.bench.settings import Settings
from tlazy.report import load

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
        notify=lambda problem, which, peer: seen.append((which, peer)),
    )
    assert measure([small_linear()], again, settings)
    assert seen == [("full", None), ("full", "tlazy"), ("full", "eager")]
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
    assert states(path) == ("ok", "ok", rows.UNFINISHED, rows.UNFINISHED)
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
    tried, waiting, timed = rows.TRIED, rows.UNFINISHED, "ok"
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
