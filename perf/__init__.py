"""Benchmarks and their records; run from a checkout, also where nothing is installed."""

import sys
from pathlib import Path

# `python -m perf.record` finds tlazy beside this folder, but not tlazy_kernels.
_KERNELS = str(Path(__file__).parent.parent / "kernels")
if _KERNELS not in sys.path:
    sys.path.insert(0, _KERNELS)

# Measured first, and shown problem by problem.
MAIN_SUITE = "goals"
