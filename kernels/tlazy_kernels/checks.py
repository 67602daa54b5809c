"""Shape, dtype and device errors, raised before anything is allocated.

Each function checks the arguments of one operation and gives the shape of its output. The types
are those that ``torch.nn.functional`` raises.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


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
    same_kind("linear", x=x, weight=weight, bias=bias)
    return x.shape[0], weight.shape[0]


def linear_grad_input_shape(grad: Tensor, weight: Tensor) -> tuple[int, int]:
    """Shape (M, K) of ``grad @ weight``, for grad of shape (M, N) and weight of shape (N, K).

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.
    """
    if grad.dim() != 2 or weight.dim() != 2 or grad.shape[1] != weight.shape[0]:
        raise RuntimeError(
            f"linear: the output gradient of shape {_shape(grad)} does not fit weight of shape "
            f"{_shape(weight)}: they must be (M, N) and (N, K)"
        )
    same_kind("linear", grad=grad, weight=weight)
    return grad.shape[0], weight.shape[1]


def linear_grad_weight_shape(grad: Tensor, x: Tensor) -> tuple[int, int]:
    """Shape (N, K) of ``grad.T @ x``, for grad of shape (M, N) and x of shape (M, K).

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.
    """
    if grad.dim() != 2 or x.dim() != 2 or grad.shape[0] != x.shape[0]:
        raise RuntimeError(
            f"linear: the output gradient of shape {_shape(grad)} does not fit x of shape "
            f"{_shape(x)}: they must be (M, N) and (M, K)"
        )
    same_kind("linear", grad=grad, x=x)
    return grad.shape[1], x.shape[1]


def epilogue_shape(
    grad: Tensor, saved: Tensor | None, activation: str | None, for_tiles: bool = False
) -> tuple[int, int, int]:
    """Shape (outer, channels, inner) of `grad`, the last 1 where it has two dimensions; `saved`
    must have the same. What is `for_tiles` has three.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit, or a missing `saved`.
        ValueError: for an unknown activation.
    """
    check_activation(activation)
    if grad.dim() not in (2, 3):
        raise RuntimeError(
            "epilogue_backward: the output gradient must have 2 or 3 dimensions (outer, channels, "
            f"inner), got shape {_shape(grad)}"
        )
    if activation is not None and (saved is None or saved.shape != grad.shape):
        found = "None" if saved is None else f"shape {_shape(saved)}"
        raise RuntimeError(
            f"epilogue_backward: activation={activation!r} needs a saved tensor of the output "
            f"gradient's shape {_shape(grad)}, got {found}"
        )
    if for_tiles and grad.dim() != 3:
        raise RuntimeError(
            "epilogue_backward: for_tiles needs an output gradient of 3 dimensions (N, C, L), got "
            f"shape {_shape(grad)}"
        )
    same_kind("epilogue_backward", grad=grad, saved=saved)
    outer, channels, inner = (*grad.shape, 1)[:3]
    return outer, channels, inner


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
    _check_settings("conv1d", stride, padding, dilation, groups)
    if out_channels < 1:
        raise RuntimeError(
            f"conv1d: weight of shape {_shape(weight)} must have at least 1 output channel"
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
    out_length = _out_length(length, taps, stride, padding, dilation)
    _check_bias("conv1d", bias, out_channels)
    same_kind("conv1d", x=x, weight=weight, bias=bias)
    return batch, out_channels, out_length


def check_padding_mode(mode: str, padding: Sequence[int], length: int) -> None:
    """Raise unless a series of `length` samples can be padded so.

    Raises:
        RuntimeError: where the padding needs more samples than there are.
        ValueError: for an unknown mode.
    """
    if mode == "zeros":
        return
    if mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {PADDING_MODES}, got {mode!r}")
    least = {"reflect": max(padding) + 1, "circular": max(padding), "replicate": 1}[mode]
    if length < least:
        raise RuntimeError(
            f"conv1d: padding {tuple(padding)} with padding_mode={mode!r} takes at least {least} "
            f"samples, got {length}: pad less, or with zeros"
        )


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
    if len(weight_shape) != 3:
        raise RuntimeError(
            f"conv1d: weight must have 3 dimensions, got shape {tuple(weight_shape)}"
        )
    _check_settings("conv1d", stride, padding, dilation, groups)
    out_channels, _, taps = weight_shape
    out_length = _out_length(input_length, taps, stride, padding, dilation)
    if (
        grad.dim() != 3
        or tuple(grad.shape[1:]) != (out_channels, out_length)
        or out_channels % groups
    ):
        raise RuntimeError(
            f"conv1d: the output gradient must have shape (N, {out_channels}, {out_length}) for "
            f"weight of shape {tuple(weight_shape)} and inputs of {input_length} samples with "
            f"groups={groups}, got {_shape(grad)}"
        )


def conv1d_grad_weight_shape(
    grad: Tensor,
    x: Tensor,
    kernel_size: int,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    groups: int,
) -> tuple[int, int, int]:
    """Shape (C_out, C_in/G, K) of the weight gradient, for x (N, C_in, L), grad (N, C_out, L_out).

    Raises:
        RuntimeError: for shapes, dtypes, devices or settings that do not fit.
    """
    if grad.dim() != 3 or x.dim() != 3 or grad.shape[0] != x.shape[0]:
        raise RuntimeError(
            f"conv1d: the output gradient of shape {_shape(grad)} does not fit x of shape "
            f"{_shape(x)}: they must be (N, C_out, L_out) and (N, C_in, L)"
        )
    if groups < 1 or x.shape[1] % groups:
        raise RuntimeError(
            f"conv1d: in_channels (={x.shape[1]}) must be divisible by groups (={groups})"
        )
    shape = (grad.shape[1], x.shape[1] // groups, kernel_size)
    conv1d_grad_shapes(grad, shape, x.shape[2], stride, padding, dilation, groups)
    same_kind("conv1d", grad=grad, x=x)
    return shape


def conv_transpose1d_shape(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    output_padding: int,
    dilation: int,
    groups: int,
    activation: str | None,
) -> tuple[int, int, int]:
    """Shape (N, C_out, L_out) of the way back from x (N, C_in, L) by weight (C_in, C_out/G, K).

    Raises:
        RuntimeError: for shapes, dtypes, devices or settings that do not fit.
        ValueError: for an unknown activation.
    """
    op = "conv_transpose1d"
    check_activation(activation)
    if x.dim() != 3 or weight.dim() != 3:
        raise RuntimeError(
            f"{op}: x and weight must have 3 dimensions, got shapes {_shape(x)} and "
            f"{_shape(weight)}"
        )
    _check_settings(op, stride, (padding, padding), dilation, groups)
    if not 0 <= output_padding < max(stride, dilation):
        raise RuntimeError(
            f"{op}: output_padding must be at least 0 and smaller than stride (={stride}) or "
            f"dilation (={dilation}), got {output_padding}"
        )
    batch, channels, length = x.shape
    in_channels, group_out, taps = weight.shape
    if min(weight.shape) < 1 or length < 1:
        raise RuntimeError(
            f"{op}: x of shape {_shape(x)} must have at least 1 sample, and weight of shape "
            f"{_shape(weight)} no dimension of size 0"
        )
    if channels != in_channels:
        raise RuntimeError(
            f"{op}: weight of shape {_shape(weight)} expects {in_channels} input channels, got x "
            f"of shape {_shape(x)} with {channels}"
        )
    if in_channels % groups:
        raise RuntimeError(
            f"{op}: in_channels (={in_channels}) must be divisible by groups (={groups})"
        )
    reach = dilation * (taps - 1) + 1
    out_length = (length - 1) * stride + reach + output_padding - 2 * padding
    if out_length < 1:
        raise RuntimeError(
            f"{op}: {length} samples with kernel_size={taps}, stride={stride}, dilation={dilation} "
            f"and output_padding={output_padding} give {out_length + 2 * padding}, and padding "
            f"(={padding}) cuts off {2 * padding}: none is left"
        )
    _check_bias(op, bias, group_out * groups)
    same_kind(op, x=x, weight=weight, bias=bias)
    return batch, group_out * groups, out_length


def adjoint_conv1d(
    out_length: int, padding: int, output_padding: int
) -> tuple[int, tuple[int, int]]:
    """The convolution whose input gradient a transposed one is: (samples, (left, right) padding).

    Over the first `samples` of the transposed convolution's `out_length` outputs it has as many
    positions as that has inputs; the outputs behind them no input reaches.

    >>> adjoint_conv1d(10, padding=1, output_padding=1)
    (10, (1, 0))
    >>> adjoint_conv1d(10, padding=0, output_padding=2)
    (8, (0, 0))
    """
    left, right, samples = padding, padding - output_padding, out_length
    if right < 0:
        right, samples = 0, samples + right
        if samples < 0:  # the inputs reach only outputs that the left end's padding cuts off
            left, samples = left + samples, 0
    return samples, (left, right)


def depthwise_backward_shapes(
    grad: Tensor,
    saved: Tensor | None,
    x: Tensor | None,
    weight: Tensor | None,
    input_length: int,
    kernel_size: int,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    groups: int,
    activation: str | None,
    needs: Sequence[bool],
) -> None:
    """Raise unless these are the tensors of a depthwise convolution's backward pass.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit, or a missing tensor.
        ValueError: for an unknown activation.
    """
    if grad.dim() != 3:
        raise RuntimeError(
            "depthwise_backward: the output gradient must have 3 dimensions (N, C_out, L_out), got "
            f"shape {_shape(grad)}"
        )
    epilogue_shape(grad, saved, activation)
    settings = (stride, padding, dilation, groups)
    weight_shape = (grad.shape[1], 1, kernel_size)
    conv1d_grad_shapes(grad, weight_shape, input_length, *settings)
    for name, tensor, shape, needed in (
        ("x", x, (grad.shape[0], groups, input_length), needs[1]),
        ("weight", weight, weight_shape, needs[0]),
    ):
        if tensor is None and needed:
            raise RuntimeError(f"depthwise_backward: these gradients need {name}, got None")
        if tensor is not None and tuple(tensor.shape) != shape:
            raise RuntimeError(
                f"depthwise_backward: {name} must have shape {shape} for an output gradient of "
                f"shape {_shape(grad)}, got {_shape(tensor)}"
            )
    same_kind("depthwise_backward", grad=grad, saved=saved, x=x, weight=weight)


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


def same_kind(op: str, **tensors: Tensor | None) -> None:
    """Raise RuntimeError unless all tensors share one floating dtype and one device."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for what in ("dtype", "device"):
        found = {name: getattr(tensor, what) for name, tensor in present.items()}
        if len(set(found.values())) > 1:
            named = ", ".join(f"{name} is {value}" for name, value in found.items())
            raise RuntimeError(f"{op}: all tensors must have the same {what}, but {named}")
    for name, tensor in present.items():
        if not tensor.dtype.is_floating_point:
            raise RuntimeError(f"{op}: not implemented for {tensor.dtype}, the dtype of {name}")


def _check_settings(
    op: str, stride: int, padding: Sequence[int], dilation: int, groups: int
) -> None:
    for name, value in (("stride", stride), ("dilation", dilation), ("groups", groups)):
        if value < 1:
            raise RuntimeError(f"{op}: {name} must be at least 1, got {value}")
    if len(padding) != 2 or min(padding) < 0:
        raise RuntimeError(
            f"{op}: padding must be two sizes (left, right) of at least 0, got {tuple(padding)}"
        )


def _out_length(length: int, taps: int, stride: int, padding: Sequence[int], dilation: int) -> int:
    padded = length + padding[0] + padding[1]
    reach = dilation * (taps - 1) + 1
    if taps < 1 or padded < reach:
        raise RuntimeError(
            f"conv1d: the kernel reaches over {reach} samples (kernel_size={taps}, "
            f"dilation={dilation}), more than the padded input has ({padded})"
        )
    return (padded - reach) // stride + 1


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
