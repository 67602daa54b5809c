"""Linear: y = act(x @ W^T + b) and its gradients, all by one matrix product."""

from __future__ import annotations

from torch import Tensor

from tlazy_kernels import checks
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.environment import dot_precision
from tlazy_kernels.launch import Plan, launch
from tlazy_kernels.matmul import Operand, plan_product
from tlazy_kernels.splits import Epilogue
from tlazy_kernels.targets import Target


def linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    save_preactivation: bool = False,
    *,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y = act(x @ weight.T + bias).

    Args:
        x: shape (M, K), any strides; float32, float16 or bfloat16.
        weight: shape (N, K), any strides, `x`'s dtype.
        bias: shape (N,), `x`'s dtype, or None.
        activation: a name of ``reference.ACTIVATIONS``, or None.
        save_preactivation: also give z, for the backward pass of those in NEEDS_PREACTIVATION.
        config: tile; by default from the sizes.

    Returns:
        (y, z): both of shape (M, N) and `x`'s dtype, accumulated in fp32; z is None unless asked
        for.

    Raises:
        RuntimeError, ValueError: as ``checks.linear_shape``, before anything is allocated.
    """
    precision = dot_precision(x.dtype, "matmul")
    inputs = (x, weight, bias)
    y, z = launch(_plan_forward, inputs, activation, save_preactivation, precision, config)
    return y, z


def linear_grad_input(grad: Tensor, weight: Tensor, *, config: TileConfig | None = None) -> Tensor:
    """dL/dx = g @ weight.

    Args:
        grad: g = dL/dz, shape (M, N), any strides.
        weight: shape (N, K), `grad`'s dtype.
        config: tile; by default from the sizes.

    Returns:
        shape (M, K), `grad`'s dtype.

    Raises:
        RuntimeError: as ``checks.linear_grad_input_shape``, before anything is allocated.
    """
    precision = dot_precision(grad.dtype, "matmul")
    return launch(_plan_grad_input, (grad, weight), precision, config)[0]


def linear_grad_weight(grad: Tensor, x: Tensor, *, config: TileConfig | None = None) -> Tensor:
    """dL/dweight = g^T @ x, summed over the rows in splits whose order is fixed.

    Args:
        grad: g = dL/dz, shape (M, N), any strides.
        x: shape (M, K), `grad`'s dtype.
        config: tile; by default from the sizes.

    Returns:
        shape (N, K), `grad`'s dtype.

    Raises:
        RuntimeError: as ``checks.linear_grad_weight_shape``, before anything is allocated.
    """
    precision = dot_precision(grad.dtype, "matmul")
    return launch(_plan_grad_weight, (grad, x), precision, config)[0]


def _plan_forward(
    target: Target,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    save_preactivation: bool,
    precision: str,
    config: TileConfig | None,
) -> Plan:
    checks.linear_shape(x, weight, bias, activation)
    a, b = Operand.of(0, x), Operand.of(1, weight).t
    epilogue = Epilogue(None, 0, activation, save_preactivation)
    if bias is not None:
        epilogue = epilogue._replace(bias=2, bias_stride=bias.stride(0))
    return plan_product(target, "linear_forward", a, b, precision, 3, epilogue, config)


def _plan_grad_input(
    target: Target, grad: Tensor, weight: Tensor, precision: str, config: TileConfig | None
) -> Plan:
    checks.linear_grad_input_shape(grad, weight)
    a, b = Operand.of(0, grad), Operand.of(1, weight)
    return plan_product(target, "linear_grad_input", a, b, precision, 2, config=config)


def _plan_grad_weight(
    target: Target, grad: Tensor, x: Tensor, precision: str, config: TileConfig | None
) -> Plan:
    checks.linear_grad_weight_shape(grad, x)
    a, b = Operand.of(0, grad).t, Operand.of(1, x)
    return plan_product(target, "linear_grad_weight", a, b, precision, 2, config=config)
