"""Depthwise conv1d where the channels of a sample lie side by side in memory.

A thread loads vectors of channels, which are aligned whatever the shift. It computes several
outputs that lie a dilation apart, so that their windows overlap, and keeps the samples of the
window in registers: SPAN outputs take SPAN + TAPS - 1 loads instead of SPAN * TAPS.

A lane is such a run of outputs. Of the `dilation` runs of SPAN * dilation positions, each takes
every dilation-th.
"""

# Kernels grow tuples of tiles, whose types are other ones then.
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels.activations import activate, activation_grad
from tlazy_kernels.configs import TileConfig
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

# Outputs of a lane.
SPAN = 4


def _convolve_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    touched = ["x_ptr", "weight_ptr", "y_ptr"]
    touched += ["bias_ptr"] * args["HAS_BIAS"]
    touched += ["preactivation_ptr"] * args["SAVE_PREACTIVATION"]
    outputs = args["x_ptr" if args["FLIPPED"] else "y_ptr"].numel()
    sizes = f"lanes={args['lanes']} taps={args['TAPS']} stride={args['stride']}"
    return metadata(f"{kernel.name} [{sizes}]", 2 * outputs * args["TAPS"], args, *touched)


@triton.jit
def _place(lane, runs, dilation, SPAN: tl.constexpr):
    """The sample of the batch and the first position of each lane."""
    run = lane % runs
    return lane // runs, run // dilation * (SPAN * dilation) + run % dilation


@triton.jit
def _load(base_ptr, vector, exists, channel, there, VECTOR: tl.constexpr):
    """The channels of the rows that start so many vectors behind base_ptr, (BLOCK_R, BLOCK_C)."""
    place = base_ptr + (vector * VECTOR)[:, None] + channel[None, :]
    return tl.load(place, mask=exists[:, None] & there[None, :], other=0.0)


@triton.jit
def _store(base_ptr, value, vector, exists, channel, there, VECTOR: tl.constexpr):
    place = base_ptr + (vector * VECTOR)[:, None] + channel[None, :]
    value = value.to(base_ptr.dtype.element_ty)
    tl.store(place, value, mask=exists[:, None] & there[None, :])


@triton.jit
def _tap(weight_ptr, channel, channels, tap, stride_wc, stride_wk):
    """One tap of each channel's filter in fp32, shape (1, BLOCK_C)."""
    place = weight_ptr + channel * stride_wc + tl.cast(tap, tl.int64) * stride_wk
    return tl.load(place, mask=channel < channels, other=0.0).to(tl.float32)[None, :]


# What changes with the length: strides are in vectors.
_VARYING = ["lanes", "runs", "length", "out_length", "stride_xn", "stride_yn"]
_VARYING_BACK = ["lanes", "runs", "length", "out_length", "steps_per_split"]
_VARYING_BACK += ["stride_gn", "stride_sn", "stride_xn", "stride_dn"]


@triton.jit(launch_metadata=_convolve_metadata, do_not_specialize=_VARYING)
def _depthwise_channels_kernel(
    x_ptr,  # shape (N, C_in, length), channels side by side
    weight_ptr,  # shape (channels, 1, TAPS)
    bias_ptr,  # shape (channels,); unread unless HAS_BIAS
    y_ptr,  # act(conv + bias), shape (N, channels, out_length), channels side by side
    preactivation_ptr,  # conv + bias, same shape and strides as y; unwritten unless saved
    lanes,  # N * runs
    runs,  # lanes of a sample
    channel_vectors,  # channels / VECTOR
    multiplier,  # channels / C_in
    length,
    out_length,
    stride,
    padding,  # zeros to the left; negative where samples are left out
    dilation,
    stride_xn,  # those of x and y in vectors
    stride_xl,
    stride_wc,
    stride_wk,
    stride_bias,
    stride_yn,
    stride_yl,
    TAPS: tl.constexpr,
    BLOCK_K: tl.constexpr,  # taps at a time
    SPAN: tl.constexpr,  # outputs a lane; 1 where the stride is not
    FLIPPED: tl.constexpr,  # whether the filters are read from their end
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channels = channel_vectors * VECTOR
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    tile = tl.program_id(0)
    channel = (tile % channel_blocks).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    lane = (tile // channel_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    batch, first = _place(lane, runs, dilation, SPAN)
    present = lane < lanes
    there = channel < channels
    sums = ()
    for _ in tl.static_range(SPAN):
        sums += (tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32),)
    for tap in range(0, TAPS, BLOCK_K):
        w = ()
        for k in tl.static_range(BLOCK_K):
            place = TAPS - 1 - (tap + k) if FLIPPED else tap + k
            if TAPS % BLOCK_K:
                place = tl.minimum(tl.maximum(place, 0), TAPS - 1)
            w += (_tap(weight_ptr, channel, channels, place, stride_wc, stride_wk),)
        # Output s of a lane meets tap k at its window's sample s + k.
        for t in tl.static_range(SPAN + BLOCK_K - 1):
            source = first * stride - padding + (tap + t) * dilation
            exists = present & (source >= 0) & (source < length)
            x = _load(
                x_ptr,
                batch * stride_xn + source * stride_xl,
                exists,
                channel // multiplier,
                there,
                VECTOR,
            ).to(tl.float32)
            updated = ()
            for s in tl.static_range(SPAN):
                total = sums[s]
                if t >= s and t - s < BLOCK_K:
                    # A choice: an infinite weight times the padding's 0 would be NaN.
                    meets = exists & (tap + t - s < TAPS) if TAPS % BLOCK_K else exists
                    total = tl.where(meets[:, None], total + x * w[t - s], total)
                updated += (total,)
            sums = updated
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel * stride_bias, mask=channel < channels, other=0.0)
    for s in tl.static_range(SPAN):
        position = first + s * dilation
        exists = present & (position < out_length)
        z = sums[s]
        if HAS_BIAS:
            z += bias.to(tl.float32)[None, :]
        vector = batch * stride_yn + position * stride_yl
        if SAVE_PREACTIVATION:
            _store(preactivation_ptr, z, vector, exists, channel, there, VECTOR)
        _store(y_ptr, activate(z, ACTIVATION), vector, exists, channel, there, VECTOR)


@triton.jit(launch_metadata=backward_metadata, do_not_specialize=_VARYING_BACK)
def _depthwise_channels_backward_kernel(
    grad_ptr,  # dL/dy, shape (N, channels, out_length), channels side by side
    saved_ptr,  # z or y, same shape; unread where ACTIVATION is None
    x_ptr,  # shape (N, channels, length), channels side by side; unread unless NEEDS_WEIGHT
    weight_ptr,  # shape (channels, 1, taps); unread unless NEEDS_X
    grad_x_ptr,  # shape and strides as x; unwritten unless NEEDS_X
    grad_weight_ptr,  # partial sums or their sum, dense, shape (splits, channels, taps)
    grad_bias_ptr,  # partial sums or their sum, dense, shape (splits, channels)
    lanes,  # N * runs
    runs,  # lanes of a sample
    channel_vectors,  # channels / VECTOR
    taps,  # TAPS of them in each program; where there are more, for the weight gradient alone
    length,
    out_length,
    padding,
    dilation,
    steps_per_split,  # of BLOCK_R lanes each
    stride_gn,  # all but the weight's in vectors
    stride_gl,
    stride_sn,
    stride_sl,
    stride_xn,
    stride_xl,
    stride_wc,
    stride_wk,
    stride_dn,
    stride_dl,
    TAPS: tl.constexpr,
    SPAN: tl.constexpr,  # samples a lane
    CENTER: tl.constexpr,  # the tap by which a sample meets the output in its own place
    ACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
):
    channels = channel_vectors * VECTOR
    tap_blocks = tl.cdiv(taps, TAPS)
    first_tap = tl.program_id(0) % tap_blocks * TAPS
    channel = (tl.program_id(0) // tap_blocks).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    padding -= first_tap * dilation
    there = channel < channels
    split = tl.program_id(1).to(tl.int64)
    if NEEDS_X:
        w = ()
        for k in tl.static_range(TAPS):
            w += (_tap(weight_ptr, channel, channels, k, stride_wc, stride_wk),)
    bias_sum = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    weight_sums = ()
    for _ in tl.static_range(TAPS):
        weight_sums += (tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32),)
    start = split * steps_per_split * BLOCK_R
    for step in range(start, tl.minimum(start + steps_per_split * BLOCK_R, lanes), BLOCK_R):
        lane = step + tl.arange(0, BLOCK_R)
        batch, first = _place(lane, runs, dilation, SPAN)
        present = lane < lanes
        # The window, from the last tap's output on: sample s met tap k for its output
        # s + TAPS - 1 - k. Each is dL/dz and whether it exists.
        grad_start = batch * stride_gn + (first + padding) * stride_gl
        saved_start = batch * stride_sn + (first + padding) * stride_sl
        x_start = batch * stride_xn + first * stride_xl
        grad_x_start = batch * stride_dn + first * stride_dl
        window = ()
        seen = ()
        for t in tl.static_range(SPAN + TAPS - 1):
            further = (t - (TAPS - 1)) * dilation
            target = first + padding + further
            exists = present & (target >= 0) & (target < out_length)
            vector = grad_start + further * stride_gl
            g = _load(grad_ptr, vector, exists, channel, there, VECTOR).to(tl.float32)
            if ACTIVATION is not None:
                vector = saved_start + further * stride_sl
                saved = _load(saved_ptr, vector, exists, channel, there, VECTOR)
                g = activation_grad(g, saved.to(tl.float32), ACTIVATION)
            window += (g,)
            seen += (exists,)
            if t >= TAPS - 1:
                inside = present & (first + further < length)
                if NEEDS_BIAS:
                    bias_sum += window[t - CENTER]
                if NEEDS_WEIGHT:
                    vector = x_start + further * stride_xl
                    x = _load(x_ptr, vector, inside, channel, there, VECTOR).to(tl.float32)
                total = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
                updated = ()
                for k in tl.static_range(TAPS):
                    partial = weight_sums[k]
                    g = window[t - k]
                    exists = seen[t - k]
                    # Choices, as in the forward pass: what does not exist is not 0 times it.
                    if NEEDS_X:
                        total = tl.where(exists[:, None], total + g * w[k], total)
                    if NEEDS_WEIGHT:
                        both = (exists & inside)[:, None]
                        partial = tl.where(both, partial + g * x, partial)
                    updated += (partial,)
                weight_sums = updated
                if NEEDS_X:
                    vector = grad_x_start + further * stride_dl
                    _store(grad_x_ptr, total, vector, inside, channel, there, VECTOR)
    if NEEDS_WEIGHT:
        for k in tl.static_range(TAPS):
            tap = first_tap + k
            place = grad_weight_ptr + (split * channels + channel) * taps + tap
            total = tl.sum(weight_sums[k], axis=0).to(grad_weight_ptr.dtype.element_ty)
            tl.store(place, total, mask=channel < tl.where(tap < taps, channels, 0))
    if NEEDS_BIAS:
        place = grad_bias_ptr + split * channels + channel
        total = tl.sum(bias_sum, axis=0)
        tl.store(place, total.to(grad_bias_ptr.dtype.element_ty), mask=there)


def channels_step(
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
    if not _channels_are_dense(x, y) or (taps + SPAN) * dilation + abs(padding) >= 2**24:
        return None
    batch, channels, out_length = y.shape
    vector = _vector_width(x, y)
    # More taps than are taken at a time read the window several times: a longer one serves more.
    span = 1 if stride > 1 else SPAN if taps <= BLOCK_K else 2 * SPAN
    runs = _runs(out_length, dilation, span)
    block_k = min(taps, BLOCK_K)
    tile = config or _channels_config(channels, 1024 if taps <= 4 else 512)
    tiles = -(-batch * runs // tile.rows) * -(-channels // tile.cols)
    return Step(
        _depthwise_channels_kernel,
        (tiles,),
        (0, 1, 0 if bias is None else 2, 3, 3 if preactivation is None else 4),
        (
            batch * runs,
            runs,
            channels // vector,
            channels // x.shape[1],
            x.shape[2],
            out_length,
            stride,
            padding,
            dilation,
            *_row_strides(x, vector),
            weight.stride(0),
            weight.stride(2),
            0 if bias is None else bias.stride(0),
            *_row_strides(y, vector),
        ),
        {
            "TAPS": taps,
            "BLOCK_K": block_k,
            "SPAN": span,
            "FLIPPED": flipped,
            "ACTIVATION": activation,
            "HAS_BIAS": bias is not None,
            "SAVE_PREACTIVATION": preactivation is not None,
            "VECTOR": vector,
            "BLOCK_R": tile.rows,
            "BLOCK_C": tile.cols,
        },
        num_warps=tile.num_warps,
    )


def channels_backward(
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
    center, rest = divmod(padding, dilation)
    vector = _vector_width(*tensors)
    span = _backward_span(target, taps)
    furthest = max(_row_strides(t, vector)[1] for t in tensors)
    if (
        not _channels_are_dense(*tensors)
        or not fits_one_pass(taps, needs)
        or (taps + SPAN) * dilation + padding >= 2**24
        or (taps + span) * dilation * furthest >= 2**31
        or (needs.bias and (rest or center >= taps))
    ):
        return None
    batch, _, out_length = grad.shape
    runs = _runs(max(length, out_length), dilation, span)
    # Single channels have addresses of their own, which leaves registers for half as many sums.
    tile = config or _channels_config(channels, 512 if vector > 1 else 256)
    channel_blocks = -(-channels // tile.cols) * -(-taps // BLOCK_K)
    steps = -(-batch * runs // tile.rows)
    parts, steps_per_part = parts_of(steps, channel_blocks, whole_waves(target))
    grad_strides, saved_strides, x_strides, grad_x_strides = (
        (0, 0) if t is None else _row_strides(t, vector) for t in passed
    )
    weight_strides = (0, 0) if weight is None else (weight.stride(0), weight.stride(2))
    sizes = (batch * runs, runs, channels // vector, taps, length, out_length)
    strides = (*grad_strides, *saved_strides, *x_strides, *weight_strides, *grad_x_strides)
    constants = {
        "TAPS": min(taps, BLOCK_K),
        "SPAN": span,
        "CENTER": center if needs.bias else 0,
        "ACTIVATION": activation,
        "VECTOR": vector,
        "BLOCK_R": tile.rows,
        "BLOCK_C": tile.cols,
    }
    return backward_plan(
        _depthwise_channels_backward_kernel,
        channel_blocks,
        parts,
        inputs,
        shape,
        (*sizes, padding, dilation, steps_per_part, *strides),
        constants,
        needs,
        tile.num_warps,
    )


def _channels_are_dense(*tensors: Tensor) -> bool:
    return all(x.stride(1) == 1 for x in tensors)


def _row_strides(x: Tensor, vector: int) -> tuple[int, int]:
    """Vectors from a sample of the batch to the next, and from a position to the next."""
    strides = (x.stride(d) // vector if x.shape[d] > 1 else 0 for d in (0, 2))
    return next(strides), next(strides)


def _vector_width(*tensors: Tensor) -> int:
    """Channels in a vector: what 16 bytes hold, or less, so that each row is made of vectors."""
    if any(x.data_ptr() % 16 for x in tensors):
        return 1
    sizes = (n for x in tensors for n in (x.shape[1], *_row_strides(x, 1)))
    return math.gcd(16 // tensors[0].element_size(), *sizes)


def _runs(length: int, dilation: int, span: int) -> int:
    """Lanes of a series: each takes `span` positions that lie a dilation apart."""
    return -(-length // (span * dilation)) * dilation


def _backward_span(target: Target, taps: int) -> int:
    """Samples of a lane in the fused pass, whose windows dL/dz is computed for: the more the less
    of it twice, as far as registers go. AMD's compiler keeps a mask for each row of the window, of
    which it has few."""
    if target.gpu.backend == "hip":
        return 2
    return 6 if taps <= 4 else 4


def _channels_config(channels: int, elements: int) -> TileConfig:
    """Lanes (rows) and channels (cols) of a tile of so many elements."""
    cols = min(128, 1 << (channels - 1).bit_length())
    return TileConfig(rows=elements // cols, cols=cols, depth=1)
