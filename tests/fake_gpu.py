"""A GPU that is pretended, for tests of what measures one: two clocks and a queue between them.

The host's clock grows by what a launch costs; the device works through what was launched, in its
own time. Events, streams and graphs obey CUDA's rules: an event is read only after a wait, nothing
is captured from the default stream, and nothing may wait while a graph is captured.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda")
NAME = "Pretended H200"
LAUNCH = 5e-6
WAITING = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__")


class FakeGPU:
    """Both clocks, in seconds, and what runs.

    Attributes:
        now: the host's.
        free: when the device will have done all that it was given.
        captured: seconds of each launch into the graph that is being captured.
        capturable: whether calls may be captured at all.
        lost: whether every further wait fails, as after an illegal memory access.
        open_pools: of memory, for captures that have not ended; released_pools: given back.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.free = 0.0
        self.captured: list[float] | None = None
        self.capturable = True
        self.lost = False
        self.open_pools: list[object] = []
        self.released_pools: list[object] = []
        self.stream: Any = SimpleNamespace(default=True, wait_stream=lambda other: None)
        self.emptied = 0

    def clock(self) -> float:
        return self.now

    def run(self, seconds: float, launch: float = LAUNCH) -> None:
        """Launch work of so long, which takes the host `launch`."""
        self.now += launch
        if self.captured is None:
            self.free = max(self.free, self.now) + seconds
        else:
            self.captured.append(seconds)

    def synchronize(self, device: Any = None) -> None:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.now = max(self.now, self.free)

    def install(self, monkeypatch: Any) -> None:
        """Put it into ``torch.cuda``."""
        gpu = self

        class Event:
            at = float("inf")

            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = max(gpu.now, gpu.free)

            def elapsed_time(self, end: Event) -> float:
                assert end.at <= gpu.now, "the event was not waited for"
                return (end.at - self.at) * 1e3

        class Graph:
            nodes: list[float]

            def replay(self) -> None:
                gpu.run(sum(self.nodes), launch=10e-6)

        class Capture:
            """Where it fails, its end hides why, and the allocator goes on as if it had no end."""

            def __init__(self, graph: Graph, pool: Any, stream: Any) -> None:
                self.graph, self.pool = graph, pool
                assert stream is gpu.stream

            def __enter__(self) -> None:
                if gpu.stream.default:
                    raise RuntimeError("CUDA graphs must be captured on a non-default stream")
                if not gpu.capturable:
                    raise RuntimeError("operation not permitted\nwhen stream is capturing")
                gpu.captured = []
                gpu.open_pools.append(self.pool)

            def __exit__(self, kind: Any, *error: object) -> None:
                self.graph.nodes, gpu.captured = gpu.captured or [], None
                if kind is not None:
                    raise RuntimeError("operation failed due to a previous error during capture")
                gpu.open_pools.remove(self.pool)

        class Stream:
            default = False

            def __init__(self, device: torch.device) -> None:
                pass

            def wait_stream(self, other: Any) -> None:
                pass

        class OnStream:
            def __init__(self, stream: Any) -> None:
                self.stream = stream

            def __enter__(self) -> None:
                self.before, gpu.stream = gpu.stream, self.stream

            def __exit__(self, *error: object) -> None:
                gpu.stream = self.before

        properties = SimpleNamespace(total_memory=2**37, L2_cache_size=2**16)
        answers: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True,
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": Capture,
            "graph_pool_handle": object,
            "current_device": lambda: 0,
            "Stream": Stream,
            "stream": OnStream,
            "current_stream": lambda device=None: gpu.stream,
            "synchronize": self.synchronize,
            "get_device_name": lambda device=None: NAME,
            "get_device_properties": lambda device=None: properties,
            "empty_cache": self._empty_cache,
            "memory_allocated": lambda: 1000,
            "max_memory_allocated": lambda: 5000,
            "reset_peak_memory_stats": lambda: None,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        ends: dict[str, Callable[..., Any]] = {
            "_cuda_endAllocateToPool": lambda device, pool: self.open_pools.remove(pool),
            "_cuda_releasePool": lambda device, pool: self.released_pools.append(pool),
        }
        for name, end in ends.items():
            monkeypatch.setattr(torch._C, name, end, raising=False)
        monkeypatch.setattr(torch, "Generator", Generator)

    def _empty_cache(self) -> None:
        self.emptied += 1


class Generator(torch.Generator):
    """The CPU's, whatever device it is asked for."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls)


class OnCPU(TorchFunctionMode):
    """Runs on the CPU what is asked of the GPU; each function is a launch of 20 microseconds.

    What makes the host wait for the device fails while a graph is captured.
    """

    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.device(kwargs.get("device") or "cpu").type == "cuda":
            kwargs["device"] = "cpu"
        if getattr(function, "__name__", "") in WAITING:
            self.gpu.synchronize()
        elif getattr(function, "__name__", "") != "__get__":
            self.gpu.run(20e-6)
        return function(*args, **kwargs)
