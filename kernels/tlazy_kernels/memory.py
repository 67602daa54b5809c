"""Fresh memory by the shortest way to PyTorch's allocators.

``torch.empty_strided`` parses its arguments and asks the dispatcher; both take the host longer
than finding the memory. The code that TorchInductor generates goes past them, and so does this.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._C import (
    _get_deterministic_algorithms,
    _get_deterministic_fill_uninitialized_memory,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._dynamo import guards

# A tensor of unset values, of this shape and dtype and with these strides.
Allocator = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]

_empty_on_cpu: Allocator = guards._empty_strided_cpu  # type: ignore[attr-defined]
_empty_on_cuda: Allocator = guards._empty_strided_cuda  # type: ignore[attr-defined]


def allocator(like: Tensor) -> Allocator:
    """What allocates on the device of `like`, which is the current one where it is a GPU.

    Where somebody wants to know of new tensors or to fill them (a mode that overrides PyTorch's
    functions, ``torch.use_deterministic_algorithms``), it is ``torch.empty_strided``.
    """
    if not (
        (_get_deterministic_algorithms() and _get_deterministic_fill_uninitialized_memory())
        or _len_torch_function_stack()
        or _len_torch_dispatch_stack()
    ):
        if like.is_cuda:
            return _empty_on_cuda
        if like.is_cpu:
            return _empty_on_cpu
    return lambda shape, strides, dtype: torch.empty_strided(
        shape, strides, dtype=dtype, device=like.device
    )
