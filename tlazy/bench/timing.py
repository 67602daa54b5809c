"""Timing: of device work by events or graph replay, of CPU work by the host's clock.

A timer turns calls, one for each set of inputs, into a sampler; a sampler measures for about as
long as it is told and gives seconds per call. Consecutive calls always take different input sets.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch

Call = Callable[[], object]
Sampler = Callable[[float], list[float]]

# Shorter calls are timed several at a time: the clock's own cost would show.
SHORTEST_SAMPLE = 100e-6
MOST_IN_SAMPLE = 2**12
MOST_SAMPLES = 1000
FEWEST_SAMPLES = 3
# Below this, or where the host needs more than half of it to queue the call, launches may show
# between two events, so that the device's own time is had from a graph. The estimate that is
# compared holds the launches.
GRAPH_BELOW = 300e-6
CALLS_IN_GRAPH = 20
# An idle device needs some work until its clocks are up.
WARM_UP = 0.02


class Timing(NamedTuple):
    """Seconds per call: the median, and the quantiles between which 60% of the samples lie."""

    median: float
    q20: float
    q80: float
    samples: int


class Timer(Protocol):
    """Measures calls on one kind of device."""

    def prepare(self, calls: Sequence[Call]) -> tuple[Sampler, str]:
        """Warm up; give a sampler and how it measures."""
        ...


def summarize(samples: Sequence[float]) -> Timing:
    """The median and the 20% and 80% quantiles of `samples`.

    >>> summarize([3.0, 1.0, 2.0, 5.0, 4.0])
    Timing(median=3.0, q20=1.8, q80=4.2, samples=5)
    """
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], 1)
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    median = statistics.median(samples)
    # Between equal samples interpolation rounds, to either side.
    return Timing(median, min(fifths[0], median), max(fifths[3], median), len(samples))


class HostTimer:
    """The host's clock around calls.

    Args:
        clock: seconds that only grow.
        settle: waits for what calls leave to a device; outside of what is timed.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        settle: Callable[[], object] = lambda: None,
    ) -> None:
        self.clock, self.settle = clock, settle

    def prepare(self, calls: Sequence[Call]) -> tuple[Sampler, str]:
        rotation = itertools.cycle(calls)
        for _ in range(2):
            next(rotation)()
        batch = 1
        while batch < MOST_IN_SAMPLE and self._batch(rotation, batch) < SHORTEST_SAMPLE:
            batch *= 2
        return lambda seconds: self._sample(rotation, batch, seconds), ""

    def _batch(self, rotation: Iterator[Call], batch: int) -> float:
        self.settle()
        begin = self.clock()
        for _ in range(batch):
            next(rotation)()
        return self.clock() - begin

    def _sample(self, rotation: Iterator[Call], batch: int, seconds: float) -> list[float]:
        samples: list[float] = []
        with _no_collection():
            while len(samples) < FEWEST_SAMPLES or (
                sum(samples) * batch < seconds and len(samples) < MOST_SAMPLES
            ):
                samples.append(self._batch(rotation, batch) / batch)
        return samples


class FirstCallTimer:
    """The host's clock around each call's very first time, its work included.

    The first call only warms up; the sampler gives the others' times once.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        settle: Callable[[], object] = lambda: None,
    ) -> None:
        self.clock, self.settle = clock, settle

    def prepare(self, calls: Sequence[Call]) -> tuple[Sampler, str]:
        warm, *fresh = calls
        for _ in range(3):
            warm()
        first, again = ([self._whole(call) for call in fresh] for _ in range(2))
        once = iter([first])
        steady = statistics.median(again) * 1e6
        return lambda seconds: next(once, []), f"first calls; {steady:,.1f} us when called again"

    def _whole(self, call: Call) -> float:
        self.settle()
        begin = self.clock()
        call()
        self.settle()
        return self.clock() - begin


class Kept:
    """A call whose result stays until its next one.

    Results that are dropped at once all lie in the same memory, which then never leaves the cache.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.result: object = None

    def __call__(self) -> None:
        self.result = None  # first, so that there are never two
        self.result = self.call()


class Captured(NamedTuple):
    """A graph of calls.

    Attributes:
        graph: of all of them, several times over where they are few.
        calls: which hold what the graph reads: it knows addresses alone.
        made: calls a replay.
    """

    graph: torch.cuda.CUDAGraph
    calls: Sequence[Kept]
    made: int


class DeviceTimer:
    """CUDA events around calls, or around the replay of a graph of short ones.

    While they are timed or captured, each call keeps its last result.

    Args:
        clock: the host's, in seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock

    def prepare(self, calls: Sequence[Call]) -> tuple[Sampler, str]:
        kept = [Kept(call) for call in calls]
        rotation = itertools.cycle(kept)

        def by_events(seconds: float) -> list[float]:
            with _dropping_results(kept):
                return self._events(rotation, estimate, seconds)

        with _dropping_results(kept):
            self._warm_up(rotation)
            queueing = self._queueing(rotation)
            estimate = statistics.median(_between_events([next(rotation) for _ in range(5)]))
        if estimate >= max(GRAPH_BELOW, 2 * queueing):
            return by_events, ""
        try:
            with _dropping_results(kept):
                captured = _capture(kept)
        except Exception as error:  # whatever a library does that a capture forbids
            torch.cuda.synchronize()
            cause = error.__context__ or error  # the end of a capture only says that it failed
            reason = " ".join(str(cause).split())[:80]
            note = f"timed with its launches: no CUDA graph ({reason})"
            return by_events, note
        return lambda seconds: self._replays(captured, seconds), "CUDA graph replay"

    def _warm_up(self, rotation: Iterator[Call]) -> None:
        """Let libraries choose, kernels load and clocks rise."""
        begin = self.clock()
        for _ in range(MOST_SAMPLES):
            for _ in range(3):
                next(rotation)()
            torch.cuda.synchronize()
            if self.clock() - begin >= WARM_UP:
                return

    def _queueing(self, rotation: Iterator[Call]) -> float:
        """Seconds that the host needs to queue one call."""
        taken = []
        for _ in range(5):
            torch.cuda.synchronize()
            begin = self.clock()
            next(rotation)()
            taken.append(self.clock() - begin)
        torch.cuda.synchronize()
        return statistics.median(taken)

    def _events(self, rotation: Iterator[Call], estimate: float, seconds: float) -> list[float]:
        count = int(min(MOST_SAMPLES, max(FEWEST_SAMPLES, seconds / estimate)))
        next(rotation)()  # allocates what another peer's turn may have given back
        with _no_collection():
            return _between_events([next(rotation) for _ in range(count)])

    def _replays(self, captured: Captured, seconds: float) -> list[float]:
        """A replay is a sample, the mean of many calls; the first counts where there is time for
        no other."""
        replay = captured.graph.replay
        first = _between_events([replay])
        count = int(min(MOST_SAMPLES, seconds / first[0])) - 1
        with _no_collection():
            samples = _between_events([replay] * count) or first
        return [taken / captured.made for taken in samples]


def timer_for(device: torch.device) -> Timer:
    """The timer of a device's work."""
    return DeviceTimer() if device.type == "cuda" else HostTimer()


def settle_for(device: torch.device) -> Callable[[], object]:
    """What waits for a device's work."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


@contextmanager
def _dropping_results(calls: Sequence[Kept]) -> Iterator[None]:
    """Drop at the end what the calls keep: others are measured then, in the same memory."""
    try:
        yield
    finally:
        for call in calls:
            call.result = None


def _between_events(calls: Sequence[Call]) -> list[float]:
    """Seconds of device time of each call, all of them queued before the first is waited for."""
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in calls
    ]
    torch.cuda.synchronize()
    for call, (begin, end) in zip(calls, events, strict=True):
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in events]


def _capture(calls: Sequence[Kept]) -> Captured:
    """A graph of the calls.

    It is captured on the current stream, which must not be the default one: a backward pass runs
    on the stream of its forward pass, and may not leave the captured one.
    """
    rounds = -(-CALLS_IN_GRAPH // len(calls))
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    stream = torch.cuda.current_stream()
    try:
        with _no_collection(), torch.cuda.graph(graph, pool=pool, stream=stream):
            for call in itertools.chain.from_iterable([calls] * rounds):
                call()
    except BaseException:
        _give_back(pool)
        raise
    graph.replay()
    torch.cuda.synchronize()
    return Captured(graph, calls, rounds * len(calls))


def _give_back(pool: Any) -> None:
    """End the allocator's part in a capture that failed, which PyTorch 2.11 leaves open: it would
    free no cached memory any more, and ask a graph that is gone about each allocation."""
    device = torch.cuda.current_device()
    # Where that has ended, as where a call failed and the capture did not, the first says so.
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run on a stream that a graph can be captured from: always the same one of a device.

    The allocator keeps freed memory for the stream it was used on, so each further stream would
    hold on to memory of its own.
    """
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collection out of the samples."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
