"""Which implementation runs: Triton kernels or ATen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _has_storage,
    _is_any_autocast_enabled,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch.autograd import _profiler_enabled, forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tlazy.arguments import check_tensor
from tlazy_kernels.environment import HAS_TRITON, INTERPRETED, INTERPRETER_DTYPES, SUPPORTED_DTYPES

BackendName = Literal["auto", "triton", "aten"]

# A plain module global: torch.compile guards on it and recompiles when it changes, which it does
# not for thread-local or context variables.
_requested: BackendName = "auto"

_PLAIN = frozenset((Tensor, torch.nn.Parameter))
_ON_CUDA = SUPPORTED_DTYPES if HAS_TRITON else frozenset()
_ON_CPU = INTERPRETER_DTYPES if INTERPRETED else frozenset()


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


def runs_plainly(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether, at a glance, kernels take these tensors as they are and nobody would notice the
    dispatcher's absence.

    Most calls are such, and the host's time for one is mostly questions like these. What is denied
    here may be so all the same: then :func:`uses_triton`, :func:`compute_dtype` and
    :func:`unnoticed` say what is.
    """
    if _requested == "aten" or torch.compiler.is_compiling():
        return False
    if x.is_cuda:
        dtypes = _ON_CUDA
    elif _requested == "triton" and x.is_cpu:
        dtypes = _ON_CPU
    else:
        return False
    return (
        x.dtype in dtypes
        and not _is_any_autocast_enabled()
        and forward_ad._current_level < 0
        and not x.is_nested
        and unnoticed(x, weight, bias)
    )


def unnoticed(*tensors: Tensor | None) -> bool:
    """Whether no mode, transform, profiler or kind of tensor of its own would notice that an
    operator on `tensors` goes past the dispatcher."""
    if (
        _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or _are_functorch_transforms_active()
        or _profiler_enabled()
    ):
        return False
    for x in tensors:
        # What torch.autograd.grad(is_grads_batched=True) batches has no storage; the imaginary part
        # of a conjugate is a view of values that are yet to be negated.
        if x is not None and not (type(x) in _PLAIN and _has_storage(x) and not x.is_neg()):
            return False
    return True


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a call with `x` computes in: autocast's inside a region, else `x`'s own."""
    if not _is_any_autocast_enabled():  # several times as quick as what follows
        return x.dtype
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


def _triton_obstacle(x: Tensor) -> str | None:
    """Why the kernels cannot take `x`, or None where they can."""
    if _are_functorch_transforms_active():
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
