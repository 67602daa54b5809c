"""Linear and conv1d with a fused activation: ``torch.nn.functional`` plus one argument."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tlazy import dispatch
from tlazy_kernels.reference import ACTIVATIONS

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"]
Padding = int | tuple[int, ...] | Literal["valid", "same", "causal"]


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
    y = torch.nn.functional.linear(x, weight, bias)
    return y if activation is None else ACTIVATIONS[activation](y)


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int] = 1,
    groups: int = 1,
    *,
    activation: Activation | None = None,
) -> Tensor:
    """``activation(conv1d(x, weight) + bias)`` in one kernel, without im2col or a padded copy.

    Args:
        x: shape (N, C_in, L) or (C_in, L), any strides.
        weight: shape (C_out, C_in / groups, K).
        bias: shape (C_out,), or None.
        stride, dilation: in samples.
        padding: zeros on both sides in samples; ``"valid"``: none; ``"same"``: output as long as
            the input, the odd zero on the right; ``"causal"``: dilation * (K - 1) on the left.
        groups: divides C_in and C_out; C_in groups make a depthwise convolution.
        activation: as in :func:`linear`.

    Returns:
        shape (N, C_out, L_out) or (C_out, L_out), dtype of `x` (of the autocast region, inside
        one), with L_out = (L + pad - dilation * (K - 1) - 1) // stride + 1.

    Raises:
        RuntimeError: as ``torch.nn.functional.conv1d`` does.
        ValueError: for an unknown activation, or "causal" with a stride, which torch has not.

    >>> import torch, tlazy.nn.functional as F
    >>> F.conv1d(torch.ones(2, 3, 10), torch.ones(4, 3, 8), padding="same").shape
    torch.Size([2, 4, 10])
    """
    check_activation(activation)
    y = _aten_conv1d(x, weight, bias, stride, padding, dilation, groups)
    return y if activation is None else ACTIVATIONS[activation](y)


def _aten_conv1d(x, weight, bias, stride, padding, dilation, groups):
    if padding == "causal":
        x = torch.nn.functional.pad(x, (causal_padding(weight.shape[-1], dilation), 0))
        padding = 0
    return torch.nn.functional.conv1d(x, weight, bias, stride, padding, dilation, groups)


def causal_padding(kernel_size: int, dilation: int | tuple[int]) -> int:
    """Zeros to the left that make a convolution look only backwards."""
    step = dilation if isinstance(dilation, int) else dilation[0]
    return step * (kernel_size - 1)


def check_activation(activation: str | None) -> None:
    """Raise ValueError unless `activation` is None or one of the fused ones."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {list(ACTIVATIONS)}, got {activation!r}")
