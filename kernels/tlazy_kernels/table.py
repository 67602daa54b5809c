"""The table of compiled kernels: as text, as a file, and compared with another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from tlazy_kernels.offline import Compiled

HEADER = (
    *("kernel", "config", "target", "dtype", "regs", "stack", "shared", "occ"),
    *("MB", "x least", "instructions"),
)


@dataclass(frozen=True)
class Row(Compiled):
    """A compiled launch beside what its launcher moves and must move at least.

    Attributes:
        flops, bytes: of all that the launcher does, PyTorch's own operators included.
        least_flops, least_bytes: of any implementation, by ``roofline``.
    """

    flops: int
    bytes: int
    least_flops: int
    least_bytes: int

    def cells(self) -> list[str]:
        """The row as text, under HEADER."""
        mix = (f"{kind.replace(' ', '.')}:{count}" for kind, count in self.mix.items())
        return [
            *(self.name, self.config, self.target, self.dtype),
            *map(str, (self.registers, self.stack, self.shared, self.occupancy)),
            *(f"{self.bytes / 1e6:.1f}", f"{self.bytes / self.least_bytes:.2f}", " ".join(mix)),
        ]


def text(rows: Iterable[Row]) -> str:
    """The rows in columns under their header."""
    lines = [list(HEADER), *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join(padded)


def save(rows: Iterable[Row], path: Path) -> None:
    """Write the rows as JSON, with the versions that compiled them."""
    versions = {"triton": triton.__version__, "torch": torch.__version__}
    path.write_text(json.dumps({**versions, "rows": [asdict(row) for row in rows]}, indent=1))


def load(path: Path) -> list[Row]:
    """The rows that :func:`save` wrote.

    Raises:
        ValueError: where the file holds anything else.
    """
    try:
        return [Row(**row) for row in json.loads(path.read_text())["rows"]]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a table that this version saved with --json") from error


def differences(before: Iterable[Row], after: Iterable[Row]) -> list[str]:
    """One line for each row that came, went or changed, with every value that differs."""
    old, new = ({row.key: row for row in rows} for rows in (before, after))
    lines = []
    for key in sorted({**old, **new}):
        if key not in old or key not in new:
            changes = ["new" if key in new else "gone"]
        else:
            changes = list(_changes(_flat(old[key]), _flat(new[key])))
        if changes:
            lines.append(f"{' '.join(key)}: {', '.join(changes)}")
    return lines


def _flat(row: Row) -> dict[str, Any]:
    values = asdict(row)
    return {**values, **values.pop("mix")}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in {**old, **new}:
        before, after = old.get(name, 0), new.get(name, 0)
        if before != after:
            yield f"{name} {before} -> {after}"
