"""A kernel that Triton has compiled, launched again without asking Triton anything.

Triton's launchers are functions in C inside ones in Python, which find out for every launch what
is the same for all: whether the kernel needs scratch memory, and what kinds its arguments are of.
On NVIDIA that is done once here, for the two forms that the function in C has had since Triton 3.6.
Whatever else a launcher may be runs as Triton would run it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from triton.backends.nvidia.driver import CudaLauncher
from triton.compiler import CompiledKernel
from triton.runtime import _allocation

from tlazy_kernels.memory import Allocator

# Launch on a stream, with the addresses of the kernel's tensors (None for one that is not there),
# and with this allocator for scratch memory.
Handle = Callable[[int, Sequence[int | None], Allocator], None]


def handle_of(compiled: CompiledKernel, grid: tuple[int, int, int], values: tuple) -> Handle:
    """What launches `compiled` over `grid`; `values` are those of what follows its tensors."""
    launcher = compiled.run
    if type(launcher) is not CudaLauncher or _is_watched(launcher):
        return _by_triton(compiled, grid, values)
    return _by_cuda(compiled, launcher, grid, values)


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


def _is_watched(launcher: CudaLauncher) -> bool:
    """Whether Triton's own tools need to hear of each launch."""
    return launcher.profile_scratch_size > 0 or getattr(launcher, "gsan_enabled", False)


def _by_triton(compiled: CompiledKernel, grid: tuple[int, int, int], values: tuple) -> Handle:
    def launch(stream: int, addresses: Sequence[int | None], empty: Allocator) -> None:
        fixed = (stream, compiled.function, compiled.packed_metadata, None, None, None)
        with_scratch(empty, lambda: compiled.run(*grid, *fixed, *addresses, *values))

    return launch


def _by_cuda(
    compiled: CompiledKernel, launcher: CudaLauncher, grid: tuple[int, int, int], values: tuple
) -> Handle:
    run, function, packed = launcher.launch, compiled.function, compiled.packed_metadata
    switches = (launcher.launch_cooperative_grid, launcher.launch_pdl)
    hooks = (None, None, None)
    bytes_of_scratch = launcher.global_scratch_size * launcher.num_ctas * math.prod(grid)

    def scratch(empty: Allocator) -> Tensor | None:
        return empty((bytes_of_scratch,), (1,), torch.int8) if bytes_of_scratch else None

    def launch_values(stream: int, addresses: Sequence[int | None], empty: Allocator) -> None:
        memory = scratch(empty)
        place = None if memory is None else memory.data_ptr()
        run(
            *grid, stream, function, *switches, place, None, packed, *hooks,
            *addresses, *values,
        )  # fmt: skip

    if not hasattr(launcher, "kernel_signature"):  # Triton 3.6
        return launch_values
    kinds = (launcher.arg_annotations, launcher.kernel_signature)

    def launch_kinds(stream: int, addresses: Sequence[int | None], empty: Allocator) -> None:
        memory = scratch(empty)
        place = None if memory is None else memory.data_ptr()
        run(
            *grid, stream, function, *switches, packed, *hooks, place, None,
            *kinds, (*addresses, *values),
        )  # fmt: skip

    return launch_kinds
