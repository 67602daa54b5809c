"""Compiles kernels with a defect each, and prints what came out as JSON.

Run as a program, where the interpreter is off: ``python -m tests.tlazy_kernels.planted``. The
``sound`` ones have no defect: each gate lets something pass.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
import triton
import triton.language as tl

from tlazy_kernels.conv1d import conv1d_forward
from tlazy_kernels.epilogue import epilogue_backward
from tlazy_kernels.linear import linear_forward
from tlazy_kernels.offline import compiled_together
from tlazy_kernels.recording import Launch, recorded
from tlazy_kernels.targets import TARGETS


@triton.jit
def _descriptor_matmul_kernel(
    a_ptr,  # shape (M, K)
    b_ptr,  # shape (N, K)
    out_ptr,  # A @ B^T, shape (M, N)
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPECIALIZED: tl.constexpr,
    APART: tl.constexpr,  # a dimension of size 1 between rows and columns
):
    if APART:
        a = tl.make_tensor_descriptor(a_ptr, [M, 1, K], [K, K, 1], [BLOCK_M, 1, BLOCK_K])
    else:
        a = tl.make_tensor_descriptor(a_ptr, [M, K], [K, 1], [BLOCK_M, BLOCK_K])
    b = tl.make_tensor_descriptor(b_ptr, [N, K], [K, 1], [BLOCK_N, BLOCK_K])
    out = tl.make_tensor_descriptor(out_ptr, [M, N], [N, 1], [BLOCK_M, BLOCK_N])
    m, n = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in tl.range(0, K, BLOCK_K, warp_specialize=SPECIALIZED):
        rows = a.load([m, 0, k] if APART else [m, k]).reshape(BLOCK_M, BLOCK_K)
        acc = tl.dot(rows, b.load([n, k]).T, acc)
    out.store([m, n], acc.to(out_ptr.dtype.element_ty))


@triton.jit
def _sums_kernel(x_ptr, out_ptr, rows, columns, INVARIANT: tl.constexpr, BLOCK: tl.constexpr):
    tl.assume(columns > 0)
    for row in tl.range(tl.program_id(0), rows, 132, flatten=True):
        total = tl.zeros((BLOCK,), tl.float32)
        for column in range(columns if INVARIANT else row % columns):
            total += tl.load(x_ptr + (row * columns + column) * BLOCK + tl.arange(0, BLOCK))
        tl.store(out_ptr + row * BLOCK + tl.arange(0, BLOCK), total)


def _flattened(*, invariant: bool) -> Launch:
    x, out = (torch.empty(1 << 20, device="meta") for _ in range(2))
    values = {"x_ptr": x, "out_ptr": out, "rows": 1024, "columns": 8}
    return Launch(_sums_kernel, values | {"INVARIANT": invariant, "BLOCK": 1024}, {"num_warps": 4})


def _by_descriptors(
    *,
    specialized: bool = False,
    apart: bool = False,
    rows: int = 128,
    num_warps: int = 4,
    allocates: bool = True,
) -> Launch:
    a, b, out = (torch.empty(1024, 1024, dtype=torch.bfloat16, device="meta") for _ in range(3))
    values = {"a_ptr": a, "b_ptr": b, "out_ptr": out, "M": 1024, "N": 1024, "K": 1024}
    blocks = {"BLOCK_M": rows, "BLOCK_N": 128, "BLOCK_K": 64, "SPECIALIZED": specialized}
    blocks |= {"APART": apart}
    options = {"num_warps": num_warps, "num_stages": 3}
    return Launch(_descriptor_matmul_kernel, values | blocks, options, allocates)


def _linear(
    dtype: torch.dtype = torch.bfloat16,
    target: str = "sm_90",
    inputs: int = 1024,
    outputs: int = 1024,
    **changes: object,
) -> Launch:
    """The product that linear_forward launches, with some of its arguments or options changed."""
    x, weight = (torch.empty(1024, inputs, dtype=dtype, device="meta") for _ in range(2))
    weight = weight[:outputs]
    with recorded(target) as recording:
        linear_forward(x, weight, activation="gelu")
    launch = recording.launches[0]
    options = launch.options | {k: v for k, v in changes.items() if k.startswith("num_")}
    values = launch.values | {k: v for k, v in changes.items() if k not in options}
    return replace(launch, values=values, options=options)


def _epilogue(**units: int) -> Launch:
    """The pass over rows of 1000 elements that epilogue_backward launches, told of such units."""
    grad = torch.empty(64, 512, 1000, dtype=torch.bfloat16, device="meta")
    with recorded("sm_90") as recording:
        epilogue_backward(grad, grad, "gelu", bias=True)
    launch = recording.launches[0]
    return replace(launch, values=launch.values | units)


def _convolution(resident: int) -> Launch:
    """What conv1d_forward launches, with so many programs a processor."""
    x = torch.empty(8, 1024, 256, dtype=torch.bfloat16, device="meta").mT
    weight = torch.empty(256, 256, 3, dtype=torch.bfloat16, device="meta")
    with recorded("sm_90") as recording:
        conv1d_forward(x, weight)
    (launch,) = (found for found in recording.launches if "programs" in found.values)
    programs = resident * TARGETS["sm_90"].processors
    return replace(launch, values=launch.values | {"programs": programs})


def planted() -> Iterator[tuple[str, str, str, Launch]]:
    """(the gate that must catch it, target, dtype, launch)."""
    many_stages = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128, "num_stages": 12}
    exact = {"PRECISION": "ieee", "BLOCK_K": 16}
    found = [
        ("shared_memory", "bfloat16", _linear(**many_stages)),
        ("stack", "bfloat16", _linear(BLOCK_M=64, BLOCK_N=256, num_warps=2)),
        ("matrix_units", "float32", _linear(torch.float32, **exact)),
        ("matrix_units", "bfloat16", _linear(num_warps=2)),
        ("operands", "bfloat16", _by_descriptors(apart=True)),
        ("programs", "bfloat16", _convolution(resident=3)),
        ("asynchronous_copies", "bfloat16", _linear(outputs=1020, num_stages=1)),
        ("narrow_loads", "bfloat16", _linear(inputs=1023, BLOCK_K=64)),
        ("narrow_stores", "bfloat16", _epilogue(OUT_L_UNIT=1)),
        ("specialization", "bfloat16", _by_descriptors(specialized=True, num_warps=8)),
        ("scratch_memory", "bfloat16", _by_descriptors(allocates=False)),
        ("fusion", "bfloat16", _flattened(invariant=False)),
        ("sound", "bfloat16", _flattened(invariant=True)),
        ("sound", "bfloat16", _linear()),
        ("sound", "bfloat16", _by_descriptors()),
        ("sound", "bfloat16", _by_descriptors(specialized=True)),
        ("sound", "bfloat16", _epilogue()),
    ]
    yield from ((gate, "sm_90", dtype, launch) for gate, dtype, launch in found)
    # What tells a defect where the instructions are other ones.
    yield "matrix_units", "sm_80", "float32", _linear(torch.float32, "sm_80", **exact)
    yield "asynchronous_copies", "sm_80", "bfloat16", _linear(target="sm_80", num_stages=1)
    yield "matrix_units", "sm_100", "bfloat16", _linear(target="sm_100", num_warps=2)
    large = {"BLOCK_M": 256, "BLOCK_N": 256, "BLOCK_K": 32, "num_warps": 2, "num_stages": 1}
    yield "stack", "gfx942", "bfloat16", _linear(target="gfx942", **large)


def main() -> None:
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    print(json.dumps([asdict(row) for row in compiled_together(planted())]))


if __name__ == "__main__":
    main()
