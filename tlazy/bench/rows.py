"""What the rows of one problem and pass say on their way: waiting, tried, refused, or timed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tlazy.bench.operations import Pass
from tlazy.bench.problems import Problem
from tlazy.bench.record import Record, Row, identity
from tlazy.bench.timing import Timing
from tlazy.report.record import NOT_MEASURED
from tlazy_kernels.roofline import Cost, Precision

# What rows say that have no time yet: one that is being tried, and has failed if it stays so, and
# one whose turn is to come, which is not measured.
TRIED = "hung, or the process ended in it"
UNFINISHED = "the run ended first"

# What a row has only if it has a time.
TIMES = ("median_us", "q20_us", "q80_us", "tflops", "gbps", "floor_fraction")


def is_tried(row: Row) -> bool:
    """Whether the row's peer is being tried, or never came back."""
    return (row["status"], row["note"]) == ("failed", TRIED)


class Rows:
    """The rows of one problem and pass, one for each peer, as they are put into a record.

    Attributes:
        missing: those that the record does not hold, or holds as not measured.
    """

    def __init__(
        self,
        problem: Problem,
        which: Pass,
        peers: Sequence[str],
        record: Record,
        precision: Precision,
    ) -> None:
        self.record = record
        # Only the device's work has a floor.
        works = problem.timed == "device"
        self.cost: Cost | None = problem.operation.cost(problem.dtype, which) if works else None
        self.floor_us = self._floor_us(precision)
        rows = (self._waiting(identity(problem, which, peer)) for peer in peers)
        self.missing = [row for row in rows if self._is_missing(row)]

    def announce(self, rows: Iterable[Row]) -> None:
        """Have the file say that those without a time are tried, before anything of them runs."""
        untimed = [row for row in rows if row["status"] != "ok"]
        for row in untimed:
            row.update(status="failed", note=TRIED)
            self.record.hold(row)
        if untimed:
            self.record.write()

    def wait(self, row: Row) -> None:
        """Say that the row's turn is to come."""
        row.update(status=NOT_MEASURED, note=UNFINISHED)
        self.record.hold(row)

    def refuse(self, row: Row, status: str, note: str) -> None:
        """Say why the row has no time, or has none any more."""
        row.update(dict.fromkeys(TIMES), samples=0, status=status, note=note)
        self.record.hold(row)

    def note_time(self, row: Row, timing: Timing, note: str) -> None:
        """Say what the row's peer took."""
        row.update(
            status="ok",
            note=note,
            median_us=timing.median * 1e6,
            q20_us=timing.q20 * 1e6,
            q80_us=timing.q80 * 1e6,
            samples=timing.samples,
            tflops=self.cost and self.cost.flops / timing.median / 1e12,
            gbps=self.cost and self.cost.bytes / timing.median / 1e9,
            floor_fraction=self.floor_us and self.floor_us / (timing.median * 1e6),
        )

    def _waiting(self, row: Row) -> Row:
        """The row as it is until something is known of it."""
        return {
            **row,
            "backend": "",
            "status": NOT_MEASURED,
            "note": UNFINISHED,
            "error": None,
            **dict.fromkeys(TIMES),
            "samples": 0,
            "flops": self.cost and self.cost.flops,
            "bytes": self.cost and self.cost.bytes,
            "floor_us": self.floor_us,
            "peak_memory_bytes": None,
        }

    def _floor_us(self, precision: Precision) -> float | None:
        if self.cost is None:
            return None
        device = self.record.content["machine"]["device"]
        floor = self.record.ceilings.floor(self.cost, precision, device)
        return None if floor is None else floor * 1e6

    def _is_missing(self, row: Row) -> bool:
        there = self.record.find(row)
        return there is None or there["status"] == NOT_MEASURED
