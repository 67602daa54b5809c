"""A linear layer and what follows it elementwise, as KernelBench's level 2 poses it.

Problems of KernelBench (Ouyang et al. 2025, arXiv:2502.10517), in stock PyTorch as they are posed,
and in tlazy with what fits moved into the linear kernel: its bias and its activation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tlazy.bench.operations import Draw, Linear
from tlazy.nn.functional import linear as fused_linear
from tlazy_kernels.roofline import Cost


class Chain(NamedTuple):
    """Both ways to compute it, from x, weight and vectors of as many elements as outputs."""

    stock: Callable[..., Tensor]
    fused: Callable[..., Tensor]
    vectors: int = 1


def _after_linear(rest: Callable[[Tensor], Tensor]) -> Chain:
    """Nothing fits into the kernel but the bias."""
    return Chain(
        lambda x, w, b: rest(F.linear(x, w, b)), lambda x, w, b: rest(fused_linear(x, w, b))
    )


def _squash(z: Tensor) -> Tensor:
    return torch.tanh((z / 2.0).clamp(-1.0, 1.0)).clamp(-1.0, 1.0)


def _tanh_gelu_clip(z: Tensor) -> Tensor:
    return F.hardtanh(F.gelu(torch.tanh(z)))


CHAINS: dict[str, Chain] = {
    # relu(1.5 z) = 1.5 relu(z), so the ReLU can come first.
    "subtract-multiply-relu": Chain(
        lambda x, w, b: torch.relu((F.linear(x, w, b) - 2.0) * 1.5),
        lambda x, w, b: fused_linear(x, w, b - 2.0, activation="relu") * 1.5,
    ),
    "multiply-leaky_relu": _after_linear(lambda z: F.leaky_relu(z * 2.0, 0.1)),
    "mish-mish": _after_linear(lambda z: F.mish(F.mish(z))),
    "scale-residual": _after_linear(lambda z: z * 0.5 + z.clone().detach()),
    "scale-hardtanh-gelu": _after_linear(lambda z: F.gelu(F.hardtanh(z * 0.5, -2.0, 2.0))),
    "silu-scale": Chain(
        lambda x, w, b: F.silu(F.linear(x, w, b)) * 2.0,
        lambda x, w, b: fused_linear(x, w, b, activation="silu") * 2.0,
    ),
    "relu-divide": Chain(
        lambda x, w, b: torch.relu(F.linear(x, w, b)) / 2.0,
        lambda x, w, b: fused_linear(x, w, b, activation="relu") / 2.0,
    ),
    "minimum-subtract": _after_linear(lambda z: z.clamp(max=2.0) - 2.0),
    "sigmoid-scale-residual": _after_linear(lambda z: torch.sigmoid(z) * 2.0 + z),
    "add-relu": Chain(
        lambda x, w, b: torch.relu(F.linear(x, w) + b),
        lambda x, w, b: fused_linear(x, w, b, activation="relu"),
    ),
    "silu-divide-clamp-tanh-clamp": Chain(
        lambda x, w, b: _squash(F.silu(F.linear(x, w, b))),
        lambda x, w, b: _squash(fused_linear(x, w, b, activation="silu")),
    ),
    "divide-gelu": Chain(
        lambda x, w, b: F.gelu(F.linear(x, w, b) / 10.0),
        lambda x, w, b: fused_linear(x / 10.0, w, b / 10.0, activation="gelu"),
    ),
    "add-silu-tanh-gelu-hardtanh": Chain(
        lambda x, w, b, a: _tanh_gelu_clip(F.silu(F.linear(x, w, b) + a)),
        lambda x, w, b, a: _tanh_gelu_clip(fused_linear(x, w, b + a, activation="silu")),
        vectors=2,
    ),
}


@dataclass(frozen=True)
class LinearChain(Linear):
    """A linear layer of shape (m, k) to (m, n), then the chain called `then`."""

    beside_shape: ClassVar[frozenset[str]] = frozenset({"activation", "layout", "bias"})
    then: str = "add-relu"

    def tensors(self, draw: Draw) -> list[Tensor]:
        x, weight, *_ = super().tensors(draw)
        return [x, weight, *(draw.normal(self.n) for _ in range(CHAINS[self.then].vectors))]

    def forward_cost(self, dtype: torch.dtype) -> Cost:
        vectors = CHAINS[self.then].vectors
        return super().forward_cost(dtype) + Cost(0, (vectors - 1) * self.n * dtype.itemsize)

    def stock(self, *tensors: Tensor) -> Tensor:
        return CHAINS[self.then].stock(*tensors)

    def fused(self, *tensors: Tensor) -> Tensor:
        return CHAINS[self.then].fused(*tensors)
