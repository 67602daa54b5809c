"""The record of a benchmark: what it must hold, read and checked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tlazy.errors import UserError

FORMAT = 1
# What makes two rows measurements of the same work, and with the peer of the same thing.
WORK = ("suite", "op", "problem", "shape", "dtype", "pass", "activation", "layout")
KEY = (*WORK, "peer")
# What the run ended before: neither a success nor a failure.
NOT_MEASURED = "not measured"
STATUSES = ("ok", "wrong", "unsupported", "failed", NOT_MEASURED)
TIMES = ("median_us", "q20_us", "q80_us")


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check the record that ``tlazy bench --json`` wrote.

    Raises:
        UserError: where the file cannot be read or is no such record; names the file and the key.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not JSON: it is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} holds JSON that cannot be read: {error}") from error
    return check(record, path)


def check(record: Any, source: str | os.PathLike[str] = "the record") -> dict[str, Any]:
    """Return `record` if it is one; keys that this version does not know may stand in it.

    Args:
        source: what an error calls the record: its file.

    Raises:
        UserError: names `source`, the key and the value.
    """
    try:
        return _check_record(record)
    except _Malformed as error:
        raise UserError(f"{os.fspath(source)}: {error}") from None


def key(row: Mapping[str, Any]) -> str:
    """What the row measures, as text."""
    return json.dumps([row[name] for name in KEY], sort_keys=True)


def start(record: Mapping[str, Any]) -> datetime:
    """When the record was begun, in UTC."""
    # Python 3.10 does not read the "Z".
    begun = datetime.fromisoformat(record["started"].replace("Z", "+00:00"))
    return begun.replace(tzinfo=begun.tzinfo or timezone.utc).astimezone(timezone.utc)


def tests_ended(tests: Mapping[str, Any]) -> str:
    """How the kernels' tests of a record ended, for the beginning of a sentence."""
    cut_short = not tests.get("in_time", True)
    failed = tests.get("failed") or (tests["exit_code"] and not cut_short)
    if failed:
        return f"Some of the kernels' tests failed{' and others were cut short' * cut_short}"
    return f"The kernels' tests {'were cut short' if cut_short else 'passed'}"


class _Missing:
    """Stands for the value of a key that is not there."""


class _Malformed(Exception):
    """A key and what is wrong with its value."""

    def __init__(self, key: str, wanted: str, value: object) -> None:
        if isinstance(value, _Missing):
            super().__init__(f"{key} is missing")
            return
        found = ascii(value)
        shown = found if len(found) <= 60 else found[:57] + "..."
        super().__init__(f"{key} should be {wanted}, not {shown}")


_Check = Callable[[str, Any], None]


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _Malformed(key, "text", value)
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: no file can hold it
        raise _Malformed(key, "text that UTF-8 can write", value) from None


def _boolean(key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _Malformed(key, "true or false", value)


def _number(key: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        sound = is_number and math.isfinite(value) and value >= 0
    except OverflowError:
        sound = False
    if not sound:
        raise _Malformed(key, "a finite number of at least 0", value)


def _positive(key: str, value: Any) -> None:
    _number(key, value)
    if value == 0:
        raise _Malformed(key, "a number above 0", value)


def _count(key: str, value: Any) -> None:
    _number(key, value)
    if not isinstance(value, int):
        raise _Malformed(key, "a whole number", value)


def _exit_code(key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _Malformed(key, "a whole number", value)


def _date(key: str, value: Any) -> None:
    _text(key, value)
    try:
        start({"started": value})
    except (ValueError, OverflowError):
        raise _Malformed(key, "a date such as 2026-11-23T05:00:00Z", value) from None


def _shape(key: str, value: Any) -> None:
    _mapping(key, value)
    for name, entry in value.items():
        _text(f"a name in {key}", name)
        if isinstance(entry, str):
            _text(f"{key}.{name}", entry)
        elif entry is not None and not isinstance(entry, bool):
            _number(f"{key}.{name}", entry)


def _or_null(inner: _Check) -> _Check:
    def checks(key: str, value: Any) -> None:
        if value is not None:
            inner(key, value)

    return checks


def _values(inner: _Check) -> _Check:
    def checks(key: str, value: Any) -> None:
        _mapping(key, value)
        for name, entry in value.items():
            _text(f"a name in {key}", name)
            inner(f"{key}.{name}", entry)

    return checks


def _one_of(*allowed: str) -> _Check:
    def checks(key: str, value: Any) -> None:
        if not isinstance(value, str) or value not in allowed:
            raise _Malformed(key, " or ".join(map(repr, allowed)), value)

    return checks


def _fields(**checks: _Check) -> _Check:
    def all_of_them(key: str, value: Any) -> None:
        _mapping(key, value)
        for name, inner in checks.items():
            full = f"{key}.{name}" if key else name
            if name not in value:
                raise _Malformed(full, "there", _Missing())
            inner(full, value[name])

    return all_of_them


def _mapping(key: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise _Malformed(key or "it", "an object", value)


def _rows(key: str, value: Any) -> None:
    if not isinstance(value, list):
        raise _Malformed(key, "a list", value)
    for index, row in enumerate(value):
        here = f"{key}[{index}]"
        _ROW(here, row)
        if row["status"] == "ok":
            _measured(here, row)


def _measured(here: str, row: Mapping[str, Any]) -> None:
    """A row that is ok has times, in their order."""
    for name in TIMES:
        _positive(f"{here}.{name}", row[name])
    for lower, upper in (("q20_us", "median_us"), ("median_us", "q80_us")):
        if row[lower] > row[upper]:
            raise _Malformed(f"{here}.{lower}", f"at most {upper} (= {row[upper]})", row[lower])


_ROW = _fields(
    **dict.fromkeys(("suite", "op", "problem", "dtype", "pass", "peer", "backend", "note"), _text),
    shape=_shape,
    **dict.fromkeys(("activation", "layout"), _or_null(_text)),
    status=_one_of(*STATUSES),
    samples=_or_null(_count),
    **dict.fromkeys(
        (*TIMES, "error", "flops", "bytes", "tflops", "gbps", "floor_us", "floor_fraction"),
        _or_null(_number),
    ),
    peak_memory_bytes=_or_null(_count),
)
_TESTS = _fields(command=_text, summary=_text, exit_code=_exit_code)
_RECORD = _fields(
    command=_text,
    started=_date,
    complete=_boolean,
    machine=_fields(
        device=_text,
        kind=_one_of("cuda", "cpu"),
        processor=_text,
        cores=_count,
        memory_bytes=_count,
    ),
    versions=_values(_or_null(_text)),
    ceilings=_fields(
        bandwidth=_or_null(_positive),
        matmul=_values(_or_null(_positive)),
    ),
    rows=_rows,
)


def _check_record(record: Any) -> dict[str, Any]:
    _mapping("", record)
    if record.get("format") != FORMAT:
        raise _Malformed("format", str(FORMAT), record.get("format", _Missing()))
    _RECORD("", record)
    if "tests" in record:  # of `python -m perf.record`
        _TESTS("tests", record["tests"])
        _boolean("tests.in_time", record["tests"].get("in_time", True))
    return record
