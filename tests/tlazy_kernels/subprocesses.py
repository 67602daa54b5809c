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

# What every change compiles: all cases for one GPU, and for others, and in float32, whose products
# are made of three or, as PyTorch's convolutions are by default, rounded to tf32, each kernel once.
WHOLE = {"sm_90": ("bfloat16",)}
BRIEF = {
    "sm_90": ("float32", "tf32"),
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


def inspected(targets: dict[str, tuple[str, ...]], *options: str) -> list[Row]:
    """The table of ``python -m tlazy_kernels.inspect``."""
    return _tables(_inspecting(targets, *options))


@cache
def representative() -> list[Row]:
    return _tables([*_inspecting(WHOLE), *_inspecting(BRIEF, "--brief")])


def _inspecting(targets: dict[str, tuple[str, ...]], *options: str) -> list[list[str]]:
    """The options of one process for each choice of dtypes: most of its work is Python."""
    found = []
    for dtypes in sorted(set(targets.values())):
        chosen = [target for target, own in targets.items() if own == dtypes]
        found.append([*options, "--target", *chosen, "--dtype", *dtypes])
    return found


def _tables(runs: list[list[str]]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.json" for i in range(len(runs))]
        processes = [
            start("tlazy_kernels.inspect", *options, "--json", file)
            for options, file in zip(runs, files, strict=True)
        ]
        for process in processes:
            output(process)
        return [row for file in files for row in table.load(file)]


@cache
def planted() -> list[Compiled]:
    rows = json.loads(output(start("tests.tlazy_kernels.planted")))
    return [Compiled(**row) for row in rows]


def picks(family: str, target: str, dtype: str, *brief: str) -> list[Compiled]:
    """What the choosers pick for a grid of layers."""
    rows = json.loads(output(start("tests.tlazy_kernels.picks", family, target, dtype, *brief)))
    return [Compiled(**row) for row in rows]


@cache
def declared() -> list[dict[str, Any]]:
    """What each case of the catalogue launches, moves and computes everywhere."""
    return json.loads(output(start("tests.tlazy_kernels.declared")))


def launched() -> dict[str, Any]:
    """What a CUDA driver sees of launches, the first of their kind and later ones."""
    return json.loads(output(start("tests.tlazy_kernels.launched")))
