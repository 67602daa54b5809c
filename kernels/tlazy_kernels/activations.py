"""Each fused activation and its derivative, once; and the backward pass of a kernel's epilogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels import checks
from tlazy_kernels.configs import TileConfig, pointwise_config, split_rows
from tlazy_kernels.launch import check_device, metadata, sum_splits


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """y = act(z), elementwise in fp32. NaN goes through, as in ATen."""
    if ACTIVATION == "relu":
        y = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "gelu":
        y = z * _normal_cdf(z)
    elif ACTIVATION == "gelu_tanh":
        y = z * _gelu_tanh_gate(z)
    elif ACTIVATION == "silu":
        y = z * tl.sigmoid(z)
    elif ACTIVATION == "sigmoid":
        y = tl.sigmoid(z)
    elif ACTIVATION == "tanh":
        y = _tanh(z)
    else:
        y = z
    return y


@triton.jit
def activation_grad(grad, saved, ACTIVATION: tl.constexpr):
    """grad * act'(z) in fp32; `saved` is z for those in NEEDS_PREACTIVATION, y for the rest."""
    if ACTIVATION == "relu":
        g = tl.where(saved <= 0, 0.0, grad)  # a choice, not a product: 0 * inf would be NaN
    elif ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * saved * saved)  # 1 / sqrt(2 pi)
        g = grad * (_normal_cdf(saved) + saved * density)
    elif ACTIVATION == "gelu_tanh":
        gate = _gelu_tanh_gate(saved)
        inner = 1.5957691216057308 * (1.0 + 0.134145 * saved * saved)  # 2 sqrt(2 / pi)
        g = grad * (gate + saved * gate * (1.0 - gate) * inner)
    elif ACTIVATION == "silu":
        gate = tl.sigmoid(saved)
        g = grad * gate * (1.0 + saved * (1.0 - gate))
    elif ACTIVATION == "sigmoid":
        g = grad * saved * (1.0 - saved)
    else:
        tl.static_assert(ACTIVATION == "tanh", "no such activation")
        g = grad * (1.0 - saved * saved)
    return g


@triton.jit
def _normal_cdf(z):
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def _gelu_tanh_gate(z):
    """0.5 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))), written as a sigmoid."""
    return tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))


@triton.jit
def _tanh(z):
    shrunk = tl.exp(-2.0 * tl.abs(z))
    size = (1.0 - shrunk) / (1.0 + shrunk)
    large = tl.where(z < 0, -size, size)
    # Near 0 that difference cancels; the Taylor series to z^9 is exact to fp32 up to 0.25.
    s = z * z
    series = 1.0 + s * (
        -0.3333333333333333
        + s * (0.13333333333333333 + s * (-0.05396825396825397 + s * 0.021869488536155203))
    )
    return tl.where(tl.abs(z) < 0.25, z * series, large)


def _epilogue_backward_metadata(
    grid: tuple, kernel: Any, args: Mapping[str, Any]
) -> dict[str, Any]:
    touched = ["grad_ptr"]
    touched += ["saved_ptr", "out_ptr"] * (args["ACTIVATION"] is not None)
    touched += ["partial_ptr"] * args["HAS_BIAS"]
    sizes = f"rows={args['rows']} channels={args['channels']}"
    return metadata(f"{kernel.name} [{sizes}]", 0, args, *touched)


@triton.jit(launch_metadata=_epilogue_backward_metadata)
def _epilogue_backward_kernel(
    grad_ptr,  # dL/dy, shape (outer, channels, inner)
    saved_ptr,  # z or y, same shape; unread where ACTIVATION is None
    out_ptr,  # dL/dz, same shape; unwritten where ACTIVATION is None
    partial_ptr,  # bias gradient's partial sums, fp32, shape (splits, channels)
    rows,  # outer * inner
    inner,
    channels,
    rows_per_split,
    stride_go,
    stride_gc,
    stride_gi,
    stride_so,
    stride_sc,
    stride_si,
    stride_oo,
    stride_oc,
    stride_oi,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channel_block = tl.program_id(0)
    split = tl.program_id(1).to(tl.int64)
    channel = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)
    channel64 = channel.to(tl.int64)[None, :]
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, rows)
    total = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for start in range(first, last, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R).to(tl.int64)
        outer = (row // inner)[:, None]
        within = (row % inner)[:, None]
        mask = (row < last)[:, None] & (channel < channels)[None, :]
        grad = tl.load(
            grad_ptr + outer * stride_go + channel64 * stride_gc + within * stride_gi,
            mask=mask,
            other=0.0,
        ).to(tl.float32)
        if ACTIVATION is not None:
            saved = tl.load(
                saved_ptr + outer * stride_so + channel64 * stride_sc + within * stride_si,
                mask=mask,
                other=0.0,
            ).to(tl.float32)
            grad = activation_grad(grad, saved, ACTIVATION)
            tl.store(
                out_ptr + outer * stride_oo + channel64 * stride_oc + within * stride_oi,
                grad.to(out_ptr.dtype.element_ty),
                mask=mask,
            )
        if HAS_BIAS:
            total += tl.sum(tl.where(mask, grad, 0.0), axis=0)
    if HAS_BIAS:
        tl.store(partial_ptr + split * channels + channel, total, mask=channel < channels)


def epilogue_backward(
    grad: Tensor,
    saved: Tensor | None,
    activation: str | None,
    *,
    bias: bool,
    config: TileConfig | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """One pass for g = grad * act'(z) and the bias gradient, the sum of g over all but channels.

    Args:
        grad: dL/dy, shape (outer, channels, inner), any strides.
        saved: z for an activation in NEEDS_PREACTIVATION, else y, of `grad`'s shape; None where
            `activation` is None.
        activation: a name of ``reference.ACTIVATIONS``, or None.
        bias: whether to compute the bias gradient.
        config: tile; by default from the sizes.

    Returns:
        (g, bias gradient): g has `grad`'s shape and dtype, contiguous, and is None where
        `activation` is None, because it would be `grad` itself; the bias gradient has shape
        (channels,), `grad`'s dtype, and is None unless asked for.

    Raises:
        RuntimeError, ValueError: as ``checks.epilogue_shape``, before anything is allocated.
    """
    outer, channels, inner = checks.epilogue_shape(grad, saved, activation)
    check_device(grad)
    rows = outer * inner
    g = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device) if activation else None
    if grad.numel() == 0:
        return g, grad.new_zeros(channels) if bias else None
    config = config or pointwise_config(rows, channels)
    channel_blocks = triton.cdiv(channels, config.cols)
    splits, rows_per_split = split_rows(rows, channel_blocks, config.rows)
    partials = grad.new_empty((splits, channels), dtype=torch.float32) if bias else grad
    read, written = (saved, g) if g is not None and saved is not None else (grad, grad)
    with torch.cuda.device_of(grad):
        _epilogue_backward_kernel[(channel_blocks, splits)](
            grad,
            read,
            written,
            partials,
            rows,
            inner,
            channels,
            rows_per_split,
            *grad.stride(),
            *read.stride(),
            *written.stride(),
            ACTIVATION=activation,
            HAS_BIAS=bias,
            BLOCK_R=config.rows,
            BLOCK_C=config.cols,
            num_warps=config.num_warps,
        )
    return g, sum_splits(partials, grad.dtype) if bias else None
