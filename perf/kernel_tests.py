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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from perf.outcomes import STARTED, read

ROOT = Path(__file__).parent.parent
# In order of importance; a file counts where it first appears.
PATTERNS = (
    "tests/tlazy_kernels/test_linear.py",
    "tests/tlazy_kernels/test_conv1d*.py",
    "tests/tlazy_kernels/test_depthwise*.py",
    "tests/tlazy_kernels/test_conv_transpose1d*.py",
    "tests/tlazy/test_autograd.py",
    "tests/tlazy/test_ops.py",
    "tests/tlazy/nn/test_*.py",
    "tests/tlazy_kernels/test_activations.py",
    "tests/tlazy_kernels/test_properties.py",
    "tests/tlazy/test_kernels_train.py",
)
# One test may compile a dozen kernels. Before its first, a process imports torch.
STUCK_SECONDS = 90.0
START_SECONDS = 90.0
MOST_STARTS = 10
# Of pytest: all passed, some failed, there were none.
FINISHED = (0, 1, 5)


def files() -> list[str]:
    """The test files, as pytest takes them from the root of the checkout."""
    found = (path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern)))
    return list(dict.fromkeys(str(path.relative_to(ROOT)) for path in found))


def run(tests: Sequence[str], deadline: float) -> dict[str, Any]:
    """Run the files until `deadline`, on the monotonic clock; what a record says of it."""
    begin = time.monotonic()
    # Compiling takes most of the time, on the host; a device has room for several processes.
    at_once = max(1, min(4, (os.cpu_count() or 1) // 4))
    with tempfile.TemporaryDirectory() as folder:
        waiting = [_File(test, Path(folder) / f"{i}.jsonl") for i, test in enumerate(tests)]
        all_of_them, running = list(waiting), list[_File]()
        try:
            while (waiting or running) and time.monotonic() < deadline:
                while waiting and len(running) < at_once:
                    running.append(waiting.pop(0))
                    running[-1].start()
                time.sleep(0.05)
                running = [file for file in running if not file.is_finished()]
        finally:
            for file in running:
                file.out_of_time = True
                file.end()
        unfinished = [file.test for file in (*running, *waiting)]
        return _summary(all_of_them, unfinished, time.monotonic() - begin)


class _File:
    """A test file, the process that runs it, and what is known of its tests."""

    def __init__(self, test: str, outcomes: Path) -> None:
        self.test, self.outcomes = test, outcomes
        self.log = outcomes.with_suffix(".log")
        self.starts = 0
        self.out_of_time = False

    def start(self) -> None:
        self.starts += 1
        self.known = self._size()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command(self.test, self.outcomes),
                cwd=ROOT,
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
        elif code in FINISHED:
            return True
        if not self._has_event() or self.starts == MOST_STARTS:
            return True
        self.start()
        return False

    def end(self) -> None:
        """Kill its process, also where a test of it is running."""
        self.process.kill()
        self.process.wait()

    def results(self) -> Iterator[tuple[str, str]]:
        """Each test's outcome and, of those that did not pass, a line that says why."""
        known = read(self.outcomes)
        if self.out_of_time and known and next(reversed(known.values()))["outcome"] == STARTED:
            known.popitem()  # it did nothing wrong
        for test, event in known.items():
            if event["outcome"] == STARTED:
                yield "failed", f"{test}: hung or ended the process"
            else:
                yield event["outcome"], f"{test}: {event['why']}"
        if self.starts and not self.outcomes.exists():
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


def _summary(run: Sequence[_File], unfinished: Sequence[str], seconds: float) -> dict[str, Any]:
    results = [result for file in run for result in file.results()]
    counts = Counter(outcome for outcome, _ in results)
    parts = [f"{counts[name]} {name}" for name in ("passed", "failed", "skipped") if counts[name]]
    summary = f"{', '.join(parts) or 'nothing ran'} in {seconds:.0f} s"
    if unfinished:
        summary += f"; not finished: {', '.join(Path(test).name for test in unfinished)}"
    return {
        "command": shlex.join(["pytest", *(file.test for file in run)]),
        "exit_code": int(bool(counts["failed"] or unfinished)),
        "in_time": not unfinished,
        "seconds": round(seconds, 1),
        "summary": summary,
        "failed": [line for outcome, line in results if outcome == "failed"][:200],
    }
