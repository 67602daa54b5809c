"""Everything to measure on a machine, within a budget: tests, tiles, all suites, report.

    python -m perf.record --minutes 8

Writes ``perf/results/<device>/<date>.json`` as it goes, the most important first: the kernels'
tests (under ``"tests"``; meanwhile kernels are compiled for what follows), the goals, on a GPU the
best tiles (``tiles.json`` beside it), the other suites; then ``<date>.html`` and pictures, where
jinja2 and matplotlib are installed (elsewhere ``python -m perf.readme`` draws them later). It may
be stopped at any point: what was measured is in the file. All that touches the device runs in
processes of their own, so that a kernel that loses it or hangs costs one measurement.

Exit codes: 0, also where the budget ended first; 2 for bad input; 130 and 143 where stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import json
import multiprocessing
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from perf import kernel_tests
from tlazy.bench import command, machine, tuning
from tlazy.bench.measuring import DeviceLost, Settings, compute_once, measure
from tlazy.bench.peers import default_peers
from tlazy.bench.record import Record
from tlazy.bench.suites import SUITES, Problem
from tlazy.errors import UserError, one_line

ROOT = Path(__file__).parent.parent
MAIN_SUITE, MOST_TUNED = "goals", 8
# Processes that compile while the tests run, for whom, and the part of the GPU's memory of each.
COMPILERS, COMPILED, MEMORY_OF_COMPILER = 3, ("tlazy", "compile"), 0.15
# Parts of the budget by whose end each step is over.
TESTS_UNTIL, GOALS_UNTIL, TILES_UNTIL, SUITES_UNTIL = 0.3, 0.8, 0.9, 0.96
# Without a new row for so long, a measurement hangs. Compiling takes the longest.
STUCK_SECONDS = 90.0
OVERRUN_SECONDS = 5.0
MOST_RESTARTS = 20
DONE, BAD_INPUT, STOPPED, OUT_OF_TIME, LOST = 0, 2, 143, 3, 4


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
        print(f"perf.record: {one_line(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Stopped:
        return STOPPED
    return DONE


def record_all(minutes: float, out: Path, command_line: str) -> Path:
    """Measure for about `minutes` and return the record's path.

    Raises:
        UserError: for a budget or a folder that cannot be, and where pytest is not installed.
    """
    if not 0 < minutes < float("inf"):
        raise UserError(f"--minutes must be positive and finite, got {minutes}")
    if importlib.util.find_spec("pytest") is None:
        raise UserError("the kernels' tests need pytest: pip install pytest")
    begin = time.monotonic()

    def until(part: float) -> float:
        return begin + part * 60 * minutes

    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = begin_record(out, device, command_line, until(TESTS_UNTIL))
    print(f"recording to {path}", flush=True)
    try:
        with compiling(device, until(TESTS_UNTIL)):
            run_tests(path, until(TESTS_UNTIL))
        run_suites(path, device, (MAIN_SUITE,), until(GOALS_UNTIL))
        if device == "cuda":
            tiles = until(TILES_UNTIL)
            _in_worker(_tune, (str(path.parent / "tiles.json"), tiles), None, tiles)
        if run_suites(path, device, tuple(SUITES), until(SUITES_UNTIL)):
            Record.reopen(path).finish()
    finally:
        write_report(path)
    return path


def begin_record(out: Path, device: str, command_line: str, deadline: float) -> Path:
    """A new record in the device's folder, with its ceilings.

    Raises:
        UserError: where it cannot be written, or the device not be used.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror or error}") from error
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        values = (str(out), device, command_line, str(answer))
        code = _in_worker(_begin, values, None, deadline)
        said = json.loads(answer.read_text()) if answer.exists() else {}
    if "path" in said:
        return Path(said["path"])
    raise UserError(said.get("error", f"the {device} device cannot be used: exit code {code}"))


@contextmanager
def compiling(device: str, deadline: float) -> Iterator[None]:
    """Beside the block, fill the compilers' caches for the main suite, by cores that a GPU's host
    has to spare.

    Compiling takes longer than measuring does; what is not compiled by then costs time only.
    """
    with ExitStack() as ended:
        for part in range(COMPILERS if device == "cuda" else 0):
            ended.enter_context(_ended_on_exit(_started(_compile, (device, part, deadline))))
        yield


def run_tests(path: Path, deadline: float, tests: Sequence[str] | None = None) -> None:
    """Run the kernels' tests until `deadline`, and put what became of them into the record."""
    done = kernel_tests.run(kernel_tests.files() if tests is None else tests, deadline)
    record = Record.reopen(path)
    record.content["tests"] = done
    record.write()
    print(f"tests: {done['summary']}", flush=True)


def run_suites(path: Path, device: str, suites: Sequence[str], deadline: float) -> bool:
    """Measure `suites` into the record until `deadline`, whatever becomes of a measurement.

    Returns:
        whether all of them is measured, or as much as can be.
    """
    for _ in range(MOST_RESTARTS):
        before = Record.reopen(path).rows
        code = _in_worker(_measure, (str(path), device, tuple(suites), deadline), path, deadline)
        if code == DONE:
            return True
        if code == OUT_OF_TIME or time.monotonic() > deadline:
            return False
        if Record.reopen(path).rows == before:
            print("measuring ends without a row; giving up", file=sys.stderr)
            return False
    return False


def write_report(path: Path) -> None:
    """Draw the record, with what is installed."""
    try:
        from tlazy.report import load, write_html, write_pngs

        content = load(path)
        write_html(content, path.with_suffix(".html"))
        write_pngs(content, path.parent)
    except (ImportError, UserError) as error:
        print(f"no report, or a part of it: {error}", file=sys.stderr)


def _begin(out: str, device: str, command_line: str, answer: str, parent: int) -> int:
    """In a worker: make the record and write its path, or what is wrong, as the answer."""
    where = torch.device(device)
    try:
        path = _new_record(Path(out), where, command_line)
    except UserError as error:
        Path(answer).write_text(json.dumps({"error": str(error)}))
        return BAD_INPUT
    Path(answer).write_text(json.dumps({"path": str(path)}))
    problems = [p for suite in SUITES for p in command.suite_problems(suite, where, "full")]
    ceilings = machine.measure_ceilings(where, command.precisions(problems, where))
    Record(command_line, where, ceilings, path).write()
    return DONE


def _new_record(out: Path, device: torch.device, command_line: str) -> Path:
    """Make the device's folder and an empty record in it."""
    name = "cpu" if device.type == "cpu" else command.slug(machine.machine(device)["device"])
    path = out / name / time.strftime("%Y-%m-%d-%H%M%S.json", time.gmtime())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror or error}") from error
    command.check_writable("--out", path)
    Record(command_line, device, machine.Ceilings(), path).write()
    return path


def _measure(path: str, device: str, suites: Sequence[str], deadline: float, parent: int) -> int:
    """In a worker: measure what the record does not hold yet."""
    where = torch.device(device)

    def notify(problem: Problem, which: str) -> None:
        if os.getppid() != parent:
            raise SystemExit("the recording process is gone")
        print(f"{problem.suite}: {problem.name}, {which}", flush=True)

    settings = Settings(where, deadline=deadline, notify=notify)
    try:
        whole = measure(_problems(suites, where), Record.reopen(Path(path)), settings)
    except DeviceLost as error:
        print(error, file=sys.stderr, flush=True)
        return LOST
    return DONE if whole else OUT_OF_TIME


def _problems(suites: Sequence[str], device: torch.device) -> list[Problem]:
    """The problems of `suites`; what stands in two of them counts for the first."""
    found: dict[Problem, Problem] = {}
    for suite in suites:
        for problem in command.suite_problems(suite, device):
            found.setdefault(dataclasses.replace(problem, suite=""), problem)
    return list(found.values())


def _compile(device: str, part: int, deadline: float, parent: int) -> int:
    """In a worker: compute every COMPILERS-th problem once, by what compiles kernels for it."""
    where = torch.device(device)
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(MEMORY_OF_COMPILER)
    for problem in _problems((MAIN_SUITE,), where)[part::COMPILERS]:
        for peer, which in itertools.product(COMPILED, problem.passes):
            if time.monotonic() > deadline or os.getppid() != parent:
                return OUT_OF_TIME
            if peer in default_peers(problem, where):
                # Too large for its share of the memory, or broken: measuring it will say so.
                with suppress(Exception):
                    compute_once(problem, which, peer, where)
    return DONE


def _tune(path: str, deadline: float, parent: int) -> int:
    """In a worker: search tiles for the most important problems."""
    device = torch.device("cuda")
    problems = command.suite_problems(MAIN_SUITE, device)[:MOST_TUNED]
    found = tuning.tune(problems, device, Path(path), deadline)
    print(f"{len(found)} tiles in {path}", flush=True)
    return DONE


def _in_worker(
    task: Callable[..., int], values: tuple, record: Path | None, deadline: float
) -> int:
    """Run the task in a new process and return its exit code.

    It is ended at the deadline, and where it leaves `record` alone for too long.
    """
    worker = _started(task, values)
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


def _started(task: Callable[..., int], values: tuple) -> Any:
    """A new process that runs the task."""
    worker = multiprocessing.get_context("spawn").Process(
        target=_work, args=(task, *values, os.getpid())
    )
    worker.start()
    return worker


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
