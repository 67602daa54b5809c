"""The launchers' signatures in plain ATen: the ground truth for tests, and the ops on a CPU.

See linear.py, conv1d.py, conv_transpose1d.py and epilogue.py for shapes. Any floating dtype
works, float64 included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_input, conv1d_weight

from tlazy_kernels import checks, layouts

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}

_aten = torch.ops.aten

# These derivatives need the input z of the activation; the others are functions of its output y.
NEEDS_PREACTIVATION = frozenset({"gelu", "gelu_tanh", "silu"})

# grad * act'(z), from z or from y = act(z).
_ACTIVATION_GRADS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, y: _aten.threshold_backward(grad, y, 0),
    "gelu": lambda grad, z: _aten.gelu_backward(grad, z),
    "gelu_tanh": lambda grad, z: _aten.gelu_backward(grad, z, approximate="tanh"),
    "silu": lambda grad, z: grad * torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z))),
    "sigmoid": lambda grad, y: _aten.sigmoid_backward(grad, y),
    "tanh": lambda grad, y: _aten.tanh_backward(grad, y),
}


def epilogue_backward(
    grad: Tensor,
    saved: Tensor | None,
    activation: str | None,
    bias: bool,
    for_tiles: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    checks.epilogue_shape(grad, saved, activation, for_tiles)
    g = None
    if activation is not None and saved is not None:
        g = _ACTIVATION_GRADS[activation](grad, saved)
        g = layouts.dense_like(g, saved) if g.dim() == 3 else g.contiguous()
    grad_bias = sum_of_channels(grad if g is None else g) if bias else None
    if for_tiles:
        turned = grad if g is None else g
        g = layouts.empty_like(grad.shape, grad, channels_last=True).copy_(turned)
    return g, grad_bias


def sum_of_channels(g: Tensor) -> Tensor:
    """The sum of g, shape (outer, channels, ...), over all but channels."""
    return g.sum((0, 2) if g.dim() == 3 else 0)


def linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    save_preactivation: bool = False,
) -> tuple[Tensor, Tensor | None]:
    checks.linear_shape(x, weight, bias, activation)
    z = F.linear(x, weight, bias)
    return _activated(z, activation, save_preactivation)


def linear_grad_input(grad: Tensor, weight: Tensor) -> Tensor:
    checks.linear_grad_input_shape(grad, weight)
    return grad @ weight


def linear_grad_weight(grad: Tensor, x: Tensor) -> Tensor:
    checks.linear_grad_weight_shape(grad, x)
    return grad.t() @ x


def conv1d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    activation: str | None = None,
    save_preactivation: bool = False,
    channels_last: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    checks.conv1d_shape(x, weight, bias, stride, padding, dilation, groups, activation)
    checks.check_padding_mode(padding_mode, padding, x.shape[2])
    padded = _padded(x, padding, padding_mode)
    z = F.conv1d(padded, weight, bias, stride, 0, dilation, groups)
    return _activated(layouts.dense_like(z, x, channels_last), activation, save_preactivation)


def conv1d_grad_input(
    grad: Tensor,
    weight: Tensor,
    input_length: int,
    stride: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    channels_last: bool | None = None,
) -> Tensor:
    checks.conv1d_grad_shapes(grad, weight.shape, input_length, stride, padding, dilation, groups)
    checks.same_kind("conv1d", grad=grad, weight=weight)
    checks.check_padding_mode(padding_mode, padding, input_length)
    left, right = padding
    shape = (grad.shape[0], weight.shape[1] * groups, left + input_length + right)
    padded = conv1d_input(shape, weight, grad, stride, 0, dilation, groups)
    found = padded[:, :, left : left + input_length]
    if padding_mode == "circular":
        found = found.clone()
        found[:, :, input_length - left :] += padded[:, :, :left]
        found[:, :, :right] += padded[:, :, left + input_length :]
    elif padding_mode != "zeros":
        backward = {
            "reflect": _aten.reflection_pad1d_backward,
            "replicate": _aten.replication_pad1d_backward,
        }[padding_mode]
        found = backward(padded, torch.empty_like(found), (left, right))
    return layouts.dense_like(found, grad, channels_last)


def conv1d_grad_weight(
    grad: Tensor,
    x: Tensor,
    kernel_size: int,
    stride: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    shape = checks.conv1d_grad_weight_shape(grad, x, kernel_size, stride, padding, dilation, groups)
    checks.check_padding_mode(padding_mode, padding, x.shape[2])
    padded = _padded(x, padding, padding_mode)
    return conv1d_weight(padded, shape, grad, stride, 0, dilation, groups).contiguous()


def conv_transpose1d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    activation: str | None = None,
    save_preactivation: bool = False,
) -> tuple[Tensor, Tensor | None]:
    checks.conv_transpose1d_shape(
        x, weight, bias, stride, padding, output_padding, dilation, groups, activation
    )
    z = F.conv_transpose1d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _activated(layouts.dense_like(z, x), activation, save_preactivation)


def depthwise_backward(
    grad: Tensor,
    saved: Tensor | None,
    x: Tensor | None,
    weight: Tensor | None,
    input_length: int,
    kernel_size: int,
    stride: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    activation: str | None = None,
    needs: Sequence[bool] = (True, True, True),
    channels_last: bool | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    settings = (stride, padding, dilation, groups)
    checks.depthwise_backward_shapes(
        grad, saved, x, weight, input_length, kernel_size, *settings, activation, needs
    )
    g, grad_bias = epilogue_backward(grad, saved, activation, bias=needs[2])
    g = grad if g is None else g
    grad_x = grad_weight = None
    if weight is not None and needs[0]:
        like = next(t for t in (x, saved, grad) if t is not None)
        grad_x = conv1d_grad_input(g, weight, input_length, *settings)
        grad_x = layouts.dense_like(grad_x, like, channels_last)
    if x is not None and needs[1]:
        grad_weight = conv1d_grad_weight(g, x, kernel_size, *settings)
    return grad_x, grad_weight, grad_bias


def _padded(x: Tensor, padding: Sequence[int], mode: str) -> Tensor:
    return F.pad(x, tuple(padding), "constant" if mode == "zeros" else mode)


def _activated(
    z: Tensor, activation: str | None, save_preactivation: bool
) -> tuple[Tensor, Tensor | None]:
    if activation is not None:
        return ACTIVATIONS[activation](z), z if save_preactivation else None
    return z, z.clone() if save_preactivation else None
