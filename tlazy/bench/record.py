"""The record of a benchmark: a JSON file that is valid and whole whenever somebody looks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from tlazy.bench import machine
from tlazy.bench.machine import Ceilings
from tlazy.bench.operations import Pass
from tlazy.bench.problems import Problem
from tlazy.errors import UserError
from tlazy.files import replacing
from tlazy.report.record import FORMAT, key, load

Row = dict[str, Any]

# With an indent json would use its slow encoder, in Python.
_line = json.JSONEncoder(allow_nan=False).encode


class Record:
    """Rows, and what they were measured on; kept in the file `path`, if any."""

    def __init__(
        self, command: str, device: torch.device, ceilings: Ceilings, path: Path | None = None
    ) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "format": FORMAT,
            "command": command,
            "started": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "complete": False,
            "machine": machine.machine(device),
            "versions": machine.versions(),
            "ceilings": {"bandwidth": ceilings.bandwidth, "matmul": ceilings.matmul},
            "rows": [],
        }
        self._places: dict[str, int] = {}

    @classmethod
    def reopen(cls, path: Path) -> Record:
        """The record in `path`, to go on with."""
        record = cls.__new__(cls)
        record.path = path
        record.content = load(path)
        record._places = {key(row): i for i, row in enumerate(record.rows)}
        return record

    @property
    def rows(self) -> list[Row]:
        """In the order of their first appearance."""
        return self.content["rows"]

    @property
    def ceilings(self) -> Ceilings:
        """The measured ceilings."""
        return Ceilings(**self.content["ceilings"])

    def find(self, row: Mapping[str, Any]) -> Row | None:
        """The row of the same thing, if there is one."""
        place = self._places.get(key(row))
        return None if place is None else self.rows[place]

    def put(self, row: Row) -> None:
        """Add the row, or replace the one of the same thing, and write the file."""
        self.hold(row)
        self.write()

    def hold(self, row: Row) -> None:
        """Add or replace the row, for whoever writes next."""
        place = self._places.setdefault(key(row), len(self.rows))
        self.rows[place : place + 1] = [row]

    def finish(self) -> None:
        """Say that nothing is missing, and write the file."""
        self.content["complete"] = True
        self.write()

    def write(self) -> None:
        """Replace the file by what is known now.

        Raises:
            UserError: where it cannot be written.
        """
        if self.path is None:
            return
        try:
            with replacing(self.path) as temporary:
                temporary.write_text(_text(self.content), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error


def _text(content: Mapping[str, Any]) -> str:
    """The content as JSON, a line for each row."""
    head = {name: value for name, value in content.items() if name != "rows"}
    start = json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
    rows = ",".join(f"\n  {_line(row)}" for row in content["rows"])
    return f'{start},\n "rows": [{rows}\n ]\n}}\n'


def identity(problem: Problem, which: Pass, peer: str) -> Row:
    """What a row says of what it measures: the values of KEY."""
    operation = problem.operation
    return {
        "suite": problem.suite,
        "op": operation.op,
        "problem": problem.name,
        "shape": operation.shape(),
        "dtype": str(problem.dtype).removeprefix("torch."),
        "pass": which,
        "activation": operation.activation,
        "layout": operation.layout,
        "peer": peer,
    }


def finite(value: float | None) -> float | None:
    """`value`, or None where JSON has no number for it."""
    return value if value is not None and math.isfinite(value) else None
