"""Launches by Triton's own launcher, on a CUDA driver without a device; prints them as JSON.

``stub_driver.c`` stands for the driver: it notes what it would launch. Everything above it is real,
so that what a kept handle passes is seen to be what Triton's first launch passes. Run as a program,
where the interpreter is off: ``python -m tests.tlazy_kernels.launched``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.nvidia import driver

from tlazy_kernels import launch
from tlazy_kernels.epilogue import epilogue_backward
from tlazy_kernels.linear import linear_forward, linear_grad_input, linear_grad_weight
from tlazy_kernels.targets import TARGETS

STREAM = 0x77
BITS = {"i32": 32, "i64": 64}


def install(folder: Path) -> ctypes.CDLL:
    """Compile the driver, and make Triton take it for the one of a machine with a GPU."""
    library = folder / "libcuda.so.1"
    headers = Path(driver.__file__).parent / "include"
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-I", str(headers)]
    source = Path(__file__).with_name("stub_driver.c")
    subprocess.run(["cc", *flags, str(source), "-o", str(library)], check=True)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    stub = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "get_device_capability": lambda device=None: (9, 0),
        "current_device": lambda: 0,
        "set_device": lambda device: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch._C._cuda_getCurrentRawStream = lambda device: STREAM  # type: ignore[assignment]
    triton.runtime.driver.set_active(driver.CudaDriver())
    launch.check_device = lambda x: None
    launch.target_of = lambda device: TARGETS["sm_90"]  # type: ignore[assignment]
    return stub


class Kernel(NamedTuple):
    """What is to be known of a compiled kernel, which nobody but the plan is to keep."""

    name: str
    parameters: list[str]
    types: dict[str, str]
    warps: int
    needs_scratch: bool

    @classmethod
    def of(cls, compiled: Any) -> Kernel:
        source, metadata = compiled.src, compiled.metadata
        needs_scratch = metadata.global_scratch_size > 0
        parameters = source.fn.arg_names
        return cls(
            source.fn.__name__, parameters, source.signature, metadata.num_warps, needs_scratch
        )


class Launches:
    """What the driver sees of each launch, beside what was asked for."""

    def __init__(self, stub: ctypes.CDLL) -> None:
        self.found: list[dict[str, Any]] = []
        self.count = ctypes.c_int64.in_dll(stub, "launches")
        self.seen = (ctypes.c_int64 * 64).in_dll(stub, "seen")
        self.kernel: Any = None
        run, handle_of = launch.Step.run, launch.handle_of

        def noted_run(step: Any, tensors: Sequence[Tensor | None], empty: Any) -> None:
            before = self.count.value
            run(step, tensors, self.noting(empty))
            addresses = [
                x if x is None else x.data_ptr() for x in map(tensors.__getitem__, step.tensors)
            ]
            self.note(False, before, self.kernel, step.grid, (*addresses, *step.scalars))

        def noted_handle(compiled: Any, grid: Any, values: tuple) -> Any:
            handle = handle_of(compiled, grid, values)
            kernel = self.kernel = Kernel.of(compiled)

            def noted(stream: int, addresses: Sequence[int | None], empty: Any) -> None:
                before = self.count.value
                handle(
                    STREAM, addresses, self.noting(empty)
                )  # as on a GPU, where the device says which
                self.note(True, before, kernel, grid, (*addresses, *values))
                self.found[-1]["past Python"] = handle.__qualname__.startswith("_by_cuda.")

            return noted

        launch.Step.run, launch.handle_of = noted_run, noted_handle  # type: ignore[assignment]

    def noting(self, empty: Any) -> Any:
        """`empty`, which is then asked for scratch memory, noting of how many bytes."""
        self.scratch_bytes = 0

        def noted(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            (self.scratch_bytes,) = shape
            return empty(shape, strides, dtype)

        return noted

    def note(self, warm: bool, before: int, kernel: Kernel, grid: Any, values: tuple) -> None:
        *head, parameters = (*self.seen[:6], list(self.seen[6:]))
        named = dict(zip(kernel.parameters, values, strict=False))
        passed = [(name, kind) for name, kind in kernel.types.items() if kind != "constexpr"]
        # The last two are Triton's own: scratch memory, and a profiler's.
        scratch = parameters[len(passed)] != 0
        self.found.append(
            {
                "warm": warm,
                "launches": self.count.value - before,
                "kernel": kernel.name,
                "planned": [*grid, 32 * kernel.warps],
                "launched": head[:4],
                "stream": head[5],
                "scratch": [scratch, kernel.needs_scratch],
                "scratch bytes": self.scratch_bytes,
                "expected": {name: named[name] for name, _ in passed},
                "passed": {
                    name: value & (2 ** BITS.get(kind, 64) - 1)
                    for (name, kind), value in zip(passed, parameters, strict=False)
                },
            }
        )


def unloaded(stub: ctypes.CDLL) -> int:
    """Kernels that Triton unloads when it forgets them all, while plans still have them."""
    before = ctypes.c_int64.in_dll(stub, "unloads").value
    for plan in launch._plans.values():
        for step in plan.steps:
            step.kernel.device_caches.clear()
    gc.collect()
    return ctypes.c_int64.in_dll(stub, "unloads").value - before


def ahead(stub: ctypes.CDLL, call: Callable[[], Any]) -> dict[str, int]:
    """What a call compiles and launches inside ``launch.compiling_ahead``, and what after it."""
    launches, compiled = ctypes.c_int64.in_dll(stub, "launches"), []
    triton.knobs.runtime.jit_post_compile_hook = lambda **kernel: compiled.append(kernel)
    found = {}
    for when in ("inside", "after"):
        compiled.clear()
        before = launches.value
        with launch.compiling_ahead() if when == "inside" else nullcontext():
            call()
        found |= {f"compiled {when}": len(compiled), f"launched {when}": launches.value - before}
    triton.knobs.runtime.jit_post_compile_hook = None
    return found


def main() -> None:
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    with tempfile.TemporaryDirectory() as folder:
        stub = install(Path(folder))
        x, weight, bias, grad = (
            torch.zeros(*shape, dtype=torch.bfloat16)
            for shape in ((16, 4096), (512, 4096), (512,), (16, 512))
        )
        before_launch = ahead(
            stub, lambda: [linear_forward(x, weight, None, name) for name in ("relu", "tanh")]
        )
        launches = Launches(stub)
        g = torch.zeros(4096, 512, 1, dtype=torch.bfloat16)  # its sums take a second launch
        for _ in range(3):
            linear_forward(x, weight, bias, activation="gelu", save_preactivation=True)
            linear_forward(x[:, 1:], weight[:, 1:])
            linear_grad_input(grad, weight)
            linear_grad_weight(grad, x)
            epilogue_backward(g, g, "gelu", bias=True)
            epilogue_backward(grad, grad, "gelu", bias=True)
    print(
        json.dumps({"launches": launches.found, "unloaded": unloaded(stub), "ahead": before_launch})
    )


if __name__ == "__main__":
    main()
