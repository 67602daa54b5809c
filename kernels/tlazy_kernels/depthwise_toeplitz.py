"""Depthwise conv1d of long filters as matrix products, where samples lie side by side in memory.

A block of 64 outputs of one channel is the product of the samples that it reads, a row, with a
matrix whose columns are the filter, each shifted by one more sample (Toeplitz). All blocks of the
channel, in all samples of the batch, share the matrix. The windows of neighbouring blocks overlap;
they start at a multiple of a vector, and what remains of the shift is part of the matrix.

The matrix is mostly zeros, and zero times an infinite or NaN sample is NaN where the filter does
not reach. A program that finds NaN among its results computes them again tap by tap.
"""

# Kernels grow tuples of tiles, whose types are other ones then.
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels.activations import activate
from tlazy_kernels.configs import HALVES_TAKE_TURNS
from tlazy_kernels.depthwise_backward import parts_of
from tlazy_kernels.depthwise_time import row_strides, rows_are_dense, vector_width
from tlazy_kernels.launch import Buffer, Plan, Step, metadata
from tlazy_kernels.splits import sum_step
from tlazy_kernels.targets import Target

# Outputs in a block, blocks in a tile, and blocks of samples that a block of outputs may read.
BLOCK = 64
MOST_CHUNKS = 4


def _convolve_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    touched = ["x_ptr", "weight_ptr", "y_ptr"]
    touched += ["bias_ptr"] * args["HAS_BIAS"]
    touched += ["preactivation_ptr"] * args["SAVE_PREACTIVATION"]
    outputs = args["x_ptr" if args["FLIPPED"] else "y_ptr"].numel()
    return metadata(
        f"{kernel.name} [taps={args['TAPS']}]", 2 * outputs * args["TAPS"], args, *touched
    )


@triton.jit
def _place(block, blocks):
    """The sample of the batch of each block, and its place there, in int64. They are divided as
    wide as they come: a 64-bit division may be a call, and 2**31 blocks are 256 GiB a channel."""
    batch = block // blocks
    return batch.to(tl.int64), (block % blocks).to(tl.int64)


@triton.jit
def _window(
    row_ptr,
    block,
    chunk,
    vectors,
    stride_n,
    blocks,
    rows,
    FIRST: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The samples that blocks read, those from FIRST + chunk * BLOCK on: shape (rows, BLOCK)."""
    batch, place = _place(block, blocks)
    start = place * (BLOCK // VECTOR) + (FIRST + chunk * BLOCK) // VECTOR
    source = (start * VECTOR)[:, None] + tl.arange(0, BLOCK)[None, :]
    exists = (source >= 0) & (source < vectors * VECTOR) & (block < rows)[:, None]
    places = row_ptr + (batch * stride_n * VECTOR)[:, None] + source
    return tl.load(places, mask=exists, other=0.0)


@triton.jit
def _by_taps(
    x_row,
    weight_row,
    block,
    vectors,
    stride_xn,
    stride_wk,
    blocks,
    rows,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    FLIPPED: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The convolution of blocks without the matrix: what does not exist stays out of the sum."""
    acc = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    batch, place = _place(block, blocks)
    position = (place * BLOCK)[:, None] + tl.arange(0, BLOCK)[None, :]
    x_rows = x_row + (batch * stride_xn * VECTOR)[:, None]
    for k in range(TAPS):
        source = position + k * DILATION - PADDING
        exists = (source >= 0) & (source < vectors * VECTOR) & (block < rows)[:, None]
        x = tl.load(x_rows + source, mask=exists, other=0.0)
        tap = TAPS - 1 - k if FLIPPED else k
        w = tl.load(weight_row + tl.cast(tap, tl.int64) * stride_wk).to(tl.float32)
        acc = tl.where(exists, acc + x.to(tl.float32) * w, acc)
    return acc


@triton.jit
def _finish(
    acc,
    y_row,
    z_row,
    bias,
    block,
    out_vectors,
    stride_yn,
    blocks,
    rows,
    ACTIVATION: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    batch, place = _place(block, blocks)
    position = (place * (BLOCK // VECTOR) * VECTOR)[:, None] + tl.arange(0, BLOCK)[None, :]
    mask = (position < out_vectors * VECTOR) & (block < rows)[:, None]
    offset = (batch * stride_yn * VECTOR)[:, None] + position
    z = acc + bias
    if SAVE_PREACTIVATION:
        tl.store(z_row + offset, z.to(z_row.dtype.element_ty), mask=mask)
    tl.store(y_row + offset, activate(z, ACTIVATION).to(y_row.dtype.element_ty), mask=mask)


# What changes with the length: strides are in vectors.
_VARYING = ["rows", "blocks", "vectors", "out_vectors", "steps_per_part"]
_VARYING += [f"stride_{tensor}{axis}" for tensor in "gxy" for axis in "nc"]


@triton.jit(launch_metadata=_convolve_metadata, do_not_specialize=_VARYING)
def _depthwise_toeplitz_kernel(
    x_ptr,  # shape (N, C_in, vectors * VECTOR)
    weight_ptr,  # shape (channels, 1, TAPS)
    bias_ptr,  # shape (channels,); unread unless HAS_BIAS
    y_ptr,  # act(conv + bias), shape (N, channels, out_vectors * VECTOR)
    preactivation_ptr,  # conv + bias, same shape and strides as y; unwritten unless saved
    rows,  # N * blocks
    blocks,  # of outputs in a series
    multiplier,  # channels / C_in
    vectors,
    out_vectors,
    steps_per_part,  # of BLOCK rows
    stride_xn,  # those of x and y in vectors
    stride_xc,
    stride_wc,
    stride_wk,
    stride_bias,
    stride_yn,
    stride_yc,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    FLIPPED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,  # blocks of samples that a block of outputs reads
    BLOCK: tl.constexpr,
):
    channel = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + channel // multiplier * stride_xc * VECTOR
    y_row = y_ptr + channel * stride_yc * VECTOR
    z_row = preactivation_ptr + channel * stride_yc * VECTOR
    weight_row = weight_ptr + channel * stride_wc
    # Windows start at a vector; output j meets tap k at sample j + REST + k * DILATION of its own.
    FIRST: tl.constexpr = -PADDING // VECTOR * VECTOR
    REST: tl.constexpr = -PADDING % VECTOR
    matrices = ()
    for chunk in tl.static_range(CHUNKS):
        sample = chunk * BLOCK + tl.arange(0, BLOCK)[:, None]
        lag = sample - REST - tl.arange(0, BLOCK)[None, :]
        tap = TAPS - 1 - lag // DILATION if FLIPPED else lag // DILATION
        mask = (lag >= 0) & (lag % DILATION == 0) & (lag // DILATION < TAPS)
        place = weight_row + tap.to(tl.int64) * stride_wk
        matrices += (tl.load(place, mask=mask, other=0.0),)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel * stride_bias).to(tl.float32)
    start = tl.program_id(1) * steps_per_part * BLOCK
    stop = tl.minimum(start + steps_per_part * BLOCK, rows)
    suspicious = tl.zeros((BLOCK,), dtype=tl.int32)
    for row in range(start, stop, BLOCK):
        block = row + tl.arange(0, BLOCK)
        acc = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for chunk in tl.static_range(CHUNKS):
            x = _window(x_row, block, chunk, vectors, stride_xn, blocks, rows, FIRST, VECTOR, BLOCK)
            acc = tl.dot(x, matrices[chunk], acc)
        suspicious |= tl.max((acc != acc).to(tl.int32), axis=1)
        _finish(
            acc,
            y_row,
            z_row,
            bias,
            block,
            out_vectors,
            stride_yn,
            blocks,
            rows,
            ACTIVATION,
            SAVE_PREACTIVATION,
            VECTOR,
            BLOCK,
        )
    if tl.max(suspicious, axis=0) > 0:
        for row in range(start, stop, BLOCK):
            # Divided in 64 bits: in 32 the products' loop above would spill.
            block = (row + tl.arange(0, BLOCK)).to(tl.int64)
            acc = _by_taps(
                x_row,
                weight_row,
                block,
                vectors,
                stride_xn,
                stride_wk,
                blocks,
                rows,
                TAPS,
                PADDING,
                DILATION,
                FLIPPED,
                VECTOR,
                BLOCK,
            )
            _finish(
                acc,
                y_row,
                z_row,
                bias,
                block,
                out_vectors,
                stride_yn,
                blocks,
                rows,
                ACTIVATION,
                SAVE_PREACTIVATION,
                VECTOR,
                BLOCK,
            )


def _grad_weight_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    flops = 2 * args["grad_ptr"].numel() * args["TAPS"]
    name = f"{kernel.name} [taps={args['TAPS']}]"
    return metadata(name, flops, args, "grad_ptr", "x_ptr", "out_ptr")


@triton.jit(launch_metadata=_grad_weight_metadata, do_not_specialize=_VARYING)
def _depthwise_toeplitz_grad_weight_kernel(
    grad_ptr,  # g = dL/dz, shape (N, channels, out_vectors * VECTOR)
    x_ptr,  # shape (N, C_in, vectors * VECTOR)
    out_ptr,  # partial sums, or their sum, shape (parts, channels, TAPS)
    rows,  # N * blocks
    blocks,  # of outputs in a series
    channels,
    multiplier,  # channels / C_in
    vectors,
    out_vectors,
    steps_per_part,  # of BLOCK rows
    stride_gn,  # in vectors
    stride_gc,
    stride_xn,
    stride_xc,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,  # at least TAPS
):
    """Products of all outputs with all samples of their windows; then the sums along diagonals."""
    channel = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    x_row = x_ptr + channel // multiplier * stride_xc * VECTOR
    grad_row = grad_ptr + channel * stride_gc * VECTOR
    FIRST: tl.constexpr = -PADDING // VECTOR * VECTOR
    REST: tl.constexpr = -PADDING % VECTOR
    sums = ()
    for _ in tl.static_range(CHUNKS):
        sums += (tl.zeros((BLOCK, BLOCK), dtype=tl.float32),)
    start = tl.program_id(1) * steps_per_part * BLOCK
    stop = tl.minimum(start + steps_per_part * BLOCK, rows)
    for row in range(start, stop, BLOCK):
        # Divided in 64 bits: in 32 the sums would spill on Blackwell.
        block = (row + tl.arange(0, BLOCK)).to(tl.int64)
        grad = _window(grad_row, block, 0, out_vectors, stride_gn, blocks, rows, 0, VECTOR, BLOCK)
        updated = ()
        for chunk in tl.static_range(CHUNKS):
            x = _window(x_row, block, chunk, vectors, stride_xn, blocks, rows, FIRST, VECTOR, BLOCK)
            updated += (tl.dot(tl.trans(grad), x, sums[chunk]),)
        sums = updated
    tap = tl.arange(0, BLOCK_K)
    # Output j met tap k at sample j + REST + k * DILATION of its window.
    sample = tl.arange(0, BLOCK)[:, None] + REST + tap[None, :] * DILATION
    total = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for chunk in tl.static_range(CHUNKS):
        within = sample - chunk * BLOCK
        here = (within >= 0) & (within < BLOCK)
        met = tl.gather(sums[chunk], tl.where(here, within, 0), axis=1)
        total += tl.sum(tl.where(here, met, 0.0), axis=0)
    place = out_ptr + (part * channels + channel) * TAPS + tap
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=tap < TAPS)
    # Read back: Triton 3.6 cannot compile for sm_100 what asks the sums themselves.
    tl.debug_barrier()
    stored = tl.load(place, mask=tap < TAPS, other=0.0)
    if tl.max((stored != stored).to(tl.int32), axis=0) > 0:
        for k in range(TAPS):
            acc = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
            for row in range(start, stop, BLOCK):
                block = (row + tl.arange(0, BLOCK)).to(tl.int64)
                batch, nth = _place(block, blocks)
                position = (nth * BLOCK)[:, None] + tl.arange(0, BLOCK)[None, :]
                source = position + k * DILATION - PADDING
                exists = (position < out_vectors * VECTOR) & (block < rows)[:, None]
                exists = exists & (source >= 0) & (source < vectors * VECTOR)
                grads = grad_row + (batch * stride_gn * VECTOR)[:, None] + position
                samples = x_row + (batch * stride_xn * VECTOR)[:, None] + source
                grad = tl.load(grads, mask=exists, other=0.0)
                x = tl.load(samples, mask=exists, other=0.0)
                acc += grad.to(tl.float32) * x.to(tl.float32)
            total = tl.where(tap == k, tl.sum(tl.sum(acc, axis=1), axis=0), total)
        tl.store(place, total.to(out_ptr.dtype.element_ty), mask=tap < TAPS)


def toeplitz_step(
    target: Target,
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
) -> Step | None:
    """Fill y with the convolution of x, or None where this kernel does not serve.

    The tensors are a plan's first five. `padding` are the zeros to the left; `flipped` reads the
    filters from their end.
    """
    vector = vector_width(x, y)
    chunks = _chunks(x, y, weight.shape[2], stride, padding, dilation, vector)
    if chunks is None:
        return None
    batch, channels, out_length = y.shape
    blocks = -(-out_length // BLOCK)
    parts, steps_per_part = parts_of(-(-batch * blocks // BLOCK), channels)
    return Step(
        _depthwise_toeplitz_kernel,
        (channels, parts),
        (0, 1, 0 if bias is None else 2, 3, 3 if preactivation is None else 4),
        (
            batch * blocks,
            blocks,
            channels // x.shape[1],
            x.shape[2] // vector,
            out_length // vector,
            steps_per_part,
            *row_strides(x, vector),
            weight.stride(0),
            weight.stride(2),
            0 if bias is None else bias.stride(0),
            *row_strides(y, vector),
        ),
        {
            "TAPS": weight.shape[2],
            "PADDING": padding,
            "DILATION": dilation,
            "FLIPPED": flipped,
            "ACTIVATION": activation,
            "HAS_BIAS": bias is not None,
            "SAVE_PREACTIVATION": preactivation is not None,
            "VECTOR": vector,
            "CHUNKS": chunks,
            "BLOCK": BLOCK,
        },
        **_schedule(target),
    )


def _schedule(target: Target) -> dict[str, int]:
    """How many warps and stages leave a thread enough registers: on Blackwell, where it has whole
    rows of the sums, that depends on Triton's version."""
    warps, stages = 4, 2
    if target.blackwell:
        warps, stages = (8, 2) if HALVES_TAKE_TURNS else (4, 3)
    return {"num_warps": warps, "num_stages": stages}


def toeplitz_grad_weight(
    target: Target,
    grad: Tensor,
    x: Tensor,
    shape: tuple[int, int, int],
    stride: int,
    padding: int,
    dilation: int,
) -> Plan | None:
    """The weight gradient of `shape` (C_out, 1, K), or None where this kernel does not serve."""
    vector = vector_width(grad, x)
    channels, _, taps = shape
    chunks = _chunks(x, grad, taps, stride, padding, dilation, vector)
    if chunks is None:
        return None
    batch, _, out_length = grad.shape
    blocks = -(-out_length // BLOCK)
    parts, steps_per_part = parts_of(-(-batch * blocks // BLOCK), channels)
    buffers = [Buffer.of(shape, grad.dtype)]
    if parts > 1:
        buffers.append(Buffer.of((parts, channels, taps), torch.float32))
    first = 2
    last = first + len(buffers) - 1
    block_k = 1 << (taps - 1).bit_length()
    step = Step(
        _depthwise_toeplitz_grad_weight_kernel,
        (channels, parts),
        (0, 1, last),
        (
            batch * blocks,
            blocks,
            channels,
            channels // x.shape[1],
            x.shape[2] // vector,
            out_length // vector,
            steps_per_part,
            *row_strides(grad, vector),
            *row_strides(x, vector),
        ),
        {
            "TAPS": taps,
            "PADDING": padding,
            "DILATION": dilation,
            "VECTOR": vector,
            "CHUNKS": chunks,
            "BLOCK": BLOCK,
            "BLOCK_K": block_k,
        },
        # Of four, the diagonals that they gather would spill.
        num_warps=8 if target.blackwell or block_k > BLOCK else 4,
        num_stages=2,
    )
    steps = [step]
    if parts > 1:
        steps.append(sum_step(buffers[1], (channels, taps), last, first, first))
    return Plan(tuple(buffers), tuple(steps), (0,))


def _chunks(
    x: Tensor, y: Tensor, taps: int, stride: int, padding: int, dilation: int, vector: int
) -> int | None:
    """Blocks of samples that a block of outputs reads, or None where this kernel does not serve.

    It serves 16-bit elements: in float32 the products would be less exact, and reading takes so
    much longer that the plain sum over taps does not hold it up.
    """
    span = BLOCK + (taps - 1) * dilation + vector - 1
    if (
        x.element_size() > 2
        or taps <= 8
        or stride != 1
        or span > MOST_CHUNKS * BLOCK
        or not rows_are_dense(x, y)
        or abs(padding) >= 2**24
    ):
        return None
    return -(-span // BLOCK)
