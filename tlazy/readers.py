"""Series from files of several formats, as they stand there.

=========  =========================================================================
file       content
=========  =========================================================================
``.npz``   arrays ``x_train``, ``y_train``, ``x_test``, ``y_test``, or ``x``, ``y``
``.csv``   one channel: a row is a series, its label in the first column; a header is skipped
``.tsv``   the same with tabs, as the UCR archive writes it
``.ts``    sktime's format, any number of channels; sktime reads labels in lower case
``.arff``  Weka's format, the nominal class last; relational for several channels
=========  =========================================================================

An ``x`` has shape (N, L) or (N, C, L).
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from tlazy.errors import UserError, quoted, reason

INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?")


class Series(NamedTuple):
    """What a file holds.

    Attributes:
        values: each series with shape (C, L_i).
        labels: one for each series, or None where there are none.
        where: the file, and the part of it, as an error names it.
    """

    values: Sequence[np.ndarray]
    labels: list[str] | None
    where: str


def read_file(path: Path, *, unlabelled_length: int | None = None) -> Series:
    """Read all series of one file.

    Args:
        path: a file of the module's table. An ``.npz`` gives ``x`` (and ``y``), or else ``x_test``
            (and ``y_test``).
        unlabelled_length: a ``.csv`` or ``.tsv`` row of just so many values has no label.

    Raises:
        UserError: where the file is missing, of an unknown kind or malformed.
    """
    if path.suffix.lower() == ".npz":
        arrays = _read_npz(path)
        for x, y in (("x", "y"), ("x_test", "y_test")):
            if x in arrays:
                return _series_of_arrays(arrays[x], arrays.get(y), str(path))
        raise UserError(f"{path}: no array x or x_test among {sorted(arrays)}")
    return _read(path, unlabelled_length)


def canonical_label(text: str) -> str:
    """``"1"`` for ``" 1 "``, ``"1.0"`` and ``"1.0000e+00"``; other labels lose only spaces.

    A whole number is the same label whether it is written as an integer or as a float, exactly:
    nothing is rounded. What no writer of numbers writes (``007``, ``1_1``, ``+1``) is text.

    >>> canonical_label("2.0000000e+00"), canonical_label(" left "), canonical_label("007")
    ('2', 'left', '007')
    """
    text = text.strip()
    if not _FLOAT.fullmatch(text) or INTEGER.fullmatch(text):
        return "0" if text == "-0" else text
    number = Decimal(text)
    return f"{abs(number) if number == 0 else number:.0f}" if number % 1 == 0 else text


def import_sktime(purpose: str) -> ModuleType:
    try:
        import sktime
    except ImportError as error:
        raise UserError(f"{purpose} needs sktime: pip install 'tlazy[data]'") from error
    return sktime


def _read(path: Path, unlabelled_length: int | None) -> Series:
    """Read any kind but ``.npz``, and make every failure one clear line."""
    _check_file(path)
    reader = _READERS[path.suffix.lower()]
    try:
        data = reader(path, unlabelled_length)
    except UserError:
        raise
    except Exception as error:  # sktime's readers raise whatever their parsing meets
        raise _unreadable(path, error) from error
    labels = None if data.labels is None else [canonical_label(text) for text in data.labels]
    return data._replace(labels=labels)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path}: unknown kind of file {path.suffix!r}; known: {', '.join(sorted(SUFFIXES))}"
        )


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"cannot read {path}: {error.strerror}")
    if isinstance(error, UnicodeError):
        return UserError(f"{path} is malformed: it is not UTF-8 text; save it as UTF-8")
    if isinstance(error, (TypeError, AttributeError, LookupError)):
        # A reader stumbled: its words are about its variables, not about the file.
        return UserError(f"{path} is malformed: its content is not that of a {path.suffix} file")
    return UserError(f"{path} is malformed: {reason(error)}")


def _read_comma_separated(path: Path, unlabelled_length: int | None) -> Series:
    return _read_rows(path, ",", unlabelled_length)


def _read_tab_separated(path: Path, unlabelled_length: int | None) -> Series:
    return _read_rows(path, "\t", unlabelled_length)


def _read_rows(path: Path, delimiter: str, unlabelled_length: int | None) -> Series:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    _check_columns(rows, path, delimiter, unlabelled_length)
    if rows and _is_header(rows[0][1]):
        del rows[0]
    first = 0 if rows and len(rows[0][1]) == unlabelled_length else 1
    values = [
        np.array([[_number(row[i], path, line, i) for i in range(first, len(row))]])
        for line, row in rows
    ]
    return Series(values, [row[0] for _, row in rows] if first else None, str(path))


def _check_columns(
    rows: Sequence[tuple[int, list[str]]], path: Path, delimiter: str, unlabelled_length: int | None
) -> None:
    """Raise UserError for what comes of a wrong separator or encoding."""
    if any("\0" in cell for _, row in rows[:1] for cell in row):
        raise UserError(f"{path} is malformed: it is not UTF-8 text; save it as UTF-8")
    if rows and unlabelled_length != 1 and all(len(row) == 1 for _, row in rows):
        separator = "comma" if delimiter == "," else "tab"
        raise UserError(
            f"{path} is malformed: every row has one column; is the separator a {separator}?"
        )


def _number(cell: str, path: Path, line: int, column: int) -> float:
    """The value of a cell; an empty one is NaN, which is reported where it matters."""
    try:
        return float(cell) if cell.strip() else math.nan
    except ValueError:
        raise UserError(
            f"{path} is malformed: line {line}, column {column + 1}: {quoted(cell)} is not a number"
        ) from None


def _is_header(row: list[str]) -> bool:
    """Whether a first row names columns: no numbers after the label, or only their positions."""
    cells = [cell.strip() for cell in row]
    numbers = [cell for cell in cells[1:] if cell == "" or _is_number(cell)]
    if not numbers:
        return not _is_number(cells[0])
    positions = [[str(i + start) for i in range(len(cells) - 1)] for start in (0, 1)]
    return not _is_number(cells[0]) and len(cells) > 2 and cells[1:] in positions


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_ts(path: Path, unlabelled_length: int | None) -> Series:
    import_sktime(f"reading {path}")
    from sktime.datasets import load_from_tsfile_to_dataframe

    return _series_of_frame(load_from_tsfile_to_dataframe(str(path)), path)


def _read_arff(path: Path, unlabelled_length: int | None) -> Series:
    import_sktime(f"reading {path}")
    from sktime.datasets import load_from_arff_to_dataframe

    with path.open(encoding="utf-8") as file:
        attributes = [line for line in file if line.strip().lower().startswith("@attribute")]
    if not attributes:
        raise UserError(f"{path} is malformed: no @attribute line")
    labelled = "{" in attributes[-1]
    read = load_from_arff_to_dataframe(str(path), has_class_labels=labelled)
    return _series_of_frame(read, path)


def _series_of_frame(read: Any, path: Path) -> Series:
    """Unpack sktime's nested frame: one row a series, one column a channel."""
    frame, labels = read if isinstance(read, tuple) else (read, None)
    values = []
    for i, row in enumerate(frame.to_numpy()):
        channels = [np.asarray(cell, dtype=np.float64) for cell in row]
        if len({len(channel) for channel in channels}) > 1:
            raise UserError(f"{path}: series {i} has channels of unequal lengths")
        values.append(np.stack(channels))
    texts = None if labels is None else [str(label) for label in labels]
    return Series(values, texts, str(path))


def npz_parts(path: Path) -> tuple[Series, Series | None]:
    arrays = _read_npz(path)
    if "x" in arrays or "y" in arrays:
        wanted = ["x", "y"]
    else:
        wanted = ["x_train", "y_train", "x_test", "y_test"]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise UserError(
            f"{path}: missing arrays {', '.join(missing)}; needed are x_train, y_train, x_test, "
            f"y_test, or x, y; found {sorted(arrays)}"
        )
    if len(wanted) == 2:
        return _series_of_arrays(arrays["x"], arrays["y"], str(path)), None
    return (
        _series_of_arrays(arrays["x_train"], arrays["y_train"], f"{path}, training part"),
        _series_of_arrays(arrays["x_test"], arrays["y_test"], f"{path}, test part"),
    )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    _check_file(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise _unreadable(path, error) from error


def _series_of_arrays(x: np.ndarray, y: np.ndarray | None, where: str) -> Series:
    if x.ndim == 2:
        x = x[:, None, :]
    if x.ndim != 3 or x.dtype.kind not in "fiub":
        raise UserError(
            f"{where}: series must be real numbers of shape (N, L) or (N, C, L), "
            f"got {x.dtype} of shape {x.shape}"
        )
    if y is None:
        return Series(list(x), None, where)
    if y.shape != (len(x),) or y.dtype.kind not in "fiubUS":
        raise UserError(
            f"{where}: labels must be numbers or text of shape ({len(x)},), "
            f"got {y.dtype} of shape {y.shape}"
        )
    texts = y.astype(str).tolist()
    return Series(list(x), [canonical_label(text) for text in texts], where)


_READERS: dict[str, Callable[[Path, int | None], Series]] = {
    ".csv": _read_comma_separated,
    ".tsv": _read_tab_separated,
    ".ts": _read_ts,
    ".arff": _read_arff,
}
SUFFIXES = {".npz", *_READERS}
