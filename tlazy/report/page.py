"""The report as one web page: no network, no scripts needed to read it."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tlazy.errors import UserError
from tlazy.files import replacing
from tlazy.report import table, units
from tlazy.report.axis import ratio_axis, ratio_ticks
from tlazy.report.comparison import Problem, peer_names, problems, scores
from tlazy.report.earlier import Changes
from tlazy.report.record import NOT_MEASURED, check, start, tests_ended
from tlazy.report.roofline import Roof, Roofline, roofline
from tlazy_kernels.roofline import datasheet

SHAPES = 11  # as many as page.html.j2 draws and page.css colours
PLOT_HEIGHT = 336  # pixels of the plot's inside on a phone, where it is lowest
LABEL_HEIGHT = 14
FILTERS = ("suite", "op", "dtype", "pass", "peer", "status")


def write_html(
    record: Mapping[str, Any], path: str | os.PathLike[str], changes: Changes | None = None
) -> None:
    """Write `record`, as `tlazy bench --json` gives it, as one self-contained page to `path`.

    Args:
        changes: since an earlier record, for a section of their own.

    Raises:
        UserError: where the record is malformed, `path` cannot be written, or jinja2 is missing.
    """
    text = render(check(record), changes)
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {Path(path)}: {error.strerror or error}") from error


def render(record: Mapping[str, Any], changes: Changes | None = None) -> str:
    """The page's HTML."""
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise UserError("a report needs jinja2: pip install 'tlazy[plot]'") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(units=units, marker=lambda peers, name: peers.index(name) % SHAPES)
    script = _resource("page.js")
    return environment.from_string(_resource("page.html.j2")).render(
        **_view(record),
        changes=changes,
        style=markupsafe.Markup(_resource("page.css")),
        script=markupsafe.Markup(script),
        # A name that got past the escaping still could not run as a script.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _resource(name: str) -> str:
    return resources.files("tlazy.report").joinpath(name).read_text(encoding="utf-8")


def _view(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows."""
    rows = record["rows"]
    found = problems(rows)
    plot = roofline(record)
    duels = [duel for problem in found for duel in problem.duels]
    axis = ratio_axis(duels)
    ticks = ratio_ticks(axis)
    return {
        "record": record,
        "started": start(record),
        "tests_ended": tests_ended(record["tests"]) if "tests" in record else "",
        "peers": peer_names(rows),
        "scores": scores(duels),
        "suites": _suites(found),
        "axis": axis,
        "ratio_ticks": ticks,
        "ratio_grid": _grid([axis.place(tick) for tick in ticks]),
        "plot": plot,
        "plotted": {point.row["peer"] for point in plot.points},
        "labels": _labels(plot),
        "datasheet": datasheet(record["machine"]["device"]),
        "columns": table.COLUMNS,
        "lines": table.lines(rows, found),
        "filters": {name: sorted({row[name] for row in rows}) for name in FILTERS},
        "refused": sum(row["status"] not in ("ok", NOT_MEASURED) for row in rows),
        "not_measured": sum(row["status"] == NOT_MEASURED for row in rows),
    }


def _suites(found: Iterable[Problem]) -> dict[str, list[Problem]]:
    suites: dict[str, list[Problem]] = {}
    for problem in found:
        suites.setdefault(problem.suite, []).append(problem)
    return suites


def _labels(plot: Roofline) -> list[tuple[Roof, float]]:
    """Each roof with its label's place, from 0 at the top to 1, none on top of another."""
    heights = sorted(
        ((1 - plot.y.place(plot.line(roof)[-1][1]), roof) for roof in plot.roofs if roof.rate),
        key=lambda entry: entry[0],
    )
    placed: list[tuple[Roof, float]] = []
    lowest = 0.0
    for height, roof in heights:
        place = max(height, lowest)
        placed.append((roof, place))
        lowest = place + LABEL_HEIGHT / PLOT_HEIGHT
    return placed


def _grid(fractions: Sequence[float]) -> str:
    """A CSS background with a thin vertical line at each of `fractions`."""
    lines = (
        f"linear-gradient(90deg, transparent calc({place:.3%} - .5px), "
        f"var(--line) calc({place:.3%} - .5px) calc({place:.3%} + .5px), "
        f"transparent calc({place:.3%} + .5px))"
        for place in fractions
    )
    return ", ".join(lines)
