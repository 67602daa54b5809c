"""Fresh memory by the shortest way to PyTorch's allocators.

``torch.empty_strided`` parses its arguments and asks the dispatcher; both take the host longer
than finding the memory. The code that TorchInductor generates goes past them, and so does this.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._C._dynamo import guards

# A tensor of unset values, of this shape and dtype and with these strides.
Allocator = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]

_shortest: dict[str, Allocator] = {
    "cpu": guards._empty_strided_cpu,  # type: ignore[attr-defined]
    "cuda": guards._empty_strided_cuda,  # type: ignore[attr-defined]
}


def allocator(device: torch.device) -> Allocator:
    """What allocates on `device`, which is the current one where it is a GPU, until this call ends.

    Where somebody wants to know of new tensors or to fill them (a mode that overrides PyTorch's
    functions, ``torch.use_deterministic_algorithms``), it is ``torch.empty_strided``.
    """
    shortest = _shortest.get(device.type)
    if (
        shortest is None
        or torch._C._get_deterministic_algorithms()
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
    ):
        return lambda shape, strides, dtype: torch.empty_strided(
            shape, strides, dtype=dtype, device=device
        )
    return shortest
