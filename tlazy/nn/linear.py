"""Linear layers with a fused activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tlazy import init
from tlazy.nn import functional as F


class Linear(torch.nn.Linear):
    """``torch.nn.Linear`` with the activation in the same kernel.

    Args:
        in_features, out_features, bias, device, dtype: as in ``torch.nn.Linear``.
        activation: ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"``, ``"sigmoid"``,
            ``"tanh"`` or None.

    Shape: (*, in_features) to (*, out_features).

    The initial weights have torch's distribution, but come from one seed that the constructor
    draws from the global CPU generator, so they do not depend on the device.

    >>> import torch
    >>> from tlazy import nn
    >>> nn.Linear(3, 8, activation="relu")(torch.randn(2, 3)).shape
    torch.Size([2, 8])
    """

    activation: F.Activation | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: F.Activation | None = None,
    ) -> None:
        F.check_activation(activation)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = activation

    def reset_parameters(self) -> None:
        """Draw a new seed from the global CPU generator and new weights from that seed."""
        init.fan_in_uniform_(self.weight, self.bias, seed=init.draw_seed())

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias, activation=self.activation)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation is None else f"{text}, activation={self.activation!r}"
