"""Counts the kernels that convolutions of many lengths compile, and prints the counts as JSON.

Run as a program, where the interpreter is off: ``python -m tests.tlazy_kernels.lengths``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tlazy_kernels.checks import conv1d_shape
from tlazy_kernels.conv1d import conv1d_forward, conv1d_grad_input, conv1d_grad_weight
from tlazy_kernels.depthwise import depthwise_backward
from tlazy_kernels.offline import source
from tlazy_kernels.recording import Launch, recorded

# (weight shape, stride, groups) of layers whose inputs vary in length.
LAYERS: dict[str, tuple[tuple[int, int, int], int, int]] = {
    "dense": ((128, 64, 3), 1, 1),
    "strided": ((128, 64, 3), 2, 1),
    "grouped": ((128, 32, 3), 1, 4),
    "small groups": ((128, 8, 3), 1, 16),
    "first layer": ((64, 1, 10), 5, 1),
    "depthwise": ((128, 1, 4), 1, 128),
    "long depthwise": ((128, 1, 31), 1, 128),
    "strided depthwise": ((128, 1, 7), 2, 128),
}


def lengths() -> list[int]:
    """Of recordings: 80, each as likely to lie in one octave as in another."""
    numbers = random.Random(0)
    return sorted({int(2 ** numbers.uniform(10, 18)) for _ in range(80)})


def variant(launch: Launch) -> str:
    """What Triton compiles anew for, of a launch of a known kernel."""
    made = source(launch)
    hints = sorted(map(str, made.attrs.items()))
    return repr((made.signature, sorted(map(str, made.constants.items())), hints, launch.options))


def passes(
    weight_shape: tuple[int, int, int], stride: int, groups: int, length: int, last: bool
) -> Iterator[Any]:
    """The calls of one training step, to be made one by one."""
    taps, channels = weight_shape[2], weight_shape[1] * groups
    settings = (stride, ((taps - 1) // 2, taps // 2), 1, groups)
    weight, bias = _meta(*weight_shape), _meta(weight_shape[0])
    x = _meta(8, channels, length, last=last)
    grad = _meta(*conv1d_shape(x, weight, bias, *settings, None), last=last)
    yield lambda: conv1d_forward(x, weight, bias, *settings, activation="relu")
    if weight_shape[1] == 1 and groups > 1:
        sizes = (length, taps, *settings)
        yield lambda: depthwise_backward(grad, grad, x, weight, *sizes, activation="relu")
    else:
        yield lambda: conv1d_grad_input(grad, weight, length, *settings)
        yield lambda: conv1d_grad_weight(grad, x, taps, *settings)


def counts(layer: str, last: bool) -> dict[str, int]:
    """How many variants of each kernel a layer's training steps over all lengths take."""
    found: dict[str, set[str]] = {}
    with recorded() as recording:
        for length in lengths():
            for call in passes(*LAYERS[layer], length, last):
                call()
    for launch in recording.launches:
        found.setdefault(launch.kernel.fn.__name__, set()).add(variant(launch))
    return {name: len(variants) for name, variants in found.items()}


def _meta(*shape: int, last: bool = False) -> Tensor:
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    return x.transpose(1, 2).contiguous().transpose(1, 2) if last else x


def main() -> None:
    found = {
        f"{layer}, channels {'last' if last else 'first'}": counts(layer, last)
        for layer in LAYERS
        for last in (False, True)
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
