"""The table of all rows: its columns, and what each row shows in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tlazy.report import units
from tlazy.report.comparison import US, Duel, Problem, Row
from tlazy.report.record import NOT_MEASURED


@dataclass(frozen=True)
class Cell:
    """What a cell shows and, where that differs, what it sorts by."""

    text: str
    value: float | str | None = None
    style: str = ""


@dataclass(frozen=True)
class Column:
    """A heading, and how a row fills the cell below it."""

    heading: str
    cell: Callable[[Row, Duel | None], Cell]
    style: str = ""


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    index: int
    row: Row
    verdict: str
    cells: Sequence[Cell]

    @property
    def style(self) -> str:
        status = self.row["status"]
        return {"ok": "", NOT_MEASURED: "", "wrong": "bad wrong"}.get(status, "bad")


def lines(rows: Sequence[Row], problems: Iterable[Problem]) -> list[Line]:
    """One line per row of the record, in its order, whatever became of the row."""
    duels: dict[int, Duel] = {}
    verdicts: dict[int, set[str]] = {}
    for problem in problems:
        duels.update((duel.index, duel) for duel in problem.duels)
        of_problem: set[str] = {duel.verdict for duel in problem.duels}
        verdicts.update((index, of_problem) for index, _ in problem.ours)
        verdicts.update((duel.index, {duel.verdict}) for duel in problem.duels)
    return [
        Line(
            index,
            row,
            " ".join(sorted(verdicts[index])),
            [column.cell(row, duels.get(index)) for column in COLUMNS],
        )
        for index, row in enumerate(rows)
    ]


def _text(heading: str, key: str, style: str = "") -> Column:
    return Column(heading, lambda row, _: Cell(row[key] or ""), style)


def _figure(heading: str, key: str, write: Callable[[Any], str]) -> Column:
    def cell(row: Row, _: Duel | None) -> Cell:
        value = row[key]
        return Cell("") if value is None else Cell(write(value), value)

    return Column(heading, cell, "number")


def _speedup(row: Row, duel: Duel | None) -> Cell:
    if duel is None or duel.speedup is None:
        return Cell("")
    text = f"{units.times(duel.speedup)} {duel.words}"
    return Cell(text, duel.speedup, duel.verdict)


def _spread(row: Row, _: Duel | None) -> Cell:
    low, high = row["q20_us"], row["q80_us"]
    if low is None or high is None:
        return Cell("")
    return Cell(f"{units.duration(low)} – {units.duration(high)}", low)


COLUMNS: Sequence[Column] = (
    Column("problem", lambda row, _: Cell(row["problem"] or row["op"])),
    _text("who", "peer"),
    _text("status", "status", "status"),
    _text("dtype", "dtype"),
    _text("pass", "pass"),
    _figure("median", "median_us", units.duration),
    Column("20–80% of samples", _spread, "number"),
    Column(f"{US} against it", _speedup, "number"),
    _figure("TFLOP/s", "tflops", units.digits),
    _figure("GB/s", "gbps", units.digits),
    _figure("floor", "floor_us", units.duration),
    _figure("of the floor", "floor_fraction", lambda share: f"{share:.1%}"),
    _figure("peak memory", "peak_memory_bytes", units.memory),
    _figure("error", "error", lambda error: f"{error:.1e}"),
    _text("note", "note", "wraps"),
    _text("backend", "backend"),
    _text("activation", "activation"),
    _text("layout", "layout"),
    _text("op", "op"),
    _text("suite", "suite"),
    Column("shape", lambda row, _: Cell(units.shape(row["shape"])), "wraps sizes"),
    _figure("samples", "samples", lambda count: f"{count:,}"),
    _figure("FLOPs", "flops", lambda count: f"{count:,}"),
    _figure("bytes", "bytes", lambda count: f"{count:,}"),
)
