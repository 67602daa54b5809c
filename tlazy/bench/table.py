"""What ``tlazy bench`` shows: a line while it measures, a table of the peers side by side after."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tlazy.bench.operations import Pass
from tlazy.bench.suites import BUILDERS, SINGLE, Problem
from tlazy.report import comparison, units
from tlazy.report.earlier import Changes

PASS_IN_WORDS: Mapping[Pass, str] = {
    "forward": "forward pass",
    "backward": "backward pass",
    "full": "forward and backward pass",
}
NARROW = 160
ABOVE_FLOOR = "\nabove 100% of floor: data came from a cache, or a ceiling was measured too low"
NUMBERS = ("median us", "20-80%", "TFLOP/s", "GB/s", "of floor", "peak", "error", "tlazy is")


@contextmanager
def progress(
    problems: Sequence[Problem], visits: int = 1
) -> Iterator[Callable[[Problem, Pass], None]]:
    """Say what is being measured: in place on a terminal, a line for each problem elsewhere."""
    console = Console(stderr=True)
    total = visits * sum(len(problem.passes) for problem in problems)
    numbers = iter(range(1, total + 1))

    def line(problem: Problem, which: Pass) -> str:
        return f"measuring {next(numbers, total)} of {total}: {_work(problem, which)}"

    if console.is_terminal:
        with console.status("starting") as status:
            yield lambda problem, which: status.update(escape(line(problem, which)))
        return
    yield lambda problem, which: print(line(problem, which), file=sys.stderr, flush=True)


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


def _work(problem: Problem, which: Pass) -> str:
    """The operation with its sizes, the pass and, of a suite, the problem's name."""
    operation = problem.operation
    name = "" if problem.suite == SINGLE else f" ({problem.name})"
    return f"{_as_typed(operation.op, operation.shape())}{name}, {PASS_IN_WORDS[which]}"


def _as_typed(op: str, shape: Mapping[str, Any]) -> str:
    """``OP SIZES`` as ``tlazy bench OP --shape SIZES`` takes them; of a chain, its linear layer.

    >>> _as_typed("linear", {"m": 8, "n": 4, "k": 2, "bias": True, "then": "add-relu"})
    'linear 8,4,2'
    """
    sizes = {name: size for name, size in shape.items() if name != "then"}
    if op == "depthwise" and sizes["in_channels"] == sizes["out_channels"]:
        del sizes["out_channels"], sizes["groups"]
    elif op == "depthwise":
        op = "conv1d"  # a depthwise one has no option for several outputs of a channel
    options = inspect.signature(BUILDERS[op]).parameters
    while (name := next(reversed(sizes))) in options and options[name].default == sizes[name]:
        del sizes[name]
    return f"{op} {','.join(str(size).lower() for size in sizes.values())}"


def _description(problem: comparison.Problem) -> list[str]:
    """The problem's name, its kind, and how to ask for its sizes."""
    then = problem.shape.get("then")
    kind = (problem.dtype, problem.pass_, problem.activation, problem.layout, then)
    lines = (problem.name, " ".join(filter(None, kind)), _as_typed(problem.op, problem.shape))
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
