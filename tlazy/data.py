"""Labelled time series: from sktime's wheel or from the user's files, checked before use.

Of the formats that :mod:`tlazy.readers` knows. Files named ``*_TRAIN`` and ``*_TEST`` side by side
are one set; any other file without a test part is split, stratified by class. Nothing here uses the
network.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np

from tlazy.errors import UserError, counted, quoted
from tlazy.readers import INTEGER, SUFFIXES, Series, import_sktime, npz_parts, read_file

TEST_SHARE = 0.3
# So many labels may occur once in a sound file: a series of each class, to test with.
FEW = 3
# A label names folders, columns and ticks: longer ones are data in the wrong column.
MOST_LABEL = 200


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


def load_dataset(source: str, *, seed: int = 0) -> Dataset:
    """Read a classification set, by its name in sktime's wheel or from a file.

    Args:
        source: ``"ItalyPowerDemand"``, ``"GunPoint"``, ..., or a path; see :mod:`tlazy.readers`.
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


def _parts(source: str) -> tuple[str, Series, Series | None]:
    """The set's name, its training part and, where there is one, its test part."""
    if not source.strip():
        raise UserError("--data is empty: give the name of a set, or a file")
    path = Path(source)
    if path.suffix.lower() not in SUFFIXES and not path.exists():
        folder = _bundled_folder(source)
        return (
            source,
            read_file(folder / f"{source}_TRAIN.ts"),
            read_file(folder / f"{source}_TEST.ts"),
        )
    if path.is_dir():
        raise UserError(f"--data {path} is a folder, not a file")
    stem = path.stem.removesuffix("_TRAIN").removesuffix("_TEST")
    train, test = (path.with_name(f"{stem}_{part}{path.suffix}") for part in ("TRAIN", "TEST"))
    if stem != path.stem and train.exists() and test.exists():
        return stem, read_file(train), read_file(test)
    if path.suffix.lower() == ".npz":
        return (path.stem, *npz_parts(path))
    return path.stem, read_file(path), None


def _bundled_folder(name: str) -> Path:
    """Where sktime's wheel keeps the set `name`."""
    sktime = import_sktime(f"the data set {name}")
    root = Path(sktime.__path__[0]) / "datasets" / "data"
    kinds = {
        path.name.removesuffix("_TRAIN.ts"): _bundled_kind(path)
        for path in root.glob("*/*_TRAIN.ts")
    }
    if name not in kinds:
        known = sorted(known for known, kind in kinds.items() if kind == "classes")
        raise UserError(
            f"no data set and no file {quoted(name)}: sets in sktime's wheel are "
            f"{', '.join(known)}; files end in {', '.join(sorted(SUFFIXES))}"
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
    import_sktime(f"splitting {data.where} into a training and a test part")
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
    numeric = all(INTEGER.fullmatch(label) for label in unique)
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
