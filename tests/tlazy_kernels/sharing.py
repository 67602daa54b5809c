"""Tests in several processes share a GPU; those that need most of its memory run one at a time."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

LOCK = Path(tempfile.gettempdir()) / f"tlazy-gpu-memory-{os.getuid()}.lock"


@contextmanager
def most_of_the_memory() -> Iterator[None]:
    """Wait until no other process is inside; on leaving, give back what torch keeps for reuse."""
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed, or the process ends
        try:
            yield
        finally:
            torch.cuda.empty_cache()
