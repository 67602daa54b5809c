"""Convolutions, transposed ones, and their lazy forms, with a fused activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tlazy.arguments import check_tensor
from tlazy.nn import functional as F
from tlazy.nn.layer import Layer, activated
from tlazy.nn.lazy import LazyModuleMixin

_PADDINGS = ("valid", "same", "causal")


class Conv1d(Layer, torch.nn.Conv1d):
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
        padding_mode: F.PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: F.Activation | None = None,
    ) -> None:
        F.check_activation(activation)
        if isinstance(padding, str) and padding not in _PADDINGS:
            raise ValueError(
                f"Invalid padding string {padding!r}, should be an int or one of {_PADDINGS}"
            )
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

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return self._conv_forward(input, *self.weight_and_bias())
        return self._conv_forward(input, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not torch.jit.is_scripting():
            return self._fused_forward(input, weight, bias)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=mode)
        y = torch.nn.functional.conv1d(
            padded, weight, bias, self.stride, 0, self.dilation, self.groups
        )
        return activated(y, self.activation)

    def _fused_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # torch keeps tuples of any length; here each has one element.
        stride: Any = self.stride
        padding: Any = self.padding
        dilation: Any = self.dilation
        return F.conv1d(
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            self.groups,
            padding_mode=self.padding_mode,
            activation=self.activation,
        )


class ConvTranspose1d(Layer, torch.nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` with the activation in the same kernel.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias,
            dilation, padding_mode, device, dtype: as in ``torch.nn.ConvTranspose1d``.
        activation: ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"``, ``"sigmoid"``,
            ``"tanh"`` or None.

    Shape: (N, in_channels, L) to (N, out_channels, L_out), or without N.

    >>> import torch
    >>> from tlazy import nn
    >>> up = nn.ConvTranspose1d(8, 3, 4, stride=2, padding=1, activation="gelu")
    >>> up(torch.randn(2, 8, 50)).shape
    torch.Size([2, 3, 100])
    >>> up(torch.randn(2, 8, 50), output_size=[101]).shape
    torch.Size([2, 3, 101])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] = 0,
        output_padding: int | tuple[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int] = 1,
        padding_mode: F.PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: F.Activation | None = None,
    ) -> None:
        F.check_activation(activation)
        if isinstance(padding, str):  # torch's takes it, and raises this when it is called
            raise TypeError(
                f"padding must be an int or have one element, got {padding!r}: a transposed "
                "convolution cuts that many samples off both ends"
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self.activation = activation

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The transposed convolution of `input`.

        Args:
            output_size: (L_out,), (C_out, L_out) or (N, C_out, L_out) as `input` has dimensions, to
                choose among the `stride` lengths that a convolution turns into `input`'s; instead
                of `output_padding`.

        Raises:
            ValueError: for a length that is none of those.
        """
        if not torch.jit.is_scripting():
            return self._fused_forward(input, output_size)
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            1,
            self.dilation,  # type: ignore[arg-type]
        )
        y = torch.nn.functional.conv_transpose1d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            output_padding,
            self.groups,
            self.dilation,
        )
        return activated(y, self.activation)

    def _fused_forward(self, input: Tensor, output_size: list[int] | None) -> Tensor:
        # torch keeps tuples of any length; here each has one element.
        stride: Any = self.stride
        padding: Any = self.padding
        dilation: Any = self.dilation
        kernel_size: Any = self.kernel_size
        output_padding: Any = self._output_padding(
            input, output_size, stride, padding, kernel_size, 1, dilation
        )
        return F.conv_transpose1d(
            input,
            *self.weight_and_bias(),
            stride,
            padding,
            output_padding,
            self.groups,
            dilation,
            activation=self.activation,
        )


class _LazyConv(LazyModuleMixin):
    """Lazy ``in_channels`` of a convolution or a transposed one."""

    def initialize_parameters(self, input: Tensor, *args: Any, **kwargs: Any) -> None:
        """Give the parameters the shapes that `input`, (N, in_channels, L), asks for.

        Raises:
            TypeError: for an input that is no tensor.
            RuntimeError: unless `input` has 2 (unbatched) or 3 dimensions.
            ValueError: where `groups` does not divide in_channels.
        """
        check_tensor("input", input)
        if input.dim() not in (2, 3):
            raise RuntimeError(
                f"Expected 2D (unbatched) or 3D (batched) input to {type(self).__name__}, but "
                f"got input of size: {input.shape}"
            )
        conv: Any = self
        in_channels = input.shape[-2]
        if in_channels % conv.groups != 0:
            raise ValueError(
                f"in_channels (={in_channels}) must be divisible by groups (={conv.groups})"
            )
        first, second = conv.out_channels, in_channels
        if conv.transposed:
            first, second = second, first
        weight = (first, second // conv.groups, *conv.kernel_size)
        self.shape_parameters(weight, (conv.out_channels,))
        conv.in_channels = in_channels
        self.reset_parameters()

    def _wait_for_channels(
        self, out_channels: int, bias: bool, device: Any, dtype: torch.dtype | None
    ) -> None:
        """The rest of a constructor, which has passed 0 channels and no bias to its super class."""
        conv: Any = self
        if out_channels % conv.groups != 0:
            raise ValueError(
                f"out_channels (={out_channels}) must be divisible by groups (={conv.groups})"
            )
        conv.out_channels = out_channels
        self.add_placeholders(bias, device, dtype)


class LazyConv1d(_LazyConv, Conv1d):
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
        padding_mode: F.PaddingMode = "zeros",
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
        self._wait_for_channels(out_channels, bias, device, dtype)


class LazyConvTranspose1d(_LazyConv, ConvTranspose1d):
    """:class:`ConvTranspose1d` that learns ``in_channels`` from its first input, or a checkpoint.

    Until then ``weight`` and ``bias`` are ``UninitializedParameter`` and ``in_channels`` is 0;
    afterwards the class is :class:`ConvTranspose1d`.

    Args:
        out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device, dtype, activation: as in :class:`ConvTranspose1d`.

    Shape: (N, any, L) to (N, out_channels, L_out), or without N.

    Raises:
        ValueError: where `groups` does not divide `out_channels`.

    >>> import torch
    >>> from tlazy import nn
    >>> layer = nn.LazyConvTranspose1d(8, 4, stride=2, padding=1)
    >>> layer(torch.randn(2, 5, 50)).shape
    torch.Size([2, 8, 100])
    >>> layer.weight.shape
    torch.Size([5, 8, 4])
    """

    cls_to_become = ConvTranspose1d

    def __init__(
        self,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] = 0,
        output_padding: int | tuple[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int] = 1,
        padding_mode: F.PaddingMode = "zeros",
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
            output_padding,
            groups,
            False,
            dilation,
            padding_mode,
            activation=activation,
        )
        self._wait_for_channels(out_channels, bias, device, dtype)
