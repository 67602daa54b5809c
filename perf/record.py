"""Everything to measure on a machine, within a budget: tests, tiles, all suites, report.

    python -m perf.record --minutes 8

Writes ``perf/results/<device>/<date>.json`` as it goes, the most important first, with the tests'
summary under ``"tests"``; then ``<date>.html`` and pictures beside it, where jinja2 and matplotlib
are installed. On a GPU, ``tiles.json`` there has the best tiles found. It may be stopped at any
point: what was measured is in the file. Measuring runs in a process of its own, so that a kernel
that loses the device or hangs costs one measurement.

Exit codes: 0, also where the budget ended first; 2 for bad input; 130 and 143 where stopped.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tlazy.bench import command, machine, tuning
from tlazy.bench.measuring import Settings, measure
from tlazy.bench.record import Record
from tlazy.bench.suites import SUITES, Problem
from tlazy.errors import UserError

ROOT = Path(__file__).parent.parent
TESTS = ("tests/tlazy_kernels", "tests/tlazy/test_ops.py", "tests/tlazy/test_autograd.py")
# Parts of the budget; the suites have what is left.
TESTS_PART, TILES_PART, REPORT_PART = 0.3, 0.15, 0.04
TUNED_SUITE, MOST_TUNED = "goals", 8
# Without a new row for so long, a measurement hangs. Compiling takes the longest, on a CPU.
STUCK_SECONDS = 150.0
OVERRUN_SECONDS = 5.0
MOST_RESTARTS = 20
DONE, BAD_INPUT, STOPPED, OUT_OF_TIME = 0, 2, 143, 3


class Stopped(BaseException):
    """SIGTERM came."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it all, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m perf.record", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=8.0, help="the whole budget (8)")
    parser.add_argument("--out", type=Path, default=ROOT / "perf" / "results", help="folder")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    try:
        record_all(options.minutes, options.out, _command_line(arguments))
    except UserError as error:
        print(f"perf.record: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Stopped:
        return STOPPED
    return DONE


def record_all(minutes: float, out: Path, command_line: str) -> Path:
    """Measure for about `minutes` and return the record's path.

    Raises:
        UserError: for a budget or a folder that cannot be.
    """
    if not 0 < minutes < float("inf"):
        raise UserError(f"--minutes must be positive and finite, got {minutes}")
    begin, budget = time.monotonic(), 60 * minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = _new_record(out, device, command_line)
    print(f"recording to {path}", flush=True)
    try:
        run_tests(path, begin + TESTS_PART * budget)
        if device.type == "cuda":
            tiles = begin + (TESTS_PART + TILES_PART) * budget
            _in_worker(_tune, (str(path.parent / "tiles.json"), tiles), None, tiles)
        run_suites(path, device.type, tuple(SUITES), begin + (1 - REPORT_PART) * budget)
    finally:
        write_report(path)
    return path


def run_tests(path: Path, deadline: float) -> None:
    """Run the kernels' tests until `deadline`, and put their summary into the record."""
    arguments = [
        sys.executable,
        "-m",
        "pytest",
        *TESTS,
        "-q",
        "--tb=line",
        "-p",
        "no:cacheprovider",
    ]
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            arguments, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        with _ended_on_exit(process):
            in_time = _wait(process.poll, deadline)
            if not in_time:
                # pytest sums up what it ran when it is interrupted.
                os.killpg(process.pid, signal.SIGINT)
                _wait(process.poll, time.monotonic() + OVERRUN_SECONDS)
        log.seek(0)
        lines = [line for line in log.read().splitlines() if line.strip()]
    record = Record.reopen(path)
    record.content["tests"] = {
        "command": shlex.join(["pytest", *arguments[3:]]),
        "exit_code": process.wait(),
        "in_time": in_time,
        "seconds": round(time.monotonic() - begin, 1),
        "summary": lines[-1].strip("= ") if lines else "no output",
        "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))][:100],
    }
    record.write()
    print(f"tests: {record.content['tests']['summary']}", flush=True)


def run_suites(path: Path, device: str, suites: Sequence[str], deadline: float) -> None:
    """Measure `suites` into the record until `deadline`, whatever becomes of a measurement."""
    for _ in range(MOST_RESTARTS):
        rows = len(Record.reopen(path).rows)
        code = _in_worker(_measure, (str(path), device, tuple(suites), deadline), path, deadline)
        if code == DONE:
            Record.reopen(path).finish()
        if code in (DONE, OUT_OF_TIME) or time.monotonic() > deadline:
            return
        if len(Record.reopen(path).rows) == rows:
            print("measuring ends without a row; giving up", file=sys.stderr)
            return


def write_report(path: Path) -> None:
    """Draw the record, with what is installed."""
    try:
        from tlazy.report import load, write_html, write_pngs

        content = load(path)
        write_html(content, path.with_suffix(".html"))
        write_pngs(content, path.parent)
    except (ImportError, UserError) as error:
        print(f"no report, or a part of it: {error}", file=sys.stderr)


def _new_record(out: Path, device: torch.device, command_line: str) -> Path:
    """Make the device's folder and an empty record in it."""
    name = "cpu" if device.type == "cpu" else command.slug(machine.machine(device)["device"])
    path = out / name / time.strftime("%Y-%m-%d-%H%M%S.json", time.gmtime())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror or error}") from error
    command.check_writable("--out", path)
    problems = [p for suite in SUITES for p in command.suite_problems(suite, device, "full")]
    ceilings = machine.measure_ceilings(device, command.precisions(problems, device))
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the workers need the memory
    Record(command_line, device, ceilings, path).write()
    return path


def _measure(path: str, device: str, suites: Sequence[str], deadline: float, parent: int) -> int:
    """In a worker: measure what the record does not hold yet."""
    where = torch.device(device)
    problems = [p for suite in suites for p in command.suite_problems(suite, where)]

    def notify(problem: Problem, which: str) -> None:
        if os.getppid() != parent:
            raise SystemExit("the recording process is gone")
        print(f"{problem.suite}: {problem.name}, {which}", flush=True)

    settings = Settings(where, deadline=deadline, notify=notify)
    return DONE if measure(problems, Record.reopen(Path(path)), settings) else OUT_OF_TIME


def _tune(path: str, deadline: float, parent: int) -> int:
    """In a worker: search tiles for the most important problems."""
    device = torch.device("cuda")
    problems = command.suite_problems(TUNED_SUITE, device)[:MOST_TUNED]
    found = tuning.tune(problems, device, Path(path), deadline)
    print(f"{len(found)} tiles in {path}", flush=True)
    return DONE


def _in_worker(
    task: Callable[..., int], values: tuple, record: Path | None, deadline: float
) -> int:
    """Run the task in a new process and return its exit code.

    It is ended at the deadline, and where it leaves `record` alone for too long.
    """
    worker: Any = multiprocessing.get_context("spawn").Process(
        target=_work, args=(task, *values, os.getpid())
    )
    worker.start()
    with _ended_on_exit(worker):
        while not _wait(
            lambda: worker.exitcode, min(deadline + OVERRUN_SECONDS, _stuck_at(record))
        ):
            if time.monotonic() >= deadline + OVERRUN_SECONDS:
                return OUT_OF_TIME
            if time.monotonic() >= _stuck_at(record):
                print("a measurement hangs and is given up", file=sys.stderr)
                break
    worker.join()
    return int(worker.exitcode)


def _work(task: Callable[..., int], *values: Any) -> None:
    # Ctrl-C reaches the whole process group; the recording process alone decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(task(*values))


def _stuck_at(record: Path | None) -> float:
    """When, on the monotonic clock, the record will have been left alone for too long."""
    if record is None:
        return float("inf")
    age = max(0.0, time.time() - record.stat().st_mtime)
    return time.monotonic() - age + STUCK_SECONDS


def _wait(ended: Callable[[], int | None], until: float) -> bool:
    """Whether it ended before `until`, on the monotonic clock."""
    while ended() is None:
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def _ended_on_exit(process: Any) -> Iterator[None]:
    """Kill the process, where it still runs, when the block is left in whatever way."""
    try:
        yield
    finally:
        process.kill()


def _stop(number: int, frame: Any) -> None:
    raise Stopped


def _command_line(arguments: Sequence[str] | None) -> str:
    given = sys.argv[1:] if arguments is None else list(arguments)
    return shlex.join(["python", "-m", "perf.record", *given])


if __name__ == "__main__":
    sys.exit(main())
