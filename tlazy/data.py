"""Labelled time series: from sktime's wheel or from the user's files, checked before use.

=========  =========================================================================
file       content
=========  =========================================================================
``.npz``   arrays ``x_train``, ``y_train``, ``x_test``, ``y_test``, or ``x``, ``y``
``.csv``   one channel: a row is a series, its label in the first column; a header is skipped
``.tsv``   the same with tabs, as the UCR archive writes it
``.ts``    sktime's format, any number of channels; sktime reads labels in lower case
``.arff``  Weka's format, the nominal class last; relational for several channels
=========  =========================================================================

An ``x`` has shape (N, L) or (N, C, L). Files named ``*_TRAIN`` and ``*_TEST`` side by side are one
set; any other file without a test part is split, stratified by class. Nothing here uses the
network.
"""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from tlazy.errors import UserError, counted, quoted, reason

TEST_SHARE = 0.3
# So many labels may occur once in a sound file: a series of each class, to test with.
FEW = 3
# A label names folders, columns and ticks: longer ones are data in the wrong column.
MOST_LABEL = 200

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True)
class Dataset:
    """A classification set, as read: finite, of equal lengths, not normalized.

    Attributes:
        name: what titles and folders call it.
        x_train, x_test: float32, shape (N, C, L).
        y_train, y_test: int64, shape (N,), indices into `classes`.
        classes: the labels in the training part, sorted.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]

    @property
    def channels(self) -> int:
        return self.x_train.shape[1]

    @property
    def length(self) -> int:
        """Steps in each series."""
        return self.x_train.shape[2]

    def sha256(self) -> str:
        """A digest of all values and labels, to tell whether a file has changed."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(str(array.shape).encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of a training set.

    Wang et al. 2017 scale every set by its training part's mean and deviation; with several
    channels, each has its own. A constant channel is only centred.

    Attributes:
        mean, std: one float for each channel, in the data's units.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, x: np.ndarray) -> Normalization:
        """Measure `x`, shape (N, C, L), in float64."""
        mean = x.mean(axis=(0, 2), dtype=np.float64)
        std = x.std(axis=(0, 2), dtype=np.float64)
        constant = std <= 1e-7 * np.abs(mean)
        return cls(tuple(mean.tolist()), tuple(np.where(constant, 1.0, std).tolist()))

    def apply(self, x: np.ndarray) -> np.ndarray:
        """``(x - mean) / std`` for `x` of shape (N, C, L), in float32."""
        mean, std = (np.array(v)[:, None] for v in (self.mean, self.std))
        return ((x - mean) / std).astype(np.float32)


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


def load_dataset(source: str, *, seed: int = 0) -> Dataset:
    """Read a classification set, by its name in sktime's wheel or from a file.

    Args:
        source: ``"ItalyPowerDemand"``, ``"GunPoint"``, ..., or a path; see the module's table.
        seed: of the stratified split, for a file that has no test part.

    Raises:
        UserError: for whatever is wrong with the source or in the data.
    """
    name, train, test = _parts(source)
    if test is None:
        # The numbers in an error are the file's: it is checked before the split shuffles it.
        check_values(train.values, train.where)
        check_labels(_labels(train), train.where)
        train, test = _split(train, seed)
    x_train, x_test = (check_values(part.values, part.where) for part in (train, test))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UserError(
            f"{name}: training series have {shape_text(*x_train.shape[1:])}, "
            f"test series {shape_text(*x_test.shape[1:])}; they must agree"
        )
    classes, y_train = _check_classes(train)
    y_test = _check_test_labels(test, train, classes)
    return Dataset(name, x_train, y_train, x_test, y_test, classes)


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


def check_values(values: Sequence[np.ndarray], where: str) -> np.ndarray:
    """Stack series of one shape and finite values into a float32 array of shape (N, C, L).

    Args:
        values: arrays of shape (C, L).
        where: what to call them in an error.

    Raises:
        UserError: naming the series (and channel and step, counted from 0) that does not fit.
    """
    if not len(values):
        raise UserError(f"{where}: no series")
    channels, length = values[0].shape
    if channels * length == 0:
        raise UserError(f"{where}: series 0 is empty")
    for i, series in enumerate(values):
        if series.shape[1] != length:
            raise UserError(
                f"{where}: unequal lengths are not supported: series 0 has "
                f"{counted(length, 'step')}, "
                f"series {i} has {series.shape[1]}"
            )
        if series.shape[0] != channels:
            raise UserError(
                f"{where}: series 0 has {counted(channels, 'channel')}, "
                f"series {i} has {series.shape[0]}"
            )
    with np.errstate(over="ignore"):
        x = np.stack(values).astype(np.float32)
    if not np.isfinite(x).all():
        i, c, t = np.argwhere(~np.isfinite(x))[0].tolist()
        found = "NaN" if np.isnan(x[i, c, t]) else f"{values[i][c, t]} (no finite float32)"
        raise UserError(
            f"{where}: series {i}, channel {c}, step {t} is {found} (all counted from 0)"
        )
    return x


def shape_text(channels: int, length: int) -> str:
    """What a series is made of, in words.

    >>> shape_text(1, 24)
    '1 channel of 24 steps'
    """
    return f"{counted(channels, 'channel')} of {counted(length, 'step')}"


def check_labels(labels: Sequence[str], where: str) -> None:
    """Raise UserError, naming the series, for a label that is missing or no name at all."""
    for i, label in enumerate(labels):
        if is_missing(label):
            raise UserError(f"{where}: series {i} (counted from 0) has no label")
        if len(label) > MOST_LABEL or not label.isprintable():
            raise UserError(
                f"{where}: series {i} (counted from 0) is labelled {quoted(label)}: a label is "
                f"printable and has at most {MOST_LABEL} characters, this one has {len(label)}"
            )


def is_missing(label: str) -> bool:
    """Whether a label says that there is none."""
    return label.lower() in ("", "?", "nan")


def canonical_label(text: str) -> str:
    """``"1"`` for ``" 1 "``, ``"1.0"`` and ``"1.0000e+00"``; other labels lose only spaces.

    A whole number is the same label whether it is written as an integer or as a float, exactly:
    nothing is rounded. What no writer of numbers writes (``007``, ``1_1``, ``+1``) is text.

    >>> canonical_label("2.0000000e+00"), canonical_label(" left "), canonical_label("007")
    ('2', 'left', '007')
    """
    text = text.strip()
    if not _FLOAT.fullmatch(text) or _INTEGER.fullmatch(text):
        return "0" if text == "-0" else text
    number = Decimal(text)
    return f"{abs(number) if number == 0 else number:.0f}" if number % 1 == 0 else text


def _parts(source: str) -> tuple[str, Series, Series | None]:
    """The set's name, its training part and, where there is one, its test part."""
    if not source.strip():
        raise UserError("--data is empty: give the name of a set, or a file")
    path = Path(source)
    if path.suffix.lower() not in _SUFFIXES and not path.exists():
        folder = _bundled_folder(source)
        return (
            source,
            _read(folder / f"{source}_TRAIN.ts", None),
            _read(folder / f"{source}_TEST.ts", None),
        )
    if path.is_dir():
        raise UserError(f"--data {path} is a folder, not a file")
    stem = path.stem.removesuffix("_TRAIN").removesuffix("_TEST")
    train, test = (path.with_name(f"{stem}_{part}{path.suffix}") for part in ("TRAIN", "TEST"))
    if stem != path.stem and train.exists() and test.exists():
        return stem, read_file(train), read_file(test)
    if path.suffix.lower() == ".npz":
        return (path.stem, *_npz_parts(path))
    return path.stem, _read(path, None), None


def _bundled_folder(name: str) -> Path:
    """Where sktime's wheel keeps the set `name`."""
    sktime = _import_sktime(f"the data set {name}")
    root = Path(sktime.__path__[0]) / "datasets" / "data"
    kinds = {
        path.name.removesuffix("_TRAIN.ts"): _bundled_kind(path)
        for path in root.glob("*/*_TRAIN.ts")
    }
    if name not in kinds:
        known = sorted(known for known, kind in kinds.items() if kind == "classes")
        raise UserError(
            f"no data set and no file {quoted(name)}: sets in sktime's wheel are "
            f"{', '.join(known)}; files end in {', '.join(sorted(_SUFFIXES))}"
        )
    if kinds[name] == "numbers":
        raise UserError(
            f"{name} is a set for regression: its series have numbers for labels, not classes"
        )
    return root / name


def _bundled_kind(path: Path) -> str:
    """What a set is for, by the head of its ``.ts`` file: "classes", "numbers" or "unequal"."""
    head = ""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            head += " ".join(line.lower().split()) + "\n"
            if line.lower().startswith("@data"):
                break
    if "@targetlabel true" in head:
        return "numbers"
    return "unequal" if "@equallength false" in head else "classes"


def _split(data: Series, seed: int) -> tuple[Series, Series]:
    """Put `TEST_SHARE` of each class aside."""
    _import_sktime(f"splitting {data.where} into a training and a test part")
    from sklearn.model_selection import train_test_split

    labels = _labels(data)
    try:
        parts = train_test_split(
            np.arange(len(data.values)),
            test_size=TEST_SHARE,
            stratify=labels if len(set(labels)) > 1 else None,
            random_state=seed,
        )
    except ValueError as error:
        _check_repeated(data)
        raise UserError(
            f"{data.where}: too few series to set {TEST_SHARE:.0%} of each class aside for "
            f"testing ({error}); give a test part"
        ) from error
    train, test = (
        Series([data.values[i] for i in part], [labels[i] for i in part], data.where)
        for part in parts
    )
    return train, test


def _check_classes(train: Series) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes in order (numbers by value), and each training series' index into them."""
    labels = _labels(train)
    check_labels(labels, train.where)
    unique = set(labels)
    if len(unique) < 2:
        raise UserError(
            f"{train.where}: one class only: every training series is labelled "
            f"{quoted(unique.pop())}"
        )
    numeric = all(_INTEGER.fullmatch(label) for label in unique)
    classes = tuple(sorted(unique, key=Decimal)) if numeric else tuple(sorted(unique))
    index = {label: i for i, label in enumerate(classes)}
    return classes, np.array([index[label] for label in labels], dtype=np.int64)


def _check_test_labels(test: Series, train: Series, classes: tuple[str, ...]) -> np.ndarray:
    test_labels = _labels(test)
    check_labels(test_labels, test.where)
    index = {label: i for i, label in enumerate(classes)}
    unseen = [label not in index for label in test_labels]
    if any(unseen):
        _check_repeated(train)
        first = unseen.index(True)
        labels = sorted({label for label, new in zip(test_labels, unseen, strict=True) if new})
        raise UserError(
            f"{test.where}: test series {first} (counted from 0) is labelled "
            f"{quoted(test_labels[first])}, which no training series is; labels that only the "
            f"test part has: {', '.join(labels)}"
        )
    return np.array([index[label] for label in test_labels], dtype=np.int64)


def _check_repeated(part: Series) -> None:
    """Raise UserError where most labels occur once: what should be labels is data, then."""
    counts = Counter(_labels(part))
    alone = [label for label, count in counts.items() if count == 1]
    if len(alone) > max(FEW, counts.total() / 2):
        raise UserError(
            f"{part.where}: {len(alone)} of {counts.total()} series have a label that no other "
            f"has, such as {quoted(alone[0])}: are labels missing? In a .csv or .tsv file they are "
            "the first column"
        )


def _labels(part: Series) -> list[str]:
    if part.labels is None:
        raise UserError(
            f"{part.where}: the series have no labels, nothing can be learned from them"
        )
    return part.labels


def _import_sktime(purpose: str) -> ModuleType:
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
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(
            f"{path}: unknown kind of file {path.suffix!r}; known: {', '.join(sorted(_SUFFIXES))}"
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
    _import_sktime(f"reading {path}")
    from sktime.datasets import load_from_tsfile_to_dataframe

    return _series_of_frame(load_from_tsfile_to_dataframe(str(path)), path)


def _read_arff(path: Path, unlabelled_length: int | None) -> Series:
    _import_sktime(f"reading {path}")
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


def _npz_parts(path: Path) -> tuple[Series, Series | None]:
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
_SUFFIXES = {".npz", *_READERS}
