"""Conv1d layers with a fused activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tlazy import init
from tlazy.nn import functional as F


class Conv1d(torch.nn.Conv1d):
    """``torch.nn.Conv1d`` with the activation in the same kernel, and causal padding.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias, padding_mode,
            device, dtype: as in ``torch.nn.Conv1d``.
        padding: as in ``torch.nn.Conv1d``, or ``"causal"``: dilation * (kernel_size - 1) on the
            left and nothing on the right.
        activation: ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"``, ``"sigmoid"``,
            ``"tanh"`` or None.

    Shape: (N, in_channels, L) to (N, out_channels, L_out), or without N.

    >>> import torch
    >>> from tlazy import nn
    >>> nn.Conv1d(3, 8, 5, padding="causal", activation="relu")(torch.randn(2, 3, 50)).shape
    torch.Size([2, 8, 50])
    """

    activation: F.Activation | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: F.Padding = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: F.Activation | None = None,
    ) -> None:
        F.check_activation(activation)
        causal = padding == "causal"
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            0 if causal else padding,  # type: ignore[arg-type]
            dilation,  # type: ignore[arg-type]
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        if causal:
            self.padding = "causal"
            left = F.causal_padding(self.kernel_size[0], self.dilation)
            self._reversed_padding_repeated_twice = [left, 0]
        self.activation = activation

    def reset_parameters(self) -> None:
        """Draw a new seed from the global CPU generator and new weights from that seed."""
        init.fan_in_uniform_(self.weight, self.bias, seed=init.draw_seed())

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(
                input, self._reversed_padding_repeated_twice, mode=self.padding_mode
            )
            padding = 0
        return F.conv1d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation is None else f"{text}, activation={self.activation!r}"
