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

import importlib.util
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from perf import kernel_tests, tasks, workers
from perf.arguments import Parser
from perf.workers import BAD_INPUT, DONE, OUT_OF_TIME
from tlazy.bench import command, tuning
from tlazy.bench.record import Record, Row
from tlazy.bench.rows import TRIED, UNFINISHED, is_tried
from tlazy.bench.stopping import Stopped, stoppable
from tlazy.bench.suites import SUITES
from tlazy.errors import UserError, one_line
from tlazy.files import remove_temporaries
from tlazy.outputs import check_writable
from tlazy.report import write_report
from tlazy.report.record import NOT_MEASURED, key, load

ROOT = Path(__file__).parent.parent
# Parts of the budget by whose end each step is over.
TESTS_UNTIL, SUITES_UNTIL, TILES_UNTIL = 0.25, 0.85, 0.96
MOST_RESTARTS = 20


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
        code = workers.run(tasks.begin, values, None, deadline)
        said = json.loads(answer.read_text()) if answer.exists() else {}
    if "path" in said:
        return Path(said["path"])
    raise UserError(said.get("error", f"the {device} device cannot be used: exit code {code}"))


def check_resumable(path: Path) -> None:
    """Raise UserError unless a record can be gone on with: one that this module has written."""
    content = load(path)
    if "finished" not in content.get("tests", {}):
        made = content["command"]
        raise UserError(f"--resume {path} is no record of python -m perf.record: {made} made it")
    check_writable("--resume", path)


@contextmanager
def compiling(device: str, deadline: float) -> Iterator[None]:
    """Beside the block, fill the compilers' caches for the main suite, by cores that a GPU's host
    has to spare.

    Compiling takes longer than measuring does; what is not compiled by then costs time only.
    """
    with ExitStack() as ended:
        for part in range(tasks.COMPILERS if device == "cuda" else 0):
            compiler = workers.started(tasks.compile_kernels, (device, part, deadline))
            ended.enter_context(workers.ended_on_exit(compiler))
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
            code = workers.run(tasks.measure_suites, values, path, deadline)
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
            code = workers.run(tasks.tune, (str(path), deadline, done), None, deadline)
        finally:
            remove_temporaries(path)
        if code in (DONE, BAD_INPUT, OUT_OF_TIME) or time.monotonic() > deadline:
            return
        before, done = done, list(tuning.outcomes(path))
        if done == before:
            print("tuning ends without a tile; giving up", file=sys.stderr)
            return


def _give_turn_back(path: Path, before: Sequence[Row]) -> None:
    """Where the budget or somebody ended a measurement, which is none of `before`, it did nothing
    wrong: say that it is still to be made."""
    record = Record.reopen(path)
    ended = {key(row) for row in before if is_tried(row)}
    for row in record.rows:
        if is_tried(row) and key(row) not in ended:
            row.update(status=NOT_MEASURED, note=UNFINISHED)
    record.write()


def _command_line(arguments: Sequence[str] | None) -> str:
    given = sys.argv[1:] if arguments is None else list(arguments)
    return shlex.join(["python", "-m", "perf.record", *given])


if __name__ == "__main__":
    sys.exit(main())
