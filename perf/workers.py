"""Processes for all that touches the device: one that loses it, or hangs, ends alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What tasks return.
DONE, BAD_INPUT, OUT_OF_TIME, LOST = 0, 2, 3, 4
# Without a new row for so long, a measurement hangs. Compiling takes the longest.
STUCK_SECONDS = 90.0
OVERRUN_SECONDS = 5.0
# How long a process that was killed is waited for: one that the driver does not let go stays.
END_SECONDS = 10.0


def run(task: Callable[..., int], values: tuple, record: Path | None, deadline: float) -> int:
    """Run the task in a new process and return its exit code.

    It is ended at the deadline, and where it leaves `record` alone for too long.
    """
    begun = time.time()
    worker = started(task, values)
    with ended_on_exit(worker):
        while not _wait(
            lambda: worker.exitcode, min(deadline + OVERRUN_SECONDS, _stuck_at(record, begun))
        ):
            if time.monotonic() >= deadline + OVERRUN_SECONDS:
                return OUT_OF_TIME
            if time.monotonic() >= _stuck_at(record, begun):
                print("a measurement hangs and is given up", file=sys.stderr)
                break
    return LOST if worker.exitcode is None else int(worker.exitcode)


def started(task: Callable[..., int], values: tuple) -> Any:
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
def ended_on_exit(process: Any) -> Iterator[None]:
    """Kill the process, where it still runs, when the block is left in whatever way."""
    try:
        yield
    finally:
        process.kill()
        process.join(END_SECONDS)
