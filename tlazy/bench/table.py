"""What ``tlazy bench`` shows: a table of the peers side by side."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tlazy.bench.shapes import as_typed
from tlazy.report import comparison, units
from tlazy.report.earlier import Changes

NARROW = 160
ABOVE_FLOOR = "\nabove 100% of floor: data came from a cache, or a ceiling was measured too low"
NUMBERS = ("median us", "20-80%", "TFLOP/s", "GB/s", "of floor", "peak", "error", "tlazy is")


def show(content: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the record's rows, grouped by problem, with each peer's time over tlazy's."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, NARROW), file=console.file)
    table = Table(title=None, caption=_caption(content), caption_justify="left")
    table.add_column("problem", overflow="fold")
    table.add_column("peer", no_wrap=True)
    for name in NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    found = comparison.problems(content["rows"])
    for problem in found:
        _add_problem(table, problem)
    console.print(table)
    duels = (duel for problem in found for duel in problem.duels)
    for score in comparison.scores(duels):
        explained = f" ({score.explained})" if score.explained else ""
        line = f"against {score.peer}: {score.headline}{explained}; {score.words}"
        console.print(line, markup=False, highlight=False)


def show_changes(changes: Changes) -> None:
    """Print a line for each row that became worse, and one of all."""
    for worse in changes.worse:
        print(f"worse than in {changes.earlier}: {worse}")
    print(changes.summary)


def _add_problem(table: Table, problem: comparison.Problem) -> None:
    entries: list[tuple[int, comparison.Row, comparison.Duel | None]]
    entries = [(index, row, None) for index, row in problem.ours]
    entries += [(duel.index, duel.peer, duel) for duel in problem.duels]
    lines = [_line(row, duel) for _, row, duel in sorted(entries, key=lambda entry: entry[0])]
    for text, cells in zip_longest(_description(problem), lines, fillvalue=()):
        table.add_row(text or "", *cells)
    table.add_section()


def _line(row: comparison.Row, duel: comparison.Duel | None) -> list[str]:
    """What stands right of the problem."""
    peer = f"{row['peer']} ({row['backend']})" if row["backend"] else row["peer"]
    return [escape(peer), *(_cells(row, duel) if row["status"] == "ok" else _refusal(row))]


def _description(problem: comparison.Problem) -> list[str]:
    """The problem's name, its kind, and how to ask for its sizes."""
    then = problem.shape.get("then")
    kind = (problem.dtype, problem.pass_, problem.activation, problem.layout, then)
    lines = (problem.name, " ".join(filter(None, kind)), as_typed(problem.op, problem.shape))
    return [escape(line) for line in dict.fromkeys(lines)]


def _cells(row: Mapping[str, Any], duel: comparison.Duel | None) -> list[str]:
    ratio = ""
    if duel is not None and duel.speedup is not None:
        ratio = f"{duel.speedup:.2f}x" + (" ~" if duel.verdict == "even" else "")
    floor, peak = row["floor_fraction"], row["peak_memory_bytes"]
    return [
        f"{row['median_us']:,.1f}",
        f"{row['q20_us']:,.1f}-{row['q80_us']:,.1f}",
        "" if row["tflops"] is None else f"{row['tflops']:.3g}",
        "" if row["gbps"] is None else f"{row['gbps']:.3g}",
        "" if floor is None else f"{floor:.0%}",
        "" if peak is None else units.memory(peak),
        f"{row['error']:.0e}",
        ratio,
    ]


def _refusal(row: Mapping[str, Any]) -> list[str]:
    error = "" if row["error"] is None else f"{row['error']:.0e}"
    return [escape(row["status"]), escape(row["note"][:60]), "", "", "", "", error, ""]


def _caption(content: Mapping[str, Any]) -> str:
    versions = content["versions"]
    rate = content["ceilings"]["bandwidth"]
    copied = f", copies {rate / 1e9:,.0f} GB/s" if rate else ""
    above = any(round(100 * (row["floor_fraction"] or 0)) > 100 for row in content["rows"])
    notes = ABOVE_FLOOR if above else ""
    notes += "" if content["complete"] else "\nincomplete: not everything was measured"
    return escape(
        f"{content['machine']['device']}{copied}; torch {versions['torch']}, triton "
        f"{versions['triton']}\n'tlazy is': times as fast as the peer; ~ no difference, the "
        f"spreads overlap; 'of floor': the least possible time over the median; "
        f"'peak': memory that a call allocates, on a GPU{notes}"
    )
