"""What a launcher launches, without a GPU: its kernels, their arguments and its memory traffic.

A launcher runs on meta tensors, which have shapes and no data, and hands its launches to a list
instead of to a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import _allocation
from triton.runtime.jit import JITFunction

from tlazy_kernels import launch
from tlazy_kernels.targets import TARGETS


@dataclass(frozen=True)
class Launch:
    """One launch as a launcher asked for it.

    Attributes:
        kernel: the device function.
        values: its arguments by name.
        options: how it is to be compiled.
        allocates: whether Triton had an allocator for scratch memory at that time.
    """

    kernel: JITFunction
    values: dict[str, Any]
    options: dict[str, int]
    allocates: bool = False

    @property
    def flops(self) -> int:
        return sum(n for fact, n in self.metadata().items() if fact.startswith("flops"))

    def metadata(self) -> dict[str, Any]:
        """What a profiler would show of it."""
        described = self.kernel.launch_metadata
        named = SimpleNamespace(name=self.kernel.fn.__name__)
        return described(None, named, self.values) if described else {}


@dataclass
class Recording:
    """What one call of a launcher did.

    Attributes:
        launches: of kernels, in order.
        aten_bytes: read and written by PyTorch's own operators, such as the sum of partial sums.
    """

    launches: list[Launch] = field(default_factory=list)
    aten_bytes: int = 0

    @property
    def bytes(self) -> int:
        """All memory traffic: that which the launches declare, and PyTorch's."""
        return self.aten_bytes + sum(launch.metadata()["bytes"] for launch in self.launches)

    @property
    def flops(self) -> int:
        return sum(launch.flops for launch in self.launches)


@contextmanager
def recorded(target: str = "sm_90") -> Iterator[Recording]:
    """Record the launchers that the block calls, as on a device of ``targets.TARGETS``."""
    recording = Recording()
    planned_for = TARGETS[target]
    hip = planned_for.gpu.backend == "hip"

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        values = dict(zip(kernel.arg_names, args, strict=False))
        options: dict[str, int] = {
            k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs
        }
        allocates = not isinstance(_allocation._allocator.get(), _allocation.NullAllocator)
        recording.launches.append(Launch(kernel, {**values, **kwargs}, options, allocates))

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, "run", run))
        stack.enter_context(mock.patch.object(torch.version, "hip", "6.0" if hip else None))
        stack.enter_context(mock.patch.object(launch, "_plans", {}))
        stack.enter_context(mock.patch.object(launch, "target_of", return_value=planned_for))
        stack.enter_context(mock.patch.object(launch, "check_device", return_value=None))
        stack.enter_context(_AtenTraffic(recording))
        yield recording


class _AtenTraffic(TorchDispatchMode):
    """Adds up what PyTorch's operators read and write; views and empty memory cost nothing."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch imports its compiler to keep away from a mode: two seconds, for what is compiled
        nowhere."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.__name__:
            leaves = tree_leaves((args, kwargs, out))
            self.recording.aten_bytes += sum(x.nbytes for x in leaves if isinstance(x, Tensor))
        return out
