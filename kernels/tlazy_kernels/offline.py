"""Compiles recorded launches for GPUs that need not be there, and describes what came out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource

from tlazy_kernels.catalogue import DTYPES
from tlazy_kernels.environment import cores
from tlazy_kernels.machine_code import instruction_mixes, usage
from tlazy_kernels.parsing import one_at_a_time
from tlazy_kernels.recording import Launch
from tlazy_kernels.targets import TARGETS

_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


@dataclass(frozen=True)
class Compiled:
    """What one launch became on one target.

    Attributes:
        name: of the case, such as ``linear_forward gelu``.
        kernel: name of the device function.
        target, dtype, config: what it was compiled for.
        registers: a thread's.
        stack: bytes of local memory a thread: spills and indexed arrays.
        shared: bytes of shared memory a program.
        scratch: bytes of global scratch memory a program; more than 0 needs an allocator.
        allocates: whether the launcher had set an allocator.
        occupancy: programs that one processor holds at a time.
        product_rows: of a matrix product's tile; 0 where there is none.
        operand_bytes: what a thread loads of the smaller operand's tile, a step of the product.
        specialized: whether a loop asks for warp specialization.
        flattened: whether a loop asks to be made one with the loop inside it.
        nested_loops: loops of which each lies in the one before; 1 where none does.
        mix: instructions by kind, as ``machine_code.instruction_mixes``.
        planned: programs of a processor where each takes several tiles; else 0.
    """

    name: str
    kernel: str
    target: str
    dtype: str
    config: str
    registers: int
    stack: int
    shared: int
    scratch: int
    allocates: bool
    occupancy: int
    product_rows: int
    operand_bytes: int
    specialized: bool
    flattened: bool
    nested_loops: int
    mix: dict[str, int]
    planned: int = field(default=0, kw_only=True)

    @property
    def key(self) -> tuple[str, ...]:
        """What stays the same from one version of the kernels to the next."""
        return self.name, self.target, self.dtype


def _compiled(
    name: str, target: str, dtype: str, launch: Launch
) -> tuple[Compiled, Mapping[str, Any]]:
    """Compile a launch for a target of ``targets.TARGETS``; its mix is still to be counted."""
    limits = TARGETS[target]
    binary = triton.compile(source(launch), target=limits.gpu, options=launch.options)
    registers, stack = usage(binary.asm)
    warps, shared = binary.metadata.num_warps, binary.metadata.shared
    ttir = str(binary.asm["ttir"])
    m, n, k = _product(ttir)
    threads = limits.gpu.warp_size * launch.options["num_warps"]
    row = Compiled(
        name=name,
        kernel=launch.kernel.fn.__name__,
        target=target,
        dtype=dtype,
        config=_config(launch),
        registers=registers,
        stack=stack,
        shared=shared,
        scratch=getattr(binary.metadata, "global_scratch_size", 0),
        allocates=launch.allocates,
        occupancy=limits.occupancy(registers=registers, shared=shared, num_warps=warps),
        planned=-(-launch.values.get("programs", 0) // limits.processors),
        product_rows=m,
        operand_bytes=min(m, n) * k * DTYPES[dtype].itemsize // threads,
        specialized="tt.warp_specialize" in ttir,
        flattened="tt.flatten" in ttir,
        nested_loops=_nested_loops(str(binary.asm["ttgir"])),
        mix={},
    )
    return row, binary.asm


def compiled_together(work: Iterable[tuple[str, str, str, Launch]]) -> list[Compiled]:
    """Each (name, target, dtype, launch) of `work`, compiled for that target of
    ``targets.TARGETS``, in as many threads as there are cores."""
    work = list(work)  # before the first is compiled
    with one_at_a_time(), ThreadPoolExecutor(cores()) as pool:
        found = list(pool.map(lambda item: _compiled(*item), work))
    mixes = instruction_mixes([asm for _, asm in found])
    return [replace(row, mix=mix) for (row, _), mix in zip(found, mixes, strict=True)]


def source(launch: Launch) -> ASTSource:
    """The source with the types and the hints that Triton would derive from these values."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    hints: dict[tuple[int, ...], list] = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.values[parameter.name]
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or (special and isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            aligned = value % 16 == 0
        if aligned and special and not parameter.do_not_specialize_on_alignment:
            hints[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, hints)


def _config(launch: Launch) -> str:
    blocks = [f"{k[6:]}{v}" for k, v in launch.values.items() if k.startswith("BLOCK_")]
    return " ".join([*blocks, *(f"{k[4:]}{v}" for k, v in launch.options.items())])


def _product(ttir: str) -> tuple[int, int, int]:
    """(M, N, K) of the tiles that are multiplied; zeros where none are."""
    found = re.search(r"tt\.dot .*: tensor<(\d+)x(\d+)x.*-> tensor<\d+x(\d+)x", ttir)
    return (int(found[1]), int(found[3]), int(found[2])) if found else (0, 0, 0)


def _nested_loops(ttgir: str) -> int:
    depth, most = 0, 0
    loops: list[int] = []  # the depth at which each open loop started
    for line in ttgir.splitlines():
        if "scf.for" in line:
            loops.append(depth)
            most = max(most, len(loops))
        depth += line.count("{") - line.count("}")
        while loops and depth <= loops[-1]:
            loops.pop()
    return most
