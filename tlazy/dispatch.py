"""Which implementation runs: Triton kernels or ATen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tlazy.arguments import check_tensor
from tlazy_kernels.environment import HAS_TRITON, INTERPRETED, INTERPRETER_DTYPES, SUPPORTED_DTYPES

BackendName = Literal["auto", "triton", "aten"]

# A plain module global: torch.compile guards on it and recompiles when it changes, which it does
# not for thread-local or context variables.
_requested: BackendName = "auto"


class Backend(NamedTuple):
    """What runs for a tensor, and why."""

    name: Literal["triton", "interpreter", "aten"]
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@contextmanager
def backend(name: BackendName) -> Iterator[None]:
    """Choose the implementation of tlazy's functions inside a ``with`` block.

    The choice holds for the whole process, like ``torch.backends.cudnn.flags``. The backward pass
    of a call runs on the implementation that its forward pass ran on.

    Args:
        name: ``"auto"`` runs Triton for CUDA and HIP tensors of dtype float32, float16 or
            bfloat16 and ATen for all others; ``"triton"`` insists on the kernels; ``"aten"``
            always runs PyTorch's own operators.

    Raises:
        ValueError: for any other name.

    >>> import torch, tlazy
    >>> with tlazy.backend("aten"):
    ...     print(tlazy.backend_of(torch.zeros(2)))
    aten (requested with tlazy.backend('aten'))
    """
    global _requested
    if name not in get_args(BackendName):
        raise ValueError(f"backend must be one of {list(get_args(BackendName))}, got {name!r}")
    previous, _requested = _requested, name
    try:
        yield
    finally:
        _requested = previous


def backend_of(x: Tensor) -> Backend:
    """What the functions of ``tlazy.nn.functional`` would run for `x` now, and why.

    Raises:
        TypeError: for anything else than a tensor.
        RuntimeError: where ``tlazy.backend("triton")`` is asked for and cannot be had.

    >>> import torch, tlazy
    >>> tlazy.backend_of(torch.zeros(2)).name
    'aten'
    """
    check_tensor("x", x)
    if _requested == "aten":
        return Backend("aten", "requested with tlazy.backend('aten')")
    if _requested == "auto" and not x.is_cuda:
        return Backend("aten", f"the tensor is on {x.device.type}")
    obstacle = _triton_obstacle(x)
    if obstacle is None:
        if x.is_cuda:
            return Backend("triton", f"{compute_dtype(x)} on {x.device}")
        return Backend("interpreter", "requested with tlazy.backend('triton') on a CPU tensor")
    if _requested == "triton":
        raise RuntimeError(f"tlazy.backend('triton') cannot run here: {obstacle}")
    return Backend("aten", obstacle)


def uses_triton(x: Tensor) -> bool:
    """Whether the call at hand goes to the kernels; the short form of :func:`backend_of`."""
    if _requested == "aten" or (_requested == "auto" and not x.is_cuda):
        return False
    obstacle = _triton_obstacle(x)
    if obstacle is not None and _requested == "triton":
        raise RuntimeError(f"tlazy.backend('triton') cannot run here: {obstacle}")
    return obstacle is None


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a call with `x` computes in: autocast's inside a region, else `x`'s own."""
    if not torch._C._is_any_autocast_enabled():  # several times as quick as what follows
        return x.dtype
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


def _triton_obstacle(x: Tensor) -> str | None:
    """Why the kernels cannot take `x`, or None where they can."""
    if torch._C._are_functorch_transforms_active():
        return "inside a torch.func transform ATen runs, which has every transform's rules"
    if forward_ad._current_level >= 0:
        return "in forward-mode differentiation ATen runs, which has its rules"
    if x.is_nested or (type(x) is not Tensor and is_traceable_wrapper_subclass(x)):
        return f"the kernels take plain tensors, not a {type(x).__name__} with parts inside"
    if not HAS_TRITON:
        return "Triton is not installed; it has wheels for Linux"
    dtype = compute_dtype(x)
    if dtype not in SUPPORTED_DTYPES:
        return f"the kernels take float32, float16 and bfloat16, not {dtype}"
    if x.is_cuda:
        return None
    if x.device.type != "cpu":
        return f"the kernels run on CUDA and HIP devices, not on {x.device.type}"
    if not INTERPRETED:
        return (
            "the tensor is on the CPU, where Triton's interpreter is needed: set "
            "TRITON_INTERPRET=1 in the environment before tlazy is imported"
        )
    if dtype not in INTERPRETER_DTYPES:
        return f"Triton's interpreter computes wrong values in {dtype}; use float32 or float16"
    return None
