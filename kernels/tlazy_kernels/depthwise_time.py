"""Depthwise conv1d where the samples of a channel lie side by side in memory.

A thread loads whole vectors of samples, takes them apart in its registers and lets each tap meet
the sample that it belongs to: stride, padding and dilation are known to the compiler, so a shifted
tap costs no load of its own. Each sample is read once, and once more where two threads' windows
overlap, which the cache serves. Where rows do not lie at multiples of a vector, vectors are single
samples, and the same code loads each tap's sample.
"""

# Kernels grow tuples of tiles, whose types are other ones then.
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels.activations import activate, activation_grad
from tlazy_kernels.configs import TileConfig, row_piece
from tlazy_kernels.depthwise_backward import (
    BLOCK_K,
    Needs,
    backward_metadata,
    backward_plan,
    fits_one_pass,
    parts_of,
    whole_waves,
)
from tlazy_kernels.launch import Plan, Step, metadata
from tlazy_kernels.targets import Target
from tlazy_kernels.vectors import pack, unpack

# Everything below is unrolled: more taps, or vectors of samples between the first and the last tap,
# would make the code long.
MOST_TAPS = 32
MOST_VECTORS = 64


def _convolve_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    touched = ["x_ptr", "weight_ptr", "y_ptr"]
    touched += ["bias_ptr"] * args["HAS_BIAS"]
    touched += ["preactivation_ptr"] * args["SAVE_PREACTIVATION"]
    outputs = args["x_ptr" if args["FLIPPED"] else "y_ptr"].numel()
    sizes = f"channels={args['channels']} taps={args['TAPS']} stride={args['STRIDE']}"
    return metadata(f"{kernel.name} [{sizes}]", 2 * outputs * args["TAPS"], args, *touched)


@triton.jit
def _rows(base_ptr, batch, channel, stride_n, stride_c, VECTOR: tl.constexpr):
    """Where the channels of a sample start, shape (BLOCK_C, 1, 1); strides are in vectors."""
    return (base_ptr + (batch * stride_n + channel * stride_c) * VECTOR)[:, None, None]


@triton.jit
def _offsets(vector, VECTOR: tl.constexpr):
    """The samples of vectors within their row, shape (1, BLOCK_V, VECTOR)."""
    return (vector[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :])[None, :, :]


@triton.jit
def _taps(weight_ptr, channel, channels, stride_wc, stride_wk, TAPS: tl.constexpr):
    """Each tap of the channels' filters in fp32, shape (BLOCK_C, 1)."""
    taps = ()
    for k in tl.static_range(TAPS):
        place = weight_ptr + channel * stride_wc + tl.cast(k, tl.int64) * stride_wk
        tap = tl.load(place, mask=channel < channels, other=0.0)
        taps += (tap.to(tl.float32)[:, None],)
    return taps


# What changes with the length: strides are in vectors.
_VARYING = ["vectors", "out_vectors", "stride_xn", "stride_xc", "stride_yn", "stride_yc"]
_VARYING_BACK = ["batches", "vectors", "out_vectors", "steps_per_split"]
_VARYING_BACK += [f"stride_{tensor}{axis}" for tensor in "gsxd" for axis in "nc"]


@triton.jit(launch_metadata=_convolve_metadata, do_not_specialize=_VARYING)
def _depthwise_time_kernel(
    x_ptr,  # shape (N, C_in, vectors * VECTOR)
    weight_ptr,  # shape (channels, 1, TAPS)
    bias_ptr,  # shape (channels,); unread unless HAS_BIAS
    y_ptr,  # act(conv + bias), shape (N, channels, out_vectors * VECTOR)
    preactivation_ptr,  # conv + bias, same shape and strides as y; unwritten unless saved
    channels,
    multiplier,  # channels / C_in
    vectors,
    out_vectors,
    stride_xn,  # those of x and y in vectors
    stride_xc,
    stride_wc,
    stride_wk,
    stride_bias,
    stride_yn,
    stride_yc,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,  # zeros to the left; negative where samples are left out
    DILATION: tl.constexpr,
    FLIPPED: tl.constexpr,  # whether the filters are read from their end
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    blocks = tl.cdiv(out_vectors, BLOCK_V)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    tile = tl.program_id(0)
    vector = (tile % blocks).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    channel = (tile // blocks % channel_blocks).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    batch = (tile // blocks // channel_blocks).to(tl.int64)
    there = (channel < channels)[:, None, None]
    w = _taps(weight_ptr, channel, channels, stride_wc, stride_wk, TAPS)
    x_rows = _rows(x_ptr, batch, channel // multiplier, stride_xn, stride_xc, VECTOR)
    sums = ()
    for _ in tl.static_range(VECTOR):
        sums += (tl.zeros((BLOCK_C, BLOCK_V), dtype=tl.float32),)
    # Sample j of an output vector meets tap k at sample j * STRIDE + k * DILATION - PADDING.
    first: tl.constexpr = -PADDING // VECTOR
    last: tl.constexpr = ((VECTOR - 1) * STRIDE + (TAPS - 1) * DILATION - PADDING) // VECTOR
    # Where vectors are single samples, each tap has its own.
    step: tl.constexpr = DILATION if VECTOR == 1 else 1
    for v in tl.static_range(first, last + 1, step):
        source = vector * STRIDE + v
        exists = (source >= 0) & (source < vectors)
        mask = there & exists[None, :, None]
        x = unpack(tl.load(x_rows + _offsets(source, VECTOR), mask=mask, other=0.0))
        updated = ()
        for j in tl.static_range(VECTOR):
            total = sums[j]
            for k in tl.static_range(TAPS):
                if (j * STRIDE + k * DILATION - PADDING) // VECTOR == v:
                    sample = x[(j * STRIDE + k * DILATION - PADDING) % VECTOR].to(tl.float32)
                    tap = w[TAPS - 1 - k] if FLIPPED else w[k]
                    # A choice: an infinite weight times the padding's 0 would be NaN.
                    total = tl.where(exists[None, :], total + sample * tap, total)
            updated += (total,)
        sums = updated
    z = pack(sums)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel * stride_bias, mask=channel < channels, other=0.0)
        z += bias.to(tl.float32)[:, None, None]
    mask = there & (vector < out_vectors)[None, :, None]
    offsets = _offsets(vector, VECTOR)
    if SAVE_PREACTIVATION:
        z_rows = _rows(preactivation_ptr, batch, channel, stride_yn, stride_yc, VECTOR)
        tl.store(z_rows + offsets, z.to(preactivation_ptr.dtype.element_ty), mask=mask)
    y_rows = _rows(y_ptr, batch, channel, stride_yn, stride_yc, VECTOR)
    tl.store(y_rows + offsets, activate(z, ACTIVATION).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(launch_metadata=backward_metadata, do_not_specialize=_VARYING_BACK)
def _depthwise_time_backward_kernel(
    grad_ptr,  # dL/dy, shape (N, channels, out_vectors * VECTOR)
    saved_ptr,  # z or y, same shape; unread where ACTIVATION is None
    x_ptr,  # shape (N, channels, vectors * VECTOR); unread unless NEEDS_WEIGHT
    weight_ptr,  # shape (channels, 1, taps); unread unless NEEDS_X
    grad_x_ptr,  # shape (N, channels, vectors * VECTOR); unwritten unless NEEDS_X
    grad_weight_ptr,  # partial sums or their sum, dense, shape (splits, channels, taps)
    grad_bias_ptr,  # partial sums or their sum, dense, shape (splits, channels)
    batches,
    channels,
    taps,  # TAPS of them in each program; where there are more, for the weight gradient alone
    vectors,
    out_vectors,
    steps_per_split,  # of a sample and a block of vectors each
    stride_gn,  # all but the weight's in vectors
    stride_gc,
    stride_sn,
    stride_sc,
    stride_xn,
    stride_xc,
    stride_wc,
    stride_wk,
    stride_dn,
    stride_dc,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
):
    tap_blocks = tl.cdiv(taps, TAPS)
    tap_block = tl.program_id(0) % tap_blocks
    channel = (tl.program_id(0) // tap_blocks).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    split = tl.program_id(1).to(tl.int64)
    there = (channel < channels)[:, None, None]
    if NEEDS_X:
        w = _taps(weight_ptr, channel, channels, stride_wc, stride_wk, TAPS)
    bias_sum = tl.zeros((BLOCK_C, BLOCK_V), dtype=tl.float32)
    weight_sums = ()
    for _ in tl.static_range(TAPS):
        weight_sums += (tl.zeros((BLOCK_C, BLOCK_V), dtype=tl.float32),)
    LOWEST: tl.constexpr = min((PADDING - (TAPS - 1) * DILATION) // VECTOR, 0)
    HIGHEST: tl.constexpr = max((VECTOR - 1 + PADDING) // VECTOR, 0)
    STEP: tl.constexpr = DILATION if VECTOR == 1 and PADDING % DILATION == 0 else 1
    blocks = tl.cdiv(tl.maximum(vectors, out_vectors), BLOCK_V)
    start = split * steps_per_split
    for step in range(start, tl.minimum(start + steps_per_split, batches * blocks)):
        batch = (step // blocks).to(tl.int64)
        vector = (step % blocks).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
        inside = vector < vectors
        mask = there & inside[None, :, None]
        if NEEDS_WEIGHT:
            x_rows = _rows(x_ptr, batch, channel, stride_xn, stride_xc, VECTOR)
            x = unpack(tl.load(x_rows + _offsets(vector, VECTOR), mask=mask, other=0.0))
        grad_rows = _rows(grad_ptr, batch, channel, stride_gn, stride_gc, VECTOR)
        saved_rows = _rows(saved_ptr, batch, channel, stride_sn, stride_sc, VECTOR)
        x_sums = ()
        for _ in tl.static_range(VECTOR):
            x_sums += (tl.zeros((BLOCK_C, BLOCK_V), dtype=tl.float32),)
        # Sample j of an input vector met tap k for output j + PADDING - k * DILATION. Outputs in
        # the place of the sample itself, v = 0, are there for the bias.
        for v in tl.static_range(LOWEST, HIGHEST + 1, STEP):
            target = vector + v - tap_block * (TAPS * DILATION // VECTOR)
            exists = (target >= 0) & (target < out_vectors)
            offsets = _offsets(target, VECTOR)
            visible = there & exists[None, :, None]
            grad = unpack(tl.load(grad_rows + offsets, mask=visible, other=0.0))
            if ACTIVATION is not None:
                saved = unpack(tl.load(saved_rows + offsets, mask=visible, other=0.0))
            g = ()
            for i in tl.static_range(VECTOR):
                part = grad[i].to(tl.float32)
                if ACTIVATION is not None:
                    part = activation_grad(part, saved[i].to(tl.float32), ACTIVATION)
                g += (part,)
                if NEEDS_BIAS and v == 0:
                    bias_sum += part
            new_weight_sums = ()
            for k in tl.static_range(TAPS):
                partial = weight_sums[k]
                updated = ()
                for j in tl.static_range(VECTOR):
                    total = x_sums[j]
                    if (j + PADDING - k * DILATION) // VECTOR == v:
                        part = g[(j + PADDING - k * DILATION) % VECTOR]
                        # Choices, as in the forward pass: what does not exist is not 0 times it.
                        if NEEDS_X:
                            total = tl.where(exists[None, :], total + part * w[k], total)
                        if NEEDS_WEIGHT:
                            both = (exists & inside)[None, :]
                            product = part * x[j].to(tl.float32)
                            partial = tl.where(both, partial + product, partial)
                    updated += (total,)
                x_sums = updated
                new_weight_sums += (partial,)
            weight_sums = new_weight_sums
        if NEEDS_X:
            x_grads = _rows(grad_x_ptr, batch, channel, stride_dn, stride_dc, VECTOR)
            found = pack(x_sums).to(grad_x_ptr.dtype.element_ty)
            tl.store(x_grads + _offsets(vector, VECTOR), found, mask=mask)
    if NEEDS_WEIGHT:
        for k in tl.static_range(TAPS):
            tap = tap_block * TAPS + k
            place = grad_weight_ptr + (split * channels + channel) * taps + tap
            total = tl.sum(weight_sums[k], axis=1).to(grad_weight_ptr.dtype.element_ty)
            tl.store(place, total, mask=channel < tl.where(tap < taps, channels, 0))
    if NEEDS_BIAS:
        place = grad_bias_ptr + split * channels + channel
        total = tl.sum(bias_sum, axis=1)
        tl.store(place, total.to(grad_bias_ptr.dtype.element_ty), mask=channel < channels)


def time_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    preactivation: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    *,
    flipped: bool,
    activation: str | None,
    config: TileConfig | None,
) -> Step | None:
    """Fill y with the convolution of x, or None where this kernel does not apply.

    The tensors are a plan's first five. `padding` are the zeros to the left; `flipped` reads the
    filters from their end.
    """
    taps = weight.shape[2]
    vector = vector_width(x, y)
    reach = abs(padding) + stride * vector + taps * dilation
    spread = (stride * vector + taps * (1 if vector == 1 else dilation)) // vector
    if not rows_are_dense(x, y) or taps > MOST_TAPS or spread > MOST_VECTORS or reach >= 2**24:
        return None
    batch, channels, out_length = y.shape
    out_vectors = out_length // vector
    tile = config or _time_config(out_vectors, channels, vector)
    blocks = -(-out_vectors // tile.rows) * -(-channels // tile.cols)
    return Step(
        _depthwise_time_kernel,
        (batch * blocks,),
        (0, 1, 0 if bias is None else 2, 3, 3 if preactivation is None else 4),
        (
            channels,
            channels // x.shape[1],
            x.shape[2] // vector,
            out_vectors,
            *row_strides(x, vector),
            weight.stride(0),
            weight.stride(2),
            0 if bias is None else bias.stride(0),
            *row_strides(y, vector),
        ),
        {
            "TAPS": taps,
            "STRIDE": stride,
            "PADDING": padding,
            "DILATION": dilation,
            "FLIPPED": flipped,
            "ACTIVATION": activation,
            "HAS_BIAS": bias is not None,
            "SAVE_PREACTIVATION": preactivation is not None,
            "VECTOR": vector,
            "BLOCK_C": tile.cols,
            "BLOCK_V": tile.rows,
        },
        num_warps=tile.num_warps,
    )


def time_backward(
    target: Target,
    inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    shape: tuple[int, int, int],
    length: int,
    padding: int,
    dilation: int,
    *,
    activation: str | None,
    needs: Needs,
    config: TileConfig | None,
) -> Plan | None:
    """All gradients in one pass, or None where this kernel does not apply; for stride 1.

    The inputs are (grad, saved, x, weight, grad_x); `shape` is the weight's.
    """
    grad, _, _, weight, _ = inputs
    channels, _, taps = shape
    passed = [inputs[i] for i in (0, 1, 2, 4)]
    tensors = [t for t in passed if t is not None]
    vector = vector_width(*tensors)
    spread = (padding + vector + min(taps, BLOCK_K) * dilation) // vector
    if (
        not rows_are_dense(*tensors)
        or not fits_one_pass(taps, needs)
        or spread > MOST_VECTORS
        or taps * dilation + padding >= 2**24
    ):
        return None
    batch, _, out_length = grad.shape
    out_vectors, vectors = out_length // vector, length // vector
    tile = config or _time_config(max(vectors, out_vectors), channels, vector)
    if config is None and (dilation > 1 or vector == 1):
        tile = replace(tile, num_warps=8)  # or what the taps reach would spill
    steps = batch * -(-max(vectors, out_vectors) // tile.rows)
    channel_blocks = -(-channels // tile.cols) * -(-taps // BLOCK_K)
    parts, steps_per_part = parts_of(steps, channel_blocks, whole_waves(target))
    grad_strides, saved_strides, x_strides, grad_x_strides = (
        (0, 0) if t is None else row_strides(t, vector) for t in passed
    )
    weight_strides = (0, 0) if weight is None else (weight.stride(0), weight.stride(2))
    scalars = (batch, channels, taps, vectors, out_vectors, steps_per_part)
    strides = (*grad_strides, *saved_strides, *x_strides, *weight_strides, *grad_x_strides)
    constants = {
        "TAPS": min(taps, BLOCK_K),
        "PADDING": padding,
        "DILATION": dilation,
        "ACTIVATION": activation,
        "VECTOR": vector,
        "BLOCK_C": tile.cols,
        "BLOCK_V": tile.rows,
    }
    return backward_plan(
        _depthwise_time_backward_kernel,
        channel_blocks,
        parts,
        inputs,
        shape,
        (*scalars, *strides),
        constants,
        needs,
        tile.num_warps,
    )


def rows_are_dense(*tensors: Tensor) -> bool:
    return all(x.stride(2) == 1 for x in tensors)


def row_strides(x: Tensor, vector: int) -> tuple[int, int]:
    """Vectors from a sample of the batch to the next, and from a channel to the next."""
    strides = (x.stride(d) // vector if x.shape[d] > 1 else 0 for d in (0, 1))
    return next(strides), next(strides)


def vector_width(*tensors: Tensor) -> int:
    """Samples in a vector: what 16 bytes hold, or less, so that each row is made of vectors."""
    if any(x.data_ptr() % 16 for x in tensors):
        return 1
    sizes = (n for x in tensors for n in (x.shape[2], *row_strides(x, 1)))
    return math.gcd(16 // tensors[0].element_size(), *sizes)


def _time_config(vectors: int, channels: int, vector: int) -> TileConfig:
    """Vectors (rows) and channels (cols) of a tile: 256 vectors, or 1024 single samples."""
    lanes = max(256, 1024 // vector)
    rows = row_piece(vectors, lanes // 2)
    cols = min(lanes // rows, 1 << (channels - 1).bit_length())
    return TileConfig(rows=rows, cols=cols, depth=1)
