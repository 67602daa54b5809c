"""Compiles what the choosers pick for a grid of layers, and prints what came out as JSON.

Run as a program, where the interpreter is off:
``python -m tests.tlazy_kernels.picks linear sm_90 bfloat16``. With ``brief`` after it, each kernel
is compiled once in each tile: a forward pass with its epilogue, if there is one in that tile.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.tlazy_kernels.convolutions import Convolution, channels_last
from tlazy_kernels.catalogue import switch_precision
from tlazy_kernels.conv1d import conv1d_forward, conv1d_grad_input, conv1d_grad_weight
from tlazy_kernels.depthwise import depthwise_backward
from tlazy_kernels.layouts import strides_like
from tlazy_kernels.linear import linear_forward, linear_grad_input, linear_grad_weight
from tlazy_kernels.matmul import _matmul_descriptor_kernel
from tlazy_kernels.offline import compiled_together
from tlazy_kernels.recording import Launch, recorded

EPILOGUE: dict[str, Any] = {"activation": "gelu", "save_preactivation": True}

# 204 of (M, N, K): from one row to a million, square, flat and tall, with sides of every alignment.
PRODUCTS = [
    *itertools.product((1, 17, 64, 200, 1024, 5000, 65_536), (16, 96, 1000, 4096), (64, 768, 4096)),
    *itertools.product((8, 128, 2048, 100_000), (10, 33, 256, 1024, 11_008), (16, 100, 512, 1024)),
    *itertools.product((256, 512, 1_000_000), (64, 128, 1280, 2048), (32, 256, 3072)),
    *((side, side, side) for side in (333, 1536, 8192, 16_384)),
]

# Layers of published networks, and small, odd and grouped ones.
DENSE = [
    Convolution(32, 1, 512, 160_000, 10, stride=5),  # wav2vec2
    Convolution(32, 512, 512, 31_999, 3, stride=2),
    Convolution(8, 768, 768, 499, 128, padding=(64, 63), groups=16),
    Convolution(16, 128, 1280, 3000, 3, padding=(1, 1)),  # Whisper
    Convolution(16, 1280, 1280, 3000, 3, stride=2, padding=(1, 1)),
    Convolution(1, 80, 384, 3000, 3, padding=(1, 1)),
    Convolution(256, 1, 128, 512, 8, padding=(3, 4)),  # fully convolutional network
    Convolution(256, 128, 256, 512, 5, padding=(2, 2)),
    Convolution(256, 256, 128, 512, 3, padding=(1, 1)),
    Convolution(64, 32, 32, 1000, 39, padding=(19, 19)),  # InceptionTime
    Convolution(16, 128, 128, 4000, 3, padding=(64, 0), dilation=32),  # TCN
    Convolution(8, 256, 512, 16_000, 2, padding=(64, 0), dilation=64),  # WaveNet
    Convolution(8, 64, 128, 24_000, 4, stride=2, padding=(1, 1)),  # EnCodec
    Convolution(8, 64, 64, 24_000, 7, padding=(27, 27), dilation=9),  # DAC
    Convolution(256, 256, 256, 128, 5, padding=(2, 2)),  # UNet
    Convolution(32, 64, 128, 131_072, 3),  # KernelBench
    Convolution(64, 64, 128, 524_280, 3, stride=3, dilation=4),
    Convolution(16, 32, 64, 131_072, 3, stride=2, padding=(1, 1), dilation=2),
    Convolution(4, 16, 16, 200, 5, padding=(2, 2)),
    Convolution(67, 8, 16, 24, 3),
    Convolution(512, 256, 256, 16, 3, padding=(1, 1)),
    Convolution(1, 512, 512, 100, 3, padding=(1, 1)),
    Convolution(2, 2048, 2048, 64, 1),
    Convolution(256, 24, 200, 8192, 3, padding=(1, 1)),
    Convolution(32, 48, 96, 1024, 7, stride=4, padding=(3, 3)),
    Convolution(16, 256, 256, 1024, 3, padding=(1, 1), groups=32),
    Convolution(30, 100, 60, 1021, 3, stride=2, padding=(1, 1), groups=4),
    Convolution(3, 100, 100, 101, 9, dilation=2),
    Convolution(1, 33, 65, 5000, 3, padding=(1, 1)),
    Convolution(5, 3, 7, 333, 5, padding=(2, 2)),
]

DEPTHWISE = [
    Convolution(8, 4096, 4096, 4096, 4, padding=(3, 0), groups=4096),  # Mamba
    Convolution(32, 512, 512, 1000, 31, padding=(15, 15), groups=512),  # Conformer
    Convolution(8, 1536, 1536, 2048, 3, padding=(1, 1), groups=1536),
    Convolution(8, 1536, 1536, 2044, 2, padding=(1, 0), groups=1536),
    Convolution(8, 1530, 1530, 2042, 7, padding=(3, 3), groups=1530),
    Convolution(8, 1535, 1535, 2041, 8, padding=(7, 0), groups=1535),
    Convolution(8, 1024, 1024, 4096, 1, groups=1024),
    Convolution(8, 256, 256, 4096, 5, padding=(8, 8), dilation=4, groups=256),
    Convolution(8, 256, 256, 4096, 9, padding=(4, 4), groups=256),
    Convolution(8, 256, 256, 4096, 33, padding=(64, 0), dilation=2, groups=256),
    Convolution(8, 256, 256, 4096, 65, padding=(32, 32), groups=256),
    Convolution(8, 256, 256, 4096, 300, padding=(299, 0), groups=256),
    Convolution(8, 256, 512, 4096, 3, padding=(1, 1), groups=256),
    Convolution(8, 16, 512, 4096, 3, padding=(1, 1), groups=16),
    Convolution(8, 256, 256, 4096, 4, stride=2, padding=(1, 1), groups=256),
    Convolution(8, 250, 250, 4093, 5, stride=3, padding=(2, 2), groups=250),
    Convolution(2, 3, 3, 17, 3, padding=(1, 1), groups=3),
]


Call = tuple[str, Callable[[], Any]]


def linear_calls(dtype: torch.dtype) -> Iterator[Call]:
    for m, n, k in PRODUCTS:
        x, weight, bias, grad = _meta(((m, k), (n, k), (n,), (m, n)), dtype)
        tag = "" if m % 16 == n % 16 == k % 16 == 0 else " odd"
        yield f"linear_forward{tag}", partial(linear_forward, x, weight, bias, **EPILOGUE)
        yield f"linear_grad_input{tag}", partial(linear_grad_input, grad, weight)
        yield f"linear_grad_weight{tag}", partial(linear_grad_weight, grad, x)


def convolution_calls(layers: list[Convolution], dtype: torch.dtype) -> Iterator[Call]:
    for layer, lies in itertools.product(layers, (Tensor.contiguous, channels_last)):
        x, weight, bias, grad = _meta(layer.shapes, dtype)
        x, grad = lies(x), lies(grad)
        settings = layer.settings
        rows = [n for t in (x, grad) for n in (t.shape[1] // layer.groups, *t.stride())]
        tag = " odd" if any(n * dtype.itemsize % 16 for n in rows if n > 1) else ""
        of_y = strides_like(grad.shape, x)
        torn = tag or (" odd" if any(n * dtype.itemsize % 16 for n in of_y if n > 1) else "")
        # Of one channel, samples lie side by side in either layout.
        samples = grad.stride(2) == 1 or layer.in_channels == 1
        apart = " apart" if layer.stride > 1 and samples else ""
        forward = partial(conv1d_forward, x, weight, bias, *settings, **EPILOGUE)
        yield f"conv1d_forward{torn}", forward
        grad_input = partial(conv1d_grad_input, grad, weight, layer.length, *settings)
        yield f"conv1d_grad_input{apart}{tag}", grad_input
        grad_weight = partial(conv1d_grad_weight, grad, x, layer.taps, *settings)
        yield f"conv1d_grad_weight{tag}", grad_weight
        if layer.depthwise and layer.groups > 1:
            sizes = layer.length, layer.taps, *settings
            every = partial(depthwise_backward, grad, grad, x, weight, *sizes, activation="gelu")
            yield f"depthwise_backward{tag}", every


CALLS: dict[str, Callable[[torch.dtype], Iterator[Call]]] = {
    "linear": linear_calls,
    "dense": partial(convolution_calls, DENSE),
    "depthwise": partial(convolution_calls, DEPTHWISE),
}


def picks(family: str, target: str, dtype: str) -> list[tuple[str, Launch]]:
    """(name, launch) of all layers, without those that compile to the same."""
    found: dict[str, tuple[str, Launch]] = {}
    for name, call in CALLS[family](switch_precision(dtype)):
        with recorded(target) as recording:
            call()
        for launch in recording.launches:
            key = repr((launch.kernel.fn.__name__, _form(launch), launch.options, " odd" in name))
            # Descriptors are aligned, whatever the sizes; a bias is loaded by pointers beside them.
            described = launch.kernel is _matmul_descriptor_kernel
            aligned = described and not (launch.values["HAS_BIAS"] and launch.values["N"] % 16)
            found.setdefault(key, (f"pick of {name.removesuffix(' odd' * aligned)}", launch))
    return list(found.values())


def _form(launch: Launch) -> dict[str, Any]:
    """The constants that shape a kernel's code; rows of one or of several series make one tile,
    and strides differ from 1, not among each other."""
    values = launch.values
    found = {p.name: values[p.name] for p in launch.kernel.params if p.is_constexpr}
    if "BLOCK_L" in found and "STRIDE" in found:
        found["BLOCK_L"] *= found.pop("BLOCK_N")
        found["STRIDE"] = found["STRIDE"] > 1
    return found


def _tile(launch: Launch) -> str:
    blocks = {name: n for name, n in launch.values.items() if name.startswith("BLOCK_")}
    return repr((launch.kernel.fn.__name__, blocks, launch.options))


def _meta(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    return [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]


def main() -> None:
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    family, target, dtype, *brief = sys.argv[1:]
    found = picks(family, target, dtype)
    if brief:
        found.sort(key=lambda pick: bool(pick[1].values.get("ACTIVATION")))  # the last one counts
        found = list({_tile(launch): (name, launch) for name, launch in found}.values())
    rows = compiled_together((name, target, dtype, launch) for name, launch in found)
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
