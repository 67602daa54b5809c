"""Direct conv1d of one to four input channels, such as raw audio: bound by writing the outputs.

Channels and taps together are so few that one product contracts over all of them. A program
gathers the samples of a block of positions once, and then writes that block for one filter after
another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels import configs
from tlazy_kernels.activations import activate
from tlazy_kernels.configs import split_rows
from tlazy_kernels.copy_cost import FEW_CHANNELS
from tlazy_kernels.launch import Buffer, Plan, Step, metadata
from tlazy_kernels.positions import Geometry
from tlazy_kernels.splits import sum_step
from tlazy_kernels.units import element, strides_of, units

MOST_TERMS = 64  # channels * taps
LEAST_FILTERS = 16
BLOCK_F = 64
BLOCK_L = 128


def _forward_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    touched = ["x_ptr", "weight_ptr", "y_ptr"]
    touched += ["bias_ptr"] * args["HAS_BIAS"]
    touched += ["preactivation_ptr"] * args["SAVE_PREACTIVATION"]
    flops = 2 * args["y_ptr"].numel() * args["terms"]
    return metadata(f"{kernel.name} [{_sizes(args)}]", flops, args, *touched)


def _sizes(args: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={args[name]}" for name in ("filters", "terms", "stride"))


@triton.jit
def _patches(
    x_ptr,
    batch,
    position,
    out_length,
    length,
    terms,
    taps,
    stride,
    padding,
    dilation,
    stride_xn,
    stride_xc,
    stride_xl,
    BLOCK_T: tl.constexpr,
):
    """The samples that each output position reads, zeros for padding: shape (BLOCK_T, BLOCK_L).

    Term t stands for tap t % taps of input channel t // taps.
    """
    term = tl.arange(0, BLOCK_T).to(tl.int64)
    source = (term % taps * dilation)[:, None] + (position * stride - padding)[None, :]
    exists = (source >= 0) & (source < length)
    mask = exists & (term < terms)[:, None] & (position < out_length)[None, :]
    row = x_ptr + batch * stride_xn
    places = (term // taps * stride_xc)[:, None] + source * stride_xl
    return tl.load(row + places, mask=mask, other=0.0)


# What changes with the length; samples are loaded one by one, wherever they lie.
_VARYING = ["batches", "length", "steps_per_part", "stride_xn", "stride_xc"]


@triton.jit(
    launch_metadata=_forward_metadata,
    do_not_specialize=_VARYING,
    do_not_specialize_on_alignment=["out_length", "stride_yn", "stride_yf", "stride_yl"],
)
def _first_layer_kernel(
    x_ptr,  # shape (N, C, length)
    weight_ptr,  # shape (filters, C, taps)
    bias_ptr,  # shape (filters,); unread unless HAS_BIAS
    y_ptr,  # act(conv + bias), shape (N, filters, out_length)
    preactivation_ptr,  # conv + bias, same shape and strides as y; unwritten unless saved
    length,
    out_length,
    filters,
    filters_per_program,  # a multiple of BLOCK_F
    terms,  # C * taps
    taps,
    stride,
    padding,
    dilation,
    stride_xn,
    stride_xc,
    stride_xl,
    stride_wf,
    stride_wc,
    stride_wk,
    stride_bias,
    stride_yn,
    stride_yf,
    stride_yl,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    C_UNIT: tl.constexpr,  # of y, both as in units.py
    L_UNIT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    out_length = out_length // L_UNIT * L_UNIT
    filters = filters // C_UNIT * C_UNIT
    blocks = tl.cdiv(out_length, BLOCK_L)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    position = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    patches = _patches(
        x_ptr,
        batch,
        position,
        out_length,
        length,
        terms,
        taps,
        stride,
        padding,
        dilation,
        stride_xn,
        stride_xc,
        stride_xl,
        BLOCK_T,
    )
    term = tl.arange(0, BLOCK_T).to(tl.int64)
    weight_terms = (term // taps * stride_wc + term % taps * stride_wk)[None, :]
    first = tl.program_id(1) * filters_per_program
    for start in range(first, tl.minimum(first + filters_per_program, filters), BLOCK_F):
        f = start + tl.arange(0, BLOCK_F).to(tl.int64)
        weight = tl.load(
            weight_ptr + (f * stride_wf)[:, None] + weight_terms,
            mask=(f < filters)[:, None] & (term < terms)[None, :],
            other=0.0,
        )
        z = tl.dot(weight, patches, input_precision=PRECISION)
        if HAS_BIAS:
            bias = tl.load(bias_ptr + f * stride_bias, mask=f < filters, other=0.0)
            z += bias.to(tl.float32)[:, None]
        place = element(
            batch, f[:, None], position[None, :], stride_yn, stride_yf, stride_yl, C_UNIT, L_UNIT
        )
        mask = (f < filters)[:, None] & (position < out_length)[None, :]
        if SAVE_PREACTIVATION:
            kept = z.to(preactivation_ptr.dtype.element_ty)
            tl.store(preactivation_ptr + place, kept, mask=mask)
        y = activate(z, ACTIVATION).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + place, y, mask=mask)


def _grad_weight_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    flops = 2 * args["grad_ptr"].numel() * args["terms"]
    name = f"{kernel.name} [{_sizes(args)}]"
    return metadata(name, flops, args, "grad_ptr", "x_ptr", "out_ptr")


@triton.jit(
    launch_metadata=_grad_weight_metadata,
    do_not_specialize=_VARYING,
    do_not_specialize_on_alignment=["out_length", "stride_gn", "stride_gf", "stride_gl"],
)
def _first_layer_grad_weight_kernel(
    grad_ptr,  # g = dL/dz, shape (N, filters, out_length)
    x_ptr,  # shape (N, C, length)
    out_ptr,  # partial sums, or their sum, shape (parts, filters, terms)
    batches,
    length,
    out_length,
    filters,
    terms,  # C * taps
    taps,
    stride,
    padding,
    dilation,
    steps_per_part,  # of a series and a block of positions each
    stride_gn,
    stride_gf,
    stride_gl,
    stride_xn,
    stride_xc,
    stride_xl,
    PRECISION: tl.constexpr,
    C_UNIT: tl.constexpr,  # of the gradient, both as in units.py
    L_UNIT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    out_length = out_length // L_UNIT * L_UNIT
    filters = filters // C_UNIT * C_UNIT
    blocks = tl.cdiv(out_length, BLOCK_L)
    f = tl.program_id(0).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    first = tl.program_id(1) * steps_per_part
    acc = tl.zeros((BLOCK_F, BLOCK_T), dtype=tl.float32)
    for step in range(first, tl.minimum(first + steps_per_part, batches * blocks)):
        batch = (step // blocks).to(tl.int64)
        position = (step % blocks).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
        place = element(
            batch, f[:, None], position[None, :], stride_gn, stride_gf, stride_gl, C_UNIT, L_UNIT
        )
        grad = tl.load(
            grad_ptr + place,
            mask=(f < filters)[:, None] & (position < out_length)[None, :],
            other=0.0,
        )
        patches = _patches(
            x_ptr,
            batch,
            position,
            out_length,
            length,
            terms,
            taps,
            stride,
            padding,
            dilation,
            stride_xn,
            stride_xc,
            stride_xl,
            BLOCK_T,
        )
        acc = tl.dot(grad, tl.trans(patches), acc, input_precision=PRECISION)
    term = tl.arange(0, BLOCK_T)
    row = tl.program_id(1).to(tl.int64) * filters + f
    tl.store(
        out_ptr + row[:, None] * terms + term[None, :],
        acc.to(out_ptr.dtype.element_ty),
        mask=(f < filters)[:, None] & (term < terms)[None, :],
    )


def first_layer_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    preactivation: Tensor | None,
    geometry: Geometry,
    *,
    activation: str | None,
    precision: str,
) -> Step | None:
    """Fill y with the convolution of x, or None where this kernel does not serve.

    The tensors are a plan's first five.
    """
    filters, channels, taps = weight.shape
    if not _serves(filters, channels, taps, geometry):
        return None
    stride, (padding, _), dilation, _ = geometry
    batch, _, out_length = y.shape
    block_l = BLOCK_L if x.element_size() == 2 else BLOCK_L // 2
    tiles = batch * -(-out_length // block_l)
    # Programs share a block of positions only where there are too few of those.
    filter_blocks = -(-filters // BLOCK_F)
    shares = min(filter_blocks, max(1, 4 * configs.TARGET_PROGRAMS // tiles))
    blocks_per_program = -(-filter_blocks // shares)
    return Step(
        _first_layer_kernel,
        (tiles, -(-filter_blocks // blocks_per_program)),
        (0, 1, 0 if bias is None else 2, 3, 3 if preactivation is None else 4),
        (
            x.shape[2],
            out_length,
            filters,
            blocks_per_program * BLOCK_F,
            channels * taps,
            taps,
            stride,
            padding,
            dilation,
            *x.stride(),
            *weight.stride(),
            0 if bias is None else bias.stride(0),
            *strides_of(y),
        ),
        {
            "ACTIVATION": activation,
            "HAS_BIAS": bias is not None,
            "SAVE_PREACTIVATION": preactivation is not None,
            "PRECISION": precision,
            **units(filters, out_length, y.element_size(), strides_of(y)),
            "BLOCK_T": _padded(channels * taps),
            "BLOCK_F": BLOCK_F,
            "BLOCK_L": block_l,
        },
        num_warps=4,
        num_stages=1,
    )


def first_layer_grad_weight(
    grad: Tensor,
    x: Tensor,
    shape: tuple[int, int, int],
    geometry: Geometry,
    *,
    precision: str,
) -> Plan | None:
    """The weight gradient of `shape` (F, C, K), or None where this kernel does not serve."""
    filters, channels, taps = shape
    if not _serves(filters, channels, taps, geometry):
        return None
    stride, (padding, _), dilation, _ = geometry
    batch, _, out_length = grad.shape
    block_l = BLOCK_L // 2
    steps = batch * -(-out_length // block_l)
    filter_blocks = -(-filters // BLOCK_F)
    parts, steps_per_part = split_rows(steps, -(-filter_blocks // 2), 1)
    partial = Buffer.of((parts, *shape), torch.float32)
    step = Step(
        _first_layer_grad_weight_kernel,
        (filter_blocks, parts),
        (0, 1, 3 if parts > 1 else 2),
        (
            batch,
            x.shape[2],
            out_length,
            filters,
            channels * taps,
            taps,
            stride,
            padding,
            dilation,
            steps_per_part,
            *strides_of(grad),
            *x.stride(),
        ),
        {
            "PRECISION": precision,
            **units(filters, out_length, grad.element_size(), strides_of(grad)),
            "BLOCK_T": _padded(channels * taps),
            "BLOCK_F": BLOCK_F,
            "BLOCK_L": block_l,
        },
        num_warps=4,
        num_stages=3,
    )
    out = Buffer.of(shape, grad.dtype)
    if parts == 1:
        return Plan((out,), (step,), (0,))
    return Plan((out, partial), (step, sum_step(partial, shape, 3, 2, 2)), (0,))


def _serves(filters: int, channels: int, taps: int, geometry: Geometry) -> bool:
    return (
        geometry.groups == 1
        and 1 <= channels <= FEW_CHANNELS
        and channels * taps <= MOST_TERMS
        and filters >= LEAST_FILTERS
    )


def _padded(terms: int) -> int:
    """The contraction's length in a product: a power of two, which dots need at least 16 of."""
    return max(16, 1 << (terms - 1).bit_length())
