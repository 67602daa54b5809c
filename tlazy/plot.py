"""The pictures of a training run. Needs the `plot` extra."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from tlazy.bench.machine import device_name
from tlazy.errors import UserError, shortened
from tlazy.files import replacing
from tlazy.run import Config, Run

TRAINING, TEST = "#4477aa", "#cc3311"  # told apart with any colour vision (Tol's bright scheme)
MOST_WRITTEN_CLASSES = 25
MOST_TITLE, MOST_NAME = 60, 16
# For characters that matplotlib's own font lacks, whichever of these is installed.
FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Droid Sans Fallback",
    "Unifont",
)


def draw(
    run: Run, history: Sequence[Mapping[str, Any]], counts: np.ndarray, accuracy: float
) -> None:
    """Write ``curves.png`` and ``confusion.png`` into the run's folder.

    Args:
        history: the metrics of each epoch.
        counts: confusion matrix of the test series, shape (classes, classes); rows are true.
        accuracy: on the test series, from 0 to 1.

    Raises:
        UserError: where the folder cannot be written.
    """
    options = run.config.options
    title = (
        f"{shortened(run.config.name, MOST_TITLE)} · {options.model} · test accuracy {accuracy:.1%}"
    )
    if len(history) < options.epochs:
        title += f"\ninterrupted after epoch {len(history)} of {options.epochs}"
    with literal_text():
        _save(_curves(history, title, run.config), run.path / "curves.png")
        _save(_confusion(counts, title, run.config), run.path / "confusion.png")


@contextmanager
def literal_text() -> Iterator[None]:
    """Draw the user's words as they are: no formulas, and no complaint about a missing glyph."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
    with (
        rc_context({"text.usetex": False, "text.parse_math": False, "font.family": fonts}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=r"(?s).*Glyph .* missing")
        yield


def _curves(history: Sequence[Mapping[str, Any]], title: str, config: Config) -> Figure:
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle(title, fontsize=14)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        _plot_metric(axes, history, name)
    loss, accuracy = figure.axes
    loss.set_ylabel("cross-entropy")
    if history:
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        loss.yaxis.set_major_formatter("{x:g}")
        loss.yaxis.set_minor_formatter(NullFormatter())
    accuracy.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    accuracy.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    accuracy.set_ylabel("accuracy")
    accuracy.legend(loc="best" if len(history) == 1 else "lower right", frameon=False)
    _small_print(figure, config)
    return figure


def _plot_metric(axes: Axes, history: Sequence[Mapping[str, Any]], name: str) -> None:
    axes.plot(
        [row["epoch"] for row in history],
        [row[name] for row in history],
        color=TRAINING,
        linewidth=1.4,
        marker="o" if len(history) == 1 else None,  # a line needs two points
        markersize=4,
        label="training (during the epoch)",
    )
    scored = [row for row in history if f"test_{name}" in row]
    axes.plot(
        [row["epoch"] for row in scored],
        [row[f"test_{name}"] for row in scored],
        color=TEST,
        linewidth=1.4,
        marker="o",
        markersize=4,
        label="test (after the epoch)",
    )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _confusion(counts: np.ndarray, title: str, config: Config) -> Figure:
    size = float(np.clip(3.2 + 0.35 * len(counts), 4.6, 11))
    figure = Figure(figsize=(size + 1.2, size + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1.0, decimals=0))
    bar.set_label("share of the true class")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if len(counts) <= MOST_WRITTEN_CLASSES:
        _write_cells(axes, counts, shares, config.classes)
    _small_print(figure, config)
    return figure


def _write_cells(
    axes: Axes, counts: np.ndarray, shares: np.ndarray, classes: Sequence[str]
) -> None:
    """Name rows and columns, and write each count on its cell."""
    names = [shortened(name, MOST_NAME) for name in classes]
    # A cell is about 0.35 inches wide, or more where there are few; a character 0.1.
    cell = max(0.35, 2.4 / len(names))
    turned = 90 if 0.1 * max(map(_columns, names)) > cell else 0
    axes.set_xticks(range(len(names)), names, rotation=turned)
    axes.set_yticks(range(len(names)), names)
    fontsize = 14 if len(names) <= 4 else 10 if len(names) <= 12 else 7
    for (row, column), count in np.ndenumerate(counts):
        dark = shares[row, column] > 0.5
        axes.text(
            column,
            row,
            str(count),
            ha="center",
            va="center",
            fontsize=fontsize,
            color="white" if dark else "black" if count else "0.7",
        )


def _columns(text: str) -> int:
    """The width of `text` in characters; Chinese and its like are two wide."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _small_print(figure: Figure, config: Config) -> None:
    options = config.options
    made = " · ".join(f"{name} {version}" for name, version in config.versions.items())
    text = (
        f"{device_name(torch.device(options.device))} · backend {config.backend}\n"
        f"seed {options.seed} · {options.epochs} epochs · batch {options.batch_size} · "
        f"lr {options.lr:g} · {options.dtype}\n{made}"
    )
    figure.supxlabel(text, fontsize=6.5, color="0.4")


def _save(figure: Figure, path: Path) -> None:
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=150)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
