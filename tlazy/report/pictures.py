"""The report's plots as PNG files, for a README."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten, wrap
from typing import TYPE_CHECKING, Any

from tlazy.errors import UserError
from tlazy.files import replacing
from tlazy.report import units
from tlazy.report.axis import Axis, ratio_axis, ratio_ticks
from tlazy.report.comparison import Duel, Problem, peer_names, problems, scores
from tlazy.report.record import check, start
from tlazy.report.roofline import Roofline, roofline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FASTER, SLOWER, SOFT, DARK = "#1f7a4d", "#c0271d", "#575e68", "#8a5300"
COLOUR_OF = {"faster": FASTER, "slower": SLOWER, "even": SOFT}
COLOURS = (
    *("#2257bf", "#c2500f", "#17795e", "#9a2f8f", "#85690b", "#b0204e", "#4d5b6b", "#5b3fc4"),
    *("#0b7490", "#5f7310", "#8a4b2c"),
)
MARKERS = "os^Dv*hP<>X"
MOST_BARS = 40  # more cannot be read on one picture
FOOTER, FOOTER_LINE = 7.5, 115  # points, and characters in a line
WIDTH = 8.0  # inches; at 150 dots an inch, its 9 point text is 12 pixels high at 800 pixels width


def write_pngs(record: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``speedups.png`` and ``roofline.png`` into `folder`, and return their paths.

    Raises:
        UserError: where the record is malformed, `folder` cannot be written, or matplotlib is
            missing.
    """
    check(record)
    drawings: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
        "speedups.png": _speedups,
        "roofline.png": _roofline,
    }
    try:
        figures = {Path(folder) / name: draw(record) for name, draw in drawings.items()}
    except ImportError as error:
        raise UserError("pictures need matplotlib: pip install 'tlazy[plot]'") from error
    for path, figure in figures.items():
        _save(figure, path)
    return list(figures)


def _speedups(record: Mapping[str, Any]) -> Figure:
    found = problems(record["rows"])
    bars = [(problem, duel) for problem in found for duel in problem.duels]
    if len(bars) > MOST_BARS:
        bars = [(problem, duel) for problem in found for duel in _hardest(problem)]
    shown = bars[:MOST_BARS]
    figure, axes = _figure(record, "tlazy's speed-up over its peers", 1.9 + 0.34 * len(shown))
    for place, (_, duel) in enumerate(shown):
        _bar(axes, place, duel)
    axes.set_yticks(
        range(len(shown)), [_bar_label(problem, duel) for problem, duel in shown], fontsize=9
    )
    axes.set_ylim(max(len(shown), 1) - 0.4, -0.6)
    axes.axvline(1, color="black", linewidth=1.2)
    _ratio_scale(axes, [duel for _, duel in shown])
    axes.set_xlabel("peer's median / tlazy's; whiskers: 20/80%", fontsize=9)
    footer = figure.get_supxlabel()
    figure.supxlabel(
        f"{_tally(found, len(shown))}\n{footer}", fontsize=FOOTER, color=SOFT, linespacing=1.4
    )
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def _bar(axes: Axes, place: int, duel: Duel) -> None:
    if duel.speedup is None:
        status = duel.peer["status"] if duel.peer["status"] != "ok" else "tlazy has no time"
        axes.text(1.0, place, f"  no comparison: {status}", va="center", fontsize=8, color=DARK)
        return
    colour = COLOUR_OF[duel.verdict]
    axes.barh(
        place,
        duel.speedup - 1,
        left=1,
        height=0.62,
        color=colour,
        hatch="////" if duel.verdict == "slower" else None,
        edgecolor="white",
        linewidth=0,
    )
    spread = ([duel.speedup - duel.low], [duel.high - duel.speedup])
    axes.errorbar(duel.speedup, place, xerr=spread, color="black", linewidth=1.1, capsize=2.5)
    axes.annotate(
        f"{units.times(duel.speedup)} {duel.words}",
        (max(duel.high, 1.0), place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=colour,
    )


def _bar_label(problem: Problem, duel: Duel) -> str:
    name = shorten(problem.label, 52, placeholder="…")
    return _literal(f"{name}  vs {shorten(duel.peer['peer'], 30, placeholder='…')}")


def _literal(text: str) -> str:
    """`text` without matplotlib's formulas, which stand between dollar signs."""
    return text.replace("$", r"\$")


def _ratio_scale(axes: Axes, duels: Sequence[Duel]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    scale = ratio_axis(duels)
    # The values stand right of the bars and need a quarter of the width.
    scale = Axis(scale.low, scale.high * (scale.high / scale.low) ** 0.34)
    axes.set_xscale("log")
    axes.set_xlim(scale.low, scale.high)
    axes.xaxis.set_major_locator(FixedLocator(ratio_ticks(scale, apart=0.16)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{units.digits(ratio)}×"))
    axes.xaxis.set_minor_locator(NullLocator())


def _hardest(problem: Problem) -> list[Duel]:
    """The duel with the fastest of the problem's peers, if any has a time."""
    fought = [duel for duel in problem.duels if duel.speedup is not None]
    return sorted(fought, key=lambda duel: duel.peer["median_us"])[:1]


def _tally(found: Sequence[Problem], shown: int) -> str:
    """How all comparisons ended, and which of them are shown."""
    duels = [duel for problem in found for duel in problem.duels]
    if not duels:
        return "no peer was measured"
    # A line breaks between two peers only.
    parts = (f"{score.peer}: {score.words}".replace(" ", "\u00a0") for score in scores(duels))
    lines = wrap("; ".join(parts), FOOTER_LINE, break_long_words=False, break_on_hyphens=False)
    if shown < len(duels):
        which = f"{shown} problems, each beside its fastest peer; of all {len(duels)} comparisons:"
        lines = [which, *lines]
    return _literal("\n".join(lines).replace("\u00a0", " "))


def _roofline(record: Mapping[str, Any]) -> Figure:
    plot = roofline(record)
    figure, axes = _figure(record, "Roofline", 6.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(plot.x.low, plot.x.high)
    name, unit = plot.unit
    axes.set_ylim(plot.y.low / unit, plot.y.high / unit)
    _log_ticks(axes.xaxis, plot.x, 1.0)
    _log_ticks(axes.yaxis, plot.y, unit)
    for roof in plot.roofs:
        measured = roof.source == "measured"
        axes.plot(
            [x for x, _ in plot.line(roof)],
            [y / unit for _, y in plot.line(roof)],
            color="black" if measured else SOFT,
            linestyle="-" if measured else "--",
            linewidth=1.4,
            label=roof.label,
        )
    _points(axes, plot, peer_names(record["rows"]))
    axes.set_xlabel("FLOPs per byte", fontsize=9)
    axes.set_ylabel(name, fontsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.has_data():
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.12),
            ncols=2,
            fontsize=8.5,
            frameon=False,
        )
    return figure


def _points(axes: Axes, plot: Roofline, peers: Sequence[str]) -> None:
    for place, peer in enumerate(peers):
        points = [point for point in plot.points if point.row["peer"] == peer]
        if not points:
            continue
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(
            [point.intensity for point in points],
            [point.rate / plot.unit[1] for point in points],
            linestyle="none",
            marker=MARKERS[place % len(MARKERS)],
            markersize=6.5,
            color=colour,
            markerfacecolor="none" if place else colour,
            label=f" {_literal(peer)}",  # matplotlib hides a label that begins with "_"
        )


def _log_ticks(axis: Any, limits: Axis, unit: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator([tick / unit for tick in limits.ticks()]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


def _figure(record: Mapping[str, Any], title: str, height: float) -> tuple[Figure, Axes]:
    """A figure that names its device, versions, date and command."""
    from matplotlib.figure import Figure

    device = record["machine"]["device"] or "an unnamed device"
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    heading = f"{title} on {device}"
    if record["machine"]["kind"] == "cpu":
        heading += "\nCPU path: both sides run ATen"
    figure.suptitle(_literal(heading), fontsize=12)
    versions = " · ".join(
        f"{name} {version}" for name, version in record["versions"].items() if version
    )
    made = f"{start(record):%Y-%m-%d %H:%M} UTC"
    if not record["complete"]:
        made += " · incomplete"
    text = f"{device} · {versions}\n{made} · {shorten(record['command'], 90, placeholder='…')}"
    figure.supxlabel(_literal(text), fontsize=FOOTER, color=SOFT)
    axes = figure.subplots()
    axes.tick_params(labelsize=9)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=150)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
