"""Figures as people read them: three significant digits and a unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def digits(value: float) -> str:
    """Three significant digits, never in scientific notation.

    >>> digits(1234.5), digits(56.78), digits(0.01234)
    ('1,234', '56.8', '0.0123')
    """
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 1e-6:
        text = f"{value:.3g}"
        return text if "e" not in text else f"{value:.9f}".rstrip("0")
    return "0.000"


def duration(microseconds: float) -> str:
    """Microseconds in the unit that fits.

    >>> duration(246.4), duration(4200), duration(2.5e6), duration(0.8)
    ('246 µs', '4.2 ms', '2.5 s', '0.8 µs')
    """
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{digits(microseconds / size)} {unit}"
    return f"{digits(microseconds)} µs"


def memory(count: float) -> str:
    """Bytes in binary units.

    >>> memory(1536), memory(3 * 2**30), memory(10)
    ('1.5 KiB', '3 GiB', '10 B')
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{digits(count / size)} {unit}"
    return f"{count:.0f} B"


def rate(flops: float) -> str:
    """FLOP/s.

    >>> rate(989e12), rate(50e9)
    ('989 TFLOP/s', '50 GFLOP/s')
    """
    if flops >= 1e12:
        return f"{digits(flops / 1e12)} TFLOP/s"
    return f"{digits(flops / 1e9)} GFLOP/s"


def bandwidth(rate: float) -> str:
    """Bytes per second.

    >>> bandwidth(4.8e12), bandwidth(20e9)
    ('4.8 TB/s', '20 GB/s')
    """
    if rate >= 1e12:
        return f"{digits(rate / 1e12)} TB/s"
    return f"{digits(rate / 1e9)} GB/s"


def times(ratio: float) -> str:
    """A speed-up; one so near to 1 that two decimals would hide its side gets a third.

    >>> times(1.3), times(0.996), times(1.0), times(14.04)
    ('1.30×', '0.996×', '1.00×', '14.0×')
    """
    if ratio >= 100:
        return f"{ratio:,.0f}×"
    if ratio >= 10:
        return f"{ratio:.1f}×"
    text = f"{ratio:.2f}"
    return f"{ratio:.3f}×" if text in ("1.00", "0.00") and ratio != 1 else f"{text}×"


def spread(low: float, high: float) -> str:
    """From one speed-up to another.

    >>> spread(0.978, 1.1), spread(8.2, 14.04), spread(0.004, 0.3)
    ('0.98–1.10×', '8.20–14.0×', '0.004–0.30×')
    """
    steps = ((100, 0), (10, 1), (0.1, 2), (0, 3))
    decimals = [next(count for least, count in steps if ratio >= least) for ratio in (low, high)]
    return f"{low:,.{decimals[0]}f}–{high:,.{decimals[1]}f}×"


def shape(sizes: Mapping[str, Any]) -> str:
    """A problem's sizes in a line.

    >>> shape({"batch": 32, "in": 1, "bias": None})
    'batch 32, in 1'
    """
    return ", ".join(f"{name} {size}" for name, size in sizes.items() if size is not None)
