"""Atomic writing: a reader sees the old file or the whole new one, never a part."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; on a clean exit it takes `path`'s place.

    Where the block raises, or the process dies in it, `path` is as it was before.

    Raises:
        OSError: where the folder is missing or cannot be written.
    """
    target = Path(path)
    # The suffix stays last: writers such as matplotlib choose their format by it.
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _match_permissions(temporary, target)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _match_permissions(temporary: Path, target: Path) -> None:
    """Give the new file the old one's mode, or the one that a plain ``open`` would give."""
    if target.exists():
        mode = target.stat().st_mode & 0o777
    else:
        umask = os.umask(0)
        os.umask(umask)
        mode = 0o666 & ~umask
    temporary.chmod(mode)
