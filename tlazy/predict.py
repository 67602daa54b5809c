"""A trained network on new series: what `tlazy predict` runs."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tlazy.data import check_labels, check_values, is_missing, shape_text
from tlazy.errors import UserError, one_line, quoted
from tlazy.files import replacing
from tlazy.readers import Series, read_file
from tlazy.run import Config, Run, pick_device
from tlazy.train import EVALUATION_BATCH, compute_dtype


@dataclass(frozen=True)
class Predictions:
    """What a network says about N series.

    Attributes:
        classes: names, in the order of the columns of `probabilities`.
        probabilities: float64, shape (N, classes); rows sum to 1.
        labels: the file's own labels, or None where it has none.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray
    labels: list[str] | None

    @property
    def predicted(self) -> list[str]:
        """The most probable class of each series."""
        return [self.classes[i] for i in self.probabilities.argmax(1)]

    @property
    def accuracy(self) -> float | None:
        """The share of labels that were predicted, from 0 to 1; None without labels."""
        if self.labels is None:
            return None
        pairs = zip(self.predicted, self.labels, strict=True)
        return sum(predicted == label for predicted, label in pairs) / len(self.labels)

    def write_csv(self, path: Path) -> None:
        """Write a header and, for each series: index, predicted class, label, probabilities.

        Raises:
            UserError: where `path` cannot be written.
        """
        labels = self.labels or [""] * len(self.predicted)
        try:
            with replacing(path) as temporary, temporary.open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(
                    ["series", "predicted", "label", *(f"p({name})" for name in self.classes)]
                )
                for i, predicted in enumerate(self.predicted):
                    values = (f"{p:.6g}" for p in self.probabilities[i])
                    writer.writerow([i, predicted, labels[i], *values])
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def predict(folder: Path, file: Path, *, device: str = "auto") -> Predictions:
    """Classify the series in `file` with the network that the run in `folder` trained.

    Args:
        file: see :mod:`tlazy.readers`; labels may be missing. In a ``.csv`` or ``.tsv`` a row of
            just as many values as the training series have steps is one without a label.

    Raises:
        UserError: where the run or the file is damaged, or the series have other channels, another
            length or other labels than the training series.
    """
    run = Run.open(folder)
    config = run.config
    target = pick_device(device)
    data = read_file(file, unlabelled_length=config.length)
    x = check_values(data.values, str(file))
    if x.shape[1:] != (config.channels, config.length):
        raise UserError(
            f"{file}: series have {shape_text(*x.shape[1:])}, the run in {folder} was trained on "
            f"{shape_text(config.channels, config.length)}"
        )
    labels = _known_labels(data, config)
    net = run.load_model(target)
    return Predictions(config.classes, _probabilities(net, x, config, target), labels)


def _known_labels(data: Series, config: Config) -> list[str] | None:
    """The file's labels, or None where it has none; UserError for one that is no class."""
    if data.labels is None or all(map(is_missing, data.labels)):
        return None
    check_labels(data.labels, data.where)
    for i, label in enumerate(data.labels):
        if label not in config.classes:
            raise UserError(
                f"{data.where}: series {i} (counted from 0) is labelled {quoted(label)}, which the "
                f"network never saw; write ? for every label to predict without them; "
                f"known are {', '.join(config.classes)}"
            )
    return data.labels


@torch.no_grad()
def _probabilities(
    net: torch.nn.Module, x: np.ndarray, config: Config, device: torch.device
) -> np.ndarray:
    dtype = torch.float64 if config.options.dtype == "float64" else torch.float32
    series = torch.from_numpy(config.normalization.apply(x)).to(dtype)
    net = net.to(dtype)
    try:
        with compute_dtype(config.options, device):
            parts = [net(part.to(device)) for part in series.split(EVALUATION_BATCH)]
    except RuntimeError as error:
        raise UserError(
            f"the run's model does not fit its config.json: {one_line(error)}"
        ) from error
    return torch.cat(parts).double().softmax(1).cpu().numpy()
