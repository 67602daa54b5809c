"""Whether a file can be written, asked before the work that will fill it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tlazy.errors import UserError


def check_writable(option: str, path: Path) -> None:
    """Raise UserError unless a file can be put at `path`; nothing stays in the folder."""
    try:
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder")
        if path.exists() and not path.is_file():
            raise UserError(f"{option} {path} is not a regular file")
    except OSError as error:  # a name that is too long
        raise UserError(f"{option} {path}: {error.strerror or error}") from error
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"{option} {path}: there is no folder {folder}")
    try:
        # Permissions do not tell: a disk may be full, or a file system made up by the kernel.
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{option} {path}: cannot write to the folder {folder}: {error.strerror or error}"
        ) from error


def check_new_file(option: str, path: Path) -> None:
    """As :func:`check_writable`, and raise UserError where anything is at `path` already."""
    if os.path.lexists(path):
        raise UserError(f"{option} {path} exists already: give another {option}")
    check_writable(option, path)
