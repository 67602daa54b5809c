"""The backward pass of a kernel's epilogue: activation and bias, in one pass over memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels import checks
from tlazy_kernels.activations import activation_grad
from tlazy_kernels.configs import TileConfig, pointwise_config, split_rows
from tlazy_kernels.launch import Buffer, Plan, Step, launch, metadata
from tlazy_kernels.layouts import strides_like
from tlazy_kernels.splits import sum_step
from tlazy_kernels.targets import Target


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
        (g, bias gradient): g has `grad`'s shape and dtype and the memory layout of
        `saved`, and is None where `activation` is None, because it would be `grad` itself; the
        bias gradient has shape (channels,), `grad`'s dtype, and is None unless asked for.

    Raises:
        RuntimeError, ValueError: as ``checks.epilogue_shape``, before anything is allocated.
    """
    g, grad_bias = launch(_plan, (grad, saved), activation, bias, config)
    return g, grad_bias


def _plan(
    target: Target,
    grad: Tensor,
    saved: Tensor | None,
    activation: str | None,
    bias: bool,
    config: TileConfig | None,
) -> Plan:
    outer, channels, inner = checks.epilogue_shape(grad, saved, activation)
    rows = outer * inner
    read = grad if saved is None else saved
    strides = strides_like(grad.shape, read)
    buffers: list[Buffer] = []
    if activation:
        buffers.append(Buffer((outer, channels, inner), grad.dtype, strides))
    if bias:
        buffers.append(Buffer((channels,), grad.dtype))
    g = 0 if activation else None
    sums = len(buffers) - 1 if bias else None
    if channels == 0 or not buffers:
        return Plan(tuple(buffers), (), (g, sums))
    # A wide tile where channels lie side by side; many programs, for their loads wait in turn.
    config = config or pointwise_config(rows, channels, widest=128 if inner == 1 else 32)
    channel_blocks = -(-channels // config.cols)
    programs = 8 * target.processors
    parts, rows_per_part = split_rows(rows, channel_blocks, config.rows, programs)
    partial, first = 2 + len(buffers), 2
    buffers.append(Buffer((parts, channels), torch.float32))
    step = Step(
        _epilogue_backward_kernel,
        (channel_blocks, parts),
        (0, 0 if saved is None else 1, first, partial),
        (rows, inner, channels, rows_per_part, *grad.stride(), *read.stride(), *strides),
        {
            "ACTIVATION": activation,
            "HAS_BIAS": bias,
            "BLOCK_R": config.rows,
            "BLOCK_C": config.cols,
        },
        num_warps=config.num_warps,
    )
    if sums is None:
        return Plan(tuple(buffers), (step,), (g, sums))
    total = sum_step(buffers[-1], (channels,), partial, first + sums, first + sums)
    return Plan(tuple(buffers), (step, total), (g, sums))
