"""Shape, dtype and device errors, raised before anything is allocated.

Each function checks the arguments of one operation and gives the shape of its output. The types
are those that ``torch.nn.functional`` raises.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")


def linear_shape(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> tuple[int, int]:
    """Shape (M, N) of ``x @ weight.T``, for x of shape (M, K) and weight of shape (N, K).

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.
        ValueError: for an unknown activation.
    """
    check_activation(activation)
    if x.dim() != 2 or weight.dim() != 2:
        raise RuntimeError(
            f"linear: x and weight must have 2 dimensions, got shapes {_shape(x)} and "
            f"{_shape(weight)}"
        )
    if x.shape[1] != weight.shape[1]:
        raise RuntimeError(
            f"linear: x of shape {_shape(x)} does not fit weight of shape {_shape(weight)}: the "
            f"last dimension of x (={x.shape[1]}) must equal that of weight (={weight.shape[1]})"
        )
    _check_bias("linear", bias, weight.shape[0])
    _check_same("linear", x=x, weight=weight, bias=bias)
    return x.shape[0], weight.shape[0]


def conv1d_shape(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    groups: int,
    activation: str | None,
) -> tuple[int, int, int]:
    """Shape (N, C_out, L_out) of the convolution of x (N, C_in, L) by weight (C_out, C_in/G, K).

    Raises:
        RuntimeError: for shapes, dtypes, devices or settings that do not fit.
        ValueError: for an unknown activation.
    """
    check_activation(activation)
    if x.dim() != 3 or weight.dim() != 3:
        raise RuntimeError(
            f"conv1d: x and weight must have 3 dimensions, got shapes {_shape(x)} and "
            f"{_shape(weight)}"
        )
    batch, channels, length = x.shape
    out_channels, group_channels, taps = weight.shape
    for name, value in (("stride", stride), ("dilation", dilation), ("groups", groups)):
        if value < 1:
            raise RuntimeError(f"conv1d: {name} must be at least 1, got {value}")
    if len(padding) != 2 or min(padding) < 0:
        raise RuntimeError(
            f"conv1d: padding must be two sizes (left, right) of at least 0, got {tuple(padding)}"
        )
    if channels != group_channels * groups:
        raise RuntimeError(
            f"conv1d: weight of shape {_shape(weight)} with groups={groups} expects "
            f"{group_channels * groups} input channels, got x of shape {_shape(x)} with {channels}"
        )
    if out_channels % groups:
        raise RuntimeError(
            f"conv1d: out_channels (={out_channels}) must be divisible by groups (={groups})"
        )
    padded = length + padding[0] + padding[1]
    reach = dilation * (taps - 1) + 1
    if taps < 1 or padded < reach:
        raise RuntimeError(
            f"conv1d: the kernel reaches over {reach} samples (kernel_size={taps}, "
            f"dilation={dilation}), more than the padded input has ({padded})"
        )
    _check_bias("conv1d", bias, out_channels)
    _check_same("conv1d", x=x, weight=weight, bias=bias)
    return batch, out_channels, (padded - reach) // stride + 1


def conv1d_grad_shapes(
    grad: Tensor,
    weight_shape: Sequence[int],
    input_length: int,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    groups: int,
) -> None:
    """Raise RuntimeError unless `grad` has the shape that such a convolution's output has."""
    out_channels, _, taps = weight_shape
    reach = dilation * (taps - 1) + 1
    out_length = (input_length + padding[0] + padding[1] - reach) // stride + 1
    if tuple(grad.shape[1:]) != (out_channels, out_length) or out_channels % groups:
        raise RuntimeError(
            f"conv1d: the output gradient must have shape (N, {out_channels}, {out_length}) for "
            f"weight of shape {tuple(weight_shape)} and inputs of {input_length} samples with "
            f"groups={groups}, got {_shape(grad)}"
        )


def check_activation(activation: str | None) -> None:
    """Raise ValueError unless `activation` is None or one of the fused ones."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be None or one of {list(ACTIVATIONS)}, got {activation!r}"
        )


def _check_bias(op: str, bias: Tensor | None, size: int) -> None:
    if bias is not None and bias.shape != (size,):
        raise RuntimeError(
            f"{op}: bias must have shape ({size},), one value per output, got {_shape(bias)}"
        )


def _check_same(op: str, **tensors: Tensor | None) -> None:
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for what in ("dtype", "device"):
        found = {name: getattr(tensor, what) for name, tensor in present.items()}
        if len(set(found.values())) > 1:
            named = ", ".join(f"{name} is {value}" for name, value in found.items())
            raise RuntimeError(f"{op}: all tensors must have the same {what}, but {named}")
    if not present["x"].dtype.is_floating_point:
        raise RuntimeError(f"{op}: not implemented for {present['x'].dtype}")


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
