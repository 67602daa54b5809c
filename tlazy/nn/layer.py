"""What every layer with parameters has that torch.nn's has not."""

from __future__ import annotations

from typing import Any

import torch

from tlazy import init
from tlazy.nn import functional as F


class Layer(torch.nn.Module):
    """A seed of its own for the initial weights, and a fused activation; comes before torch's."""

    activation: F.Activation | None
    weight: Any
    bias: Any

    def reset_parameters(self) -> None:
        """Draw a new seed from the global CPU generator and new weights from that seed."""
        init.fan_in_uniform_(self.weight, self.bias, seed=init.draw_seed())

    def has_uninitialized_params(self) -> bool:
        """As a lazy layer's: who asks need not know whether this was one."""
        return False

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation is None else f"{text}, activation={self.activation!r}"
