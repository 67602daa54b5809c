"""Measures problems: every peer of each, once or in several visits, into a record."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from tlazy.bench.group import Group
from tlazy.bench.problems import Problem
from tlazy.bench.record import Record, Row, identity
from tlazy.bench.settings import Settings


def identities(problems: Iterable[Problem], settings: Settings) -> list[Row]:
    """What each row will measure, in order."""
    return [
        identity(problem, which, peer)
        for problem in problems
        for which in problem.passes
        for peer in settings.peers_of(problem)
    ]


def measure(problems: Iterable[Problem], record: Record, settings: Settings) -> bool:
    """Put a row for each problem, pass and peer into `record`.

    Rows that it holds are left, but for those whose turn had not come when it was stopped: so a
    peer that ends the process costs its own row, once.

    Returns:
        whether all was measured before the deadline.

    Raises:
        DeviceLost: where the device cannot go on; the record holds what was measured until then.
    """
    generator = torch.Generator(settings.device)
    generator.seed()
    groups = []
    for problem in problems:
        for which in problem.passes:
            group = Group(problem, which, record, settings, generator)
            if not group.missing:
                continue
            if time.monotonic() > settings.deadline:
                return False
            if not group.measure():
                return False
            groups.append(group)
    for _ in range(settings.visits - 1):
        for group in groups:
            if time.monotonic() > settings.deadline:
                return True
            group.measure_again()
    return True
