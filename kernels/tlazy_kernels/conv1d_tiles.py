"""What the tiled convolutions do on the device: rows as descriptors, and the sum of a tile."""

from __future__ import annotations

import triton
import triton.language as tl

from tlazy_kernels.tf32 import to_tf32
from tlazy_kernels.vectors import pack


@triton.jit
def rows_of(
    ptr,  # shape (batch, groups * channels, step * rows), and perhaps less than a row more
    batch,
    rows,
    groups,
    channels,
    stride_n,
    stride_g,
    stride_t,  # of a sample where channels are last, else of a channel
    STEP: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """What load_rows reads: rows that lie STEP samples apart; all else is zeros.

    A descriptor, or of words, which are none of its elements, the tuple that :func:`_from_words`
    takes. FORM is as in ``conv1d_tiled.form_on``. Strides are in units of 16 bytes, which lets the
    compiler know that addresses are aligned.
    """
    UNIT: tl.constexpr = 128 // ptr.dtype.element_ty.primitive_bitwidth
    LAST: tl.constexpr = (FORM == "channels_last") | (FORM == "channels_last_by_threads")
    tl.static_assert(LAST | (STEP == 1) & (BLOCK_N == 1), "rows must be samples")
    stride_n = tl.cast(stride_n, tl.int64)
    stride_g = tl.cast(stride_g, tl.int64)
    stride_t = tl.cast(stride_t, tl.int64)
    if LAST:
        channels = tl.cdiv(channels, UNIT) * UNIT  # as many in memory; a copy has zeros there
        # Sides of 1 come first: from between others, Triton would take them in registers. Threads
        # copy them ahead only from there.
        if FORM == "channels_last":
            tensor = tl.make_tensor_descriptor(
                ptr,
                [STEP, groups, batch, rows, channels],
                [stride_t * UNIT, stride_g * UNIT, stride_n * UNIT, STEP * stride_t * UNIT, 1],
                [1, 1, BLOCK_N, BLOCK_L, BLOCK_C],
            )
        else:
            tensor = tl.make_tensor_descriptor(
                ptr,
                [batch, rows, STEP, groups, channels],
                [stride_n * UNIT, STEP * stride_t * UNIT, stride_t * UNIT, stride_g * UNIT, 1],
                [BLOCK_N, BLOCK_L, 1, 1, BLOCK_C],
            )
    elif FORM == "words":  # two of them are a unit
        tensor = ptr, channels, rows // (UNIT // 2), stride_n * 2, stride_g * 2, stride_t * 2
    else:
        tensor = tl.make_tensor_descriptor(
            ptr,
            [batch, groups, channels, rows],
            [stride_n * UNIT, stride_g * UNIT, stride_t * UNIT, 1],
            [1, 1, BLOCK_C, BLOCK_L],
        )
    return tensor


@triton.jit
def load_rows(
    tensor,
    n,
    row,
    residue,
    group,
    c,
    FORM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile of shape (BLOCK_N * BLOCK_L, BLOCK_C) of what rows_of made."""
    if FORM == "channels_last":
        tile = tensor.load([residue, group, n, row, c]).reshape(BLOCK_N * BLOCK_L, BLOCK_C)
    elif FORM == "channels_last_by_threads":
        tile = tensor.load([n, row, residue, group, c]).reshape(BLOCK_N * BLOCK_L, BLOCK_C)
    elif FORM == "words":
        tile = _from_words(tensor, n, row, group, c, BLOCK_L, BLOCK_C).T
    else:
        tile = tensor.load([n, group, c, row]).reshape(BLOCK_C, BLOCK_L).T
    return tile


@triton.jit
def _from_words(
    tensor,  # pointer, channels of a group, words of a row; strides of series, groups and channels
    n,
    row,
    group,
    c,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile of shape (BLOCK_C, BLOCK_L) that starts at any sample: two tiles of the words of 8
    bytes that hold it, shifted. By samples, loads would be as narrow as those."""
    ptr, channels, words, stride_n, stride_g, stride_t = tensor
    DTYPE: tl.constexpr = ptr.dtype.element_ty
    BITS: tl.constexpr = DTYPE.primitive_bitwidth
    SAMPLES: tl.constexpr = 64 // BITS
    SAMPLE: tl.constexpr = tl.uint16 if BITS == 16 else tl.uint32
    skipped = row & (SAMPLES - 1)  # of the first word
    word = (row - skipped) // SAMPLES + tl.arange(0, BLOCK_L // SAMPLES)
    channel = c + tl.arange(0, BLOCK_C)
    base = ptr.to(tl.pointer_type(tl.uint64)) + n * stride_n + group * stride_g
    place = base + (channel * stride_t)[:, None] + word[None, :]
    exists = (channel < channels)[:, None]
    low = tl.load(place, mask=exists & ((word >= 0) & (word < words))[None, :], other=0)
    high = tl.load(place + 1, mask=exists & ((word >= -1) & (word < words - 1))[None, :], other=0)
    shift = (skipped * BITS).to(tl.uint64)
    both = (low >> shift) | ((high << 1) << (63 - shift))  # no shift is one by 64
    parts = ()
    for i in tl.static_range(SAMPLES):
        parts += ((both >> i * BITS).to(SAMPLE),)  # type: ignore[assignment]
    return pack(parts).reshape(BLOCK_C, BLOCK_L).to(DTYPE, bitcast=True)


@triton.jit
def _add_taps(
    acc,  # shape (BLOCK_N * BLOCK_L, BLOCK_F)
    x,
    weight,
    n,
    row,
    group,
    f,
    first,
    every,
    count,  # of the taps first, first + every, ...
    steps,  # of the product: count * cdiv(C, BLOCK_C)
    padding,
    dilation,
    lift,
    residue,
    first_channel,  # of those that take part, where ONLY_SOME do
    last_channel,
    ONLY_SOME: tl.constexpr,
    STEP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    FORM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """acc + the product over (input channels, these taps), taps within channels."""
    for i in range(steps):
        tap = first + i % count * every
        c = i // count * BLOCK_C
        # `lift` rows are added and taken off again, because division rounds towards zero.
        if TRANSPOSED:
            source = (residue + padding - tap * dilation) // STEP
            phase = 0
        else:
            offset = tap * dilation - padding + lift * STEP
            source = offset // STEP - lift
            phase = offset % STEP
        rows = load_rows(x, n, row + source, phase, group, c, FORM, BLOCK_N, BLOCK_L, BLOCK_C)
        if ONLY_SOME:
            channel = c + tl.arange(0, BLOCK_C)
            own = (channel >= first_channel) & (channel < last_channel)
            rows = tl.where(own[None, :], rows, 0.0)
        if PRECISION == "tf32" and FORM == "channels_first":  # passes registers to be turned around
            rows = to_tf32(rows)
        filters = weight.load([tap, group, f, c]).reshape(BLOCK_F, BLOCK_C)
        acc = tl.dot(rows, filters.T, acc, input_precision=PRECISION)
    return acc


@triton.jit
def sum_tile(
    x,  # a descriptor where WHOLE, else a pointer: each residue gets a descriptor here
    weight,
    batch,
    length,
    groups,
    C,
    taps,
    padding,
    dilation,
    period,
    inverse,
    stride_xn,
    stride_xg,
    stride_xt,
    n,
    row,
    residue,
    group,
    f,
    first_channel,
    last_channel,
    ONLY_SOME: tl.constexpr,
    STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    WHOLE: tl.constexpr,
    FLATTEN: tl.constexpr,
    FORM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The convolution for the rows and filters of a tile: shape (BLOCK_N * BLOCK_L, BLOCK_F)."""
    acc = tl.zeros((BLOCK_N * BLOCK_L, BLOCK_F), dtype=tl.float32)
    lift = tl.cdiv(tl.maximum(padding, 0), STRIDE)
    channel_blocks = tl.cdiv(C, BLOCK_C)
    if WHOLE:
        first, every, count = 0, 1, taps
        if TRANSPOSED and STRIDE > 1:
            # From the first tap on for which STRIDE divides residue + padding - tap * dilation.
            every = period
            if FLATTEN:
                first = (residue + padding) * inverse % STRIDE
                count = taps // STRIDE
            else:
                first = taps
                for tap in range(tl.minimum(period, taps)):
                    if (residue + padding + (period * dilation - tap * dilation)) % STRIDE == 0:
                        first = tap
                count = tl.cdiv(taps - first, period)
        steps = count * channel_blocks
        # Triton makes one loop of two only where the inner one is known to turn.
        if FLATTEN or not (TRANSPOSED and STRIDE > 1):
            tl.assume(steps > 0)
        acc = _add_taps(
            acc, x, weight, n, row, group, f, first, every, count, steps, padding, dilation, lift,
            residue, first_channel, last_channel, ONLY_SOME, STRIDE, TRANSPOSED, FORM,
            PRECISION, BLOCK_N, BLOCK_L, BLOCK_F, BLOCK_C,
        )  # fmt: skip
    else:
        # The last row is whole only for the first residues; there each has its own descriptor.
        reach = (taps - 1) * dilation // STRIDE + 1
        inside = row + BLOCK_L + reach <= length // STRIDE
        parts = 1 if inside else tl.minimum(period, taps)
        every = 1 if inside else period
        for part in range(parts):
            phase = (part * dilation - padding + lift * STRIDE) % STRIDE
            rows = length // STRIDE
            if not inside:
                rows = tl.cdiv(length - phase, STRIDE)
            count = tl.where(rows > 0, tl.cdiv(taps - part, every), 0)
            tensor = rows_of(
                x, batch, tl.maximum(rows, 1), groups, C, stride_xn, stride_xg, stride_xt,
                STRIDE, FORM, BLOCK_N, BLOCK_L, BLOCK_C,
            )  # fmt: skip
            acc = _add_taps(
                acc, tensor, weight, n, row, group, f, part, every, count, count * channel_blocks,
                padding, dilation, lift, 0, first_channel, last_channel, ONLY_SOME, STRIDE,
                TRANSPOSED, FORM, PRECISION, BLOCK_N, BLOCK_L, BLOCK_F, BLOCK_C,
            )  # fmt: skip
    return acc


@triton.jit
def columns_of(x, part: tl.constexpr, PARTS: tl.constexpr):
    """That part of the columns of x. An epilogue of whole large tiles would need more registers."""
    if PARTS == 1:
        found = x
    else:
        halves: tl.constexpr = PARTS // 2
        split = tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))
        found = columns_of(split[part // halves], part % halves, halves)
    return found
