"""The kernels' tests, several files at a time, whatever becomes of one of them.

Each file's tests run in a process of their own. Where one ends it, hangs, or loses the GPU, the
process starts again behind that test.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from perf.outcomes import STARTED, read
from tlazy.errors import counted
from tlazy_kernels.environment import cores

ROOT = Path(__file__).parent.parent
# In order of importance; a file counts where it first appears.
PATTERNS = (
    "tests/tlazy_kernels/test_gpu.py",
    "tests/tlazy_kernels/test_linear.py",
    "tests/tlazy_kernels/test_conv1d*.py",
    "tests/tlazy_kernels/test_depthwise*.py",
    "tests/tlazy_kernels/test_first_layer.py",
    "tests/tlazy_kernels/test_conv_transpose1d.py",
    "tests/tlazy_kernels/test_launch.py",
    "tests/tlazy_kernels/test_units.py",
    "tests/tlazy_kernels/test_borders.py",
    "tests/tlazy_kernels/test_precision.py",
    "tests/tlazy_kernels/test_tf32.py",
    "tests/tlazy_kernels/test_activations.py",
    "tests/tlazy_kernels/test_memory.py",
    "tests/tlazy/test_autograd.py",
    "tests/tlazy/test_ops.py",
    "tests/tlazy/test_gradient_layouts.py",
    "tests/tlazy/test_padding_modes.py",
    "tests/tlazy/nn/test_*.py",
    "tests/tlazy/test_dispatch.py",
    "tests/tlazy/test_models.py",
    "tests/tlazy_kernels/test_checks.py",
    "tests/tlazy_kernels/test_properties.py",
    "tests/tlazy/test_kernels_train.py",
)
# One test may compile a dozen kernels. Before its first, a process imports torch.
STUCK_SECONDS = 90.0
START_SECONDS = 90.0
MOST_STARTS = 10
END_SECONDS = 10.0
# How often what has become of the tests so far is told.
NOTE_SECONDS = 5.0
# Of pytest: all passed, some failed, there were none.
FINISHED = (0, 1, 5)
OUTCOMES = ("passed", "failed", "skipped")
# Failed tests of a file that are told one by one.
MOST_TOLD = 40
# Failed tests that the summary names.
MOST_NAMED = 3

Summary = dict[str, Any]


def files() -> list[str]:
    """The test files, as pytest takes them from the root of the checkout."""
    found = (path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern)))
    return list(dict.fromkeys(str(path.relative_to(ROOT)) for path in found))


def run(
    tests: Sequence[str],
    deadline: float,
    note: Callable[[Summary], object] = lambda summary: None,
    before: Mapping[str, Any] | None = None,
) -> Summary:
    """Run the files until `deadline`, on the monotonic clock.

    Args:
        tests: files, in order of importance.
        note: told what a record says of the run: every few seconds, and at its end, whatever ends
            it.
        before: what was said of a run that this one goes on with: files that it finished count as
            they did then.
    """
    begin = time.monotonic()
    # Compiling takes most of the time, on the host: a third of it is left for who else compiles.
    at_once = max(1, 2 * cores() // 3)
    before = before or nothing_yet(tests)

    def summary() -> Summary:
        return _summary(tests, every, before, time.monotonic() - begin)

    with tempfile.TemporaryDirectory() as folder:
        waiting = [
            _File(test, Path(folder) / f"{i}.jsonl")
            for i, test in enumerate(tests)
            if test not in before["finished"]
        ]
        every, running, noted = list(waiting), list[_File](), begin
        try:
            while (waiting or running) and time.monotonic() < deadline:
                while waiting and len(running) < at_once:
                    running.append(waiting.pop(0))
                    running[-1].start()
                time.sleep(0.05)
                running = [file for file in running if not file.is_finished()]
                if time.monotonic() > noted + NOTE_SECONDS:
                    note(summary())
                    noted = time.monotonic()
        finally:
            for file in running:
                file.out_of_time = True
                file.end()
            note(summary())
        return summary()


def nothing_yet(tests: Sequence[str]) -> Summary:
    """What a record says before the first of its tests."""
    return _summary(tests, [], {"finished": {}, "failed": {}, "seconds": 0.0}, 0.0)


class _File:
    """A test file, the process that runs it, and what is known of its tests."""

    def __init__(self, test: str, outcomes: Path) -> None:
        self.test, self.outcomes = test, outcomes
        self.log = outcomes.with_suffix(".log")
        self.starts = 0
        self.out_of_time = self.done = False

    def start(self) -> None:
        self.starts += 1
        self.known = self._size()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command(self.test, self.outcomes),
                cwd=ROOT,
                # References are computed on the CPU, by as many processes as it has room for.
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.began = time.time()

    def is_finished(self) -> bool:
        """Whether no test of it is left; starts it again where its process ended too early."""
        code = self.process.poll()
        if code is None:
            if time.time() < self._stuck_at():
                return False
            self.end()
        if code in FINISHED or not self._has_event() or self.starts == MOST_STARTS:
            self.done = True
        else:
            self.start()
        return self.done

    def end(self) -> None:
        """Kill its process, also where a test of it is running; one that the driver does not let
        go stays."""
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)

    def results(self) -> Iterator[tuple[str, str]]:
        """Each test's outcome and, of those that did not pass, a line that says why."""
        known = read(self.outcomes)
        interrupted = self.out_of_time or not self.done
        if interrupted and known and next(reversed(known.values()))["outcome"] == STARTED:
            known.popitem()  # it did nothing wrong
        for test, event in known.items():
            if event["outcome"] == STARTED:
                yield "failed", f"{test}: hung or ended the process"
            else:
                yield event["outcome"], f"{test}: {event['why']}"
        if self.done and not self.outcomes.exists():
            lines = self.log.read_text(errors="replace").strip().splitlines()
            yield "failed", f"{self.test}: pytest says {lines[-1] if lines else 'nothing'}"

    def _size(self) -> int:
        return self.outcomes.stat().st_size if self.outcomes.exists() else 0

    def _has_event(self) -> bool:
        """Whether the process that runs, or the last one, came to a test."""
        return self._size() > self.known

    def _stuck_at(self) -> float:
        if not self._has_event():
            return self.began + START_SECONDS
        return self.outcomes.stat().st_mtime + STUCK_SECONDS


def command(test: str, outcomes: Path) -> list[str]:
    """How to run one file."""
    options = ["-p", "perf.resuming", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    return [sys.executable, "-m", "pytest", "-q", *options, f"--outcomes={outcomes}", test]


def _first_of(failed: Mapping[str, Sequence[str]]) -> str:
    """The names of the first failed tests, without their folders."""
    lines = [line for found in failed.values() for line in found]
    names = [line.partition(": ")[0].rpartition("/")[2] for line in lines[:MOST_NAMED]]
    return ", ".join([*names, *(["..."] if len(lines) > MOST_NAMED else [])])


def _summary(
    tests: Sequence[str], run: Sequence[_File], before: Mapping[str, Any], seconds: float
) -> Summary:
    results = {file: list(file.results()) for file in run}
    counts = {file: Counter(outcome for outcome, _ in found) for file, found in results.items()}
    finished = before["finished"] | {
        file.test: {name: counts[file][name] for name in OUTCOMES} for file in run if file.done
    }
    unfinished = [test for test in tests if test not in finished]
    partly = [counts[file] for file in run if not file.done]
    total = {name: sum(n[name] for n in (*finished.values(), *partly)) for name in OUTCOMES}
    failed = {test: lines for test, lines in before["failed"].items() if test in finished}
    for file, found in results.items():
        lines = [line for outcome, line in found if outcome == "failed"]
        failed |= {file.test: lines[:MOST_TOLD]} if lines else {}
    seconds = round(before["seconds"] + seconds, 1)
    said = ", ".join(f"{total[name]} {name}" for name in OUTCOMES if total[name])
    said = f"{said or 'nothing ran'} in {seconds:.0f} s"
    if unfinished:
        said += f"; {counted(len(unfinished), 'file')} not finished"
    if failed:
        said += f"; failed: {_first_of(failed)}"
    return {
        "command": shlex.join(["pytest", *tests]),
        "exit_code": int(bool(total["failed"] or unfinished)),
        "in_time": not unfinished,
        "seconds": seconds,
        "summary": said,
        "failed": failed,
        "finished": finished,
    }
