"""What a launch needs to know about its surroundings."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any, Literal

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


def metadata(name: str, flops: int, args: Mapping[str, Any], *touched: str) -> dict[str, Any]:
    """What a profiler (Triton's proton) shows of one launch.

    A kernel's ``launch_metadata`` function calls it, which Triton does only where a profiler asks.

    Args:
        name: of the kernel, and what tells its launches apart.
        flops: 2 for each multiply-add with an element that exists.
        args: the launch's arguments by name.
        touched: names of the tensors that the kernel reads or writes; the first one's dtype is
            that of the arithmetic.

    Returns:
        ``name``, ``flops16`` or ``flops32``, and ``bytes``: each element of a tensor once,
        however often tiles come back to it.
    """
    tensors = [args[argument] for argument in touched]
    return {
        "name": name,
        f"flops{8 * tensors[0].element_size()}": flops,
        "bytes": sum(_distinct_elements(x) * x.element_size() for x in tensors),
    }


def _distinct_elements(x: torch.Tensor) -> int:
    """Elements in memory: a dimension of stride 0 has one."""
    return math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)


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


def sum_splits(partials: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The second stage of a split reduction: the sum over the first dimension, in `dtype`.

    ``torch.sum`` adds in an order that the shape alone decides, so the result is deterministic.
    """
    return partials[0].to(dtype) if partials.shape[0] == 1 else partials.sum(0).to(dtype)
