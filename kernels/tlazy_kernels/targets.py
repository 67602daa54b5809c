"""The GPUs that the kernels are compiled for, and what one of their processors holds."""

from __future__ import annotations

from dataclasses import dataclass

from triton.backends.compiler import GPUTarget


@dataclass(frozen=True)
class Target:
    """A GPU's architecture, and the limits of one streaming multiprocessor or compute unit.

    Attributes:
        gpu: as Triton names it.
        shared_limit: bytes of shared memory that one program may have.
        shared: bytes of shared memory a processor.
        shared_reserved: bytes that each program takes besides its own.
        registers: per processor, of 32 bits.
        register_unit: what a warp's registers are rounded up to, per thread.
        warps: that a processor can hold.
        programs: that a processor can hold.
        source: where the limits come from.
    """

    gpu: GPUTarget
    shared_limit: int
    shared: int
    shared_reserved: int
    registers: int
    register_unit: int
    warps: int
    programs: int
    source: str

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


def _nvidia(capability: int, shared: int) -> Target:
    return Target(
        GPUTarget("cuda", capability, 32),
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
    "sm_80": _nvidia(80, 164 << 10),
    "sm_90": _nvidia(90, 228 << 10),
    "sm_100": _nvidia(100, 228 << 10),
    # Four SIMDs of 512 vector registers for each of 64 lanes; each holds at most 8 waves.
    "gfx942": Target(
        GPUTarget("hip", "gfx942", 64),
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
