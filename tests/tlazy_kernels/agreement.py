"""Compares a launcher with its twin in ``tlazy_kernels.reference``, called with the same arguments.

The twin computes in float64 on the CPU, from the very values that the launcher gets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import EMULATED
from tlazy_kernels import reference
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.environment import INTERPRETED
from tlazy_kernels.layouts import strides_like


def _dtypes() -> list[Any]:
    """The interpreter computes wrong values in bfloat16, and says nothing. ttsem computes the
    right ones, slowly: what the interpreter runs too is left to a thorough run there."""
    common = [torch.float32, torch.float16]
    if INTERPRETED:
        return common
    if EMULATED:
        return [torch.bfloat16, *(pytest.param(d, marks=pytest.mark.thorough) for d in common)]
    return [*common, torch.bfloat16]


DTYPES = _dtypes()

# Small enough that small tensors have several tiles in every dimension.
SMALL = TileConfig(rows=16, cols=16, depth=16)


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be from float64's.

    norm: bound of ||out - expected|| / ||expected||.
    relative, absolute: bound of |out - expected| elementwise, the latter in units of the largest
        |expected|, because a sum's error grows with its terms, not with what they cancel to.
    """

    norm: float
    relative: float
    absolute: float


# 16-bit outputs are rounded once, from float32: at most half a unit in the last place.
TOLERANCES = {
    torch.float32: Tolerance(norm=2e-6, relative=1e-5, absolute=2e-6),
    torch.float16: Tolerance(norm=2**-11, relative=2**-10, absolute=1e-5),
    torch.bfloat16: Tolerance(norm=2**-8, relative=2**-7, absolute=1e-5),
}


def random(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype).to(device)


def exact(x: Any) -> Any:
    """A tensor as float64 on the CPU, with its own memory; anything else as it is."""
    return x.detach().cpu().double().clone() if isinstance(x, Tensor) else x


def assert_agrees(
    launcher: Callable[..., Any],
    *args: Any,
    config: TileConfig | None = SMALL,
    like: Tensor | None = None,
    **settings: Any,
) -> None:
    """Assert that launcher and twin give the same, and that the launcher leaves its inputs alone.

    Outputs must be dense, those of three dimensions in the layout of `like` (by default the first
    tensor) or contiguous; have the dtype and device of the first tensor, and be finite,
    infinite and NaN where the twin's are.
    """
    twin = getattr(reference, launcher.__name__)
    inputs = [x for x in args if isinstance(x, Tensor)]
    before = [x.clone() for x in inputs]
    results = _sequence(launcher(*args, **settings, config=config))
    expected = _sequence(twin(*map(exact, args), **settings))
    assert len(results) == len(expected)
    for found, wanted in zip(results, expected, strict=True):
        assert (found is None) == (wanted is None)
        if found is not None:
            assert found.dtype == inputs[0].dtype
            assert found.device == inputs[0].device
            model = inputs[0] if like is None else like
            assert found.is_contiguous() or found.stride() == strides_like(found.shape, model)
            assert_close(found, wanted)
    for x, copy in zip(inputs, before, strict=True):
        assert torch.equal(bits(x), bits(copy)), "an input was changed"


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Assert that `found` is `expected`, float64, within its dtype's row of TOLERANCES."""
    assert found.shape == expected.shape
    bound = TOLERANCES[found.dtype]
    # A finite value beyond the dtype's range is infinite in it.
    expected = torch.where(expected.to(found.dtype).isinf(), expected.to(found.dtype), expected)
    found = exact(found)
    finite = expected.isfinite()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[expected.isinf()], expected[expected.isinf()])
    found, expected = found[finite], expected[finite]
    if found.numel() == 0:
        return
    error = (found - expected).abs()
    scale = expected.abs().max()
    smallest = 2.0**-24  # the last place of float16's subnormal numbers
    allowed = bound.relative * expected.abs() + bound.absolute * scale + smallest
    worst = (error - allowed).argmax()
    assert (error <= allowed).all(), f"got {found[worst]}, expected {expected[worst]}"
    assert error.norm() <= bound.norm * expected.norm() + smallest * found.numel() ** 0.5


def bits(x: Tensor) -> Tensor:
    """The bit patterns, in which NaN equals NaN and 0 is not -0."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.element_size()])


def spread(x: Tensor, dims: tuple[int, ...], *, offset: int = 3, step: int = 2) -> Tensor:
    """`x` with other strides: dims in this order in memory, every `step`-th element, an offset."""
    order = x.permute(dims)
    room = torch.full((*order.shape[:-1], order.shape[-1] * step + offset), torch.nan).to(x)
    view = room[..., offset : offset + order.shape[-1] * step : step]
    view.copy_(order)
    return view.permute([dims.index(d) for d in range(x.dim())])


def _sequence(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
