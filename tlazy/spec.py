"""An input without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch

from tlazy.arguments import check_device, check_dtype


class Spec:
    """An input without data: what ``tlazy.trace`` needs to know of a tensor.

    Args:
        shape: sizes, one by one or as one tuple.
        dtype, device: of the tensor that it stands for.

    Raises:
        TypeError: for sizes that are no integers, or a dtype that is none.
        RuntimeError: for a negative size, or a device that torch does not know.

    >>> Spec(8, 3, 150)
    Spec(8, 3, 150, dtype=torch.float32, device='cpu')
    """

    def __init__(
        self,
        *shape: int | Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
    ) -> None:
        self.shape = torch.Size(_sizes_of_a_spec(shape))
        self.dtype = check_dtype(dtype)
        self.device = check_device(device)

    def __repr__(self) -> str:
        sizes = "".join(f"{size}, " for size in self.shape)
        return f"Spec({sizes}dtype={self.dtype}, device='{self.device}')"


def _sizes_of_a_spec(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    listed = len(shape) == 1 and isinstance(shape[0], Sequence) and not isinstance(shape[0], str)
    sizes = tuple(shape[0]) if listed else shape
    integers = (int, torch.SymInt, SupportsIndex)
    if not shape or not all(isinstance(size, integers) for size in sizes):
        got = ", ".join(map(repr, shape)) or "nothing; Spec(()) stands for a tensor of one value"
        raise TypeError(f"shape must be integers, as in Spec(8, 3) or Spec((8, 3)), got {got}")
    if any(size < 0 for size in sizes):
        raise RuntimeError(
            f"shape must not have negative sizes, got {sizes}: pass some as in Spec(8, 3)"
        )
    return sizes
