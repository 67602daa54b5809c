"""Measures problems: every peer side by side, on the same inputs, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tlazy.bench import correctness, machine
from tlazy.bench.operations import Draw, Operation, Pass, Unsupported, bytes_held
from tlazy.bench.peers import PEERS, Implementation, default_peers
from tlazy.bench.record import Record, Row, finite
from tlazy.bench.suites import Problem
from tlazy.bench.timing import Call, Sampler, Timer, summarize, timer_for

MOST_SETS = 256
# Input sets together are this many times the last-level cache.
CACHES = 2
UNFINISHED = "stopped before it was measured"


# An operation's tensors, and the gradient of its output.
InputSet = tuple[list[Tensor], Tensor]


class DeviceLost(RuntimeError):
    """The device fails every further call of this process."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: where.
        peers: names of PEERS; None for those that fit each operation.
        seconds: of samples of each peer, for each problem and pass.
        rounds: turns that the peers take at it, so that a drift of the clock meets all of them.
        deadline: on ``time.monotonic``'s scale; no group starts after it.
        timer: None for the device's own.
        notify: told of each (problem, pass) before it starts.
    """

    device: torch.device
    peers: Sequence[str] | None = None
    seconds: float = 0.2
    rounds: int = 4
    deadline: float = float("inf")
    timer: Timer | None = None
    notify: Callable[[Problem, Pass], None] = lambda problem, which: None


def measure(problems: Iterable[Problem], record: Record, settings: Settings) -> bool:
    """Put a row for each problem, pass and peer into `record`; those that it holds are left.

    Returns:
        whether all was measured before the deadline.

    Raises:
        DeviceLost: where the device cannot go on; the record holds what was measured until then.
    """
    generator = torch.Generator(settings.device)
    generator.seed()
    for problem in problems:
        for which in problem.passes:
            group = _Group(problem, which, record, settings, generator)
            if not group.missing:
                continue
            if time.monotonic() > settings.deadline:
                return False
            settings.notify(problem, which)
            group.measure()
    return True


@dataclass
class _Contender:
    """A peer that computes rightly and is being timed."""

    row: Row
    sample: Sampler
    context: Callable[[], Any]
    samples: list[float] = field(default_factory=list)


class _Group:
    """The rows of one problem and pass: the peers side by side."""

    def __init__(
        self,
        problem: Problem,
        which: Pass,
        record: Record,
        settings: Settings,
        generator: torch.Generator,
    ) -> None:
        self.problem, self.which = problem, which
        self.record, self.settings = record, settings
        self.generator = generator
        self.timer = settings.timer or timer_for(settings.device)
        self.precision = machine.precision_of(problem.dtype, settings.device, problem.operation.op)
        self.cost = problem.operation.cost(problem.dtype, which)
        peers = settings.peers or default_peers(problem.operation, settings.device)
        rows = [self._row(peer) for peer in peers]
        self.missing = [row for row in rows if not record.holds(row)]

    def measure(self) -> None:
        """Check each missing peer, then time those that are right in turns."""
        with own_stream(self.settings.device):
            try:
                operation = self.problem.operation
                sets = input_sets(
                    operation,
                    self.settings.device,
                    self.problem.dtype,
                    self.generator,
                    gradients=self.which != "forward",
                )
                wanted = correctness.expected(operation, *sets[0], self.which)
            except RuntimeError as error:
                for row in self.missing:
                    self._fail(row, error)
                return
            contenders = [self._enter(row, sets, wanted) for row in self.missing]
            del wanted
            self._take_turns([c for c in contenders if c is not None])

    def _row(self, peer: str) -> Row:
        """A row that says, until it is replaced, that nothing was measured."""
        problem, operation = self.problem, self.problem.operation
        floor = self.record.ceilings.floor(
            self.cost, self.precision, self.record.content["machine"]["device"]
        )
        unmeasured = ("error", "median_us", "q20_us", "q80_us", "tflops", "gbps")
        return {
            "suite": problem.suite,
            "op": operation.op,
            "problem": problem.name,
            "shape": operation.shape(),
            "dtype": str(problem.dtype).removeprefix("torch."),
            "pass": self.which,
            "activation": operation.activation,
            "layout": operation.layout,
            "peer": peer,
            "backend": "",
            "status": "failed",
            "note": UNFINISHED,
            **dict.fromkeys(unmeasured),
            "samples": 0,
            "flops": self.cost.flops,
            "bytes": self.cost.bytes,
            "floor_us": None if floor is None else floor * 1e6,
            "floor_fraction": None,
            "peak_memory_bytes": None,
        }

    def _enter(
        self, row: Row, sets: Sequence[InputSet], wanted: Sequence[Tensor]
    ) -> _Contender | None:
        """Build and check the row's peer; None, and a row that says why, where it has no time."""
        # Written first: a peer that ends the process is not tried again when the record goes on.
        self.record.put(row)
        try:
            with torch.set_grad_enabled(self.which != "forward"):
                built = PEERS[row["peer"]](self.problem.operation, sets[0][0][0])
            row["backend"], row["note"] = built.backend, built.note
            with built.context():
                if not self._is_right(row, built, sets[0], wanted):
                    return None
                calls = [self._call(built, *built.prepare(*one)) for one in sets]
                row["peak_memory_bytes"] = self._peak_memory(calls[0])
                with torch.set_grad_enabled(self.which != "forward"):
                    sample, how = self.timer.prepare(calls)
            precision = "float32 by tf32" if self.precision == "tf32" else ""
            row["note"] = "; ".join(filter(None, (row["note"], precision, how)))
            return _Contender(row, sample, built.context)
        except Unsupported as error:
            self._replace(row, status="unsupported", note=str(error))
        except Exception as error:  # a peer's own exceptions are any
            self._fail(row, error)
        return None

    def _is_right(
        self,
        row: Row,
        built: Implementation,
        one: InputSet,
        wanted: Sequence[Tensor],
    ) -> bool:
        """Note the row's error against float64, and refuse it a time where that is too large."""
        tensors, gradient = built.prepare(*one)
        correctness.poison(wanted, self.problem.dtype)
        found = correctness.outputs(built.call, tensors, gradient, self.which)
        worst = correctness.error(found, wanted)
        limit = self._tolerance(one, wanted)
        row["error"] = finite(worst)
        if worst <= limit:
            return True
        self._replace(row, status="wrong", note=f"relative error {worst:.1e}, allowed {limit:.0e}")
        return False

    def _tolerance(self, one: InputSet, wanted: Sequence[Tensor]) -> float:
        limit = correctness.TOLERANCES[self.precision]
        operation = self.problem.operation
        if operation.op != "model":
            return limit
        stock = correctness.outputs(operation.stock, *one, self.which)
        return max(limit, correctness.NETWORK_FACTOR * correctness.error(stock, wanted))

    def _call(self, built: Implementation, tensors: list[Tensor], gradient: Tensor) -> Call:
        """What is timed, on one input set."""
        call = built.call
        if self.which == "forward":
            return lambda: call(*tensors)
        leaves = [t for t in tensors if t.requires_grad]
        if self.which == "full":
            return lambda: torch.autograd.grad(call(*tensors), leaves, gradient)
        y = call(*tensors)
        return lambda: torch.autograd.grad(y, leaves, gradient, retain_graph=True)

    def _peak_memory(self, call: Call) -> int | None:
        """Device memory that one call allocates at most, beside what is there before it."""
        if self.settings.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.set_grad_enabled(self.which != "forward"):
            call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def _take_turns(self, contenders: list[_Contender]) -> None:
        each = self.settings.seconds / self.settings.rounds
        for _ in range(self.settings.rounds):
            for contender in list(contenders):
                try:
                    with contender.context(), torch.set_grad_enabled(self.which != "forward"):
                        contender.samples += contender.sample(each)
                except Exception as error:  # as above
                    contenders.remove(contender)
                    self._fail(contender.row, error)
            for contender in contenders:
                self._note_time(contender.row, contender.samples)
            contenders = contenders[1:] + contenders[:1]

    def _note_time(self, row: Row, samples: Sequence[float]) -> None:
        timing = summarize(samples)
        floor = row["floor_us"]
        self._replace(
            row,
            status="ok",
            median_us=timing.median * 1e6,
            q20_us=timing.q20 * 1e6,
            q80_us=timing.q80 * 1e6,
            samples=timing.samples,
            tflops=self.cost.flops / timing.median / 1e12,
            gbps=self.cost.bytes / timing.median / 1e9,
            floor_fraction=None if floor is None else floor / (timing.median * 1e6),
        )

    def _replace(self, row: Row, **values: Any) -> None:
        row.update(values)
        self.record.put(row)

    def _fail(self, row: Row, error: Exception) -> None:
        """Say in the row what happened; stop everything where the device is lost."""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        self._replace(row, status="failed", note=reason)
        if self.settings.device.type != "cuda":
            return
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        try:
            torch.cuda.synchronize()
        except RuntimeError as lost:
            raise DeviceLost(
                f"the GPU fails after {row['peer']}, {row['problem']}: {reason}"
            ) from lost


def input_sets(
    operation: Operation,
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    gradients: bool,
) -> list[InputSet]:
    """Sets of random tensors, so many that the last-level cache does not hold them all.

    Args:
        gradients: whether the tensors take gradients.
    """
    draw = Draw(device, dtype, generator)
    shapes = operation.stock(*operation.tensors(Draw(torch.device("meta"), dtype)))

    def one() -> InputSet:
        tensors = operation.tensors(draw)
        for tensor in tensors:
            tensor.requires_grad_(gradients and tensor.is_floating_point())
        return tensors, operation.output_gradient(draw, shapes)

    sets = [one()]
    wanted = CACHES * machine.last_level_cache(device)
    count = min(MOST_SETS, -(-wanted // bytes_held([*sets[0][0], sets[0][1]])))
    return [*sets, *(one() for _ in range(count - 1))]


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run on a stream that a graph can be captured from."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
