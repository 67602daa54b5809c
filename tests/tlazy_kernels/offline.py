"""Compiles the kernels for GPUs that are not there, and reports what came out as JSON.

Run as a program, in a process of its own: the tests' process has the kernels in the interpreter.
What is compiled is what the launchers launch: they run on meta tensors, which have no data, and
hand their arguments to this module instead of to a device.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from tlazy_kernels import activations, conv1d, launch, linear

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
_MATRIX_INSTRUCTIONS = re.compile(r"\b(wgmma\.mma_async|mma\.sync|tcgen05\.mma|v_mfma)")


@dataclass(frozen=True)
class Launch:
    """One launch as a launcher asked for it."""

    kernel: JITFunction
    values: dict[str, Any]
    options: dict[str, int]


@dataclass(frozen=True)
class Compiled:
    """What one kernel became on one target."""

    name: str
    target: str
    dtype: str
    config: str
    shared: int  # bytes of shared memory a program
    registers: int
    stack: int  # bytes of local memory a thread: spills and indexed arrays
    dots: bool  # whether the kernel multiplies matrices
    matrix_instructions: list[str]


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _linear(dtype: torch.dtype, rows: int = 4096, k: int = 1024, n: int = 512) -> tuple:
    x, weight, bias, grad = (
        _meta(*shape, dtype=dtype) for shape in ((rows, k), (n, k), (n,), (rows, n))
    )
    return x, weight, bias, grad


def _conv1d(dtype: torch.dtype, groups: int = 1, channels: int = 128, stride: int = 1) -> tuple:
    batch, length, taps = 32, 1024, 9
    x, weight, bias, grad = (
        _meta(*shape, dtype=dtype)
        for shape in (
            (batch, channels, length),
            (channels, channels // groups, taps),
            (channels,),
            (batch, channels, (length - taps) // stride + 1),
        )
    )
    return x, weight, bias, grad


def calls(dtype: torch.dtype, *, thorough: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, launcher call) of everything that is compiled, at sizes that fill the tiles."""
    x, w, b, g = _linear(dtype)
    fused = {"activation": "gelu", "save_preactivation": True}
    yield "linear_forward", lambda: linear.linear_forward(x, w, b, **fused)
    yield "linear_grad_input", lambda: linear.linear_grad_input(g, w)
    yield "linear_grad_weight", lambda: linear.linear_grad_weight(g, x)
    cx, cw, cb, cg = _conv1d(dtype)
    yield "conv1d_forward", lambda: conv1d.conv1d_forward(cx, cw, cb, **fused)
    yield "conv1d_grad_input", lambda: conv1d.conv1d_grad_input(cg, cw, 1024)
    yield "conv1d_grad_weight", lambda: conv1d.conv1d_grad_weight(cg, cx, 9)
    dx, dw, db, dg = _conv1d(dtype, groups=128)
    tail = (1, (0, 0), 1, 128)
    yield "depthwise_forward", lambda: conv1d.conv1d_forward(dx, dw, db, *tail, **fused)
    yield "depthwise_grad_input", lambda: conv1d.conv1d_grad_input(dg, dw, 1024, *tail)
    yield "depthwise_grad_weight", lambda: conv1d.conv1d_grad_weight(dg, dx, 9, *tail)
    yield (
        "epilogue_backward",
        lambda: activations.epilogue_backward(cg, cg, "gelu", bias=True),
    )
    if not thorough:
        return
    for name in ("relu", "gelu_tanh", "silu", "sigmoid", "tanh"):
        yield f"linear_forward {name}", lambda a=name: linear.linear_forward(x, w, b, activation=a)
        yield (
            f"epilogue_backward {name}",
            lambda a=name: activations.epilogue_backward(cg, cg, a, bias=True),
        )
    tx, tw, tb, tg = _linear(dtype, rows=8, k=1000, n=10)
    yield "small linear_forward", lambda: linear.linear_forward(tx, tw, tb)
    yield "small linear_grad_weight", lambda: linear.linear_grad_weight(tg, tx)
    sx, sw, sb, sg = _conv1d(dtype, groups=4, channels=100, stride=2)
    tail = (2, (0, 0), 1, 4)
    yield "odd conv1d_forward", lambda: conv1d.conv1d_forward(sx, sw, sb, *tail)
    yield "odd conv1d_grad_input", lambda: conv1d.conv1d_grad_input(sg, sw, 1024, *tail)
    yield "odd conv1d_grad_weight", lambda: conv1d.conv1d_grad_weight(sg, sx, 9, *tail)


@contextmanager
def recorded(hip: bool) -> Iterator[list[Launch]]:
    """Collect launches instead of making them, as on a device of NVIDIA or AMD."""
    launches: list[Launch] = []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        values = dict(zip(kernel.arg_names, args, strict=False))
        options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs}
        launches.append(Launch(kernel, {**values, **kwargs}, options))

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, "run", run))
        stack.enter_context(mock.patch.object(torch.version, "hip", "6.0" if hip else None))
        for module in (activations, conv1d, linear):
            stack.enter_context(mock.patch.object(module, "check_device", return_value=None))
        yield launches


def source(launched: Launch) -> ASTSource:
    """The source with the types and the hints that Triton would derive from these values."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    hints: dict[tuple[int, ...], list] = {}
    for i, parameter in enumerate(launched.kernel.params):
        value = launched.values[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            aligned = value % 16 == 0
        if aligned:
            hints[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(launched.kernel, signature, constants, hints)


def compiled(name: str, target: str, dtype: str, launched: Launch) -> Compiled:
    binary = triton.compile(source(launched), target=TARGETS[target], options=launched.options)
    text = binary.asm["amdgcn" if target.startswith("gfx") else "ptx"]
    registers, stack = _usage(binary.asm)
    values = launched.values
    blocks = [f"{k[6:]}{v}" for k, v in values.items() if k.startswith("BLOCK_")]
    return Compiled(
        name=name,
        target=target,
        dtype=dtype,
        config=" ".join([*blocks, *(f"{k[4:]}{v}" for k, v in launched.options.items())]),
        shared=binary.metadata.shared,
        registers=registers,
        stack=stack,
        dots="PRECISION" in values,
        matrix_instructions=sorted(set(_MATRIX_INSTRUCTIONS.findall(text))),
    )


def _usage(asm: dict[str, Any]) -> tuple[int, int]:
    """(registers, bytes of stack) a thread, from the binary."""
    if "amdgcn" in asm:
        found = dict(re.findall(r"\.(\w+):\s+(\d+)", asm["amdgcn"]))
        spilled = int(found["vgpr_spill_count"]) + int(found["sgpr_spill_count"])
        return int(found["vgpr_count"]), int(found["private_segment_fixed_size"]) + 4 * spilled
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command = [tool, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True)
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout))
    return int(found["REG"]), int(found["STACK"]) + int(found["LOCAL"])


def main(targets: list[str], dtypes: list[str], thorough: bool) -> list[Compiled]:
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    work = []
    for target in targets:
        for dtype in dtypes:
            for name, call in calls(DTYPES[dtype], thorough=thorough):
                with recorded(hip=target.startswith("gfx")) as launches:
                    call()
                work += [(name, target, dtype, launched) for launched in launches]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda item: compiled(*item), work))


if __name__ == "__main__":
    assert not launch.INTERPRETED, "the interpreter leaves nothing to compile"
    results = main(*(json.loads(argument) for argument in sys.argv[1:]))
    print(json.dumps([asdict(result) for result in results]))
