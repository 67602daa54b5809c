"""`python -m perf.record`: in budget, in any order of mishaps, with what was measured kept."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from perf import record as recording
from tlazy import report
from tlazy.bench import suites
from tlazy.bench.machine import Ceilings
from tlazy.bench.operations import Linear
from tlazy.bench.record import Record
from tlazy.bench.suites import Problem

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def environment(**changes):
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "OMP_NUM_THREADS": "1",
        **changes,
    }


@pytest.fixture
def path(tmp_path):
    """An empty record."""
    path = tmp_path / "2026-11-23.json"
    Record("python -m perf.record", CPU, Ceilings(), path).write()
    return path


def start(out):
    """The command as a process, with a short list of tests to run."""
    code = (
        "import sys\nfrom perf import record\n"
        "record.TESTS = ('tests/tlazy_kernels/test_roofline.py',)\n"
        "sys.exit(record.main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "--out", str(out)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure the GPU")
def test_what_was_measured_is_kept_where_it_is_stopped(tmp_path):
    process = start(tmp_path)
    measured = 0
    for line in process.stdout:
        measured += line.startswith("goals: ")
        if measured == 2:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    (path,) = (tmp_path / "cpu").glob("*.json")
    content = report.load(path)
    assert not content["complete"]
    assert content["command"] == f"python -m perf.record --out {tmp_path}"
    assert content["tests"]["exit_code"] == 0
    assert content["tests"]["in_time"]
    assert "passed" in content["tests"]["summary"]
    done = [row for row in content["rows"] if row["status"] == "ok"]
    assert {row["peer"] for row in done} == {"tlazy", "eager"}
    first = next(iter(suites.SUITES["goals"]()))
    assert done[0]["problem"] == first.name
    if importlib.util.find_spec("jinja2"):
        assert path.with_suffix(".html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes must be positive and finite, got 0.0"),
        (["--minutes", "nan"], "--minutes must be positive and finite, got nan"),
        (["--out", "README.md"], "--out README.md: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert recording.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"perf.record: {message}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_tests_that_take_too_long_are_stopped(path, tmp_path, monkeypatch):
    slow = tmp_path / "test_slow.py"
    slow.write_text("import time\ndef test_fine(): pass\ndef test_slow(): time.sleep(100)\n")
    monkeypatch.setattr(recording, "TESTS", (str(slow),))
    begin = time.monotonic()
    recording.run_tests(path, begin + 4)
    assert time.monotonic() - begin < 20
    tests = json.loads(path.read_text())["tests"]
    assert not tests["in_time"]


def three_problems(suite, device):
    operation = Linear(8, 8, 8)
    names = ("fine", "fatal", "after")
    return [Problem(suite, name, operation, torch.float32, ("forward",)) for name in names]


def measure_with_a_fatal_kernel(path, device, names, deadline, parent):
    """In a worker: the second problem ends the process, as a lost device does."""
    stock = Linear.fused

    def fatal(operation, *tensors):
        content = json.loads(Path(path).read_text())
        if content["rows"][-1]["problem"] == "fatal":
            os._exit(11)
        return stock(operation, *tensors)

    Linear.fused = fatal
    recording.command.suite_problems = three_problems
    return recording._measure(path, device, names, deadline, parent)


def test_a_kernel_that_ends_the_process_costs_its_own_row_only(path, monkeypatch):
    monkeypatch.setattr(recording, "_measure", measure_with_a_fatal_kernel)
    recording.run_suites(path, "cpu", ("goals",), time.monotonic() + 100)
    content = report.load(path)
    assert content["complete"]
    status = {(row["problem"], row["peer"]): row["status"] for row in content["rows"]}
    assert status == {
        (problem, peer): "failed" if (problem, peer) == ("fatal", "tlazy") else "ok"
        for problem in ("fine", "fatal", "after")
        for peer in ("tlazy", "eager")
    }


def hang(path, device, names, deadline, parent):
    time.sleep(1000)


def test_what_hangs_is_ended(path, monkeypatch, capsys):
    monkeypatch.setattr(recording, "_measure", hang)
    monkeypatch.setattr(recording, "STUCK_SECONDS", 1.0)
    recording.run_suites(path, "cpu", ("goals",), time.monotonic() + 100)
    assert "hangs" in capsys.readouterr().err
    assert not report.load(path)["complete"]


def test_it_needs_neither_rich_nor_typer_nor_matplotlib_nor_jinja2(tmp_path):
    code = (
        "import sys\n"
        "for name in ('rich', 'typer', 'matplotlib', 'jinja2', 'hypothesis', 'sktime'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from perf import record\n"
        "from tlazy.bench.machine import Ceilings\n"
        "from tlazy.bench.record import Record\n"
        "import torch\n"
        "path = Path(sys.argv[1])\n"
        "Record('test', torch.device('cpu'), Ceilings(), path).write()\n"
        "record.write_report(path)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "record.json")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("no report, or a part of it: ")
    report.load(tmp_path / "record.json")
