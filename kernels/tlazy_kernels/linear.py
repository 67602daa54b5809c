"""Linear: y = act(x @ W^T + b) and its gradients, all by one tiled matrix product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels import checks
from tlazy_kernels.activations import activate
from tlazy_kernels.configs import TileConfig, dot_config, split_rows
from tlazy_kernels.launch import check_device, dot_precision, metadata, sum_splits


def _matmul_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    touched = ["a_ptr", "b_ptr", "out_ptr"]
    touched += ["bias_ptr"] * args["HAS_BIAS"]
    touched += ["preactivation_ptr"] * args["SAVE_PREACTIVATION"]
    M, N, K = (args[size] for size in "MNK")
    return metadata(f"{kernel.name} [M={M} N={N} K={K}]", 2 * M * N * K, args, *touched)


@triton.jit(launch_metadata=_matmul_metadata)
def _matmul_kernel(
    a_ptr,  # shape (M, K)
    b_ptr,  # shape (K, N)
    bias_ptr,  # shape (N,); unread unless HAS_BIAS
    out_ptr,  # act(A @ B + bias), shape (splits, M, N); without a split, splits is 1
    preactivation_ptr,  # A @ B + bias, shape (M, N); unwritten unless SAVE_PREACTIVATION
    M,
    N,
    K,
    k_per_split,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    stride_bias,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    column_blocks = tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0)
    split = tl.program_id(1).to(tl.int64)
    m = (tile // column_blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tile % column_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = split * k_per_split
    last = tl.minimum(first + k_per_split, K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        a = tl.load(
            a_ptr + m[:, None] * stride_am + k[None, :] * stride_ak,
            mask=(m < M)[:, None] & (k < last)[None, :],
            other=0.0,
        )
        b = tl.load(
            b_ptr + k[:, None] * stride_bk + n[None, :] * stride_bn,
            mask=(k < last)[:, None] & (n < N)[None, :],
            other=0.0,
        )
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n * stride_bias, mask=n < N, other=0.0).to(tl.float32)[None, :]
    target = (split * M + m)[:, None] * N + n[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    if SAVE_PREACTIVATION:
        tl.store(preactivation_ptr + target, acc.to(preactivation_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptr + target, activate(acc, ACTIVATION).to(out_ptr.dtype.element_ty), mask=mask)


def linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    save_preactivation: bool = False,
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
    shape = checks.linear_shape(x, weight, bias, activation)
    check_device(x)
    y = torch.empty(shape, dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if save_preactivation else None
    _matmul(x, weight.t(), y, bias=bias, activation=activation, preactivation=z, config=config)
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
    shape = checks.linear_grad_input_shape(grad, weight)
    check_device(grad)
    out = grad.new_empty(shape)
    _matmul(grad, weight, out, config=config)
    return out


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
    n, k = checks.linear_grad_weight_shape(grad, x)
    check_device(grad)
    rows = grad.shape[0]
    config = config or dot_config(n, k, rows, grad.element_size())
    tiles = triton.cdiv(n, config.rows) * triton.cdiv(k, config.cols)
    splits, per_split = split_rows(rows, tiles, config.depth)
    out = grad.new_empty((splits, n, k), dtype=grad.dtype if splits == 1 else torch.float32)
    _matmul(grad.t(), x, out, k_per_split=per_split, config=config)
    return sum_splits(out, grad.dtype)


def _matmul(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    preactivation: Tensor | None = None,
    k_per_split: int | None = None,
    config: TileConfig | None = None,
) -> None:
    """Write act(a @ b + bias) into `out` (M, N), or a part of the sum into each (splits, M, N)."""
    (m, k), n = a.shape, b.shape[1]
    if out.numel() == 0:
        return
    config = config or dot_config(m, n, k, a.element_size())
    grid = (
        triton.cdiv(m, config.rows) * triton.cdiv(n, config.cols),
        out.shape[0] if out.dim() == 3 else 1,
    )
    with torch.cuda.device_of(a):
        _matmul_kernel[grid](
            a,
            b,
            a if bias is None else bias,
            out,
            out if preactivation is None else preactivation,
            m,
            n,
            k,
            k if k_per_split is None else k_per_split,
            *a.stride(),
            *b.stride(),
            0 if bias is None else bias.stride(0),
            ACTIVATION=activation,
            HAS_BIAS=bias is not None,
            SAVE_PREACTIVATION=preactivation is not None,
            PRECISION=dot_precision(a.dtype, "matmul"),
            BLOCK_M=config.rows,
            BLOCK_N=config.cols,
            BLOCK_K=config.depth,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
