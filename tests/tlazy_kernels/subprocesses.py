"""Programs of this project in processes of their own, where the interpreter is off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tlazy_kernels import table
from tlazy_kernels.offline import Compiled
from tlazy_kernels.table import Row

ROOT = Path(__file__).parents[2]

# Every push compiles these; sm_90 also in float32, whose products are made of three.
REPRESENTATIVE = {
    "sm_90": ("bfloat16", "float32"),
    "sm_80": ("bfloat16",),
    "sm_100": ("bfloat16",),
    "gfx942": ("bfloat16",),
}


def start(*arguments: str | Path, path: Path = ROOT / "kernels") -> subprocess.Popen[str]:
    """Start ``python -m`` with these arguments, where `path` holds tlazy_kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(path), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    """What a started program printed, once it has ended well."""
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return printed


def inspected(*options: str, targets: dict[str, tuple[str, ...]]) -> list[Row]:
    """The table of ``python -m tlazy_kernels.inspect``; two processes, because most is Python."""
    with tempfile.TemporaryDirectory() as folder:
        files, processes = [], []
        for dtypes in sorted(set(targets.values())):
            files.append(Path(folder) / f"{len(files)}.json")
            chosen = [target for target, own in targets.items() if own == dtypes]
            which = ["--target", *chosen, "--dtype", *dtypes, *options]
            processes.append(start("tlazy_kernels.inspect", *which, "--json", files[-1]))
        for process in processes:
            output(process)
        return [row for file in files for row in table.load(file)]


@cache
def representative() -> list[Row]:
    return inspected(targets=REPRESENTATIVE)


@cache
def planted() -> list[Compiled]:
    rows = json.loads(output(start("tests.tlazy_kernels.planted")))
    return [Compiled(**row) for row in rows]


@cache
def picks(family: str, target: str, dtype: str) -> list[Compiled]:
    """What the choosers pick for a grid of layers."""
    rows = json.loads(output(start("tests.tlazy_kernels.picks", family, target, dtype)))
    return [Compiled(**row) for row in rows]


def launched() -> list[dict[str, Any]]:
    """What a CUDA driver sees of launches, the first of their kind and later ones."""
    return json.loads(output(start("tests.tlazy_kernels.launched")))
