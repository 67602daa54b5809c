"""Compiles what the chooser picks for a grid of linear shapes, and prints what came out as JSON.

Run as a program, where the interpreter is off:
``python -m tests.tlazy_kernels.picks sm_90 bfloat16``.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import torch

from tlazy_kernels.catalogue import DTYPES
from tlazy_kernels.linear import linear_forward, linear_grad_input, linear_grad_weight
from tlazy_kernels.matmul import _matmul_descriptor_kernel
from tlazy_kernels.offline import compiled
from tlazy_kernels.recording import Launch, recorded

# 204 of (M, N, K): from one row to a million, square, flat and tall, with sides of every alignment.
SHAPES = [
    *itertools.product((1, 17, 64, 200, 1024, 5000, 65_536), (16, 96, 1000, 4096), (64, 768, 4096)),
    *itertools.product((8, 128, 2048, 100_000), (10, 33, 256, 1024, 11_008), (16, 100, 512, 1024)),
    *itertools.product((256, 512, 1_000_000), (64, 128, 1280, 2048), (32, 256, 3072)),
    *((side, side, side) for side in (333, 1536, 8192, 16_384)),
]


def picks(target: str, dtype: torch.dtype) -> list[tuple[str, Launch]]:
    """(name, launch) of all shapes, without those that compile to the same."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    found: dict[str, tuple[str, Launch]] = {}
    for m, n, k in SHAPES:
        whole = m % 16 == n % 16 == k % 16 == 0
        for name, launch in _launches(target, dtype, m, n, k):
            # Descriptors are aligned, whatever the sizes; a bias is loaded by pointers beside them.
            described = launch.kernel is _matmul_descriptor_kernel
            aligned = whole or (described and not (launch.values["HAS_BIAS"] and n % 16))
            constants = [launch.values[p.name] for p in launch.kernel.params if p.is_constexpr]
            key = repr((launch.kernel.fn.__name__, constants, launch.options, whole))
            found.setdefault(key, (f"pick of {name}{'' if aligned else ' odd'}", launch))
    return list(found.values())


def _launches(
    target: str, dtype: torch.dtype, m: int, n: int, k: int
) -> Iterator[tuple[str, Launch]]:
    x, weight, bias, grad = (
        torch.empty(*shape, dtype=dtype, device="meta") for shape in ((m, k), (n, k), (n,), (m, n))
    )
    epilogue = {"activation": "gelu", "save_preactivation": True}
    for launcher, arguments, options in (
        (linear_forward, (x, weight, bias), epilogue),
        (linear_grad_input, (grad, weight), {}),
        (linear_grad_weight, (grad, x), {}),
    ):
        with recorded(target) as recording:
            launcher(*arguments, **options)
        for launch in recording.launches:
            yield launcher.__name__, launch


def main() -> None:
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    target, dtype = sys.argv[1:]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = pool.map(
            lambda pick: compiled(pick[0], target, dtype, pick[1]), picks(target, DTYPES[dtype])
        )
        print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
