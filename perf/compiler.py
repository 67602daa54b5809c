"""Compiles kernels for an H100 or H200, without one, from nothing: nothing is kept between two.

    python -m perf.compiler

Reads names of ``tlazy_kernels.catalogue.cases``, one a line, and answers each with the number of
kernels that it compiled. A process of its own, because tests run kernels in Triton's interpreter.
"""

from __future__ import annotations

import sys

import torch
import triton

from tlazy_kernels import catalogue
from tlazy_kernels.offline import source
from tlazy_kernels.recording import recorded
from tlazy_kernels.targets import TARGETS

TARGET = "sm_90"


def main() -> None:
    triton.knobs.compilation.always_compile = True
    cases = {case.name: case for case in catalogue.cases(torch.bfloat16)}
    for line in sys.stdin:
        with recorded(TARGET) as recording:
            cases[line.strip()].call()
        for launch in recording.launches:
            triton.compile(source(launch), target=TARGETS[TARGET].gpu, options=launch.options)
        print(len(recording.launches), flush=True)


if __name__ == "__main__":
    main()
