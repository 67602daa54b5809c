"""What every layer with parameters has that torch.nn's has not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tlazy import init
from tlazy.nn import functional as F


def activated(y: Tensor, activation: str | None) -> Tensor:
    """``activation(y)`` in words that torch.jit.script understands, which knows no tables."""
    if activation is None:
        return y
    if activation == "relu":
        return torch.relu(y)
    if activation == "gelu":
        return torch.nn.functional.gelu(y)
    if activation == "gelu_tanh":
        return torch.nn.functional.gelu(y, approximate="tanh")
    if activation == "silu":
        return torch.nn.functional.silu(y)
    return torch.sigmoid(y) if activation == "sigmoid" else torch.tanh(y)


class Layer(torch.nn.Module):
    """A seed of its own for the initial weights, and a fused activation; comes before torch's."""

    if TYPE_CHECKING:  # torch.jit.script would take these for its own
        activation: F.Activation | None
        weight: Any
        bias: Any

    def reset_parameters(self) -> None:
        """Draw a new seed from the global CPU generator and new weights from that seed."""
        init.fan_in_uniform_(self.weight, self.bias, seed=init.draw_seed())

    def weight_and_bias(self) -> tuple[Any, Any]:
        """Both, without the search that each would be by its name: a microsecond for the two."""
        own = self._parameters
        if "weight" in own and "bias" in own:
            return own["weight"], own["bias"]
        return self.weight, self.bias  # pruned or parametrized: made of parameters

    def has_uninitialized_params(self) -> bool:
        """As a lazy layer's: who asks need not know whether this was one."""
        return False

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation is None else f"{text}, activation={self.activation!r}"
