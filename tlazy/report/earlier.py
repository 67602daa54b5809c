"""A record beside an earlier one of the same device: what became worse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tlazy.errors import UserError
from tlazy.report.record import NOT_MEASURED, key

# Spreads that do not overlap are told apart; so is a change of less than this not worth a line.
SLOWER_BY = 1.05

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Worse:
    """A row that became worse, and in what."""

    row: Row
    why: str

    def __str__(self) -> str:
        return f"{self.row['problem']}, {self.row['pass']}, {self.row['peer']}: {self.why}"


@dataclass(frozen=True)
class Changes:
    """What became of the rows that an earlier record has a time of.

    Attributes:
        earlier: what that record is called: its file.
        compared: how many rows there are of them.
        worse: those that are slower beyond the spread, or not ok any more.
    """

    earlier: str
    compared: int
    worse: list[Worse]

    @property
    def summary(self) -> str:
        """All of it in a line.

        >>> Changes("old.json", 12, []).summary
        '0 of 12 measurements that old.json has too are worse'
        """
        if not self.compared:
            return f"nothing that has a time in {self.earlier} was measured"
        return (
            f"{len(self.worse)} of {self.compared} measurements that {self.earlier} has too "
            f"are worse"
        )


def changes(old: Mapping[str, Any], new: Mapping[str, Any], earlier: str) -> Changes:
    """Compare two records; `earlier` is what the old one is called.

    A row is worse where the spreads (20% to 80% quantiles) do not overlap and the median grew by
    more than 5%, or where it is not ok any more.

    Raises:
        UserError: for records of different devices, which say nothing about each other.
    """
    check_same_device(old["machine"], new["machine"])
    pairs = common(old, new["rows"])
    worse = [Worse(row, why) for was, row in pairs if (why := _why(was, row))]
    return Changes(earlier, len(pairs), worse)


def common(old: Mapping[str, Any], rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Those of `rows` whose thing has a time in `old`, each after the old row of it.

    A row that the run ended before says nothing, and is none of them.
    """
    before = {key(row): row for row in old["rows"] if row["status"] == "ok"}
    said = (row for row in rows if row.get("status") != NOT_MEASURED)
    return [(before[key(row)], row) for row in said if key(row) in before]


def check_same_device(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise UserError unless two records' ``"machine"`` have the same device."""
    if old["device"] != new["device"]:
        raise UserError(f"records of different devices: {old['device']} and {new['device']}")


def _why(was: Row, row: Row) -> str:
    """In what the row is worse than it was; nothing where it is not."""
    if row["status"] != "ok":
        return f"was ok, is {row['status']}: {row['note']}"
    if row["q20_us"] > was["q80_us"] and row["median_us"] > SLOWER_BY * was["median_us"]:
        return f"{row['median_us'] / was['median_us']:.2f} times as long"
    return ""
