"""The kernels compile for the GPUs they are meant for, within those GPUs' limits.

A GPU is not needed. What cannot be seen so: anything about time, and whether a device launches it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.tlazy_kernels.offline import DTYPES, TARGETS, Compiled

ROOT = Path(__file__).parents[2]

SHARED_LIMITS = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
MATRIX_INSTRUCTIONS = {
    "sm_80": "mma.sync",
    "sm_90": "wgmma.mma_async",
    "sm_100": "tcgen05.mma",
    "gfx942": "v_mfma",
}

pytestmark = pytest.mark.compiles
every_target = pytest.mark.parametrize("target", list(TARGETS))
every_dtype = pytest.mark.parametrize("dtype", list(DTYPES))


@cache
def compiled(thorough: bool) -> list[Compiled]:
    """Everything, compiled by one process: importing takes longer than a kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # The default of triton 3.9, which it announces to change; 3.6 knows no other.
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    arguments = [json.dumps(value) for value in (list(TARGETS), list(DTYPES), thorough)]
    process = subprocess.run(
        [sys.executable, "-m", "tests.tlazy_kernels.offline", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return [Compiled(**entry) for entry in json.loads(process.stdout)]


def assert_within_limits(results: list[Compiled], target: str, dtype: str) -> None:
    chosen = [r for r in results if (r.target, r.dtype) == (target, dtype)]
    assert {r.name for r in chosen} >= {"linear_forward", "conv1d_forward", "depthwise_forward"}
    assert sum(r.dots for r in chosen) >= 6
    over = [r for r in chosen if r.shared > SHARED_LIMITS[target]]
    assert not over, "too much shared memory"
    spilling = [r for r in chosen if r.stack > 0]
    assert not spilling, "registers spilled to memory"
    without = [r for r in chosen if r.dots and not r.matrix_instructions]
    assert not without, "products without matrix instructions"


@every_target
@every_dtype
def test_default_tiles_fit_and_do_not_spill(target, dtype):
    assert_within_limits(compiled(False), target, dtype)


@pytest.mark.thorough
@every_target
@every_dtype
def test_every_activation_and_odd_sizes_fit_and_do_not_spill(target, dtype):
    assert_within_limits(compiled(True), target, dtype)


@every_target
@every_dtype
def test_full_tiles_use_the_targets_own_matrix_instruction_alone(target, dtype):
    for result in compiled(False):
        if result.dots and (result.target, result.dtype) == (target, dtype):
            assert result.matrix_instructions == [MATRIX_INSTRUCTIONS[target]], result
