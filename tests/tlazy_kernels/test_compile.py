"""The kernels compile for the GPUs they are meant for, and keep to the gates.

A GPU is not needed. What cannot be seen so: anything about time, and whether a device launches it.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import triton

import tlazy_kernels
from tests.tlazy_kernels import gates
from tests.tlazy_kernels.gates import breaches
from tests.tlazy_kernels.subprocesses import (
    BRIEF,
    WHOLE,
    declared,
    inspected,
    picks,
    planted,
    representative,
)
from tlazy_kernels.catalogue import DTYPES, SPECIALIZED, cases
from tlazy_kernels.conv1d_filters import shares_tiles
from tlazy_kernels.matmul import specializes
from tlazy_kernels.offline import Compiled
from tlazy_kernels.targets import TARGETS

pytestmark = pytest.mark.compiles

# Every kernel there is, whatever module it stands in.
KERNELS = {
    name
    for module in pkgutil.iter_modules(tlazy_kernels.__path__)
    for name in vars(importlib.import_module(f"tlazy_kernels.{module.name}"))
    if name.startswith("_") and name.endswith("_kernel")
}

# Kernels that 16-bit elements alone have.
WITHOUT_FLOAT32 = {kernel for kernel in KERNELS if "toeplitz" in kernel}

TRITON = ".".join(triton.__version__.split(".")[:2])


def assert_sound(rows: Sequence[Compiled]) -> None:
    found = {" ".join((*row.key, row.config)): breaches(row) for row in rows}
    assert {key: wrong for key, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("target", "dtype"),
    [(t, dtype) for found in (WHOLE, BRIEF) for t in found for dtype in found[t]],
)
def test_every_kernel_passes_every_gate(target, dtype):
    rows = [row for row in representative() if (row.target, row.dtype) == (target, dtype)]
    apart = set() if shares_tiles(TARGETS[target]) else {"_block_diagonal_kernel"}
    apart |= WITHOUT_FLOAT32 if DTYPES[dtype] is torch.float32 else set()
    assert {row.kernel for row in rows} == KERNELS - apart
    assert len({row.key for row in rows}) == len(rows)  # else one baseline would hide another
    if dtype in WHOLE.get(target, ()):
        names = {case.name for case in cases(DTYPES[dtype]) if case.serves(TARGETS[target])}
        assert {row.name.partition(" + ")[0] for row in rows} == names
    assert_sound(rows)


@pytest.mark.thorough
@pytest.mark.parametrize("target", BRIEF)
def test_every_case_passes_every_gate(target):
    assert_sound(inspected({target: BRIEF[target]}))


# How the names of the kernels begin that each family of layers comes to.
FAMILIES = {
    "linear": ("_matmul",),
    "dense": ("_conv1d", "_grad_weight", "_first_layer", "_copy"),
    "depthwise": ("_depthwise",),
}


# On AMD there is no tf32. On Blackwell three of the 120 picks of dense layers still keep 8 to 24
# bytes on the stack in tf32.
PICKED = [
    (target, dtype)
    for target in TARGETS
    for dtype in DTYPES
    if dtype != "tf32" or target in ("sm_80", "sm_90")
]


@pytest.mark.parametrize(("target", "dtype"), PICKED)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.thorough
def test_what_the_choosers_pick_for_a_grid_of_layers_passes_every_gate(family, target, dtype):
    assert_picks_are_sound(picks(family, target, dtype), family, dtype)


def test_the_tiles_that_the_choosers_pick_for_a_grid_of_products_pass_every_gate():
    assert_picks_are_sound(picks("linear", "sm_90", "bfloat16", "brief"), "linear", "bfloat16")


def assert_picks_are_sound(rows: Sequence[Compiled], family: str, dtype: str) -> None:
    assert len({row.config for row in rows}) > 5
    wanted = {kernel for kernel in KERNELS if kernel.startswith(FAMILIES[family])}
    if DTYPES[dtype] is torch.float32:
        wanted -= WITHOUT_FLOAT32
    assert wanted <= {row.kernel for row in rows}
    assert_sound(rows)


@pytest.mark.thorough
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_tile_and_activation_passes_every_gate(target, dtype):
    rows = inspected({target: (dtype,)}, "--thorough")
    assert len(rows) > 90
    assert_sound(rows)


def test_kernels_that_multiply_matrices_are_known_as_such():
    """Else the gates on matrix units and copies would have nothing to look at."""
    for row in representative():
        product = row.name.startswith(("linear", "conv", "first_layer"))
        # In float32 a long filter is a plain sum over taps.
        product |= row.name.startswith("depthwise_long") and row.dtype == "bfloat16"
        assert (row.product_rows > 0) == (product and " + " not in row.name), row


@pytest.mark.parametrize(
    "gate",
    [
        "shared_memory",
        "stack",
        "matrix_units",
        "operands",
        "asynchronous_copies",
        "narrow_loads",
        "narrow_stores",
    ],
)
def test_a_gate_catches_its_planted_defect(gate):
    rows = [row for row in planted() if row.name == gate]
    assert rows
    for row in rows:
        assert any(breach.startswith(f"{gate}:") for breach in breaches(row)), row


@pytest.mark.parametrize("gate", ["programs", "specialization", "scratch_memory", "fusion"])
def test_a_gate_on_what_a_kernel_asks_for_catches_its_planted_defect_alone(gate):
    (row,) = (row for row in planted() if row.name == gate)
    assert [breach.partition(":")[0] for breach in breaches(row)] == [gate]


@pytest.mark.parametrize("asked", ["specialized", "scratch", "flattened"])
def test_shipped_kernels_ask_for_what_these_gates_look_at(asked):
    if asked == "specialized" and not specializes(TARGETS["sm_90"], SPECIALIZED):
        pytest.skip(f"warp specialization takes no effect with Triton {TRITON}")
    assert any(getattr(row, asked) for row in representative())


def test_kernels_without_a_defect_pass_all_gates_specialized_ones_too():
    sound = [row for row in planted() if row.name == "sound"]
    assert [breaches(row) for row in sound] == [[], [], [], [], []]
    assert any(row.flattened for row in sound)
    assert any(row.specialized and row.mix["setmaxnreg"] and row.scratch for row in sound)
    assert any(row.mix.get("bulk copy") for row in sound)


def test_registers_may_not_grow_from_their_baseline():
    baselines = json.loads(gates.BASELINES.read_text())
    assert {"3.6", "3.9"} <= set(baselines)
    if TRITON not in baselines:
        pytest.skip(f"no baselines are kept for Triton {TRITON}")
    assert set(baselines[TRITON]) == {
        f"{name} {case['target']} {case['dtype']}"
        for case in declared()
        for name in case["launches"]
        if case["dtype"] in (*WHOLE.get(case["target"], ()), *BRIEF[case["target"]])
    }
    for row in representative():
        kept = baselines[TRITON][" ".join(row.key)]
        assert breaches(replace(row, registers=kept + gates.REGISTER_TOLERANCE)) == []
        (breach,) = breaches(replace(row, registers=kept + gates.REGISTER_TOLERANCE + 1))
        assert breach.startswith("registers:")


def test_no_gate_passes_a_local_load_without_a_stack():
    row = replace(representative()[0], mix={**representative()[0].mix, "local": 1})
    assert breaches(row) == ["stack: 0 bytes of stack, 1 local loads and stores"]


def test_a_value_parked_beside_a_loop_passes_in_tiles_that_are_not_the_representative_ones():
    row = representative()[0]
    parked = replace(row, stack=8, mix={**row.mix, "local": 2})
    other = replace(parked, name="pick of linear_forward")
    assert breaches(parked) == ["stack: 8 bytes of stack, 2 local loads and stores"]
    assert breaches(other) == []
    assert breaches(replace(other, mix={**other.mix, "local in a loop": 1})) != []
    assert breaches(replace(other, mix={**other.mix, "local": 20})) != []
    assert breaches(replace(other, stack=gates.PARKED + 4)) != []
    assert breaches(replace(other, stack=0)) != []


def test_spills_in_loops_are_found_in_what_the_disassemblers_print():
    spilling = [row for row in planted() if row.name == "stack"]
    assert {row.target for row in spilling} == {"sm_90", "gfx942"}
    assert all(row.mix.get("local in a loop") for row in spilling)


def test_each_launcher_moves_at_most_5_percent_more_than_the_least_bytes():
    """As its launches declare, plus what PyTorch's operators move to sum up partial sums.

    Those come to a few times as many tiles as there are processors, written and read, whatever the
    sizes: at these sizes less than 5 %, beside small operands more.
    """
    for case in declared():
        assert case["least_bytes"] <= case["bytes"] <= 1.05 * case["least_bytes"], case


def test_each_launch_declares_the_arithmetic_that_the_operation_needs():
    for case in declared():
        assert case["flops"] == case["least_flops"], case


def test_occupancy_is_limited_by_whatever_runs_out_first():
    sm_90 = TARGETS["sm_90"]
    assert sm_90.occupancy(registers=32, shared=0, num_warps=4) == 16  # 64 warps
    assert sm_90.occupancy(registers=255, shared=0, num_warps=8) == 1  # 65536 registers
    assert sm_90.occupancy(registers=33, shared=0, num_warps=4) == 12  # rounded up to 40
    assert sm_90.occupancy(registers=32, shared=232_448, num_warps=1) == 1
    assert sm_90.occupancy(registers=1, shared=0, num_warps=1) == 32  # programs
    assert TARGETS["gfx942"].occupancy(registers=128, shared=0, num_warps=4) == 4
