"""What kernels can run on in this process: Triton, its interpreter, a device."""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

# Triton has wheels for Linux only; elsewhere everything but the kernels works.
HAS_TRITON: bool = importlib.util.find_spec("triton") is not None

SUPPORTED_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})

# Triton's interpreter gives wrong values in bfloat16, without an error.
INTERPRETER_DTYPES = frozenset({torch.float32, torch.float16})

# Read once, as ``@triton.jit`` does: changing the variable later changes nothing.
INTERPRETED: bool = False
if HAS_TRITON:
    import triton

    INTERPRETED = bool(triton.knobs.runtime.interpret)


# What a container may use: microseconds of processor time in so many, or "max".
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """Processor cores that this process may use: fewer than the host has in a container."""
    found = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # no such file, or no limit
        quota, period = map(int, QUOTA.read_text(encoding="ascii").split())
        found = min(found, max(1, quota // period))
    return found


def dot_precision(dtype: torch.dtype, family: Literal["matmul", "conv"]) -> str:
    """Triton's ``input_precision`` for a dot, following PyTorch's own float32 switches.

    Args:
        dtype: of the operands; only float32 has a choice.
        family: whose switch counts: ``torch.backends.cuda.matmul.fp32_precision`` or
            ``torch.backends.cudnn.conv.fp32_precision``.

    Returns:
        ``"tf32"`` where the switch allows it, else ``"tf32x3"`` (three tf32 products, about
        float32's accuracy) on NVIDIA and ``"ieee"`` on AMD, whose matrix units take float32.
    """
    if dtype is not torch.float32 or INTERPRETED or torch.version.hip is not None:
        return "ieee"
    switch = torch.backends.cuda.matmul if family == "matmul" else torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return "tf32" if switch.fp32_precision == "tf32" else "tf32x3"


def check_device(x: torch.Tensor) -> None:
    """Raise RuntimeError unless kernels can run on `x`'s device and dtype in this process."""
    if not (x.is_cuda or (INTERPRETED and x.device.type == "cpu")):
        raise RuntimeError(
            f"Triton kernels need a CUDA or HIP tensor, got one on {x.device}; to run them on the "
            "CPU in Triton's interpreter, set TRITON_INTERPRET=1 before tlazy_kernels is imported"
        )
    if x.dtype not in SUPPORTED_DTYPES:
        raise RuntimeError(
            f"Triton kernels take float32, float16 and bfloat16, not {x.dtype}; convert the tensor "
            "or use the ATen twin in tlazy_kernels.reference"
        )
    if INTERPRETED and x.dtype is torch.bfloat16:
        raise RuntimeError(
            f"Triton's interpreter computes wrong values in {x.dtype}; use float32 or float16"
        )
