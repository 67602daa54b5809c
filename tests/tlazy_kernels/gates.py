"""What every compiled kernel must keep to, and the stated exceptions with their reasons."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton

from tlazy_kernels.catalogue import cases
from tlazy_kernels.offline import Compiled
from tlazy_kernels.targets import TARGETS

TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])

# The matrix units' instruction of each target. Those of sm_90 and sm_100 take 64 rows or more;
# smaller tiles use sm_80's there.
MATRIX_INSTRUCTIONS = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "mfma"}
FULL_ROWS = 64
FROM_REGISTERS = "wgmma from registers"

_SHIFTED = (
    "a tap shifts 2-byte samples by less than the 4 bytes that the smallest asynchronous copy takes"
    " and aligns to"
)

# Products of 16-bit elements whose operands reach shared memory through registers, and why.
WITHOUT_ASYNC_COPIES = {"_conv1d_gather_kernel": _SHIFTED}

# In float32 on Blackwell too: split into parts, they leave no registers to copy ahead.
WITHOUT_ASYNC_COPIES_IN_FLOAT32 = {("sm_100", "_conv1d_gather_kernel")}

# Tiles of several short series: where rows are more than one of a descriptor's dimensions, Triton
# hands the left operand through registers.
SEVERAL_SERIES = re.compile(r"N(?!1 )\d+ L")

# Products whose operands are loaded once, before any loop that could copy ahead of itself.
WITHOUT_A_LOOP = frozenset({"_first_layer_kernel"})

# Global loads of 2 bytes that may stand in the binary of a kernel with 16-bit elements, of which
# each is one tile's share of a thread: any more would be a layout that got worse. Kernels that are
# not named have none, and in float32 no load may be that narrow.
NARROW_LOADS = {
    "_matmul_pointer_kernel": 16,  # the bias, whose last vector may end early
    "_sum_kernel": 1,  # the bias: in small sums a thread has one column
    "_conv1d_tiled_kernel": 4,  # the bias, in tiles of 16 filters
    "_copy_kernel": 16,  # weights, whose taps lie side by side
    "_block_diagonal_kernel": 16,  # likewise
    "_conv1d_gather_kernel": 32,  # the samples, which the stride takes apart
    "_grad_weight_gather_kernel": 16,  # the samples
    "_depthwise_kernel": 10,  # the samples, and the weight's 4 taps, which lie side by side
    "_depthwise_grad_weight_kernel": 16,  # the samples and the gradient, which have two lengths
    # The weight's 4 taps, which lie side by side, and the bias, for each of 2 channels of a thread.
    "_depthwise_time_kernel": 10,
    "_depthwise_time_backward_kernel": 8,
    # AMD's threads each load 4 taps of their 4 or 2 channels; NVIDIA's share them out.
    "_depthwise_channels_kernel": 16,
    "_depthwise_channels_backward_kernel": 8,
    # The matrix, once a program; in the path by taps the samples.
    "_depthwise_toeplitz_kernel": 82,
    "_depthwise_toeplitz_grad_weight_kernel": 66,  # in that path, samples and gradient; the sums
    "_first_layer_kernel": 32,  # samples of all taps, gathered once a program, and the weight
    "_first_layer_grad_weight_kernel": 16,  # the samples
}

# Likewise global stores of 2 bytes.
NARROW_STORES = {
    "_matmul_pointer_kernel": 64,  # rows that are no whole units, which no descriptor can have
    "_sum_kernel": 2,  # in small sums a thread has one column, of y and of z
    "_copy_kernel": 1,  # likewise in small copies
    "_epilogue_backward_kernel": 1,  # the bias gradient of a tile of one channel
    # Gradients of the weight, whose taps lie side by side, and of the bias.
    "_depthwise_time_backward_kernel": 9,
    "_grad_weight_tiled_kernel": 64,
    "_conv1d_gather_kernel": 8,  # the way back to groups of one channel, each of which lies apart
}

# AMD's backend stores a product's tile as the matrix units leave it: a thread's elements are
# neighbouring filters, which lie apart where samples are neighbours.
NARROW_STORES_ON = {"gfx942": {"_conv1d_gather_kernel": 64, "_conv1d_tiled_kernel": 8}}

# Budgets of single targets.
NARROW_LOADS_ON = {
    # On Blackwell a thread has a whole row of the accumulator: the bias of 32 columns at a time,
    # which every thread of a warp reads alike. It gathers 32 samples, where Hopper's has 16.
    "sm_100": {"_matmul_pointer_kernel": 32, "_grad_weight_gather_kernel": 32},
    # Before Triton 3.8, a thread of AMD's has 8 filters in each of the parts that a tile is stored
    # in, which lie apart.
    "gfx942": {"_depthwise_toeplitz_kernel": 93}  # LLVM unrolls the path by taps where they are few
    | ({} if TRITON >= (3, 8) else {"_conv1d_tiled_kernel": 32}),
}

# Cases of the catalogue whose sizes leave no alignment to use.
UNALIGNED = (" small", " odd")

# The cases that every change compiles: the tiles of large sizes. In other tiles a thread may have
# twice the share of a tile.
REPRESENTATIVE = frozenset(case.name for case in cases(torch.bfloat16))
OTHER_TILES_NARROW = 2

# Bytes of stack and accesses to it, in other tiles: ptxas parks a value or two beside a loop that
# does not need them where a processor then holds one more program.
PARKED = 16
PARKED_ACCESSES = 8

# Registers that a build may differ by from its baseline, for ptxas versions of one Triton version.
REGISTER_TOLERANCE = 8
BASELINES = Path(__file__).with_name("registers.json")

Gate = Callable[[Compiled], Iterator[str]]


def shared_memory(row: Compiled) -> Iterator[str]:
    limit = TARGETS[row.target].shared_limit
    if row.shared > limit:
        yield f"{row.shared} bytes of shared memory, more than {limit}"


def stack(row: Compiled) -> Iterator[str]:
    local = row.mix.get("local", 0)
    few = 0 < row.stack <= PARKED and local <= PARKED_ACCESSES
    parked = few and row.target != "gfx942" and not row.mix.get("local in a loop")
    if (row.stack or local) and not (parked and not _is_representative(row)):
        yield f"{row.stack} bytes of stack, {local} local loads and stores"


def matrix_units(row: Compiled) -> Iterator[str]:
    kinds = {kind: (kind,) for kind in MATRIX_INSTRUCTIONS.values()}
    kinds["wgmma"] += (FROM_REGISTERS,)
    used = {kind for kind in kinds if any(row.mix.get(name) for name in kinds[kind])}
    own = MATRIX_INSTRUCTIONS[row.target]
    small = "mma" if own in ("wgmma", "tcgen05") else own
    wanted = own if row.product_rows >= FULL_ROWS else small
    if row.product_rows and used != {wanted}:
        yield f"a product of {row.product_rows} rows by {sorted(used) or 'none'}, not {wanted}"


def operands(row: Compiled) -> Iterator[str]:
    """Matrix units that wait for registers do so at each step, and registers hold a whole tile. In
    float32 operands are taken apart or rounded there. Some products may: of what is kept from small
    groups."""
    passed = row.mix.get(FROM_REGISTERS, 0) and not row.mix.get("wgmma")
    if passed and not _of_float32(row) and not SEVERAL_SERIES.match(row.config):
        yield "every product's left operand passes through registers"


def programs(row: Compiled) -> Iterator[str]:
    """Programs that wait for others to end would find tiles left to none but them."""
    if row.kernel == "_conv1d_tiled_kernel" and row.planned > row.occupancy:
        held = f"{row.occupancy}, of {row.registers} registers a thread"
        yield f"{row.planned} programs a processor, which holds {held}"


def asynchronous_copies(row: Compiled) -> Iterator[str]:
    """Only NVIDIA's GPUs copy from global to shared memory on their own; AMD's pass registers."""
    copies = row.mix.get("async copy", 0) + row.mix.get("bulk copy", 0)
    exempt = not _of_float32(row) and row.kernel in WITHOUT_ASYNC_COPIES
    exempt |= (row.target, row.kernel) in WITHOUT_ASYNC_COPIES_IN_FLOAT32
    exempt = exempt or row.kernel in WITHOUT_A_LOOP
    nvidia = TARGETS[row.target].gpu.backend == "cuda"
    if row.product_rows and nvidia and not copies and not exempt and not _narrow_by_nature(row):
        yield "no asynchronous copy feeds the product"


def narrow_stores(row: Compiled) -> Iterator[str]:
    found = row.mix.get("store 1", 0) + row.mix.get("store 2", 0)
    budgets = NARROW_STORES | NARROW_STORES_ON.get(row.target, {})
    budget = 0 if _of_float32(row) else budgets.get(row.kernel, 0)
    if found > budget and not _narrow_by_nature(row) and not _apart(row):
        yield f"{found} global stores of 2 bytes or less, more than {budget}"


def narrow_loads(row: Compiled) -> Iterator[str]:
    found = row.mix.get("load 1", 0) + row.mix.get("load 2", 0)
    budgets = NARROW_LOADS | NARROW_LOADS_ON.get(row.target, {})
    budget = 0 if _of_float32(row) else budgets.get(row.kernel, 0)
    budget *= 1 if _is_representative(row) else OTHER_TILES_NARROW
    if found > budget and not _narrow_by_nature(row):
        yield f"{found} global loads of 2 bytes or less, more than {budget}"


def _of_float32(row: Compiled) -> bool:
    return row.dtype in ("float32", "tf32")


def _is_representative(row: Compiled) -> bool:
    return row.name.partition(" + ")[0] in REPRESENTATIVE


def _narrow_by_nature(row: Compiled) -> bool:
    """Sizes that are no multiple of 16 bytes, and tiles of which a thread loads one element."""
    return row.name.endswith(UNALIGNED) or (row.product_rows > 0 and row.operand_bytes < 4)


def _apart(row: Compiled) -> bool:
    """The way back over a stride fills one residue of the positions at a time: samples apart."""
    back = row.name.startswith("conv_transpose1d_forward") or " apart" in row.name
    return back and row.kernel in ("_conv1d_tiled_kernel", "_conv1d_gather_kernel")


def specialization(row: Compiled) -> Iterator[str]:
    if row.specialized and not row.mix.get("setmaxnreg"):
        yield "warp specialization is asked for, and no warp trades registers"


def scratch_memory(row: Compiled) -> Iterator[str]:
    if row.scratch and not row.allocates:
        yield f"{row.scratch} bytes of scratch memory, and the launcher has set no allocator"


def registers(row: Compiled) -> Iterator[str]:
    """Where there is a baseline for this version of Triton."""
    version = ".".join(map(str, TRITON))
    baseline = json.loads(BASELINES.read_text()).get(version, {}).get(" ".join(row.key))
    if baseline is not None and row.registers > baseline + REGISTER_TOLERANCE:
        yield f"{row.registers} registers, with Triton {version} there were {baseline}"


def fusion(row: Compiled) -> Iterator[str]:
    if row.flattened and row.nested_loops > 1:
        yield f"{row.nested_loops} loops lie in each other, which are asked to be one"


GATES: tuple[Gate, ...] = (
    shared_memory,
    stack,
    matrix_units,
    operands,
    programs,
    asynchronous_copies,
    narrow_loads,
    narrow_stores,
    specialization,
    scratch_memory,
    fusion,
    registers,
)


def breaches(row: Compiled) -> list[str]:
    """What is wrong with a compiled kernel, each by its gate's name; nothing is as it should be."""
    return [f"{gate.__name__}: {found}" for gate in GATES for found in gate(row)]
