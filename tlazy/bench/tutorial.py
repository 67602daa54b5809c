"""A matrix product as Triton's tutorials teach it, for comparison: what an afternoon gives.

One program for each tile of the output, tiles walked in groups of rows so that neighbours share
what the cache holds, plain pointers, no fused epilogue, one tile size for large and one for small.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGE = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
SMALL = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4}
GROUP = 8


@triton.jit
def _tutorial_kernel(
    a_ptr,  # shape (M, K)
    b_ptr,  # shape (K, N)
    out_ptr,  # A @ B, shape (M, N), contiguous
    M,
    N,
    K,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0)
    columns = tl.cdiv(N, BLOCK_N)
    first_row = tile // (GROUP * columns) * GROUP
    rows = tl.minimum(tl.cdiv(M, BLOCK_M) - first_row, GROUP)
    within = tile % (GROUP * columns)
    m = (first_row + within % rows).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (within // rows).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(
            a_ptr + (m % M)[:, None] * stride_am + k[None, :] * stride_ak,
            mask=(k < K)[None, :],
            other=0.0,
        )
        b = tl.load(
            b_ptr + k[:, None] * stride_bk + (n % N)[None, :] * stride_bn,
            mask=(k < K)[:, None],
            other=0.0,
        )
        acc = tl.dot(a, b, acc)
    tl.store(
        out_ptr + m[:, None] * N + n[None, :],
        acc.to(out_ptr.dtype.element_ty),
        mask=(m < M)[:, None] & (n < N)[None, :],
    )


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for a of shape (M, K) and b of shape (K, N), in 16 bits a number."""
    (m, k), n = a.shape, b.shape[1]
    out = torch.empty((m, n), dtype=a.dtype, device=a.device)
    tile = LARGE if m >= 1024 and n >= 1024 else SMALL
    grid = (triton.cdiv(m, tile["BLOCK_M"]) * triton.cdiv(n, tile["BLOCK_N"]),)
    _tutorial_kernel[grid](a, b, out, m, n, k, *a.stride(), *b.stride(), GROUP=GROUP, **tile)
    return out
