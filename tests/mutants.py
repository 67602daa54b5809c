"""Does the suite notice? Breaks one small thing in the kernels at a time and runs their tests.

    python tests/mutants.py            # all of them, two at a time
    python tests/mutants.py relu       # those whose name contains "relu"

A mutant counts as caught where a test of its file fails in Triton's interpreter or, for those that
only ttsem sees (accesses out of bounds, races), under ttsem. Exits with 0 only if all are caught.
Takes a quarter of an hour on two cores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutations import MUTANTS, Mutant, mutated

ROOT = Path(__file__).resolve().parent.parent
RUNS = {"interpreter": ["-m", "pytest"], "ttsem": ["-m", "ttsem.sanitize", "pytest"]}


def main(wanted: str = "") -> int:
    chosen = [mutant for mutant in MUTANTS if wanted in mutant.name]
    with ThreadPoolExecutor(2) as pool:
        survivors = [
            m.name
            for m, caught in zip(chosen, pool.map(try_out, chosen), strict=True)
            if not caught
        ]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    for name in survivors:
        print(f"survived: {name}")
    return 1 if survivors else 0


def try_out(mutant: Mutant) -> bool:
    """Run the mutant's tests on a copy of the tree; say whether it was caught."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("kernels", "tests", "conftest.py", "pyproject.toml"):
            source = ROOT / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / part)
        path = copy / mutant.path
        path.write_text(mutated(mutant, path.read_text()))
        caught = fails(mutant, copy)
    by = f"caught, {mutant.seen_by}" if caught else "SURVIVED"
    print(f"{mutant.name}: {by} ({time.perf_counter() - start:.0f} s)", flush=True)
    return caught


def fails(mutant: Mutant, copy: Path) -> bool:
    """Whether a test fails, or the process dies; anything else that goes wrong is an error."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *RUNS[mutant.seen_by], mutant.tests, "-x", "-q", "-p", "no:cacheprovider"],
        cwd=copy,
        env=environment | {"PYTHONPATH": str(copy / "kernels")},
        capture_output=True,
        text=True,
    )
    if done.returncode in (0, 1) or done.returncode < 0:
        return done.returncode != 0
    raise SystemExit(f"{mutant.name}: pytest ended with {done.returncode}:\n{done.stdout}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
