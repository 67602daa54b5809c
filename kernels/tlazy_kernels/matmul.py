"""The matrix product act(A @ B + bias) behind the linear layer's three launchers.

Two kernels compute it. Where sizes and strides are multiples of 16 bytes, a persistent kernel walks
tiles through tensor descriptors, which a unit of its own copies on Hopper and Blackwell (TMA) and
which become pointers elsewhere; else a kernel of one tile a program reads by pointers, whatever the
strides. Both take either operand with either of its dimensions contiguous. A contraction with too
few tiles to fill the device is split, its partial sums added in a fixed order by splits.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels.activations import activate
from tlazy_kernels.configs import Split, TileConfig, split_contraction
from tlazy_kernels.launch import Buffer, Plan, Step, metadata
from tlazy_kernels.splits import PLAIN, Epilogue, sum_step
from tlazy_kernels.targets import Target
from tlazy_kernels.tf32 import to_tf32
from tlazy_kernels.tuned import tuned


def _matmul_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    touched = ["a_ptr", "b_ptr", "out_ptr"]
    touched += ["bias_ptr"] * args["HAS_BIAS"]
    touched += ["preactivation_ptr"] * args["SAVE_PREACTIVATION"]
    M, N, K = (args[size] for size in "MNK")
    return metadata(f"{kernel.name} [M={M} N={N} K={K}]", 2 * M * N * K, args, *touched)


@triton.jit
def _tile_position(index, row_blocks, column_blocks, GROUP: tl.constexpr):
    """Row and column block of a tile. Tiles that run together share rows of A and columns of B:
    they go down groups of GROUP row blocks, so that what they read stays in the L2 cache."""
    group_size = GROUP * column_blocks
    first = index // group_size * GROUP
    rows = tl.minimum(row_blocks - first, GROUP)
    within = index % group_size
    return first + within % rows, within // rows


@triton.jit
def _described(
    ptr, rows, columns, stride, TRANSPOSED: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    """Descriptor of a matrix (rows, columns) in tiles R x C; TRANSPOSED has its columns apart."""
    if TRANSPOSED:
        matrix = tl.make_tensor_descriptor(ptr, [columns, rows], [stride, 1], [C, R])
    else:
        matrix = tl.make_tensor_descriptor(ptr, [rows, columns], [stride, 1], [R, C])
    return matrix


@triton.jit
def _load_tile(matrix, row, column, TRANSPOSED: tl.constexpr):
    return matrix.load([column, row]).T if TRANSPOSED else matrix.load([row, column])


# These change with the number of rows, which must not mean a new compilation each time. M itself
# may be a multiple of 16 or not: where descriptors become pointers, that decides loads' widths.
_VARYING = ["splits", "steps", "programs"]


@triton.jit(launch_metadata=_matmul_metadata, do_not_specialize=_VARYING)
def _matmul_descriptor_kernel(
    a_ptr,  # shape (M, K), one dimension contiguous
    b_ptr,  # shape (K, N), one dimension contiguous
    bias_ptr,  # shape (N,); unread unless HAS_BIAS
    out_ptr,  # act(A @ B + bias), shape (M, N); or partial sums, shape (splits, M rounded up, N)
    preactivation_ptr,  # A @ B + bias, shape (M, N); unwritten unless SAVE_PREACTIVATION
    M,
    N,
    K,
    splits,
    steps,  # of BLOCK_K that each split takes
    stride_a,  # of the dimension that is not contiguous
    stride_b,
    stride_bias,
    programs,
    M_UNIT: tl.constexpr,  # divides M
    K_UNIT: tl.constexpr,  # divides K
    A_TRANSPOSED: tl.constexpr,
    B_TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    FUSED: tl.constexpr,
    SPECIALIZED: tl.constexpr,
    SUBTILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Triton knows of an argument whether 16 divides it, and nothing else. Where descriptors become
    # pointers, loads are as wide as it knows rows and their ends to be aligned.
    UNIT: tl.constexpr = 128 // a_ptr.dtype.element_ty.primitive_bitwidth
    M = M // M_UNIT * M_UNIT
    N = N // UNIT * UNIT
    K = K // K_UNIT * K_UNIT
    stride_a = stride_a // UNIT * UNIT
    stride_b = stride_b // UNIT * UNIT
    a_matrix = _described(a_ptr, M, K, stride_a, A_TRANSPOSED, BLOCK_M, BLOCK_K)
    b_matrix = _described(b_ptr, K, N, stride_b, B_TRANSPOSED, BLOCK_K, BLOCK_N)
    part: tl.constexpr = BLOCK_N // SUBTILES
    row_blocks = tl.cdiv(M, BLOCK_M)
    # A choice, not a branch, beside which warp specialization would be left out in silence.
    out_rows = tl.where(splits == 1, M, splits * row_blocks * BLOCK_M)
    out = _described(out_ptr, out_rows, N, N, False, BLOCK_M, part)
    if SAVE_PREACTIVATION:
        preactivation = _described(preactivation_ptr, M, N, N, False, BLOCK_M, part)
    column_blocks = tl.cdiv(N, BLOCK_N)
    tiles = row_blocks * column_blocks
    # The loops become one, so that a tile's first loads fly while the last one's epilogue runs. For
    # that the inner one must turn the same number of times in every tile, and at least once.
    if FUSED:
        tl.assume(steps > 0)
    for index in tl.range(
        tl.program_id(0),
        tiles * splits,
        programs,
        flatten=FUSED,
        warp_specialize=SPECIALIZED,
    ):
        split = index // tiles
        row_block, column_block = _tile_position(index % tiles, row_blocks, column_blocks, 8)
        row = row_block * BLOCK_M
        column = column_block * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for step in range(steps):
            k = (split * steps + step) * BLOCK_K  # beyond K descriptors read zeros
            a = _load_tile(a_matrix, row, k, A_TRANSPOSED)
            b = _load_tile(b_matrix, k, column, B_TRANSPOSED)
            # In tf32 the matrix units take neighbours in the contraction; else registers pass them.
            if PRECISION == "tf32" and A_TRANSPOSED:
                a = to_tf32(a)
            if PRECISION == "tf32" and not B_TRANSPOSED:
                b = to_tf32(b)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
        if SUBTILES == 1:
            parts = (acc,)
        else:
            halves = tl.permute(tl.reshape(acc, (BLOCK_M, 2, part)), (0, 2, 1))
            parts = tl.split(halves)
        for i in tl.static_range(SUBTILES):
            z = parts[i]
            start = column + i * part
            if HAS_BIAS:
                n = start + tl.arange(0, part)
                place = bias_ptr + n.to(tl.int64) * stride_bias
                bias = tl.load(place, mask=n < N, other=0.0)
                z += bias.to(tl.float32)[None, :]
            if SAVE_PREACTIVATION:
                kept = z.to(preactivation_ptr.dtype.element_ty)
                preactivation.store([row, start], kept)
            y = activate(z, ACTIVATION).to(out_ptr.dtype.element_ty)
            out.store([split * row_blocks * BLOCK_M + row, start], y)


@triton.jit(launch_metadata=_matmul_metadata)
def _matmul_pointer_kernel(
    a_ptr,  # shape (M, K)
    b_ptr,  # shape (K, N)
    bias_ptr,  # shape (N,); unread unless HAS_BIAS
    out_ptr,  # act(A @ B + bias), shape (M, N); or partial sums, shape (splits, M rounded up, N)
    preactivation_ptr,  # A @ B + bias, shape (M, N); unwritten unless SAVE_PREACTIVATION
    M,
    N,
    K,
    k_per_split,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    stride_bias,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row_blocks = tl.cdiv(M, BLOCK_M)
    row_block, column_block = _tile_position(tl.program_id(0), row_blocks, tl.cdiv(N, BLOCK_N), 8)
    split = tl.program_id(1).to(tl.int64)
    m = row_block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column_block.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = split * k_per_split
    last = tl.minimum(first + k_per_split, K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        a = tl.load(
            a_ptr + m[:, None] * stride_am + k[None, :] * stride_ak,
            mask=(m < M)[:, None] & (k < last)[None, :],
            other=0.0,
        )
        b = tl.load(
            b_ptr + k[:, None] * stride_bk + n[None, :] * stride_bn,
            mask=(k < last)[:, None] & (n < N)[None, :],
            other=0.0,
        )
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n * stride_bias, mask=n < N, other=0.0).to(tl.float32)[None, :]
    target = m[:, None] * N + n[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    if SAVE_PREACTIVATION:
        tl.store(preactivation_ptr + target, acc.to(preactivation_ptr.dtype.element_ty), mask=mask)
    y = activate(acc, ACTIVATION).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + split * row_blocks * BLOCK_M * N + target, y, mask=mask)


class Operand(NamedTuple):
    """A matrix among a call's inputs, as it lies in memory.

    Attributes:
        position: of its tensor among the inputs.
        shape, strides: in elements.
        dtype: of its elements.
        aligned: whether its first element lies at a multiple of 16 bytes.
    """

    position: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    aligned: bool

    @classmethod
    def of(cls, position: int, x: Tensor) -> Operand:
        return cls(position, x.shape, x.stride(), x.dtype, x.data_ptr() % 16 == 0)

    @property
    def t(self) -> Operand:
        return self._replace(shape=self.shape[::-1], strides=self.strides[::-1])

    def described(self) -> tuple[int, bool] | None:
        """(stride of the far dimension, whether that is the columns'), as a tensor descriptor can
        have them: contiguous near elements, and all else in multiples of 16 bytes. None if not."""
        itemsize = self.dtype.itemsize
        for matrix, transposed in ((self, False), (self.t, True)):
            (count, length), (far, near) = matrix.shape, matrix.strides
            if count == 1:  # its stride is never taken
                far = -(-length * itemsize // 16) * 16 // itemsize
            if (
                self.aligned
                and (near == 1 or length == 1)
                and far >= length
                and far * itemsize % 16 == 0
                and 0 < min(self.shape) <= max(self.shape) < 2**31 - 256
            ):
                return far, transposed
        return None


class Product(NamedTuple):
    """A product a @ b of a call, and how kernels read and multiply it.

    Attributes:
        precision: of the dot, as ``environment.dot_precision``.
        descriptors: what ``Operand.described`` says of both; None for pointers.
    """

    a: Operand
    b: Operand
    precision: str
    descriptors: tuple[tuple[int, bool], tuple[int, bool]] | None

    @classmethod
    def of(cls, a: Operand, b: Operand, precision: str) -> Product:
        first, second = a.described(), b.described()
        rows, columns = a.shape[0], b.shape[1]
        # The result is stored by a descriptor too, and its tiles are counted in 32 bits.
        if columns * b.dtype.itemsize % 16 or rows * columns >= 2**40:
            first = None
        both = None if first is None or second is None else (first, second)
        return cls(a, b, precision, both)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.a.shape[0], self.b.shape[1], self.a.shape[1]


def plan_product(
    target: Target,
    launcher: str,
    a: Operand,
    b: Operand,
    precision: str,
    inputs: int,
    epilogue: Epilogue = PLAIN,
    config: TileConfig | None = None,
) -> Plan:
    """The plan of a launcher's ``act(a @ b + bias)``, for matrices of one dtype among so many
    `inputs`.

    Its outputs are the (M, N) product, and the preactivation or None.

    Raises:
        ValueError: for a `config` whose warp specialization would have no effect.
    """
    product = Product.of(a, b, precision)
    m, n, k = product.sizes
    y = Buffer.of((m, n), a.dtype)
    buffers = (y, y) if epilogue.save_preactivation else (y,)
    outputs = (0, 1 if epilogue.save_preactivation else None)
    if m * n == 0:
        return Plan(buffers, (), outputs)
    described = product.descriptors is not None
    if config is not None:
        _check_specialization(target, config)
    split = split_contraction(
        m,
        n,
        k,
        a.dtype.itemsize,
        precision,
        target,
        activation=epilogue.activation,
        described=described,
        config=config or _measured(target, launcher, product, epilogue),
    )
    first, last = inputs, inputs + len(buffers) - 1
    if split.parts == 1:
        return Plan(buffers, (_step(target, product, split, epilogue, first, last),), outputs)
    rows = -(-m // split.config.rows) * split.config.rows
    partial = Buffer.of((split.parts, rows, n), torch.float32)
    steps = (
        _step(target, product, split, PLAIN, last + 1, last + 1),
        sum_step(partial, (m, n), last + 1, first, last, epilogue),
    )
    return Plan((*buffers, partial), steps, outputs)


def _measured(
    target: Target, launcher: str, product: Product, epilogue: Epilogue
) -> TileConfig | None:
    """The tile of this product in a table of measured ones, if this target can run it."""
    forms = "pointers"
    if product.descriptors is not None:
        forms = "-".join("columns" if across else "rows" for _, across in product.descriptors)
    traits = (product.precision, forms, epilogue.activation, epilogue.save_preactivation)
    tile = tuned(target, launcher, product.a.dtype, (*product.sizes, *traits))
    if tile is None or (tile.specialized and not specializes(target, tile)):
        return None
    fits = tile.shared_bytes(product.a.dtype.itemsize, target) <= target.shared_limit
    return tile if fits else None


def specializes(target: Target, config: TileConfig) -> bool:
    """Whether warp specialization would take effect: with 8 warps it is ignored, before Triton 3.8
    it fails beside a tile stored in halves, and on Blackwell it spills."""
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return target.gpu.arch == 90 and config.num_warps == 4 and version >= (3, 8)


def _check_specialization(target: Target, config: TileConfig) -> None:
    if config.specialized and not specializes(target, config):
        raise ValueError(
            f"{config} asks for warp specialization, which takes effect with 4 warps, on sm_90 and "
            f"from Triton 3.8 on; here it is {target.gpu.arch} and Triton {triton.__version__}"
        )


def _step(
    target: Target,
    product: Product,
    split: Split,
    epilogue: Epilogue,
    out: int,
    preactivation: int,
) -> Step:
    """The launch that writes the product, or its partial sums, to the tensor `out`."""
    m, n, k = product.sizes
    a, b, precision, descriptors = product
    config = split.config
    bias = a.position if epilogue.bias is None else epilogue.bias
    tensors = (a.position, b.position, bias, out, preactivation)
    constants: dict[str, Any] = {
        "ACTIVATION": epilogue.activation,
        "HAS_BIAS": epilogue.bias is not None,
        "SAVE_PREACTIVATION": epilogue.save_preactivation,
        "PRECISION": precision,
    }
    blocks = {"BLOCK_M": config.rows, "BLOCK_N": config.cols, "BLOCK_K": config.depth}
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    tiles = -(-m // config.rows) * -(-n // config.cols)
    if descriptors is None:
        scalars = (m, n, k, split.depth, *a.strides, *b.strides, epilogue.bias_stride)
        constants |= blocks
        return Step(
            _matmul_pointer_kernel, (tiles, split.parts), tensors, scalars, constants, **options
        )
    (a_far, a_transposed), (b_far, b_transposed) = descriptors
    out_itemsize = 4 if split.parts > 1 else a.dtype.itemsize
    resident = target.processors * config.programs(a.dtype.itemsize, target, out_itemsize)
    programs = min(tiles * split.parts, resident)
    far = (a_far, b_far, epilogue.bias_stride)
    steps = split.depth // config.depth
    scalars = (m, n, k, split.parts, steps, *far, programs)
    along_m, along_k = a_transposed, not a_transposed or b_transposed  # lie contiguous
    pointers = not target.copies_tiles
    constants = {
        "M_UNIT": math.gcd(m, 8) if along_m and pointers else 1,
        "K_UNIT": math.gcd(k, 8) if along_k and pointers else 1,
        "A_TRANSPOSED": a_transposed,
        "B_TRANSPOSED": b_transposed,
        **constants,
        "FUSED": target.copies_tiles and not config.specialized,
        "SPECIALIZED": config.specialized,
        "SUBTILES": config.subtiles,
        **blocks,
    }
    return Step(_matmul_descriptor_kernel, (programs,), tensors, scalars, constants, **options)
