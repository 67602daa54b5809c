"""Does the suite notice? Breaks one small thing in the kernels at a time and runs their tests.

    python tests/mutants.py            # all of them, two at a time
    python tests/mutants.py relu       # those whose name contains "relu"

A mutant counts as caught where a test of its file fails in Triton's interpreter or, for those that
only ttsem sees (accesses out of bounds, races), under ttsem. Exits with 0 only if all are caught.
Takes five minutes on 2 idle cores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = "tests/tlazy_kernels"
RUNS = {"interpreter": ["-m", "pytest"], "ttsem": ["-m", "ttsem.sanitize", "pytest"]}
# Where a file's tests are, unless they bear its name.
SEEN_IN = {
    "matmul": "linear",
    "splits": "linear",
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

    @property
    def tests(self) -> str:
        return f"{TESTS}/test_{SEEN_IN.get(self.file, self.file)}.py"

    @property
    def command(self) -> list[str]:
        """How to run its tests."""
        return [sys.executable, *RUNS[self.seen_by], self.tests, "-x", "-q"]


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
        "tap.to(tl.int64) * stride_wk",
        "tap.to(tl.int64)",
    ),
    Mutant(
        "bias unmasked",
        "conv1d_gather",
        "stride_bias, mask=f < F, other=0.0",
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
        "split * channels + channel, total",
        "channel, total",
    ),
]


def main(wanted: str = "") -> int:
    chosen = [mutant for mutant in MUTANTS if wanted in mutant.name]
    with ThreadPoolExecutor(2) as pool:
        survivors = [
            m.name
            for m, caught in zip(chosen, pool.map(try_out, chosen), strict=True)
            if not caught
        ]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    for name in survivors:
        print(f"survived: {name}")
    return 1 if survivors else 0


def try_out(mutant: Mutant) -> bool:
    """Run the mutant's tests on a copy of the tree; say whether it was caught."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("kernels", "tests", "conftest.py", "pyproject.toml"):
            source = ROOT / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / part)
        break_(mutant, copy / f"kernels/tlazy_kernels/{mutant.file}.py")
        caught = fails(mutant, copy)
    by = f"caught, {mutant.seen_by}" if caught else "SURVIVED"
    print(f"{mutant.name}: {by} ({time.perf_counter() - start:.0f} s)", flush=True)
    return caught


def break_(mutant: Mutant, path: Path) -> None:
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{path.name}: {mutant.old!r} stands {text.count(mutant.old)} times")
    path.write_text(text.replace(mutant.old, mutant.new))


def fails(mutant: Mutant, copy: Path) -> bool:
    """Whether a test fails, or the process dies; anything else that goes wrong is an error."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [*mutant.command, "-p", "no:cacheprovider"],
        cwd=copy,
        env=environment | {"PYTHONPATH": str(copy / "kernels")},
        capture_output=True,
        text=True,
    )
    if done.returncode in (0, 1) or done.returncode < 0:
        return done.returncode != 0
    raise SystemExit(f"{mutant.name}: pytest ended with {done.returncode}:\n{done.stdout}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
