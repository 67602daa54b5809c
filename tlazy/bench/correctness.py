"""Correct first: an implementation is compared with float64 before it gets a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tlazy.bench import machine
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
# The layers of a network compound their rounding: each output may be as wrong as this times the
# same output of stock layers in the same dtype.
NETWORK_FACTOR = 2.0
# Rounding also moves values near zero across a ReLU, and gradients jump there, by chance in one of
# two right networks only: in float32 up to 5e-3 was seen, while the output was right to 2e-7.
NETWORK_GRADIENTS = 1e-2
# A gradient counts as at least this part of all of them together: that of a bias before a batch
# norm is exactly zero, and any rounding infinitely much beside it.
LEAST_PART = 1e-3
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
    """The same in float64, from the very values that the implementations get."""
    try:
        return _by_parts(operation, tensors, gradient, which)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        # For some convolutions in float64 cuDNN has no engine, where ATen has kernels.
        pass
    with machine.without_cudnn():  # the error, and the tensors that it holds, are gone here
        return _by_parts(operation, tensors, gradient, which)


def _by_parts(
    operation: Operation, tensors: Sequence[Tensor], gradient: Tensor, which: Pass
) -> list[Tensor]:
    """Outputs in float64, for a part of the batch at a time where it would take much memory at
    once: batch entries are independent in all operations but networks, whose norms couple them."""
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


def limits(
    operation: Operation,
    one: tuple[list[Tensor], Tensor],
    which: Pass,
    wanted: Sequence[Tensor],
    precision: Precision,
) -> list[float]:
    """The largest error that is right, of each output, on the tensors and the gradient `one`."""
    usual = TOLERANCES[precision]
    if operation.op != "model":
        return [usual] * len(wanted)
    least = [usual, *[max(usual, NETWORK_GRADIENTS)] * (len(wanted) - 1)]
    stock = errors(outputs(operation.stock, *one, which), wanted)
    # Stock layers that overflow excuse nothing.
    return [
        max(limit, NETWORK_FACTOR * error) if math.isfinite(error) else limit
        for limit, error in zip(least, stock, strict=True)
    ]


def errors(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[float]:
    """Each output's ||y - exact|| / ||exact||; infinite where shapes differ, NaN for a NaN.

    All but the first are gradients.
    """
    norms = [float(torch.linalg.vector_norm(exact)) for exact in wanted]
    least = LEAST_PART * math.hypot(*norms[1:])
    norms = [max(norm, least if i else 0.0, 1e-300) for i, norm in enumerate(norms)]
    return [_distance(*pair) / norm for *pair, norm in zip(found, wanted, norms, strict=True)]


def largest(errors: Sequence[float]) -> float:
    """The largest, or NaN where there is one: it compares as neither larger nor smaller."""
    return max(errors, key=lambda error: (math.isnan(error), error))


def _distance(y: Tensor, exact: Tensor) -> float:
    """||y - exact||, over a part of the first dimension at a time."""
    if y.numel() != exact.numel():
        return float("inf")
    y = y.detach().reshape(exact.shape)
    size = -(-len(exact) // -(-8 * exact.numel() // PART_BYTES))
    squares = [
        torch.linalg.vector_norm(part.double() - of_exact).square()
        for part, of_exact in zip(y.split(size), exact.split(size), strict=True)
    ]
    return float(torch.stack(squares).sum().sqrt())


def poison(shapes: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Leave NaN in the memory that outputs of these sizes will likely get.

    Without it an output that is never written may hold the right values, left by the
    implementation that ran before.
    """
    left = [torch.full_like(t, float("nan"), dtype=dtype) for t in shapes for _ in range(2)]
    del left
