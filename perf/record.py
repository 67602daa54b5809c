"""Everything to measure on a machine, within a budget: tests, tiles, all suites, report.

    python -m perf.record --minutes 8
    python -m perf.record --minutes 8 --resume perf/results/<device>/<date>.json

Writes ``perf/results/<device>/<date>.json`` as it goes, the most important first: the kernels'
tests (under ``"tests"``; meanwhile kernels are compiled for what follows), the goals, the other
suites, all of it a second time while there is time, on a GPU the best tiles (``tiles.json`` beside
it); then ``<date>.html``, pictures and a table on the terminal, where jinja2, matplotlib and rich
are installed (elsewhere ``python -m perf.readme`` draws them later). It may be stopped at any
point: what was measured is in the file and in those, and ``--resume`` goes on in that very file,
which is one of this command. All that touches the device runs in processes of their own, so that a
kernel that loses it or hangs costs one measurement, or where it hangs a search for tiles, what is
left of those.

Exit codes: 0, also where the budget ended first; 2 for bad input; 130 and 143 where stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import json
import multiprocessing
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from perf import MAIN_SUITE, kernel_tests
from perf.arguments import Parser
from tlazy.bench import command, machine, tuning
from tlazy.bench.calling import compute_once
from tlazy.bench.lost import DeviceLost
from tlazy.bench.measuring import measure
from tlazy.bench.peers import default_peers
from tlazy.bench.problems import Problem
from tlazy.bench.record import Record, Row
from tlazy.bench.rows import TRIED, UNFINISHED, is_tried
from tlazy.bench.settings import Settings
from tlazy.bench.stopping import Stopped, stoppable
from tlazy.bench.suites import SUITES
from tlazy.errors import UserError, one_line
from tlazy.files import remove_temporaries
from tlazy.outputs import check_writable
from tlazy.report import write_report
from tlazy.report.earlier import check_same_device
from tlazy.report.record import NOT_MEASURED, key, load

ROOT = Path(__file__).parent.parent
MOST_TUNED = 8
# Processes that compile while the tests run, for whom, and the part of the GPU's memory of each.
COMPILERS, COMPILED, MEMORY_OF_COMPILER = 3, ("tlazy", "compile"), 0.15
# Parts of the budget by whose end each step is over.
TESTS_UNTIL, SUITES_UNTIL, TILES_UNTIL = 0.25, 0.85, 0.96
# Where time is left once all is measured, it is come back to: two runs lie as far apart as visits.
VISITS = 2
# Without a new row for so long, a measurement hangs. Compiling takes the longest.
STUCK_SECONDS = 90.0
OVERRUN_SECONDS = 5.0
MOST_RESTARTS = 20
# How long a process that was killed is waited for: one that the driver does not let go stays.
END_SECONDS = 10.0
DONE, BAD_INPUT, OUT_OF_TIME, LOST = 0, 2, 3, 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it all, and return the exit code."""
    parser = Parser("perf.record", __doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="the whole budget (8)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, default=ROOT / "perf" / "results", help="folder")
    where.add_argument("--resume", type=Path, metavar="RECORD", help="go on with it, in its place")
    try:
        options = parser.parse_args(arguments)
        with stoppable():
            command_line = _command_line(arguments)
            record_all(options.minutes, options.out, command_line, options.resume)
    except UserError as error:
        print(f"perf.record: {one_line(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except Stopped as stopped:
        return stopped.exit_code
    return DONE


def record_all(minutes: float, out: Path, command_line: str, resume: Path | None = None) -> Path:
    """Measure for about `minutes` and return the record's path.

    Raises:
        UserError: for a budget, a folder or a record that cannot be, and where pytest is not
            installed.
    """
    if not 0 < minutes < float("inf"):
        raise UserError(f"--minutes must be positive and finite, got {minutes}")
    if importlib.util.find_spec("pytest") is None:
        raise UserError("the kernels' tests need pytest: pip install pytest")
    command.check_tiles()
    begin = time.monotonic()

    def until(part: float) -> float:
        return begin + part * 60 * minutes

    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = begin_record(out, device, command_line, until(TESTS_UNTIL), resume)
    print(f"recording to {path}", flush=True)
    try:
        with compiling(device, until(TESTS_UNTIL)):
            run_tests(path, until(TESTS_UNTIL))
        if run_suites(path, device, tuple(SUITES), until(SUITES_UNTIL)):
            Record.reopen(path).finish()
        if device == "cuda":
            search_tiles(path.parent / "tiles.json", until(TILES_UNTIL), again=resume is None)
    finally:
        write_report(path)
        show_table(path)
    return path


def show_table(path: Path) -> None:
    """Print the record's rows, where rich is installed."""
    if importlib.util.find_spec("rich") is not None:
        from tlazy.bench import table

        table.show(load(path))


def begin_record(
    out: Path, device: str, command_line: str, deadline: float, resume: Path | None = None
) -> Path:
    """A record in the device's folder: a new one, with its ceilings, or `resume` to go on with.

    Raises:
        UserError: where it cannot be written, or the device not be used, and for a record that
            cannot be gone on with.
    """
    if resume is not None:
        check_resumable(resume)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        values = (out, device, command_line, resume, answer)
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
    """Run the kernels' tests until `deadline`; the record says what becomes of them."""
    record = Record.reopen(path)

    def note(summary: dict[str, Any]) -> None:
        record.content["tests"] = summary
        record.write()

    every = kernel_tests.files() if tests is None else tests
    done = kernel_tests.run(every, deadline, note, record.content.get("tests"))
    print(f"tests: {done['summary']}", flush=True)


def run_suites(path: Path, device: str, suites: Sequence[str], deadline: float) -> bool:
    """Measure `suites` into the record until `deadline`, whatever becomes of a measurement.

    Returns:
        whether all of them is measured, or as much as can be.
    """
    values = (str(path), device, tuple(suites), deadline)
    for _ in range(MOST_RESTARTS):
        before = Record.reopen(path).rows
        code = OUT_OF_TIME
        try:
            code = _in_worker(_measure, values, path, deadline)
        finally:
            remove_temporaries(path)
            if code == OUT_OF_TIME:
                _give_turn_back(path, before)
        if code == DONE:
            return True
        if code == OUT_OF_TIME or time.monotonic() > deadline:
            return False
        if Record.reopen(path).rows == before:
            print("measuring ends without a row; giving up", file=sys.stderr)
            return False
    return False


def search_tiles(path: Path, deadline: float, *, again: bool) -> None:
    """Search tiles into the table `path` until `deadline`, whatever becomes of a search.

    Args:
        again: whether searches that the table tells of are made again.
    """
    done = [name for name, what in tuning.outcomes(path).items() if what != TRIED and not again]
    for _ in range(MOST_RESTARTS):
        try:
            code = _in_worker(_tune, (str(path), deadline, done), None, deadline)
        finally:
            remove_temporaries(path)
        if code in (DONE, BAD_INPUT, OUT_OF_TIME) or time.monotonic() > deadline:
            return
        before, done = done, list(tuning.outcomes(path))
        if done == before:
            print("tuning ends without a tile; giving up", file=sys.stderr)
            return


def check_resumable(path: Path) -> None:
    """Raise UserError unless a record can be gone on with: one that this module has written."""
    content = load(path)
    if "finished" not in content.get("tests", {}):
        made = content["command"]
        raise UserError(f"--resume {path} is no record of python -m perf.record: {made} made it")
    check_writable("--resume", path)


def _begin(out: Path, device: str, command_line: str, resume: Path | None, answer: Path) -> int:
    """In a worker: make the record and write its path, or what is wrong, as the answer."""
    where = torch.device(device)
    try:
        if resume is None:
            record = _new_record(out, where, command_line)
        else:
            record = _resumed_record(where, resume)
    except UserError as error:
        answer.write_text(json.dumps({"error": str(error)}))
        return BAD_INPUT
    answer.write_text(json.dumps({"path": str(record.path)}))
    if record.ceilings.bandwidth is None:
        every = (problem for suite in SUITES.values() for problem in suite())
        problems = command.in_dtype(every, where)
        ceilings = machine.measure_ceilings(where, command.precisions(problems, where))
        record.content["ceilings"] = dataclasses.asdict(ceilings)
        record.write()
    return DONE


def _new_record(out: Path, device: torch.device, command_line: str) -> Record:
    """An empty record in the device's folder."""
    path = _folder(out, device) / time.strftime("%Y-%m-%d-%H%M%S.json", time.gmtime())
    check_writable("--out", path)
    record = Record(command_line, device, machine.Ceilings(), path)
    record.content["tests"] = kernel_tests.nothing_yet(kernel_tests.files())
    record.write()
    return record


def _resumed_record(device: torch.device, resume: Path) -> Record:
    """The record `resume`, to go on with.

    Raises:
        UserError: where it is of another device or other versions.
    """
    record = Record.reopen(resume)
    check_same_device(record.content["machine"], machine.machine(device))
    before, now = record.content["versions"], machine.versions()
    if before != now:
        raise UserError(f"--resume {resume} was measured with {before}, not with {now}")
    return record


def _folder(out: Path, device: torch.device) -> Path:
    """The device's folder in `out`, which is made."""
    name = "cpu" if device.type == "cpu" else command.slug(machine.machine(device)["device"])
    try:
        (out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror or error}") from error
    return out / name


def _give_turn_back(path: Path, before: Sequence[Row]) -> None:
    """Where the budget or somebody ended a measurement, which is none of `before`, it did nothing
    wrong: say that it is still to be made."""
    record = Record.reopen(path)
    ended = {key(row) for row in before if is_tried(row)}
    for row in record.rows:
        if is_tried(row) and key(row) not in ended:
            row.update(status=NOT_MEASURED, note=UNFINISHED)
    record.write()


def _measure(path: str, device: str, suites: Sequence[str], deadline: float) -> int:
    """In a worker: measure what the record does not hold yet."""
    where = torch.device(device)

    def notify(problem: Problem, which: str, peer: str | None) -> None:
        print(f"{problem.suite}: {problem.name}, {which}, {peer or 'inputs'}", flush=True)

    settings = Settings(where, visits=VISITS, deadline=deadline, notify=notify)
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


def _compile(device: str, part: int, deadline: float) -> int:
    """In a worker: compute every COMPILERS-th problem once, by what compiles kernels for it."""
    where = torch.device(device)
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(MEMORY_OF_COMPILER)
    for problem in _problems((MAIN_SUITE,), where)[part::COMPILERS]:
        for peer, which in itertools.product(COMPILED, problem.passes):
            if time.monotonic() > deadline:
                return OUT_OF_TIME
            if peer in default_peers(problem, where):
                # Too large for its share of the memory, or broken: measuring it will say so.
                with suppress(Exception):
                    compute_once(problem, which, peer, where)
    return DONE


def _tune(path: str, deadline: float, done: Sequence[str]) -> int:
    """In a worker: search tiles for the most important problems, but for what is done."""
    device = torch.device("cuda")
    problems = command.suite_problems(MAIN_SUITE, device)[:MOST_TUNED]
    notify = functools.partial(print, flush=True)
    try:
        found = tuning.tune(problems, device, Path(path), deadline, notify=notify, skip=done)
    except (DeviceLost, UserError) as error:
        print(error, file=sys.stderr, flush=True)
        return LOST if isinstance(error, DeviceLost) else BAD_INPUT
    print(f"{len(found)} tiles in {path}", flush=True)
    return DONE


def _in_worker(
    task: Callable[..., int], values: tuple, record: Path | None, deadline: float
) -> int:
    """Run the task in a new process and return its exit code.

    It is ended at the deadline, and where it leaves `record` alone for too long.
    """
    begun = time.time()
    worker = _started(task, values)
    with _ended_on_exit(worker):
        while not _wait(
            lambda: worker.exitcode, min(deadline + OVERRUN_SECONDS, _stuck_at(record, begun))
        ):
            if time.monotonic() >= deadline + OVERRUN_SECONDS:
                return OUT_OF_TIME
            if time.monotonic() >= _stuck_at(record, begun):
                print("a measurement hangs and is given up", file=sys.stderr)
                break
    return LOST if worker.exitcode is None else int(worker.exitcode)


def _started(task: Callable[..., int], values: tuple) -> Any:
    """A new process that runs the task."""
    worker = multiprocessing.get_context("spawn").Process(
        target=_work, args=(task, values, os.getpid())
    )
    worker.start()
    return worker


def _work(task: Callable[..., int], values: tuple, parent: int) -> None:
    # Ctrl-C reaches the whole process group; the recording process alone decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.exit(task(*values))


def _end_with(parent: int) -> None:
    """End this process with the recording one, which may have been killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(LOST)


def _stuck_at(record: Path | None, begun: float) -> float:
    """When, on the monotonic clock, the record will have been left alone for too long by a
    process that began at `begun`, on the wall's."""
    if record is None:
        return float("inf")
    age = max(0.0, time.time() - max(begun, record.stat().st_mtime))
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
        process.join(END_SECONDS)


def _command_line(arguments: Sequence[str] | None) -> str:
    given = sys.argv[1:] if arguments is None else list(arguments)
    return shlex.join(["python", "-m", "perf.record", *given])


if __name__ == "__main__":
    sys.exit(main())
