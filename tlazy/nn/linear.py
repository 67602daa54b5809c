"""Linear layers with a fused activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tlazy.arguments import check_tensor
from tlazy.nn import functional as F
from tlazy.nn.layer import Layer, activated
from tlazy.nn.lazy import LazyModuleMixin


class Linear(Layer, torch.nn.Linear):
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

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return F.linear(input, *self.weight_and_bias(), activation=self.activation)
        y = torch.nn.functional.linear(input, self.weight, self.bias)
        return activated(y, self.activation)


class LazyLinear(LazyModuleMixin, Linear):  # type: ignore[misc]
    """:class:`Linear` that learns ``in_features`` from its first input, or from a checkpoint.

    Until then ``weight`` and ``bias`` are ``UninitializedParameter`` and ``in_features`` is 0;
    afterwards the class is :class:`Linear`.

    Args:
        out_features, bias, device, dtype, activation: as in :class:`Linear`.

    Shape: (*, any) to (*, out_features).

    >>> import torch
    >>> from tlazy import nn
    >>> layer = nn.LazyLinear(8)
    >>> layer
    LazyLinear(in_features=0, out_features=8, bias=True)
    >>> layer(torch.randn(2, 3)).shape
    torch.Size([2, 8])
    >>> layer
    Linear(in_features=3, out_features=8, bias=True)
    """

    cls_to_become = Linear

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: F.Activation | None = None,
    ) -> None:
        super().__init__(0, 0, False, activation=activation)
        self.out_features = out_features
        self.add_placeholders(bias, device, dtype)

    def initialize_parameters(self, input: Tensor) -> None:
        """Give the parameters the shapes that `input`, shape (*, in_features), asks for.

        Raises:
            TypeError: for an input that is no tensor.
            RuntimeError: for an input without dimensions, or one that contradicts a weight that
                another layer has already shaped.
        """
        check_tensor("input", input)
        if input.dim() == 0:
            raise RuntimeError(f"Expected an input of at least 1 dimension to {self}, got a scalar")
        in_features = input.shape[-1]
        self.shape_parameters((self.out_features, in_features), (self.out_features,))
        self.in_features = in_features
        self.reset_parameters()
