"""Ctrl-C and SIGTERM end a run in good order: what was measured until then is kept and shown."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """One of STOPPING came: its number."""

    @property
    def exit_code(self) -> int:
        """What shells make of a process that the signal ended."""
        return 128 + int(self.args[0])


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the first signal of STOPPING raises; a further one leaves the rest undisturbed.

    A signal that the process was started to ignore, as in a shell's background, stays ignored.
    Signals reach the main thread alone: in any other this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in STOPPING}
    before = {number: now for number, now in before.items() if now not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
