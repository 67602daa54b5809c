"""Triton's parsing of kernels, where several threads compile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from triton.runtime.jit import JITFunction


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Inside, one thread parses at a time, whatever the others do.

    CPython 3.11 may raise a SystemError ("recursion depth mismatch") where two do.
    """
    parse, lock = JITFunction.parse, threading.Lock()

    def parse_alone(kernel: Any) -> Any:
        with lock:
            return parse(kernel)

    JITFunction.parse = parse_alone
    try:
        yield
    finally:
        JITFunction.parse = parse
