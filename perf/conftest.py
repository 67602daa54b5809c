"""Where pytest-benchmark keeps and finds its records: `pytest perf --benchmark-compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

RECORDS = Path(__file__).parent / "results" / "pytest-benchmark"
# What pytest-benchmark takes unless it is told otherwise.
DEFAULT = "file://./.benchmarks"


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "benchmark_storage", None) == DEFAULT:
        config.option.benchmark_storage = f"file://{RECORDS}"


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """A record says which processor it is of, not whose machine."""
    machine_info.pop("node", None)
