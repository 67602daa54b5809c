"""Tensors of which each process holds a part (``DTensor``), without importing them for nothing."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether `tensor` is a ``DTensor``; where nobody has imported the class, none is."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def shard_like(full: Tensor, sharded: Any) -> Tensor:
    """What this process is to hold of `full`, as a tensor that is sharded as `sharded` is.

    Every process has `full`, so they need not talk.
    """
    from torch.distributed.tensor import distribute_tensor

    full = full.to(sharded.device, sharded.dtype)
    return distribute_tensor(full, sharded.device_mesh, sharded.placements, src_data_rank=None)
