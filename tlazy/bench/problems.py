"""What is measured: an operation with a name, in a dtype, and what of it is timed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch

from tlazy.bench.operations import Operation, Pass

# In place of a suite's name, for the problem that `tlazy bench OP --shape` makes.
SINGLE = "shape"
# A CPU gets through such a problem in some milliseconds.
SMALL_FLOPS = 2**27
SMALL_BYTES = 2**23

# Of a call: the device's work; what the host needs to queue it, without and with a graph for the
# backward pass; or all of the first call at a length of input that was never seen before.
Timed = Literal["device", "host", "host with grad", "new length"]


@dataclass(frozen=True)
class Problem:
    """An operation with a name, in a dtype, the passes to measure, and what of them is timed.

    Attributes:
        exact: whether float32 keeps its full accuracy, where PyTorch's switches would let it go.
    """

    suite: str
    name: str
    operation: Operation
    dtype: torch.dtype = torch.bfloat16
    passes: tuple[Pass, ...] = ("forward", "full")
    timed: Timed = "device"
    exact: bool = False

    def small(self) -> Problem:
        """The same problem with its sizes halved until a CPU measures it in milliseconds."""
        operation: Operation = self.operation
        while True:
            cost = operation.cost(torch.float32, "forward")
            smaller = operation.halved()
            if smaller is None or (cost.flops <= SMALL_FLOPS and cost.bytes <= SMALL_BYTES):
                return dataclasses.replace(self, operation=operation)
            operation = smaller
