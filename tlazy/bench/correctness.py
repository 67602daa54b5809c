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
# Of float64 at a time.
PART_BYTES = 2**31


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
    """The same in float64, from the very values that the implementations get.

    It is computed for a part of the batch at a time where it would take much memory at once, as
    batch entries are independent in all operations but networks, whose norms couple them.
    """
    exact = [
        t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t.clone()
        for t in tensors[1:]
    ]
    x = tensors[0].detach()
    parts = 1 if operation.op == "model" else -(-8 * max(x.numel(), gradient.numel()) // PART_BYTES)
    size = -(-len(x) // parts)
    found = [
        outputs(
            operation.stock,
            [part.double().requires_grad_(tensors[0].requires_grad), *exact],
            of_part.double(),
            which,
        )
        for part, of_part in zip(x.split(size), gradient.split(size), strict=True)
    ]
    y, *gradients = zip(*found, strict=True)
    whole = [torch.cat(y)]
    for i, of_parts in enumerate(gradients):
        whole.append(torch.cat(of_parts) if i == 0 else torch.stack(of_parts).sum(0))
    return whole


def error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative error among the outputs; infinite where shapes differ, NaN for a NaN."""
    worst = 0.0
    for y, exact in zip(found, wanted, strict=True):
        if y.numel() != exact.numel():
            return float("inf")
        norm = _distance(y.detach().reshape(exact.shape), exact)
        # Written so that a NaN stays: it compares as neither larger nor smaller.
        worst = worst if norm <= worst else norm
    return worst


def _distance(y: Tensor, exact: Tensor) -> float:
    """||y - exact|| / ||exact||, over a part of the first dimension at a time."""
    size = -(-len(exact) // -(-8 * exact.numel() // PART_BYTES))
    squares = [
        torch.linalg.vector_norm(part.double() - of_exact).square()
        for part, of_exact in zip(y.split(size), exact.split(size), strict=True)
    ]
    length = max(float(torch.linalg.vector_norm(exact)), 1e-300)
    return float(torch.stack(squares).sum().sqrt()) / length


def poison(shapes: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Leave NaN in the memory that outputs of these sizes will likely get.

    Without it an output that is never written may hold the right values, left by the
    implementation that ran before.
    """
    left = [torch.full_like(t, float("nan"), dtype=dtype) for t in shapes for _ in range(2)]
    del left
