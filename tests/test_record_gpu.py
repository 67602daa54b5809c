"""What `python -m perf.record` and `tlazy bench --tune` do on a GPU, on a pretended one."""

import itertools
import json
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from perf import MAIN_SUITE, tasks, workers
from perf import record as recording
from tests.fake_gpu import NAME, OnCPU
from tests.tlazy.benchmarks import SteadyTimer
from tlazy import cli, report
from tlazy.bench import tuning
from tlazy.bench.machine import Ceilings
from tlazy.bench.operations import Linear
from tlazy.bench.problems import Problem
from tlazy.bench.rows import TRIED
from tlazy.bench.suites import SUITES
from tlazy_kernels import linear
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.environment import INTERPRETED

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs the launchers in the interpreter")

BEGIN, MINUTES = 1000.0, 10.0


@pytest.fixture
def tuned_gpu(gpu, monkeypatch):
    """The pretended GPU, whose kernels the interpreter runs; few tiles are tried."""
    monkeypatch.setattr(tuning, "timer_for", lambda device: SteadyTimer())
    monkeypatch.setattr(tuning, "SEEDS", (TileConfig(16, 16, 16),))
    monkeypatch.setattr(tuning, "neighbours", lambda config: iter(()))
    with OnCPU(gpu):
        yield gpu


# The steps of a recording


@pytest.fixture
def steps(gpu, monkeypatch):
    """What a recording does and until when, noted in the place of doing it."""
    steps = SimpleNamespace(order=[], until=[], tiles=None, measuring_ends_with=workers.DONE)

    def note(name, *deadlines):
        steps.order.append(name)
        steps.until += deadlines

    def in_worker(task, values, record, deadline):
        if task is tasks.begin:
            note("ceilings", deadline)
            return task(*values)
        if task is tasks.measure_suites:
            note(values[2], values[3], deadline)
            return steps.measuring_ends_with
        assert task is tasks.tune
        steps.tiles, until, done = values
        note("tiles", until, deadline)
        assert not done
        return workers.DONE

    def started(task, values):
        assert task is tasks.compile_kernels
        note("compiling", values[-1])
        return SimpleNamespace(kill=lambda: None, join=lambda timeout: None)

    def run_tests(files, deadline, tell, before):
        note("tests", deadline)
        return {"summary": "none ran"}

    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: BEGIN})
    monkeypatch.setattr(recording, "time", clock)
    monkeypatch.setattr(workers, "run", in_worker)
    monkeypatch.setattr(workers, "started", started)
    monkeypatch.setattr(recording.kernel_tests, "run", run_tests)
    monkeypatch.setattr(tasks.machine, "measure_ceilings", lambda *args: Ceilings(1e12, {}))
    monkeypatch.setattr(recording, "write_report", lambda path: note("report"))
    return steps


@pytest.mark.parametrize("ends_with", [workers.DONE, workers.OUT_OF_TIME])
def test_a_recording_takes_its_steps_in_order_and_within_its_budget(steps, tmp_path, ends_with):
    steps.measuring_ends_with = ends_with
    path = recording.record_all(MINUTES, tmp_path, "python -m perf.record")
    parts = {
        "ceilings": [0.25],
        "compiling": [0.25] * tasks.COMPILERS,
        "tests": [0.25],
        tuple(SUITES): [0.85] * 2,
        "tiles": [0.96] * 2,
        "report": [],
    }
    assert [name for name, _ in itertools.groupby(steps.order)] == list(parts)
    assert steps.order.count("compiling") == tasks.COMPILERS
    assert steps.until == [BEGIN + 60 * MINUTES * part for name in parts for part in parts[name]]
    assert all(BEGIN < until < BEGIN + 60 * MINUTES for until in steps.until)
    assert next(iter(SUITES)) == MAIN_SUITE
    assert steps.tiles == str(path.parent / "tiles.json")
    assert path.parent == tmp_path / "pretended-h200"
    content = report.load(path)
    assert content["machine"]["device"] == NAME
    assert content["complete"] == (ends_with == workers.DONE)


@pytest.fixture
def attempts(tmp_path, monkeypatch):
    """Pretends workers that tune: each leaves the outcomes that it is told, and ends as told."""
    table = tmp_path / "tiles.json"
    attempts = SimpleNamespace(table=table, skipped=[], script=iter(()))

    def in_worker(task, values, record, deadline):
        assert (task, values[:2], deadline) == (tasks.tune, (str(table), 12.0), 12.0)
        attempts.skipped.append(list(values[2]))
        code, outcomes = next(attempts.script)
        table.write_text(json.dumps({"outcomes": outcomes}))
        return code

    monkeypatch.setattr(workers, "run", in_worker)
    monkeypatch.setattr(recording, "time", SimpleNamespace(monotonic=lambda: 0.0))
    return attempts


FATAL = -11  # by a signal, as where a compiler crashes


@pytest.mark.parametrize("code", [workers.LOST, FATAL])
def test_a_tuner_that_ends_is_started_again_behind_what_ended_it(attempts, code):
    first = {"found": "1.10x", "fatal": TRIED}
    attempts.script = iter([(code, first), (workers.DONE, {**first, "last": "1.20x"})])
    recording.search_tiles(attempts.table, 12.0, again=True)
    assert attempts.skipped == [[], ["found", "fatal"]]


def test_what_a_tuner_that_died_was_writing_does_not_stay(attempts, monkeypatch):
    def dies_writing(*_):
        left.touch()
        return FATAL

    left = attempts.table.with_name(".tiles-0123abcd.json")
    other = attempts.table.with_name(".tiles-notes.json")
    other.touch()
    monkeypatch.setattr(workers, "run", dies_writing)
    recording.search_tiles(attempts.table, 12.0, again=True)
    assert not left.exists()
    assert other.exists()


@pytest.mark.parametrize("code", [workers.DONE, workers.OUT_OF_TIME, workers.BAD_INPUT])
def test_a_tuner_that_is_done_is_not_started_again(attempts, code):
    attempts.script = iter([(code, {"found": "1.10x"})])
    recording.search_tiles(attempts.table, 12.0, again=True)
    assert attempts.skipped == [[]]


def test_a_tuner_that_gets_nowhere_is_given_up(attempts, capsys):
    attempts.script = iter([(FATAL, {"fatal": TRIED})] * 2)
    recording.search_tiles(attempts.table, 12.0, again=True)
    assert attempts.skipped == [[], ["fatal"]]
    assert capsys.readouterr().err == "tuning ends without a tile; giving up\n"


def test_a_tuner_is_started_so_often_and_no_more(attempts):
    attempts.script = ((FATAL, dict.fromkeys(map(str, range(n)), TRIED)) for n in range(1, 1000))
    recording.search_tiles(attempts.table, 12.0, again=True)
    assert len(attempts.skipped) == recording.MOST_RESTARTS


@pytest.mark.parametrize("again", [True, False])
def test_a_resumed_recording_goes_on_with_its_tiles_and_another_begins_anew(attempts, again):
    before = {"found": "1.10x", "broken": "left out: out of memory", "stopped": TRIED}
    attempts.table.write_text(json.dumps({"outcomes": before}))
    attempts.script = iter([(workers.DONE, before)])
    recording.search_tiles(attempts.table, 12.0, again=again)
    assert attempts.skipped == [[] if again else ["found", "broken"]]


# The tuner


def small_problems(suite, device):
    assert (suite, device.type) == ("goals", "cuda")
    return [Problem(suite, f"m {m}", Linear(m, 12, 16), torch.float32) for m in range(20, 40)]


@interpreted
def test_the_recorders_tuner_searches_the_first_problems_that_are_not_done(
    tuned_gpu, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tasks.command, "suite_problems", small_problems)
    monkeypatch.setattr(tasks, "MOST_TUNED", 2)
    path, done = tmp_path / "tiles.json", ["linear_forward, m 20", "linear_grad_input, m 21"]
    assert tasks.tune(str(path), float("inf"), done) == workers.DONE
    table = json.loads(path.read_text())
    assert table["device"] == NAME
    assert [f"{entry['launcher']}, {entry['problem']}" for entry in table["entries"]] == [
        "linear_grad_input, m 20",
        "linear_grad_weight, m 20",
        "linear_forward, m 21",
        "linear_grad_weight, m 21",
    ]
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [e["launcher"] for e in table["entries"]]
    assert last == f"4 tiles in {path}"
    assert tasks.tune(str(path), time.monotonic() - 1, []) == workers.DONE
    assert json.loads(path.read_text()) == table


def lose_it_in_the_way_back(gpu, monkeypatch):
    """Have the gradient of the input lose the pretended GPU."""
    right = linear.linear_grad_input

    def deadly(*args, **options):
        gpu.lost = True
        return right(*args, **options)

    monkeypatch.setattr(linear, "linear_grad_input", deadly)


@interpreted
def test_the_recorders_tuner_tells_what_it_ended_by(tuned_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tasks.command, "suite_problems", small_problems)
    alien = tmp_path / "alien.json"
    alien.write_text("{}")
    assert tasks.tune(str(alien), float("inf"), []) == workers.BAD_INPUT
    assert capsys.readouterr().err == f"{alien} is there, and no table of tiles\n"
    lose_it_in_the_way_back(tuned_gpu, monkeypatch)
    assert tasks.tune(str(tmp_path / "tiles.json"), float("inf"), []) == workers.LOST
    assert capsys.readouterr().err.startswith("the GPU fails after linear_grad_input, m 20: CUDA")


TUNE = ["bench", "linear", "--shape", "20,12,16", "--dtype", "float32", "--tune"]


@interpreted
def test_tune_writes_its_table_and_says_what_it_found(tuned_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(TUNE) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == "tiles-pretended-h200.json"
    table = json.loads(path.read_text())
    assert [entry["launcher"] for entry in table["entries"]] == [
        "linear_forward",
        "linear_grad_input",
        "linear_grad_weight",
    ]
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [e["launcher"] for e in table["entries"]]
    assert all(line.endswith("x over the default tile") for line in lines)
    assert last == f"3 tiles written to {path.name}"


@interpreted
def test_tune_ends_with_its_minutes_however_many_tiles_there_are(tuned_gpu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = itertools.count(10)  # of tiles that are all new
    monkeypatch.setattr(
        tuning, "neighbours", lambda config: iter([TileConfig(16, 16, 16, 4, next(stages))])
    )
    assert cli.main([*TUNE, "--json", "tiles.json", "--minutes", "0.05"]) == 0
    (entry,) = json.loads((tmp_path / "tiles.json").read_text())["entries"]
    assert entry["launcher"] == "linear_forward"


@interpreted
def test_a_lost_device_ends_tune_with_a_line_and_its_table_has_what_was_found(
    tuned_gpu, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    lose_it_in_the_way_back(tuned_gpu, monkeypatch)
    assert cli.main([*TUNE, "--json", "tiles.json"]) == 1
    said = capsys.readouterr().err
    assert said == (
        "tlazy bench: the GPU fails after linear_grad_input, linear 20,12,16: CUDA error: an "
        "illegal memory access was encountered; tiles.json has what was found until then\n"
    )
    (entry,) = json.loads((tmp_path / "tiles.json").read_text())["entries"]
    assert entry["launcher"] == "linear_forward"


@interpreted
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_tune_with_a_line_and_its_table_has_what_was_found(
    number, tuned_gpu, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(linear, "linear_grad_input", lambda *_, **__: signal.raise_signal(number))
    assert cli.main([*TUNE, "--json", "tiles.json"]) == 128 + number
    said = capsys.readouterr().err
    assert said == "tlazy bench: stopped; tiles.json has what was found until then\n"
    (entry,) = json.loads((tmp_path / "tiles.json").read_text())["entries"]
    assert entry["launcher"] == "linear_forward"
