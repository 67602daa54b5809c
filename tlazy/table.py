"""A trace as a table: in colour where rich prints it, as plain text everywhere else."""

from __future__ import annotations

import sys
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlazy.plan import Trace

# Wider than any table: text that goes to a file is not folded, so that each call has one line.
_WIDTH = 100_000


def table(plan: Trace) -> Any:
    """`plan` for rich: the table, and below it what it could not show."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    totals = plan.totals
    grid = Table(show_footer=True, box=box.HEAVY_HEAD if _shows(box.HEAVY_HEAD) else box.ASCII2)
    for name in ("path", "layer", "input", "output"):
        grid.add_column(name, footer="total" if name == "path" else "")
    for name, total in totals.items():
        title = "FLOPs" if name == "flops" else name
        grid.add_column(title, justify="right", footer=f"{total:,}")
    for row in plan.rows:
        numbers = (f"{getattr(row, name):,}" if getattr(row, name) else "" for name in totals)
        texts = (row.path, row.layer, _shapes(row.inputs), _shapes(row.outputs), *numbers)
        grid.add_row(*map(Text, texts))  # as they are: brackets are no markup
    notes = []
    if plan.unvisited:
        notes.append(f"not reached, still lazy: {', '.join(plan.unvisited)}")
    if plan.dry_run:
        notes.append(f"shapes by one real dry run: {plan.dry_run}")
    return Group(grid, *map(Text, notes))


def as_text(plan: Trace) -> str:
    """`plan` without colours, one line per call."""
    from rich.console import Console

    text = StringIO()
    Console(file=text, width=_WIDTH, color_system=None).print(table(plan))
    return text.getvalue().rstrip("\n")


def _shows(box: Any) -> bool:
    """Whether stdout's encoding has the lines of `box`."""
    try:
        str(box).encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)
