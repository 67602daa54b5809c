"""Do two runs of a suite agree? Measures it twice and compares, row by row.

    python -m perf.agreement --suite sweep

Run it on a quiet machine: that two runs agree there is what the printed spreads promise. A row
disagrees where the spreads (20% to 80% quantiles) of its two runs do not overlap, or where one of
them has no time. ``tlazy bench --compare`` flags less: medians more than 5% apart besides.

Exit codes: 0 where all rows agree, 1 where some do not or none has a time, 2 for bad input,
130 where it was stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from perf.arguments import Parser
from tlazy.bench import command, machine, suites
from tlazy.bench.measuring import measure
from tlazy.bench.problems import Problem
from tlazy.bench.record import Record, Row
from tlazy.bench.settings import Settings
from tlazy.errors import UserError

AGREE, DISAGREE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure twice, and return the exit code."""
    parser = Parser("perf.agreement", __doc__)
    parser.add_argument("--suite", default="sweep", choices=list(suites.SUITES))
    parser.add_argument("--seconds", type=float, default=0.5, help="of samples of each row (0.5)")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        options = parser.parse_args(arguments)
        if not 0 < options.seconds < float("inf"):
            raise UserError(f"--seconds must be positive and finite, got {options.seconds}")
        command.check_tiles()
        problems = command.suite_problems(options.suite, device)
        settings = Settings(device, seconds=options.seconds, visits=command.VISITS)
        first, second = (run(problems, settings) for _ in range(2))
    except KeyboardInterrupt:
        return INTERRUPTED
    except UserError as error:
        print(f"perf.agreement: {error}", file=sys.stderr)
        return BAD_INPUT
    return judge(first, second)


def run(problems: Iterable[Problem], settings: Settings) -> dict[str, Any]:
    """One record of the problems."""
    record = Record("python -m perf.agreement", settings.device, machine.Ceilings())
    measure(problems, record, settings)
    return record.content


def judge(first: dict[str, Any], second: dict[str, Any]) -> int:
    """Print what the two have in common, and return the exit code."""
    pairs = list(zip(first["rows"], second["rows"], strict=True))
    apart = {
        f"{one['problem']}, {one['pass']}, {one['peer']}": why
        for one, two in pairs
        if (why := _difference(one, two))
    }
    timed = sum(one["status"] == two["status"] == "ok" for one, two in pairs)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{first['machine']['device']}; load {load}")
    print(f"{len(pairs) - len(apart)} of {len(pairs)} rows agree")
    for name, why in apart.items():
        print(f"disagrees: {name}: {why}")
    if not timed:
        print("nothing was measured, so nothing agrees", file=sys.stderr)
    return DISAGREE if apart or not timed else AGREE


def _difference(one: Row, two: Row) -> str:
    """In what two rows of the same disagree; nothing where they do not."""
    states = one["status"], two["status"]
    if states == ("ok", "ok"):
        if one["q20_us"] <= two["q80_us"] and two["q20_us"] <= one["q80_us"]:
            return ""
        spreads = (f"{row['q20_us']:,.1f} to {row['q80_us']:,.1f} us" for row in (one, two))
        return " and ".join(spreads)
    return "" if "ok" not in states else " and ".join(states)


if __name__ == "__main__":
    sys.exit(main())
