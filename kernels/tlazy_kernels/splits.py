"""The second stage of a split reduction: partial sums added in a fixed order, and an epilogue."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl

from tlazy_kernels.activations import activate
from tlazy_kernels.launch import Buffer, Step, metadata

# Sums of fewer elements than this have few programs; each then takes fewer columns.
MANY = 2**17


class Epilogue(NamedTuple):
    """What follows a product: ``act(. + bias)``.

    Attributes:
        bias: position of the bias among a call's inputs, or None.
        bias_stride: of its elements.
        activation: a name of ``reference.ACTIVATIONS``, or None.
        save_preactivation: whether the sum before the activation is an output too.
    """

    bias: int | None = None
    bias_stride: int = 0
    activation: str | None = None
    save_preactivation: bool = False


PLAIN = Epilogue()


def _sum_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    touched = ["partial_ptr", "out_ptr"]
    touched += ["bias_ptr"] * args["HAS_BIAS"]
    touched += ["preactivation_ptr"] * args["SAVE_PREACTIVATION"]
    return metadata(
        f"{kernel.name} [{args['parts']} x {args['rows'] * args['columns']}]", 0, args, *touched
    )


@triton.jit(launch_metadata=_sum_metadata, do_not_specialize=["parts", "rows"])
def _sum_kernel(
    partial_ptr,  # fp32, shape (parts, at least rows * columns)
    bias_ptr,  # shape (columns,); unread unless HAS_BIAS
    out_ptr,  # act(sum over parts + bias), shape (rows, columns), contiguous
    preactivation_ptr,  # the sum + bias, as out; unwritten unless SAVE_PREACTIVATION
    parts,
    rows,
    columns,
    part_stride,
    stride_bias,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column_blocks = tl.cdiv(columns, BLOCK)
    row = (tl.program_id(0) // column_blocks).to(tl.int64)
    column = (tl.program_id(0) % column_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    place = row * columns + column
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, parts, PARTS):  # several parts' loads fly at once
        part = (first + tl.arange(0, PARTS)).to(tl.int64)
        values = tl.load(
            partial_ptr + part[:, None] * part_stride + place[None, :],
            mask=(part < parts)[:, None] & mask[None, :],
            other=0.0,
        )
        total += tl.sum(values, axis=0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + column * stride_bias, mask=mask, other=0.0).to(tl.float32)
    if SAVE_PREACTIVATION:
        kept = total.to(preactivation_ptr.dtype.element_ty)
        tl.store(preactivation_ptr + place, kept, mask=mask)
    y = activate(total, ACTIVATION).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place, y, mask=mask)


def sum_step(
    partial: Buffer,
    shape: Sequence[int],
    source: int,
    out: int,
    preactivation: int,
    epilogue: Epilogue = PLAIN,
) -> Step:
    """The launch that adds up `partial`, of shape (parts, ...), to a contiguous tensor.

    Args:
        shape: of the result; its last dimension has the bias's size.
        source, out, preactivation: positions of the tensors in the plan.
    """
    count = math.prod(shape)
    columns = count if epilogue.bias is None else shape[-1]
    block = 256 if count >= MANY else 64
    scalars = (partial.shape[0], count // columns, columns, math.prod(partial.shape[1:]))
    return Step(
        _sum_kernel,
        (count // columns * -(-columns // block),),
        (source, out if epilogue.bias is None else epilogue.bias, out, preactivation),
        (*scalars, epilogue.bias_stride),
        {
            "ACTIVATION": epilogue.activation,
            "HAS_BIAS": epilogue.bias is not None,
            "SAVE_PREACTIVATION": epilogue.save_preactivation,
            "PARTS": 8,
            "BLOCK": block,
        },
        num_warps=4 if block == 256 else 2,
    )
