"""Atomic writing: a reader sees the old file or the whole new one, never a part."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; on a clean exit it takes `path`'s place.

    Where the block raises, or the process dies in it, `path` is as it was before.

    Raises:
        OSError: where the folder is missing or cannot be written, and where `path` is something
            else than a file, such as a device, which must not be replaced.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "it is there, and not a regular file", str(target))
    # The suffix stays last: writers such as matplotlib choose their format by it.
    temporary = target.with_name(_temporary(target, secrets.token_hex(4)))
    # A plain creation, so that the umask applies as it does to any file.
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:  # names the file that was asked for
        raise OSError(error.errno, error.strerror, str(target)) from error
    try:
        mode = (target if target.exists() else temporary).stat().st_mode & 0o777
        temporary.chmod(mode)
        yield temporary
        temporary.chmod(mode)  # a writer may have put a file of its own in its place
        _flush(temporary)
        temporary.replace(target)
        _flush(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_temporaries(path: Path) -> None:
    """Remove what processes that died in :func:`replacing` left beside `path`."""
    for left in path.parent.glob(_temporary(path, "[0-9a-f]" * 8)):
        left.unlink(missing_ok=True)


def _temporary(target: Path, token: str) -> str:
    return f".{target.stem}-{token}{target.suffix}"


def _flush(path: Path) -> None:
    """Wait until what `path` (a file, or a folder's list of names) holds is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
