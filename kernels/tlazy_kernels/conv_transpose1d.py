"""Transposed conv1d: y = act(conv_transpose(x, W) + b), the way back of a convolution as a layer.

It is the input gradient of the convolution that has the same weight and turns y's positions into
x's, and runs on that gradient's kernels: each output sample gathers the inputs that reach it, so
nothing is scattered and no zeros are written between samples. Its gradients are that convolution
of g and that convolution's weight gradient, over what ``checks.adjoint_conv1d`` says; there is
nothing more to launch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tlazy_kernels import checks, layouts
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.conv1d import plan_new
from tlazy_kernels.environment import dot_precision
from tlazy_kernels.launch import Buffer, Plan, launch
from tlazy_kernels.positions import Geometry
from tlazy_kernels.targets import Target


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
    *,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y = act(conv_transpose1d(x, weight) + bias).

    Args:
        x: shape (N, C_in, L), any strides; float32, float16 or bfloat16.
        weight: shape (C_in, C_out / groups, K), any strides, `x`'s dtype.
        bias: shape (C_out,), `x`'s dtype, or None.
        stride, dilation: in samples of y.
        padding: samples cut off both ends of y.
        output_padding: samples added to the right end of y, which may get nothing but the bias;
            smaller than stride or dilation.
        groups: divides C_in and C_out.
        activation: a name of ``reference.ACTIVATIONS``, or None.
        save_preactivation: also give z, for the backward pass of those in NEEDS_PREACTIVATION.
        config: tile; by default from the sizes.

    Returns:
        (y, z): both of shape (N, C_out, L_out) and `x`'s dtype, in the memory layout of `x`,
        accumulated in fp32, with
        L_out = (L - 1) * stride - 2 * padding + dilation * (K - 1) + output_padding + 1;
        z is None unless asked for.

    Raises:
        RuntimeError, ValueError: as ``checks.conv_transpose1d_shape``, before anything is
            allocated.
    """
    sizes = (stride, padding, output_padding, dilation, groups)
    how = (activation, dot_precision(x.dtype, "conv"), config)
    y, z = launch(_plan, (x, weight, bias), *sizes, save_preactivation, *how)
    return y, z


def _plan(
    target: Target,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    output_padding: int,
    dilation: int,
    groups: int,
    save: bool,
    activation: str | None,
    *settings: Any,
) -> Plan:
    sizes = (stride, padding, output_padding, dilation, groups)
    shape = checks.conv_transpose1d_shape(x, weight, bias, *sizes, activation)
    geometry = Geometry(stride, (padding, padding), dilation, groups)
    y = Buffer.of(shape, x.dtype, layouts.strides_like(shape, x))
    tensors = (x, weight, bias)
    return plan_new(target, tensors, y, geometry, True, activation, *settings, save=save)
