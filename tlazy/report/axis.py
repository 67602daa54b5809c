"""Logarithmic axes and their marks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tlazy.report.comparison import Duel


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from `low` to `high`.

    >>> Axis(1, 100).place(10)
    0.5
    """

    low: float
    high: float

    def place(self, value: float) -> float:
        """Where `value` lies, from 0 to 1."""
        return math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Powers of ten, with 2 and 5 between them where there would be few.

        >>> Axis(0.5, 150).ticks()
        [1.0, 10.0, 100.0]
        >>> Axis(8, 60).ticks()
        [10.0, 20.0, 50.0]
        """
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps = (1,) if last - first > 2 else (1, 2, 5)
        marks = (step * 10.0**power for power in range(first, last + 1) for step in steps)
        return [mark for mark in marks if self.low <= mark <= self.high]


def ratio_axis(duels: Iterable[Duel]) -> Axis:
    """From the lowest to the highest speed-up with its spread, and around 1 in any case."""
    ends = [end for duel in duels if duel.speedup for end in (duel.low, duel.high)]
    return Axis(min([0.8, *ends]) / 1.06, max([1.25, *ends]) * 1.06)


def ratio_ticks(axis: Axis, apart: float = 0.1) -> list[float]:
    """Round ratios, of which 1 is one, at least so far `apart`, from which a phone has room.

    >>> ratio_ticks(Axis(0.75, 12))
    [1.0, 1.5, 2.0, 3, 5.0, 10.0]
    """
    kept = [1.0]
    round_ones = [digit * 10.0**power for digit in (1, 2, 5) for power in range(-6, 7)]
    for tick in (*round_ones, 4, 8, 0.25, 1.5, 3, 6, 0.8, 1.2, 0.6, 0.9, 1.1, 0.7, 1.4, 0.4, 0.3):
        inside = axis.low < tick < axis.high
        if inside and all(abs(axis.place(tick) - axis.place(one)) > apart for one in kept):
            kept.append(tick)
    return sorted(kept)
