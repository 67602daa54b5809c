"""A pytest plugin: each test's outcome in a file as it comes, so that a run goes on where it ended.

    python -m pytest -p perf.resuming --outcomes FILE TESTS

Of TESTS those run that use the fixture ``device`` and do not stand in FILE yet. Where a failed test
has lost the GPU, which no later one could use, pytest ends with the exit code LOST.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from perf.outcomes import STARTED, read

LOST = 86


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", metavar="FILE", type=Path, help="of kernel tests, as they come")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--outcomes"):
        config.pluginmanager.register(Outcomes(config.getoption("--outcomes")))


class Outcomes:
    """Writes the file, and leaves out what stands in it."""

    def __init__(self, path: Path) -> None:
        self.known = read(path)
        self.parent = os.getppid()
        self.file = path.open("a", encoding="utf-8")
        self.outcome, self.why = STARTED, ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[Any]) -> None:
        chosen = [i for i in items if "device" in i.fixturenames and i.nodeid not in self.known]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and report.nodeid not in self.known:
            self._write(report.nodeid, "failed", _reason(report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if os.getppid() != self.parent:
            pytest.exit("the process that wanted to know is gone")
        self.outcome, self.why = "passed", ""
        self._write(nodeid, STARTED, "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.outcome, self.why = "failed", _reason(report)
        elif report.skipped and self.outcome == "passed":
            self.outcome = "skipped"

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write(nodeid, self.outcome, self.why)
        if self.outcome == "failed" and _is_lost():
            pytest.exit(f"the GPU is lost after {nodeid}", returncode=LOST)

    def _write(self, test: str, outcome: str, why: str) -> None:
        event = {"test": test, "outcome": outcome, "why": why}
        self.file.write(json.dumps(event) + "\n")
        self.file.flush()


def _reason(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = [
        line.strip() for line in (crash.message if crash else report.longreprtext).splitlines()
    ]
    told = [line.removeprefix("E ").strip() for line in lines if line]
    return (told[0 if crash else -1] if told else "")[:300]


def _is_lost() -> bool:
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
