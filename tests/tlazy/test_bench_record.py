"""A record is whole after every row, and two of them can be compared."""

import time

import pytest

import tlazy.nn.functional
from tests.tlazy.benchmarks import CPU, SteadyTimer, measured, small_linear, wrong_by_a_percent
from tlazy import report
from tlazy.bench import measuring
from tlazy.bench.measuring import Settings, measure
from tlazy.bench.record import Record, compare, load
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
    assert [row["status"] for row in content["rows"]] == ["ok", "ok", "failed"]
    assert content["rows"][2]["note"] == measuring.TRIED
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_two_runs_on_a_quiet_machine_agree_within_the_spread():
    runs = [measured(small_linear(), timer=SteadyTimer(seed=seed)) for seed in (1, 2)]
    assert compare(runs[0].content, runs[1].content) == []
    assert compare(runs[1].content, runs[0].content) == []
    for old, new in zip(runs[0].rows, runs[1].rows, strict=True):
        assert old["q20_us"] <= new["median_us"] <= old["q80_us"]


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
