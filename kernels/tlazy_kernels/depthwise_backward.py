"""The plan that both fused depthwise backward kernels share: a pass, and sums of partial sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from tlazy_kernels import configs
from tlazy_kernels.launch import Buffer, Plan, Step, metadata
from tlazy_kernels.splits import sum_step
from tlazy_kernels.targets import Target

# Taps that a program takes at a time, and keeps sums for.
BLOCK_K = 8


class Needs(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    weight: bool
    bias: bool


def backward_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """What the backward kernels of both memory layouts declare."""
    touched = ["grad_ptr"]
    touched += ["saved_ptr"] * (args["ACTIVATION"] is not None)
    touched += ["weight_ptr", "grad_x_ptr"] * args["NEEDS_X"]
    touched += ["x_ptr", "grad_weight_ptr"] * args["NEEDS_WEIGHT"]
    touched += ["grad_bias_ptr"] * args["NEEDS_BIAS"]
    products = args["NEEDS_X"] + args["NEEDS_WEIGHT"]
    flops = products * 2 * args["grad_ptr"].numel() * args["taps"]
    return metadata(f"{kernel.name} [taps={args['taps']}]", flops, args, *touched)


def fits_one_pass(taps: int, needs: Needs) -> bool:
    """Whether a program sees all it needs: dL/dx takes all taps, the bias gradient one program."""
    return taps <= BLOCK_K or not (needs.x or needs.bias)


def parts_of(steps: int, channel_blocks: int, programs: int | None = None) -> tuple[int, int]:
    """(parts, steps in each) of a pass that so many programs side by side share.

    By default four times the programs of a matrix product: these hide latency by their number
    alone.
    """
    programs = programs or 4 * configs.TARGET_PROGRAMS
    wanted = max(1, min(programs // channel_blocks, steps // 2))
    steps_per_part = -(-steps // wanted)
    return -(-steps // steps_per_part), steps_per_part


def whole_waves(target: Target) -> int:
    """Programs that keep processors busy to the end whether 2, 3, 4 or 6 fit on one at a time,
    which a compiler decides; of many small processors fewer, or sums would be many too."""
    return min(7 * configs.TARGET_PROGRAMS, 12 * target.processors)


def backward_plan(
    kernel: JITFunction,
    channel_blocks: int,
    parts: int,
    inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    shape: tuple[int, int, int],
    scalars: tuple[int, ...],
    constants: Mapping[str, Any],
    needs: Needs,
    num_warps: int,
) -> Plan:
    """The plan of inputs (grad, saved, x, weight, grad_x), which gives (grad_weight, grad_bias).

    Args:
        parts: programs that share each block of channels; several leave partial sums.
        shape: of the weight, (C, 1, K).
        scalars, constants: of the kernel.
    """
    grad = inputs[0]
    channels, _, taps = shape
    outputs = (Buffer.of(shape, grad.dtype), Buffer.of((channels,), grad.dtype))
    partials = (
        Buffer.of((parts, channels, taps), torch.float32),
        Buffer.of((parts, channels), torch.float32),
    )
    first = len(inputs)
    sums = first if parts == 1 else first + 2
    present = (0 if x is None else i for i, x in enumerate(inputs))
    step = Step(
        kernel,
        (channel_blocks, parts),
        (*present, sums, sums + 1),
        scalars,
        {
            **constants,
            "NEEDS_X": needs.x,
            "NEEDS_WEIGHT": needs.weight,
            "NEEDS_BIAS": needs.bias,
        },
        num_warps=num_warps,
    )
    steps = [step]
    if parts > 1 and needs.weight:
        steps.append(sum_step(partials[0], (channels, taps), sums, first, first))
    if parts > 1 and needs.bias:
        steps.append(sum_step(partials[1], (channels,), sums + 1, first + 1, first + 1))
    buffers = outputs + (partials if parts > 1 else ())
    return Plan(buffers, tuple(steps), (0 if needs.weight else None, 1 if needs.bias else None))
