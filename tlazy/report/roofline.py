"""The roofline plot of a record: its roofs and points, and where they lie on log-log axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tlazy.report import units
from tlazy.report.axis import Axis
from tlazy.report.comparison import Row
from tlazy_kernels.roofline import datasheet

Source = Literal["measured", "datasheet"]


@dataclass(frozen=True)
class Roof:
    """A device's ceiling for one matrix precision.

    Attributes:
        name: of the precision.
        source: whether the device showed these rates in this run or its maker states them.
        bandwidth: in bytes per second; None where unknown.
        rate: in FLOP/s; None where unknown.
    """

    name: str
    source: Source
    bandwidth: float | None
    rate: float | None

    def height(self, intensity: float) -> float:
        """The most FLOP/s at `intensity` FLOPs per byte."""
        by_memory = math.inf if self.bandwidth is None else self.bandwidth * intensity
        return min(by_memory, math.inf if self.rate is None else self.rate)

    @property
    def ridge(self) -> float | None:
        """The FLOPs per byte from where on arithmetic limits, not memory."""
        if self.bandwidth is None or self.rate is None:
            return None
        return self.rate / self.bandwidth

    @property
    def label(self) -> str:
        if self.rate is None:
            return f"memory {units.bandwidth(self.bandwidth or 0)} ({self.source})"
        return f"{self.name} {units.rate(self.rate)} ({self.source})"


@dataclass(frozen=True)
class Point:
    """A row on the plot: FLOPs per byte, FLOP/s, and its index in the record."""

    index: int
    row: Row
    intensity: float
    rate: float


@dataclass(frozen=True)
class Roofline:
    """All that a roofline plot shows."""

    roofs: Sequence[Roof]
    points: Sequence[Point]
    x: Axis
    y: Axis

    @property
    def unit(self) -> tuple[str, float]:
        """In which the rates are written, and its FLOP/s."""
        return ("TFLOP/s", 1e12) if self.y.high >= 2e12 else ("GFLOP/s", 1e9)

    def line(self, roof: Roof) -> list[tuple[float, float]]:
        """The corners of `roof` within the axes, as (FLOPs per byte, FLOP/s)."""
        left, right = self.x.low, self.x.high
        if roof.bandwidth is not None:
            left = max(left, self.y.low / roof.bandwidth)
            if roof.rate is None:
                right = min(right, self.y.high / roof.bandwidth)
        bend = [roof.ridge] if roof.ridge and left < roof.ridge < right else []
        return [(x, roof.height(x)) for x in (left, *bend, right)] if left < right else []


def roofline(record: Mapping[str, Any]) -> Roofline:
    """The plot of `record`: one point per row with a valid time, FLOPs and bytes."""
    points = [
        Point(index, row, row["flops"] / row["bytes"], row["flops"] / row["median_us"] * 1e6)
        for index, row in enumerate(record["rows"])
        if row["status"] == "ok" and row["flops"] and row["bytes"]
    ]
    found = roofs(record)
    ridges = [roof.ridge for roof in found if roof.ridge]
    heights = [roof.rate for roof in found if roof.rate]
    # Roofs alone show their bend and some of both sides of it.
    air = 1.0 if points else 0.05
    return Roofline(
        roofs=found,
        points=points,
        x=_axis(
            [point.intensity for point in points]
            + [share * ridge for ridge in ridges for share in (air, 3)]
        ),
        y=_axis(
            [point.rate for point in points]
            + [share * rate for rate in heights for share in (air, 1)]
        ),
    )


def roofs(record: Mapping[str, Any]) -> list[Roof]:
    """The ceilings of the record's device: measured in its run, and stated by its maker."""
    ceilings = record["ceilings"]
    measured = {name: rate for name, rate in ceilings["matmul"].items() if rate is not None}
    found = _roofs("measured", ceilings["bandwidth"], measured)
    device = datasheet(record["machine"]["device"])
    if device is None:
        return found
    used = {row["dtype"] for row in record["rows"]} | set(measured)
    if "float32" in used:
        used.add("tf32")  # float32 operands may run on tf32 units: that is their higher roof
    stated: dict[str, float] = {n: rate for n, rate in device.rates.items() if n in used}
    return _roofs("datasheet", device.bandwidth, stated) + found


def _roofs(source: Source, bandwidth: float | None, rates: Mapping[str, float]) -> list[Roof]:
    by_rate: dict[float, list[str]] = {}
    for name, rate in rates.items():
        by_rate.setdefault(rate, []).append(name)
    if not by_rate:
        return [Roof("", source, bandwidth, None)] if bandwidth is not None else []
    return [Roof("/".join(names), source, bandwidth, rate) for rate, names in by_rate.items()]


def _axis(values: Iterable[float]) -> Axis:
    """An axis around `values`, with air, over a decade at least."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive) / 2, max(positive) * 2
    stretch = max(1.0, math.sqrt(10 / (high / low)))
    return Axis(low / stretch, high * stretch)
