"""Conv1d layers with a fused activation."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tlazy import init
from tlazy.nn import functional as F
from tlazy.nn.lazy import LazyModuleMixin

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


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
        padding_mode: PaddingMode = "zeros",
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
            kernel_size,
            stride,
            0 if causal else padding,  # type: ignore[arg-type]
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        if causal:
            self.padding = "causal"
            left = F.causal_padding(self.kernel_size[0], self.dilation[0])
            self._reversed_padding_repeated_twice = [left, 0]
        self.activation = activation

    def reset_parameters(self) -> None:
        """Draw a new seed from the global CPU generator and new weights from that seed."""
        init.fan_in_uniform_(self.weight, self.bias, seed=init.draw_seed())

    def has_uninitialized_params(self) -> bool:
        """As a lazy layer's: who asks need not know whether this was one."""
        return False

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # torch keeps tuples of any length; here each has one element.
        stride: Any = self.stride
        padding: Any = self.padding
        dilation: Any = self.dilation
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(
                input, self._reversed_padding_repeated_twice, mode=self.padding_mode
            )
            padding = 0
        return F.conv1d(
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            self.groups,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation is None else f"{text}, activation={self.activation!r}"


class LazyConv1d(LazyModuleMixin, Conv1d):
    """:class:`Conv1d` that learns ``in_channels`` from its first input, or from a checkpoint.

    Until then ``weight`` and ``bias`` are ``UninitializedParameter`` and ``in_channels`` is 0;
    afterwards the class is :class:`Conv1d`.

    Args:
        out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, activation: as in :class:`Conv1d`.

    Shape: (N, any, L) to (N, out_channels, L_out), or without N.

    Raises:
        ValueError: where `groups` does not divide `out_channels`.

    >>> import torch
    >>> from tlazy import nn
    >>> layer = nn.LazyConv1d(8, 3, padding="same")
    >>> layer(torch.randn(2, 5, 50)).shape
    torch.Size([2, 8, 50])
    >>> layer.in_channels
    5
    """

    cls_to_become = Conv1d

    def __init__(
        self,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: F.Padding = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: F.Activation | None = None,
    ) -> None:
        super().__init__(
            0,
            0,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            False,
            padding_mode,
            activation=activation,
        )
        if out_channels % groups != 0:
            raise ValueError(
                f"out_channels (={out_channels}) must be divisible by groups (={groups})"
            )
        self.out_channels = out_channels
        self.add_placeholders(bias, device, dtype)

    def initialize_parameters(self, input: Tensor) -> None:
        """Give the parameters the shapes that `input`, (N, in_channels, L), asks for.

        Raises:
            RuntimeError: unless `input` has 2 (unbatched) or 3 dimensions.
            ValueError: where `groups` does not divide in_channels.
        """
        if input.dim() not in (2, 3):
            raise RuntimeError(
                f"Expected 2D (unbatched) or 3D (batched) input to {type(self).__name__}, but "
                f"got input of size: {input.shape}"
            )
        in_channels = input.shape[-2]
        if in_channels % self.groups != 0:
            raise ValueError(
                f"in_channels (={in_channels}) must be divisible by groups (={self.groups})"
            )
        weight = (self.out_channels, in_channels // self.groups, *self.kernel_size)
        self.shape_parameters(weight, (self.out_channels,))
        self.in_channels = in_channels
        self.reset_parameters()
