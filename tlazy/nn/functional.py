"""Linear and convolutions with a fused activation: ``torch.nn.functional`` plus one argument."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from tlazy import autograd
from tlazy.dispatch import compute_dtype, runs_plainly, uses_triton
from tlazy_kernels.checks import check_activation, check_padding_mode
from tlazy_kernels.reference import ACTIVATIONS

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"]
Padding = int | tuple[int, ...] | Literal["valid", "same", "causal"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: Activation | None = None
) -> Tensor:
    """``activation(x @ weight.T + bias)`` in one kernel.

    Args:
        x: shape (*, in_features), any strides.
        weight: shape (out_features, in_features) or (in_features,).
        bias: shape (out_features,), or None.
        activation: ``"relu"``, ``"gelu"`` (erf), ``"gelu_tanh"``, ``"silu"``, ``"sigmoid"``,
            ``"tanh"`` or None.

    Returns:
        shape (*, out_features), dtype of `x` (of the autocast region, inside one).

    Raises:
        RuntimeError: as ``torch.nn.functional.linear`` does.
        ValueError: for an unknown activation.

    >>> import torch, tlazy.nn.functional as F
    >>> F.linear(torch.ones(2, 3), torch.ones(4, 3), activation="relu").shape
    torch.Size([2, 4])
    """
    check_activation(activation)
    plain = runs_plainly(x, weight, bias)
    if not plain:
        if not uses_triton(x):
            y = torch.nn.functional.linear(x, weight, bias)
            return y if activation is None else ACTIVATIONS[activation](y)
        x, weight, bias = _autocast(x, weight, bias)
    if x.dim() == 0 or weight.dim() == 0:
        raise RuntimeError("linear: both arguments need to be at least 1D")
    if weight.dim() == 1 and bias is None:
        return linear(x, weight.unsqueeze(0), activation=activation).squeeze(-1)
    if bias is not None and bias.shape != (weight.shape[0],) and bias.numel() in (1, len(weight)):
        bias = bias.reshape(-1).expand(len(weight))  # torch broadcasts it
    if x.dim() == 2:
        return autograd.linear(x, weight, bias, activation, plain)
    batch = x.shape[:-1]
    x = x.reshape(math.prod(batch), x.shape[-1])
    y = autograd.linear(x, weight, bias, activation, plain)
    return y.view(*batch, weight.shape[0])


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int] = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    activation: Activation | None = None,
) -> Tensor:
    """``activation(conv1d(x, weight) + bias)`` in one kernel, without im2col or a padded copy.

    Args:
        x: shape (N, C_in, L) or (C_in, L), any strides.
        weight: shape (C_out, C_in / groups, K).
        bias: shape (C_out,), or None.
        stride, dilation: in samples.
        padding: on both sides in samples; ``"valid"``: none; ``"same"``: output as long as the
            input, the odd sample on the right; ``"causal"``: dilation * (K - 1) on the left.
        groups: divides C_in and C_out; C_in groups make a depthwise convolution.
        padding_mode: what the padding is made of: ``"zeros"``, or samples of x: ``"reflect"``,
            ``"replicate"`` or ``"circular"``, as in ``torch.nn.Conv1d``.
        activation: as in :func:`linear`.

    Returns:
        shape (N, C_out, L_out) or (C_out, L_out), dtype of `x` (of the autocast region, inside
        one), with L_out = (L + pad - dilation * (K - 1) - 1) // stride + 1.

    Raises:
        RuntimeError: as ``torch.nn.functional.conv1d`` does, and ``pad`` in such a mode.
        ValueError: for an unknown activation or padding mode.

    >>> import torch, tlazy.nn.functional as F
    >>> F.conv1d(torch.ones(2, 3, 10), torch.ones(4, 3, 8), padding="same").shape
    torch.Size([2, 4, 10])
    """
    check_activation(activation)
    plain = runs_plainly(x, weight, bias)
    if not plain:
        if not uses_triton(x):
            y = _aten_conv1d(x, weight, bias, stride, padding, dilation, groups, padding_mode)
            return y if activation is None else ACTIVATIONS[activation](y)
        x, weight, bias = _autocast(x, weight, bias)
    step, spread = _single("stride", stride), _single("dilation", dilation)
    y = autograd.conv1d(
        x.unsqueeze(0) if x.dim() == 2 else x,
        weight,
        bias,
        step,
        _samples_around(padding, weight.shape[-1], step, spread),
        spread,
        groups,
        padding_mode,
        activation,
        plain,
    )
    return y.squeeze(0) if x.dim() == 2 else y


def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int] = 1,
    padding: int | tuple[int] = 0,
    output_padding: int | tuple[int] = 0,
    groups: int = 1,
    dilation: int | tuple[int] = 1,
    *,
    activation: Activation | None = None,
) -> Tensor:
    """``activation(conv_transpose1d(x, weight) + bias)`` in one kernel.

    Args:
        x: shape (N, C_in, L) or (C_in, L), any strides.
        weight: shape (C_in, C_out / groups, K).
        bias: shape (C_out,), or None.
        stride, dilation: in samples of the output.
        padding: samples cut off both ends of the output.
        output_padding: samples added to the output's right end; smaller than stride or dilation.
        groups: divides C_in and C_out.
        activation: as in :func:`linear`.

    Returns:
        shape (N, C_out, L_out) or (C_out, L_out), dtype of `x` (of the autocast region, inside
        one), with
        L_out = (L - 1) * stride - 2 * padding + dilation * (K - 1) + output_padding + 1.

    Raises:
        RuntimeError: as ``torch.nn.functional.conv_transpose1d`` does.
        TypeError: for a padding in words.
        ValueError: for an unknown activation.

    >>> import torch, tlazy.nn.functional as F
    >>> F.conv_transpose1d(torch.ones(2, 3, 10), torch.ones(3, 4, 8), stride=4, padding=2).shape
    torch.Size([2, 4, 40])
    """
    check_activation(activation)
    plain = runs_plainly(x, weight, bias)
    if not plain:
        if not uses_triton(x):
            y = torch.nn.functional.conv_transpose1d(
                x, weight, bias, stride, padding, output_padding, groups, dilation
            )
            return y if activation is None else ACTIVATIONS[activation](y)
        x, weight, bias = _autocast(x, weight, bias)
    y = autograd.conv_transpose1d(
        x.unsqueeze(0) if x.dim() == 2 else x,
        weight,
        bias,
        _single("stride", stride),
        _single("padding", padding),
        _single("output_padding", output_padding),
        _single("dilation", dilation),
        groups,
        activation,
        plain,
    )
    return y.squeeze(0) if x.dim() == 2 else y


def causal_padding(kernel_size: int, dilation: int) -> int:
    """Zeros to the left that make a convolution look only backwards."""
    return dilation * (kernel_size - 1)


def _aten_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | tuple[int],
    padding: Padding,
    dilation: int | tuple[int],
    groups: int,
    padding_mode: PaddingMode,
) -> Tensor:
    if padding_mode != "zeros":
        step, spread = _single("stride", stride), _single("dilation", dilation)
        around = _samples_around(padding, weight.shape[-1], step, spread)
        check_padding_mode(padding_mode, around, x.shape[-1])
        x, padding = torch.nn.functional.pad(x, around, mode=padding_mode), 0
    elif padding in ("same", "causal"):
        # ATen pads on both sides alike: an uneven rest takes a copy (torch copies as well, and
        # warns of it).
        step, spread = _single("stride", stride), _single("dilation", dilation)
        left, right = _samples_around(padding, weight.shape[-1], step, spread)
        even = min(left, right)
        x = torch.nn.functional.pad(x, (left - even, right - even)) if left != right else x
        padding = even
    return torch.nn.functional.conv1d(x, weight, bias, stride, padding, dilation, groups)


def _samples_around(padding: Padding, kernel_size: int, stride: int, dilation: int) -> list[int]:
    """The samples (left, right) that `padding` stands for, in samples."""
    if padding == "valid":
        return [0, 0]
    if padding == "causal":
        return [causal_padding(kernel_size, dilation), 0]
    if padding == "same":
        if stride != 1:
            raise RuntimeError("padding='same' is not supported for strided convolutions")
        total = dilation * (kernel_size - 1)
        return [total // 2, total - total // 2]
    if isinstance(padding, str):
        raise RuntimeError(f"padding must be an int, 'valid', 'same' or 'causal', got {padding!r}")
    return [_single("padding", padding)] * 2


def _single(name: str, value: int | tuple[int, ...]) -> int:
    if isinstance(value, str):
        raise TypeError(f"{name} must be an int or have one element, got {value!r}")
    if not isinstance(value, Sequence):
        return operator.index(value)
    if len(value) != 1:
        raise RuntimeError(f"{name} must be an int or have one element, got {value}")
    return operator.index(value[0])


def _autocast(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Inside an autocast region, cast as it does: floating tensors, float64 excepted."""
    if not torch._C._is_any_autocast_enabled() or not torch.is_autocast_enabled(x.device.type):
        return x, *others
    return tuple(None if t is None else t.to(compute_dtype(t)) for t in (x, *others))


# Tracers by proxies, which cannot follow the checks, keep the calls as they are.
torch.fx.wrap("linear")
torch.fx.wrap("conv1d")
torch.fx.wrap("conv_transpose1d")
