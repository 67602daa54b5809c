"""A kernel that Triton has compiled, launched again without asking Triton anything.

Triton's launchers are functions in C inside ones in Python, which find out for every launch what
is the same for all: whether the kernel needs scratch memory, and what kinds its arguments are of.
For NVIDIA's launcher that is done once here, in the versions of Triton whose function in C is
known. Any other launcher runs as Triton would run it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import _allocation

from tlazy_kernels.memory import Allocator

# Launch on a stream, with the addresses of the kernel's tensors (None for one that is not there),
# and with this allocator for scratch memory.
Handle = Callable[[int, Sequence[int | None], Allocator], None]

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
KNOWN_VERSIONS = ((3, 6), (3, 7), (3, 8), (3, 9))


def handle_of(compiled: CompiledKernel, grid: tuple[int, int, int], values: tuple) -> Handle:
    """What launches `compiled` over `grid`; `values` are those of what follows its tensors.

    It keeps the kernel: Triton unloads one that nobody has any more.
    """
    launcher = compiled.run
    kind = type(launcher)
    if (
        (kind.__module__, kind.__name__) != ("triton.backends.nvidia.driver", "CudaLauncher")
        or VERSION not in KNOWN_VERSIONS
        or _is_watched(launcher)
    ):
        return _by_triton(compiled, grid, values)
    return _by_cuda(compiled, grid, values)


def with_scratch(empty: Allocator, launch: Callable[[], Any]) -> Any:
    """What `launch` gives, with memory from `empty` for what Triton asks its own allocator for:
    tensor descriptors. An allocator that the user has set stays as it was."""

    def allocate(size: int, alignment: int, stream: int | None) -> Tensor:
        return empty((size,), (1,), torch.int8)

    before = _allocation._allocator.set(allocate)
    try:
        return launch()
    finally:
        _allocation._allocator.reset(before)


def _is_watched(launcher: Any) -> bool:
    """Whether Triton's own tools need to hear of each launch."""
    return launcher.profile_scratch_size > 0 or getattr(launcher, "gsan_enabled", False)


def _by_triton(compiled: CompiledKernel, grid: tuple[int, int, int], values: tuple) -> Handle:
    def launch(stream: int, addresses: Sequence[int | None], empty: Allocator) -> None:
        fixed = (stream, compiled.function, compiled.packed_metadata, None, None, None)
        with_scratch(empty, lambda: compiled.run(*grid, *fixed, *addresses, *values))

    return launch


def _by_cuda(compiled: CompiledKernel, grid: tuple[int, int, int], values: tuple) -> Handle:
    """By what each version of Triton's function in C wants to be told, in the order that it does.

    The four that are None stand for a profiler's memory, its metadata, and what it has called
    around a launch. PyTorch's allocator gives the scratch memory to nothing that would use it
    before the kernel has.
    """
    launcher: Any = compiled.run
    run, function, packed = launcher.launch, compiled.function, compiled.packed_metadata
    cooperative, dependent = launcher.launch_cooperative_grid, launcher.launch_pdl
    x, y, z = grid
    scratch = launcher.global_scratch_size * launcher.num_ctas * math.prod(grid)
    shape, strides = (scratch,), (1,)

    def launch_3_6(stream: int, addresses: Sequence[int | None], empty: Allocator) -> None:
        memory = empty(shape, strides, torch.int8) if scratch else None
        place = memory.data_ptr() if memory is not None else None
        run(
            x, y, z, stream, function, cooperative, dependent, place, None, packed,
            None, None, None, *addresses, *values,
        )  # fmt: skip

    def launch(stream: int, addresses: Sequence[int | None], empty: Allocator) -> None:
        memory = empty(shape, strides, torch.int8) if scratch else None
        place = memory.data_ptr() if memory is not None else None
        run(
            x, y, z, stream, function, cooperative, dependent, packed, None, None, None, place,
            None, kinds, signature, (*addresses, *values),
        )  # fmt: skip

    if VERSION == (3, 6):
        launch_3_6.kept = compiled  # type: ignore[attr-defined]
        return launch_3_6
    kinds, signature = launcher.arg_annotations, launcher.kernel_signature
    launch.kept = compiled  # type: ignore[attr-defined]
    return launch
