"""Correct first: an implementation is compared with float64 before it gets a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tlazy.bench.operations import Operation, Pass
from tlazy_kernels.roofline import Precision

# Largest ||out - expected|| / ||expected|| of an output or a gradient. The rounding of operands and
# of what passes between two operators is in it; an error in the arithmetic is far beyond it.
TOLERANCES: dict[Precision | str, float] = {
    "float64": 1e-12,
    "float32": 1e-4,
    "tf32": 1e-3,
    "float16": 2e-3,
    "bfloat16": 1e-2,
}
# The layers of a network compound their rounding: it may be as wrong as this times the same network
# of stock layers in the same dtype.
NETWORK_FACTOR = 2.0


def outputs(
    call: Callable[..., Tensor], tensors: Sequence[Tensor], gradient: Tensor, which: Pass
) -> list[Tensor]:
    """y, and for passes that have them the gradients of all tensors that take one."""
    if which == "forward":
        with torch.no_grad():
            return [call(*tensors)]
    leaves = [t for t in tensors if t.requires_grad]
    y = call(*tensors)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient)]


def expected(
    operation: Operation, tensors: Sequence[Tensor], gradient: Tensor, which: Pass
) -> list[Tensor]:
    """The same in float64, from the very values that the implementations get."""
    exact = [
        t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t.clone()
        for t in tensors
    ]
    return outputs(operation.stock, exact, gradient.double(), which)


def error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative error among the outputs; infinite where shapes differ, NaN for a NaN."""
    worst = 0.0
    for y, exact in zip(found, wanted, strict=True):
        if y.numel() != exact.numel():
            return float("inf")
        difference = torch.linalg.vector_norm(y.detach().reshape(exact.shape).double() - exact)
        norm = float(difference) / max(float(torch.linalg.vector_norm(exact)), 1e-300)
        # Written so that a NaN stays: it compares as neither larger nor smaller.
        worst = worst if norm <= worst else norm
    return worst


def poison(shapes: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Leave NaN in the memory that outputs of these sizes will likely get.

    Without it an output that is never written may hold the right values, left by the
    implementation that ran before.
    """
    left = [torch.full_like(t, float("nan"), dtype=dtype) for t in shapes for _ in range(2)]
    del left
