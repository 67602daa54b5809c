"""What a training run shows while it runs: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# A log file gets at most about this many lines, however many epochs there are.
PLAIN_LINES = 10


class PlainDisplay:
    """A line for every tenth of the epochs."""

    def note(self, text: str) -> None:
        """Print `text` as it is."""
        print(text, flush=True)

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Print the epoch's metrics, where its turn has come."""
        every = max(1, epochs // PLAIN_LINES)
        if row["epoch"] == 1 or row["epoch"] % every == 0 or row["epoch"] == epochs:
            print(f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  {_metrics(row)}", flush=True)


class LiveDisplay:
    """A progress bar with the last epoch's loss and accuracies."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def note(self, text: str) -> None:
        """Print `text` as it is, above the bar."""
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Move the bar."""
        if not self.progress.tasks:
            self.progress.add_task("epoch", total=epochs, metrics="")
        self.progress.update(
            self.progress.task_ids[0], completed=row["epoch"], metrics=_metrics(row)
        )


@contextmanager
def display() -> Iterator[PlainDisplay | LiveDisplay]:
    """The display that fits stdout."""
    console = Console()
    if not console.is_terminal:
        yield PlainDisplay()
        return
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[metrics]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield LiveDisplay(progress)


def _metrics(row: Mapping[str, Any]) -> str:
    return f"loss {row['loss']:.4f}  accuracy {row['accuracy']:7.2%}"
