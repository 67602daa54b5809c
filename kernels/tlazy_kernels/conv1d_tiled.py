"""Dense and grouped conv1d by tiles that tensor descriptors read: aligned memory, either layout.

A tap of the filter reads a tile of x in place, as rows that lie `step` samples apart: sample t is
row t // step of residue t % step, so that a strided or dilated tap is a dense tile of the view
[N, L / step, step, groups, C], and the device fills with zeros what lies beyond its borders. Where
samples are neighbours in memory, TMA reads a tile from any of them on; without it, threads read the
words that hold it. The filters come as [taps, groups, F, C], contraction last. The way back
(transposed) writes rows that lie `stride` apart, one residue of output positions a tile: of those
taps alone that reach it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from tlazy_kernels import layouts
from tlazy_kernels.activations import activate
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.conv1d_configs import conv1d_config, programs_of, series_in_tile, subtiles
from tlazy_kernels.conv1d_filters import packed
from tlazy_kernels.conv1d_tiles import columns_of, rows_of, sum_tile
from tlazy_kernels.copies import tiled_copy
from tlazy_kernels.copy_cost import copy_pays
from tlazy_kernels.launch import Buffer, Step, metadata
from tlazy_kernels.layouts import UNIT_BYTES, WORD_BYTES, Tiled
from tlazy_kernels.positions import Geometry
from tlazy_kernels.targets import Target
from tlazy_kernels.units import element, strides_of, units


def _conv1d_tiled_metadata(grid: tuple, kernel: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    touched = ["x_ptr", "weight_ptr", "y_ptr"]
    touched += ["bias_ptr"] * args["HAS_BIAS"]
    touched += ["preactivation_ptr"] * args["SAVE_PREACTIVATION"]
    # Each weight meets each of the shorter side's positions, those in the padding too.
    positions = args["length" if args["TRANSPOSED"] else "out_length"]
    weights = math.prod(args[size] for size in ("taps", "groups", "F", "C")) // args["TOGETHER"]
    sizes = " ".join(f"{size}={args[size]}" for size in ("batch", "out_length", "C", "F", "taps"))
    flops = 2 * args["batch"] * positions * weights
    return metadata(f"{kernel.name} [{sizes}]", flops, args, *touched)


# What changes with the length, and leaves an address's alignment alone: strides are in whole units.
_VARYING = ["batch", "length", "programs", "stride_xn", "stride_xg", "stride_xt"]


@triton.jit(
    launch_metadata=_conv1d_tiled_metadata,
    do_not_specialize=_VARYING,
    do_not_specialize_on_alignment=["out_length", "stride_yn", "stride_yc", "stride_yl"],
)
def _conv1d_tiled_kernel(
    x_ptr,  # shape (batch, groups * C, length)
    weight_ptr,  # shape (taps, groups, F, C)
    bias_ptr,  # shape (groups * F,); unread unless HAS_BIAS
    y_ptr,  # act(conv + bias), shape (batch, groups * F, out_length)
    preactivation_ptr,  # conv + bias, same shape and strides as y; unwritten unless saved
    batch,
    length,
    out_length,
    groups,
    C,  # contraction channels a group
    F,  # filters (output channels) a group
    taps,
    padding,
    dilation,
    period,  # every so many taps, source rows have the same residue
    inverse,  # of dilation modulo STRIDE; unread unless TRANSPOSED and FLATTEN
    programs,
    stride_xn,
    stride_xg,
    stride_xt,
    stride_wk,
    stride_wg,
    stride_wf,
    stride_bias,
    stride_yn,
    stride_yc,
    stride_yl,
    STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    WHOLE: tl.constexpr,  # every residue's rows end with the last sample, as in ends_together
    FORM: tl.constexpr,  # of x, as in form_on
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_PREACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    TOGETHER: tl.constexpr,  # small groups in each group, whose filters are zero for the others
    FLATTEN: tl.constexpr,  # one loop over all tiles' steps; each tile takes the same number
    SUBTILES: tl.constexpr,
    F_UNIT: tl.constexpr,  # divides F, wherever filters lie
    C_UNIT: tl.constexpr,  # of y, both as in units.py
    L_UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    F = F // F_UNIT * F_UNIT
    out_length = out_length // L_UNIT * L_UNIT
    Y_STEP: tl.constexpr = STRIDE if TRANSPOSED else 1
    UNIT: tl.constexpr = 128 // weight_ptr.dtype.element_ty.primitive_bitwidth
    weight = tl.make_tensor_descriptor(
        weight_ptr,
        [taps, groups, F, tl.cdiv(C, UNIT) * UNIT],
        [
            tl.cast(stride_wk, tl.int64) * UNIT,
            tl.cast(stride_wg, tl.int64) * UNIT,
            tl.cast(stride_wf, tl.int64) * UNIT,
            1,
        ],
        [1, 1, BLOCK_F, BLOCK_C],
    )
    X_STEP: tl.constexpr = 1 if TRANSPOSED else STRIDE
    if WHOLE:
        # So many samples before the first are counted as well, and never read.
        before = (X_STEP - length % X_STEP) % X_STEP
        padding -= before
        x = rows_of(
            x_ptr - before * (tl.cast(stride_xt, tl.int64) * UNIT), batch,
            (length + before) // X_STEP, groups, C, stride_xn, stride_xg, stride_xt,
            X_STEP, FORM, BLOCK_N, BLOCK_L, BLOCK_C,
        )  # fmt: skip
    else:
        x = x_ptr
    filter_blocks = tl.cdiv(F, BLOCK_F)
    row_blocks = tl.cdiv(tl.cdiv(out_length, Y_STEP), BLOCK_L)
    batch_blocks = tl.cdiv(batch, BLOCK_N)
    tiles = filter_blocks * Y_STEP * row_blocks * batch_blocks * groups
    for tile in tl.range(tl.program_id(0), tiles, programs, flatten=FLATTEN):
        f = tile % filter_blocks * BLOCK_F
        residue = tile // filter_blocks % Y_STEP
        row = tile // (filter_blocks * Y_STEP) % row_blocks * BLOCK_L
        tile_of_series = tile // (filter_blocks * Y_STEP * row_blocks)
        n = tile_of_series % batch_blocks * BLOCK_N
        group = tile_of_series // batch_blocks
        acc = sum_tile(
            x, weight, batch, length, groups, C, taps, padding, dilation, period, inverse,
            stride_xn, stride_xg, stride_xt, n, row, residue, group, f, 0, C,
            False, STRIDE, TRANSPOSED, WHOLE, FLATTEN, FORM, PRECISION,
            BLOCK_N, BLOCK_L, BLOCK_F, BLOCK_C,
        )  # fmt: skip
        if TOGETHER > 1:  # noqa: SIM102
            # Zeros between groups: an infinite sample of one would be NaN in its neighbours.
            if tl.max(tl.max((acc != acc).to(tl.int32), axis=1), axis=0) > 0:
                for part in range(TOGETHER):
                    each = C // TOGETHER
                    own = sum_tile(
                        x, weight, batch, length, groups, C, taps, padding, dilation, period,
                        inverse, stride_xn, stride_xg, stride_xt, n, row, residue, group, f,
                        part * each, part * each + each,
                        True, STRIDE, TRANSPOSED, WHOLE, FLATTEN, FORM, PRECISION,
                        BLOCK_N, BLOCK_L, BLOCK_F, BLOCK_C,
                    )  # fmt: skip
                    of_part = (f + tl.arange(0, BLOCK_F)) // (F // TOGETHER) == part
                    acc = tl.where(of_part[None, :], own, acc)
        within = tl.arange(0, BLOCK_N * BLOCK_L)
        series = (n.to(tl.int64) + within // BLOCK_L)[:, None]
        position = ((row.to(tl.int64) + within % BLOCK_L) * Y_STEP + residue)[:, None]
        exists = (series < batch) & (position < out_length)
        for part in tl.static_range(SUBTILES):
            z = columns_of(acc, part, SUBTILES)
            filters = f + part * (BLOCK_F // SUBTILES) + tl.arange(0, BLOCK_F // SUBTILES)
            channel = group.to(tl.int64) * F + filters
            if HAS_BIAS:
                bias = tl.load(bias_ptr + channel * stride_bias, mask=filters < F, other=0.0)
                z += bias.to(tl.float32)[None, :]
            mask = exists & (filters < F)[None, :]
            place = element(
                series, channel[None, :], position, stride_yn, stride_yc, stride_yl, C_UNIT, L_UNIT
            )
            if SAVE_PREACTIVATION:
                kept = z.to(preactivation_ptr.dtype.element_ty)
                tl.store(preactivation_ptr + place, kept, mask=mask)
            y = activate(z, ACTIVATION).to(y_ptr.dtype.element_ty)
            tl.store(y_ptr + place, y, mask=mask)


def fits_tiles(x: Tensor, out_length: int, taps: int, geometry: Geometry) -> bool:
    """Whether there is something to contract, and 32 bits hold every sample's and tile's number."""
    stride, padding, dilation, _ = geometry
    longest = max(out_length, x.shape[2] + sum(padding) + (taps + stride) * dilation)
    return x.numel() > 0 and longest < 2**31 and x.shape[0] * out_length < 2**36


def readable_tiles(
    target: Target, x: Tensor, groups: int, step: int, shifted: bool = True
) -> Tiled | None:
    """How tiles of x, with rows `step` samples apart, can be read in place, or None.

    Samples that are neighbours are read all. Tiles that a tap has `shifted` start at any of them:
    TMA reads those as they are, threads by words, of which rows must then be whole. Others start
    with a unit, and threads read units.
    """
    tiled = layouts.tiled(x, groups)
    if tiled is None or tiled.channels_last:
        return tiled
    if step > 1:
        return None
    if target.copies_tiles and layouts.ANY_START:
        return tiled
    piece = WORD_BYTES if shifted else UNIT_BYTES
    if x.shape[2] % (piece // x.element_size()):
        return None
    return tiled._replace(form="words") if shifted else tiled


class Source(NamedTuple):
    """A tensor that products read in tiles.

    Attributes:
        place: of it, or of its copy, among a plan's tensors.
        tiled: how that is read.
        buffers, steps: the copy and what makes it, where there is one.
    """

    place: int
    tiled: Tiled
    buffers: tuple[Buffer, ...] = ()
    steps: tuple[Step, ...] = ()


def source_of(
    target: Target,
    x: Tensor,
    place: int,
    free: int,
    *,
    groups: int,
    step: int,
    reads: float,
    precision: str,
    shifted: bool = True,
) -> Source | None:
    """How products read x, a plan's tensor at `place`, in tiles: as it lies, or else from a copy at
    the `free` place, if that pays. None if not.

    `reads` is how often a gather would load each of its elements; `step` and `shifted` are as in
    :func:`readable_tiles`.
    """
    tiled = readable_tiles(target, x, groups, step, shifted)
    if tiled is not None:
        return Source(place, tiled)
    if not copy_pays(x, reads):
        return None
    buffer, copy, tiled = tiled_copy(x, groups, place, free, precision)
    return Source(free, tiled, (buffer,), (copy,))


def form_on(target: Target, tiled: layouts.Tiled) -> str:
    """The form as the kernels are told it, which take channels last in another order of dimensions
    (``"channels_last_by_threads"``) where no unit of its own copies tiles."""
    by_threads = tiled.channels_last and not target.copies_tiles
    return f"{tiled.form}_by_threads" if by_threads else tiled.form


def tiled_steps(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    preactivation: Tensor | None,
    geometry: Geometry,
    *,
    transposed: bool,
    activation: str | None,
    precision: str,
    config: TileConfig | None,
    source: Source,
    target: Target,
    together: int,
) -> tuple[list[Buffer], list[Step]]:
    """Fill y with the convolution of x; the tensors are a plan's first five, in this order.

    `source` is what is read for x. Of the weight's groups, each of `geometry` has `together`.
    """
    (batch, channels, length), (_, out_channels, out_length) = x.shape, y.shape
    stride, (padding, _), dilation, groups = geometry
    taps, residues = weight.shape[2], stride if transposed else 1
    rows = triton.cdiv(out_length, residues)
    filters, contracted = out_channels // groups, channels // groups
    tiled, whole = source.tiled, transposed or ends_together(length, stride, padding)
    of_y = units(filters, out_length, y.element_size(), strides_of(y))
    apart = _written_apart(y, of_y, residues)
    common = math.gcd(stride, dilation)
    one_loop = whole and (residues == 1 or _sums_alike(geometry, taps, apart=apart))
    config = config or conv1d_config(
        target,
        batch=batch,
        rows=rows,
        filters=filters,
        channels=contracted,
        taps=taps / residues,
        groups=groups * residues,
        itemsize=x.element_size(),
        precision=precision,
        channels_last=tiled.channels_last,
        words=tiled.form == "words",
        together=together,
        apart=apart,
    )
    block_n = series_in_tile(config.rows, rows) if tiled.channels_last else 1
    block_l = config.rows // block_n
    tiles = triton.cdiv(filters, config.cols) * triton.cdiv(rows, block_l)
    tiles *= triton.cdiv(batch, block_n) * groups * residues
    free = 5 + len(source.buffers)
    buffers, steps, filled, strides = packed(weight, groups, together, transposed, precision, free)
    resident = programs_of(
        config, x.element_size(), target, series=block_n, together=together, apart=apart
    )
    programs = min(tiles, target.processors * resident)
    step = Step(
        _conv1d_tiled_kernel,
        (programs,),
        (
            source.place,
            filled,
            source.place if bias is None else 2,
            3,
            3 if preactivation is None else 4,
        ),
        (
            batch,
            length,
            out_length,
            groups,
            contracted,
            filters,
            taps,
            padding,
            dilation,
            stride // common,
            pow(dilation, -1, stride) if common == 1 else 0,
            programs,
            tiled.stride_n,
            tiled.stride_g,
            tiled.stride_t,
            *strides,
            0 if bias is None else bias.stride(0),
            *strides_of(y),
        ),
        {
            "STRIDE": stride,
            "TRANSPOSED": transposed,
            "WHOLE": whole,
            "FORM": form_on(target, tiled),
            "ACTIVATION": activation,
            "HAS_BIAS": bias is not None,
            "SAVE_PREACTIVATION": preactivation is not None,
            "PRECISION": precision,
            "TOGETHER": together,
            # Copied by threads, the next tile's first operands would need more shared memory.
            "FLATTEN": one_loop and together == 1 and target.copies_tiles,
            "SUBTILES": subtiles(config, target),
            "F_UNIT": math.gcd(filters, 8),
            **of_y,
            "BLOCK_N": block_n,
            "BLOCK_L": block_l,
            "BLOCK_F": config.cols,
            "BLOCK_C": config.depth,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return [*source.buffers, *buffers], [*source.steps, *steps, step]


def ends_together(length: int, stride: int, padding: int) -> bool:
    """Whether one descriptor has the rows of every residue of the stride.

    Counted back from the last sample they end together, and begin with samples before the first,
    as many as make rows whole. Those are not zeros but what lies there: no tap may read them, which
    only `padding` on the left would let one do.
    """
    return length % stride == 0 or padding == 0


def _sums_alike(geometry: Geometry, taps: int, *, apart: bool) -> bool:
    """Whether on the way back over a stride each residue sums as many taps, the first of which is
    found in 32 bits. Elements written `apart` leave no registers to load ahead for a next tile."""
    stride, (padding, _), dilation, _ = geometry
    alike = math.gcd(stride, dilation) == 1 and taps % stride == 0
    return alike and not apart and (stride + padding) * stride < 2**31


def _written_apart(y: Tensor, of_y: Mapping[str, int], residues: int) -> bool:
    """Whether elements of y are written one by one: neither channels that are neighbours in whole
    units nor samples, which so many residues take apart."""
    along = of_y["L_UNIT"] if y.stride(2) == 1 and residues == 1 else 1
    along = of_y["C_UNIT"] if y.stride(1) == 1 else along
    return along * y.element_size() < UNIT_BYTES
