"""The GPUs that the kernels are compiled for, and what one of their processors holds."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from triton.backends.compiler import GPUTarget


@dataclass(frozen=True)
class Target:
    """A GPU's architecture, and the limits of one streaming multiprocessor or compute unit.

    Attributes:
        gpu: as Triton names it.
        processors: streaming multiprocessors or compute units of the device.
        flops: dense 16-bit operations of one processor's matrix units in a cycle, 2 a multiply-add.
        memory_bytes: of the device's memory that one processor's share of the bandwidth moves in
            a cycle.
        shared_limit: bytes of shared memory that one program may have.
        shared: bytes of shared memory a processor.
        shared_reserved: bytes that each program takes besides its own.
        registers: per processor, of 32 bits.
        register_unit: what a warp's registers are rounded up to, per thread.
        warps: that a processor can hold.
        programs: that a processor can hold.
        source: where the limits come from.
        name: of the device, as its driver tells; empty where none is there.
    """

    gpu: GPUTarget
    processors: int
    flops: int
    memory_bytes: float
    shared_limit: int
    shared: int
    shared_reserved: int
    registers: int
    register_unit: int
    warps: int
    programs: int
    source: str
    name: str = ""

    @property
    def copies_tiles(self) -> bool:
        """Whether a unit of its own copies tiles to shared memory (TMA): Hopper and Blackwell."""
        return self.gpu.backend == "cuda" and self.gpu.arch >= 90

    @property
    def blackwell(self) -> bool:
        """Whether matrix units sum in a memory of their own, whose rows threads share out whole.
        Those of Blackwell's consumer cards, sm_120, do not."""
        return self.gpu.backend == "cuda" and 100 <= self.gpu.arch < 120

    def occupancy(self, *, registers: int, shared: int, num_warps: int) -> int:
        """How many programs of so many registers a thread and bytes of shared memory fit at once.

        >>> TARGETS["sm_90"].occupancy(registers=168, shared=100_000, num_warps=4)
        2
        """
        rounded = max(-(-registers // self.register_unit), 1) * self.register_unit
        per_warp = rounded * self.gpu.warp_size
        return min(
            self.programs,
            self.warps // num_warps,
            self.registers // (per_warp * num_warps),
            self.shared // (shared + self.shared_reserved) if shared else self.programs,
        )


_CUDA_GUIDE = "CUDA C++ Programming Guide, compute capabilities"


def _nvidia(
    capability: int, processors: int, shared: int, flops: int = 1024, memory_bytes: float = 8
) -> Target:
    return Target(
        GPUTarget("cuda", capability, 32),
        processors=processors,
        flops=flops,
        memory_bytes=memory_bytes,
        shared_limit=shared - 1024,
        shared=shared,
        shared_reserved=1024,
        registers=65_536,
        register_unit=8,
        warps=64,
        programs=32,
        source=_CUDA_GUIDE,
    )


TARGETS: dict[str, Target] = {
    "sm_80": _nvidia(80, 108, 164 << 10, flops=2048, memory_bytes=13),
    "sm_90": _nvidia(90, 132, 228 << 10, flops=4096, memory_bytes=20),
    "sm_100": _nvidia(100, 148, 228 << 10, flops=8192, memory_bytes=28),
    # Four SIMDs of 512 vector registers for each of 64 lanes; each holds at most 8 waves.
    "gfx942": Target(
        GPUTarget("hip", "gfx942", 64),
        processors=304,
        flops=2048,
        memory_bytes=8,
        shared_limit=64 << 10,
        shared=64 << 10,
        shared_reserved=0,
        registers=4 * 512 * 64,
        register_unit=8,
        warps=32,
        programs=32,
        source="AMD Instinct MI300 instruction set architecture",
    ),
}

# What a launch is planned for where there is no GPU: interpreted, it takes the paths of this one.
STAND_IN = TARGETS["sm_90"]


@functools.cache
def target_of(device: torch.device) -> Target:
    """The target that a device is: one of TARGETS, or made from what the device says of itself."""
    if device.type != "cuda":
        return STAND_IN
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        arch = properties.gcnArchName.partition(":")[0]
        gpu = GPUTarget("hip", arch, properties.warp_size)
        known = replace(TARGETS["gfx942"], gpu=gpu)
    else:
        capability = 10 * properties.major + properties.minor
        found = TARGETS.get(f"sm_{capability}")
        known = found or _nvidia(capability, 0, properties.shared_memory_per_multiprocessor)
    return replace(known, processors=properties.multi_processor_count, name=properties.name)
