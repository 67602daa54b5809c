"""Small things to break in the kernels, one at a time: what ``mutants.py`` tries out.

Kinds: masks, strides, taps off by one, missing casts, sums in the wrong dtype, programs that write
to one place.
"""

from __future__ import annotations

from dataclasses import dataclass

# Where a file's tests are, unless they bear its name.
SEEN_IN = {
    "matmul": "linear",
    "splits": "linear",
    "copies": "conv1d",
    "positions": "conv1d",
    "conv1d_tiled": "conv1d",
    "conv1d_tiles": "conv1d",
    "conv1d_filters": "conv1d",
    "conv1d_gather": "conv1d",
    "conv1d_grad_weight": "conv1d",
    "depthwise_general": "depthwise",
    "depthwise_channels": "depthwise",
    "depthwise_time": "depthwise",
    "epilogue": "activations",
}


@dataclass(frozen=True)
class Mutant:
    """One change of one line: `old`, which stands once in the file, becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    seen_by: str = "interpreter"
    tested_by: str = ""

    @property
    def path(self) -> str:
        return f"kernels/tlazy_kernels/{self.file}.py"

    @property
    def tests(self) -> str:
        """The test file that must notice."""
        noun = self.tested_by or SEEN_IN.get(self.file, self.file)
        return f"tests/tlazy_kernels/test_{noun}.py"


def mutated(mutant: Mutant, text: str) -> str:
    """The file's text with the change.

    Raises:
        ValueError: where `old` does not stand there once.
    """
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.path}: {mutant.old!r} stands {text.count(mutant.old)} times")
    return text.replace(mutant.old, mutant.new)


MUTANTS = [
    Mutant(
        "contraction unmasked in A",
        "matmul",
        "(m < M)[:, None] & (k < last)[None, :]",
        "(m < M)[:, None]",
    ),
    Mutant(
        "store mask off by one", "matmul", "(n < N)[None, :]\n    if", "(n <= N)[None, :]\n    if"
    ),
    Mutant("unit stride assumed in A", "matmul", "k[None, :] * stride_ak", "k[None, :]"),
    Mutant("units assumed along K", "matmul", '"K_UNIT": math.gcd(k, 8)', '"K_UNIT": 8'),
    Mutant("units assumed along M", "matmul", '"M_UNIT": math.gcd(m, 8)', '"M_UNIT": 8'),
    Mutant(
        "unit stride assumed in bias",
        "matmul",
        "acc += tl.load(bias_ptr + n * stride_bias",
        "acc += tl.load(bias_ptr + n",
    ),
    Mutant(
        "sum rounded every step, by pointers",
        "matmul",
        "acc, input_precision=PRECISION)\n    if",
        "acc, input_precision=PRECISION).to(a_ptr.dtype.element_ty).to(tl.float32)\n    if",
    ),
    Mutant(
        "sum rounded every step, by descriptors",
        "matmul",
        "acc, input_precision=PRECISION)\n        if",
        "acc, input_precision=PRECISION).to(a_ptr.dtype.element_ty).to(tl.float32)\n        if",
    ),
    Mutant(
        "splits overwrite each other",
        "matmul",
        "[split * row_blocks * BLOCK_M + row, start]",
        "[row, start]",
    ),
    Mutant(
        "split runs into the next, in a product",
        "matmul",
        "for step in range(steps):",
        "for step in range(steps + 1):",
    ),
    Mutant(
        "both halves of a tile in one place",
        "matmul",
        "start = column + i * part",
        "start = column",
    ),
    Mutant(
        "last group of rows has all its rows",
        "matmul",
        "first + within % rows, within // rows",
        "first + within % GROUP, within // GROUP",
    ),
    Mutant(
        "preactivation stored after the activation",
        "matmul",
        "kept = z.to(preactivation_ptr",
        "kept = activate(z, ACTIVATION).to(preactivation_ptr",
    ),
    Mutant(
        "second stage forgets the last split",
        "splits",
        "(part < parts)[:, None]",
        "(part < parts - 1)[:, None]",
    ),
    Mutant(
        "second stage takes another column's bias",
        "splits",
        "bias_ptr + column * stride_bias",
        "bias_ptr + tl.maximum(column - 1, 0) * stride_bias",
    ),
    Mutant(
        "tap off by one",
        "positions",
        "tap.to(tl.int64) * dilation",
        "(tap.to(tl.int64) + 1) * dilation",
    ),
    Mutant(
        "end of the input off by one",
        "positions",
        "exists = (source >= 0) & (source < length)\n    return",
        "exists = (source >= 0) & (source <= length)\n    return",
    ),
    Mutant(
        "start of the input unmasked",
        "positions",
        "exists = (source >= 0) & (source < length)\n    return",
        "exists = source < length\n    return",
    ),
    Mutant("stride's remainder ignored", "positions", " & (source * stride == strided)", ""),
    Mutant(
        "tap off by one in a tile",
        "conv1d_tiles",
        "offset = tap * dilation - padding",
        "offset = (tap + 1) * dilation - padding",
    ),
    Mutant(
        "lifted rows not taken off",
        "conv1d_tiles",
        "source = offset // STEP - lift",
        "source = offset // STEP",
    ),
    Mutant("stride's phase forgotten", "conv1d_tiles", "phase = offset % STEP", "phase = 0"),
    Mutant(
        "group's output offset forgotten",
        "conv1d_tiled",
        "channel = group.to(tl.int64) * F + filters",
        "channel = filters",
    ),
    Mutant(
        "filters rounded down",
        "conv1d_tiled",
        '"F_UNIT": math.gcd(filters, 8)',
        '"F_UNIT": 8',
    ),
    Mutant(
        "output strides rounded down",
        "units",
        "for n, _, position in strides for stride in (n, position)",
        "for n, _, position in strides for stride in (n,)",
    ),
    Mutant(
        "small groups not kept apart",
        "conv1d_tiled",
        "tl.max(tl.max((acc != acc).to(tl.int32), axis=1), axis=0) > 0",
        "tl.max(tl.max((acc != acc).to(tl.int32), axis=1), axis=0) > 1",
    ),
    Mutant(
        "filters beside the diagonal",
        "conv1d_filters",
        "mask & own & (c < together * C)",
        "mask & (c < together * C)",
    ),
    Mutant(
        "block of the diagonal forgotten",
        "conv1d_grad_weight",
        "channels %= each",
        "channels %= C",
    ),
    Mutant(
        "outputs one too many",
        "conv1d_tiled",
        "(series < batch) & (position < out_length)",
        "(series < batch) & (position <= out_length)",
    ),
    Mutant(
        "samples before the tile in its words",
        "conv1d_tiles",
        "shift = (skipped * BITS)",
        "shift = (0 * skipped)",
    ),
    Mutant(
        "word before the first forgotten",
        "conv1d_tiles",
        "(word >= -1) & (word < words - 1)",
        "(word >= 0) & (word < words - 1)",
    ),
    Mutant(
        "word behind the row",
        "conv1d_tiles",
        "(word >= -1) & (word < words - 1)",
        "(word >= -1) & (word < words)",
    ),
    Mutant(
        "words of the next group",
        "conv1d_tiles",
        "exists = (channel < channels)[:, None]",
        "exists = (channel >= 0)[:, None]",
        "ttsem",
    ),
    Mutant(
        "words of a row counted in 32 bits",
        "conv1d_tiles",
        "rows // (UNIT // 2)",
        "rows * 2 // UNIT",
    ),
    Mutant(
        "words of the first group",
        "conv1d_tiles",
        "n * stride_n + group * stride_g",
        "n * stride_n",
    ),
    Mutant(
        "words behind the last output",
        "conv1d_grad_weight",
        "(row + source + tl.arange(0, BLOCK_L) < rows)[:, None]",
        "(row + source + tl.arange(0, BLOCK_L) < length)[:, None]",
    ),
    Mutant(
        "padding meets samples",
        "conv1d_grad_weight",
        "tl.where(rows > 0, c, in_blocks * BLOCK_C)",
        "c",
    ),
    Mutant(
        "gradient of broken units",
        "conv1d_grad_weight",
        'of_grad["L_UNIT"]',
        "8",
    ),
    Mutant(
        "padding forgotten in the input gradient",
        "conv1d_tiles",
        "(residue + padding - tap * dilation) // STEP",
        "(residue - tap * dilation) // STEP",
    ),
    Mutant(
        "group's input offset forgotten",
        "conv1d_gather",
        "group * C * stride_xc",
        "group * stride_xc",
    ),
    Mutant(
        "unit tap stride assumed",
        "conv1d_gather",
        "tap.to(tl.int64) * stride_wk * W_UNIT",
        "tap.to(tl.int64)",
    ),
    Mutant(
        "packed filters read as if they lay side by side",
        "conv1d_gather",
        "f * stride_wo * W_UNIT",
        "f * stride_wo",
    ),
    Mutant(
        "second part of a gathered tile stored in place of the first",
        "conv1d_gather",
        "filters += part * (BLOCK_F // SUBTILES)",
        "filters += (BLOCK_F // SUBTILES)",
    ),
    Mutant(
        "bias unmasked",
        "conv1d_gather",
        "stride_bias, mask=filters < F, other=0.0",
        "stride_bias",
        "ttsem",
    ),
    Mutant(
        "split runs into the next, by pointers",
        "conv1d_grad_weight",
        "tl.minimum(first + rows_per_split, tl.cast(batch, tl.int64) * out_length)",
        "tl.cast(batch, tl.int64) * out_length",
    ),
    Mutant(
        "split runs into the next, by descriptors",
        "conv1d_grad_weight",
        "tl.minimum(first + steps_per_part, row_blocks * tl.cdiv(batch, BLOCK_N))",
        "row_blocks * tl.cdiv(batch, BLOCK_N)",
    ),
    Mutant(
        "product in the input's dtype",
        "depthwise_general",
        "x.to(tl.float32) * w.to(tl.float32)[None, :]",
        "(x * w[None, :]).to(tl.float32)",
    ),
    Mutant(
        "padding not masked in the gradient",
        "depthwise_general",
        "((row < last) & exists)[:, None]",
        "(row < last)[:, None]",
    ),
    Mutant("multiplier forgotten", "depthwise_channels", "channel // multiplier", "channel"),
    Mutant(
        "filter not turned around",
        "depthwise_channels",
        "TAPS - 1 - (tap + k) if FLIPPED else tap + k",
        "tap + k",
    ),
    Mutant(
        "padding meets a tap",
        "depthwise_time",
        "tl.where(exists[None, :], total + sample * tap, total)",
        "total + sample * tap",
    ),
    Mutant(
        "one tap too many in the matrix",
        "depthwise_toeplitz",
        "(lag // DILATION < TAPS)",
        "(lag // DILATION <= TAPS)",
    ),
    Mutant(
        "window starts at a vector, taps too",
        "depthwise_toeplitz",
        "lag = sample - REST -",
        "lag = sample -",
    ),
    Mutant("relu's edge moved", "activations", "saved <= 0, 0.0, grad", "saved < 0, 0.0, grad"),
    Mutant(
        "relu swallows NaN", "activations", "tl.where(z < 0, 0.0, z)", "tl.where(z > 0, z, 0.0)"
    ),
    Mutant("gelu_tanh's derivative off", "activations", "0.134145", "0.044715"),
    Mutant(
        "sigmoid's derivative off",
        "activations",
        "grad * saved * (1.0 - saved)",
        "grad * (1.0 - saved)",
    ),
    Mutant(
        "bias sums overwrite each other",
        "epilogue",
        "partial_ptr + split * channels + c",
        "partial_ptr + c",
    ),
    Mutant(
        "int64 cast missing in a product",
        "matmul",
        "m = row_block.to(tl.int64) * BLOCK_M",
        "m = row_block * BLOCK_M",
    ),
    Mutant(
        "partial sums of two splits in one place",
        "matmul",
        "out_ptr + split * row_blocks * BLOCK_M * N + target",
        "out_ptr + target",
        "ttsem",
    ),
    Mutant(
        "second stage rounded every step",
        "splits",
        "total += tl.sum(values, axis=0)",
        "total = (total + tl.sum(values, axis=0)).to(out_ptr.dtype.element_ty).to(tl.float32)",
    ),
    Mutant(
        "int64 cast missing in a tap's offset",
        "positions",
        "offset = tap.to(tl.int64) * dilation",
        "offset = tap * dilation",
    ),
    Mutant(
        "residue of the outputs forgotten",
        "conv1d_tiled",
        "within % BLOCK_L) * Y_STEP + residue",
        "within % BLOCK_L) * Y_STEP",
        tested_by="conv_transpose1d",
    ),
    Mutant(
        "every tap reaches every residue",
        "conv1d_tiles",
        "                first = taps\n",
        "                first = 0\n",
    ),
    Mutant(
        "sum rounded every tap, in a tile",
        "conv1d_tiles",
        "tl.dot(rows, filters.T, acc, input_precision=PRECISION)",
        "tl.dot(rows, filters.T, acc, input_precision=PRECISION).to(filters.dtype).to(tl.float32)",
    ),
    Mutant(
        "stride's phase forgotten in the weight gradient",
        "conv1d_grad_weight",
        "phase = offset % STRIDE",
        "phase = 0",
    ),
    Mutant(
        "zeros behind the last output meet samples",
        "conv1d_grad_weight",
        "rows = tl.minimum(tl.cdiv(length - phase, STRIDE), out_length + source)",
        "rows = tl.cdiv(length - phase, STRIDE)",
    ),
    Mutant(
        "parts of the weight gradient in one place",
        "conv1d_grad_weight",
        "out_row = (part.to(tl.int64) * groups + group) * F + filters",
        "out_row = group.to(tl.int64) * F + filters",
        "ttsem",
    ),
    Mutant(
        "copy forgets the group",
        "copies",
        "source = first * source0 + second * source1",
        "source = first * source0",
    ),
    Mutant(
        "copied rows one too many",
        "copies",
        "(row < size2) &",
        "(row <= size2) &",
        "ttsem",
    ),
    Mutant(
        "padding read from beside the slice",
        "copies",
        "mask=mask & (row < filled)",
        "mask=mask",
        "ttsem",
    ),
    Mutant(
        "unit stride assumed in the first layer",
        "first_layer",
        "(position * stride - padding)[None, :]",
        "(position - padding)[None, :]",
    ),
    Mutant(
        "tap off by one in the first layer",
        "first_layer",
        "(term % taps * dilation)[:, None]",
        "((term % taps + 1) * dilation)[:, None]",
    ),
    Mutant(
        "end of the input off by one in the first layer",
        "first_layer",
        "exists = (source >= 0) & (source < length)",
        "exists = (source >= 0) & (source <= length)",
    ),
    Mutant(
        "sum rounded every step in the first layer",
        "first_layer",
        "acc = tl.dot(grad, tl.trans(patches), acc, input_precision=PRECISION)",
        "acc = tl.dot(grad, tl.trans(patches), acc, input_precision=PRECISION)"
        ".to(grad.dtype).to(tl.float32)",
    ),
    Mutant(
        "stride forgotten, channels side by side",
        "depthwise_channels",
        "source = first * stride - padding",
        "source = first - padding",
    ),
    Mutant(
        "bias sums another output",
        "depthwise_channels",
        "bias_sum += window[t - CENTER]",
        "bias_sum += window[t]",
        tested_by="depthwise_backward",
    ),
    Mutant(
        "infinite samples meet what is not there",
        "depthwise_channels",
        "both = (exists & inside)[:, None]",
        "both = inside[:, None]",
        tested_by="depthwise_backward",
    ),
    Mutant(
        "stride forgotten, samples side by side",
        "depthwise_time",
        "source = vector * STRIDE + v",
        "source = vector + v",
    ),
    Mutant(
        "filter not turned around, samples side by side",
        "depthwise_time",
        "tap = w[TAPS - 1 - k] if FLIPPED else w[k]",
        "tap = w[k]",
    ),
    Mutant(
        "taps of the other half in the fused pass",
        "depthwise_time",
        "part = g[(j + PADDING - k * DILATION) % VECTOR]",
        "part = g[(j + PADDING) % VECTOR]",
        tested_by="depthwise_backward",
    ),
    Mutant(
        "dilation forgotten along the diagonals",
        "depthwise_toeplitz",
        "REST + tap[None, :] * DILATION",
        "REST + tap[None, :]",
    ),
    Mutant(
        "NaN not looked for",
        "depthwise_toeplitz",
        "if tl.max(suspicious, axis=0) > 0:",
        "if tl.max(suspicious, axis=0) > 1:",
    ),
    Mutant(
        "end of the series off by one in a window",
        "depthwise_toeplitz",
        "(source < vectors * VECTOR) & (block < rows)[:, None]\n    places",
        "(source <= vectors * VECTOR) & (block < rows)[:, None]\n    places",
    ),
    Mutant(
        "bias gradient summed in its dtype",
        "epilogue",
        "total += tl.where(mask, grad, 0.0)",
        "total = (total + tl.where(mask, grad, 0.0)).to(grad_ptr.dtype.element_ty).to(tl.float32)",
    ),
    Mutant(
        "steps of the next split in the bias gradient",
        "epilogue",
        "last = tl.minimum(first + steps_per_split, tl.cast",
        "last = tl.minimum(first + steps_per_split + 1, tl.cast",
    ),
    Mutant(
        "batch stride rounded down to the channels' unit",
        "units",
        "for n, _, position in strides for stride in (n, position)",
        "for n, _, position in strides for stride in (position,)",
    ),
    Mutant(
        "batch stride rounded down to the positions' unit",
        "units",
        "for n, channel, _ in strides for stride in (n, channel)",
        "for n, channel, _ in strides for stride in (channel,)",
    ),
    Mutant(
        "outer stride of a copy rounded down",
        "copies",
        "source_strides[1:], (source_strides[0], 0, 0)",
        "source_strides[1:]",
    ),
    Mutant(
        "strides rounded to what both units do not divide",
        "units",
        "N_UNIT: tl.constexpr = max(C_UNIT, L_UNIT)",
        "N_UNIT: tl.constexpr = C_UNIT * L_UNIT",
    ),
    Mutant(
        "series apart taken for one row",
        "epilogue",
        "all(o == inner * i for o, _, i in found)",
        "any(o == inner * i for o, _, i in found)",
    ),
    Mutant(
        "first output beside the padding left out",
        "borders",
        "first = min(max(0, -(-(start - reach + 1) // stride)), start // stride)",
        "first = min(max(0, -(-(start - reach + 2) // stride)), start // stride)",
    ),
    Mutant(
        "reflected padding from one sample further",
        "borders",
        "else slice(1, samples + 1)",
        "else slice(0, samples)",
    ),
    Mutant(
        "sources that share samples summed apart",
        "borders",
        "if one.start < other.stop and other.start < one.stop:",
        "if one.start < other.start and other.start < one.stop:",
    ),
    Mutant(
        "sample's own gradient forgotten beside the padding's",
        "conv1d",
        "total[:, :, place] += grad_of_source",
        "total[:, :, place] = grad_of_source",
        tested_by="borders",
    ),
    Mutant(
        "gradient's parts rounded before they are added",
        "conv1d",
        "strides, dtype=torch.float32)",
        "strides)",
        seen_by="ttsem",
        tested_by="borders",
    ),
    Mutant(
        "weight gradient rounded before the border's is added",
        "conv1d",
        "torch.float32 if bordered else grad.dtype",
        "grad.dtype",
        seen_by="ttsem",
        tested_by="borders",
    ),
    Mutant(
        "NaN rounded to tf32 like a number",
        "tf32",
        "tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)",
        "rounded.to(tl.float32, bitcast=True)",
    ),
    Mutant(
        "copies cut off to tf32",
        "copies",
        "copied = to_tf32(copied)",
        "copied = copied",
        tested_by="tf32",
    ),
    Mutant(
        "small groups' filters cut off to tf32",
        "conv1d_filters",
        "w = to_tf32(w)",
        "w = w",
        tested_by="tf32",
    ),
    Mutant(
        "rows of samples cut off to tf32",
        "conv1d_tiles",
        "rows = to_tf32(rows)",
        "rows = rows",
        seen_by="ttsem",
        tested_by="precision",
    ),
    Mutant(
        "channels that are turned around cut off to tf32",
        "conv1d_grad_weight",
        "read = to_tf32(read)",
        "read = read",
        seen_by="ttsem",
        tested_by="precision",
    ),
    Mutant(
        "a gradient that is turned around cut off to tf32",
        "epilogue",
        "out = to_tf32(grad) if ROUNDED else grad",
        "out = grad",
        tested_by="tf32",
    ),
    Mutant(
        "a gradient that is turned around written by the units of what is read",
        "epilogue",
        "stride_di, OUT_C_UNIT, OUT_L_UNIT)",
        "stride_di, C_UNIT, L_UNIT)",
    ),
    Mutant(
        "samples counted before the first shift the taps",
        "conv1d_tiled",
        "padding -= before",
        "padding -= 0",
    ),
    Mutant(
        "a row of the next series",
        "conv1d_tiled",
        "(length + before) // X_STEP, groups",
        "(length + before) // X_STEP + 1, groups",
    ),
    Mutant(
        "rows of residues ended by the series' length alone",
        "conv1d_tiled",
        "return length % stride == 0 or padding == 0",
        "return length >= stride or padding == 0",
    ),
    Mutant(
        "first taps of residues in the dilation's order",
        "conv1d_tiles",
        "* inverse % STRIDE",
        "% STRIDE",
    ),
]
