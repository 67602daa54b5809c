"""Measures problems: every peer side by side, on the same inputs, in turns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tlazy.bench import correctness, machine
from tlazy.bench.operations import Draw, Operation, Pass, Unsupported, bytes_held
from tlazy.bench.peers import PEERS, Implementation, default_peers
from tlazy.bench.problems import Problem
from tlazy.bench.record import Record, Row, finite, identity
from tlazy.bench.timing import (
    Call,
    FirstCallTimer,
    HostTimer,
    Sampler,
    Timer,
    own_stream,
    settle_for,
    summarize,
    timer_for,
)
from tlazy.report.record import NOT_MEASURED
from tlazy_kernels.roofline import Cost

MOST_SETS = 256
# What a pass reads of all input sets together is this many times the last-level cache. Of what is
# read in turns a cache that drops lines at random still holds a fifth at twice its size, and a
# fiftieth at four times.
CACHES = 4
# Where outputs are so much larger that this many caches hold fewer sets with their outputs, those
# are enough: outputs pass through the cache too, and would fill the memory.
CACHES_WITH_OUTPUTS = 8 * CACHES
# How many lengths are new to a convolution, and by how many samples at most: drawn anew, because
# what an earlier run has met is no longer new to its process.
NEW_LENGTHS, MOST_LONGER = 8, 1000
# What rows say that have no time yet: one that is being tried, and has failed if it stays so, and
# one whose turn is to come, which is not measured.
TRIED = "hung, or the process ended in it"
UNFINISHED = "the run ended first"

# What a row has only if it has a time.
TIMES = ("median_us", "q20_us", "q80_us", "tflops", "gbps", "floor_fraction")

# An operation's tensors, and the gradient of its output; for a forward pass a single number in its
# place, as large as the output only in shape.
InputSet = tuple[list[Tensor], Tensor]


# Of a problem and a pass, the peer that is tried next; None for their inputs, which come first.
Notify = Callable[[Problem, Pass, str | None], object]


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
        visits: how often each problem is come back to, after all others and with inputs drawn
            anew, for its share of the rounds: what changes within minutes, or with where tensors
            lie in memory, so shows in the spread of one run.
        deadline: on ``time.monotonic``'s scale; no group starts after it.
        timer: None for the device's own.
        notify: told of each step before it begins.
    """

    device: torch.device
    peers: Sequence[str] | None = None
    seconds: float = 0.2
    rounds: int = 4
    visits: int = 1
    deadline: float = float("inf")
    timer: Timer | None = None
    notify: Notify = lambda problem, which, peer: None


def identities(problems: Iterable[Problem], settings: Settings) -> list[Row]:
    """What each row will measure, in order."""
    return [
        identity(problem, which, peer)
        for problem in problems
        for which in problem.passes
        for peer in settings.peers or default_peers(problem, settings.device)
    ]


def measure(problems: Iterable[Problem], record: Record, settings: Settings) -> bool:
    """Put a row for each problem, pass and peer into `record`.

    Rows that it holds are left, but for those whose turn had not come when it was stopped: so a
    peer that ends the process costs its own row, once.

    Returns:
        whether all was measured before the deadline.

    Raises:
        DeviceLost: where the device cannot go on; the record holds what was measured until then.
    """
    generator = torch.Generator(settings.device)
    generator.seed()
    groups = []
    for problem in problems:
        for which in problem.passes:
            group = _Group(problem, which, record, settings, generator)
            if not group.missing:
                continue
            if time.monotonic() > settings.deadline:
                return False
            settings.notify(problem, which, None)
            if not group.measure():
                return False
            groups.append(group)
    for _ in range(settings.visits - 1):
        for group in groups:
            if time.monotonic() > settings.deadline:
                return True
            settings.notify(group.problem, group.which, None)
            group.measure_again()
    return True


@dataclass
class _Contender:
    """A peer that computes rightly and is being timed."""

    row: Row
    sample: Sampler
    note: str
    samples: list[float]


class Reference(NamedTuple):
    """What is right: the outputs in float64, and each one's largest allowed error."""

    outputs: list[Tensor]
    limits: list[float]


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
        self.timer = settings.timer or _timer(problem, settings.device)
        self.gradients = which != "forward" or problem.timed == "host with grad"
        with machine.full_float32(problem.exact):
            self.precision = machine.precision_of(
                problem.dtype, settings.device, problem.operation.op
            )
        # Only the device's work has a floor.
        works = problem.timed == "device"
        self.cost: Cost | None = problem.operation.cost(problem.dtype, which) if works else None
        peers = settings.peers or default_peers(problem, settings.device)
        rows = [self._row(peer) for peer in peers]
        self.missing = [row for row in rows if self._is_missing(row)]
        self.samples: dict[str, list[float]] = {row["peer"]: [] for row in rows}

    def measure(self) -> bool:
        """Check each missing peer, then time those that are right in turns.

        Returns:
            whether all was measured before the deadline.
        """
        return self._visit(self.missing) == len(self.missing)

    def measure_again(self) -> None:
        """Add samples of the peers that have some, from inputs drawn anew.

        A length is new once only.
        """
        if self.problem.timed != "new length":
            self._visit([row for row in self.missing if row["status"] == "ok"])

    def _visit(self, rows: Sequence[Row]) -> int:
        """Measure these rows' peers, and say how many had their turn."""
        try:
            with machine.full_float32(self.problem.exact), own_stream(self.settings.device):
                entered = self._measure(rows)
        finally:
            for row in rows:
                if is_tried(row):  # what stopped the run from outside is no fault of it
                    self._wait(row)
            self.record.write()
        if self.settings.device.type == "cuda":
            torch.cuda.empty_cache()  # the next problem needs blocks of other sizes
        return entered

    def _measure(self, rows: Sequence[Row]) -> int:
        untimed = [row for row in rows if row["status"] != "ok"]
        self._announce(untimed)
        try:
            sets = self._input_sets()
            references = [self._reference(one) for one in self._checked(sets)]
        except RuntimeError as error:
            self._fail(untimed, error)
            return len(rows)
        for row in untimed:  # each one's announcement writes that the others wait for their turn
            self._wait(row)
        entered = 0
        contenders: list[_Contender | None] = []
        for row in rows:
            if contenders and time.monotonic() > self.settings.deadline:
                break
            contenders.append(self._enter(row, sets, references))
            entered += 1
        del references
        self._take_turns([c for c in contenders if c is not None])
        return entered

    def _input_sets(self) -> list[InputSet]:
        operation: Any = self.problem.operation
        draw = Draw(self.settings.device, self.problem.dtype, self.generator)
        if self.problem.timed != "new length":
            return input_sets(operation, draw, self.which, gradients=self.gradients)
        longer = random.Random(self.generator.initial_seed()).sample(
            range(MOST_LONGER), NEW_LENGTHS
        )
        lengths = operation.length, *(operation.length + 1 + more for more in longer)
        return [input_set(replace(operation, length=n), draw, self.which) for n in lengths]

    def _checked(self, sets: Sequence[InputSet]) -> Sequence[InputSet]:
        """Those on which a peer has to be right: other sets hold the same values."""
        return sets if self.problem.timed == "new length" else sets[:1]

    def _reference(self, one: InputSet) -> Reference:
        """The right outputs on these inputs, and how wrong a peer's may be."""
        operation, which = self.problem.operation, self.which
        wanted = correctness.expected(operation, *one, which)
        return Reference(wanted, correctness.limits(operation, one, which, wanted, self.precision))

    def _is_missing(self, row: Row) -> bool:
        there = self.record.find(row)
        return there is None or there["status"] == NOT_MEASURED

    def _row(self, peer: str) -> Row:
        """A row that says, until it is replaced, that nothing was measured."""
        cost, device = self.cost, self.record.content["machine"]["device"]
        floor = None
        if cost is not None:
            floor = self.record.ceilings.floor(cost, self.precision, device)
        return {
            **identity(self.problem, self.which, peer),
            "backend": "",
            "status": NOT_MEASURED,
            "note": UNFINISHED,
            "error": None,
            **dict.fromkeys(TIMES),
            "samples": 0,
            "flops": cost and cost.flops,
            "bytes": cost and cost.bytes,
            "floor_us": None if floor is None else floor * 1e6,
            "peak_memory_bytes": None,
        }

    def _enter(
        self, row: Row, sets: Sequence[InputSet], references: Sequence[Reference]
    ) -> _Contender | None:
        """Build and check the row's peer; None, and a row that says why, where it has no time."""
        self._announce([row])
        self.settings.notify(self.problem, self.which, row["peer"])
        try:
            with torch.set_grad_enabled(self.gradients):
                built = PEERS[row["peer"]](self.problem.operation, sets[0][0][0])
            row["backend"] = built.backend
            inside = inside_of(built, self.settings.device, gradients=self.gradients)
            prepared = inside(lambda: self._prepare(row, built, sets, references))
            if prepared is None:
                return None
            sample, how = prepared
            precision = "float32 by tf32" if self.precision == "tf32" else ""
            note = "; ".join(filter(None, (built.note, precision, how)))
            if row["status"] != "ok":
                self._wait(row)  # the next row's announcement writes it
            return _Contender(
                row,
                lambda seconds: inside(lambda: sample(seconds)),
                note,
                self.samples[row["peer"]],
            )
        except Unsupported as error:
            self._refuse(row, "unsupported", str(error))
        except Exception as error:  # a peer's own exceptions are any
            self._fail([row], error)
        return None

    def _prepare(
        self,
        row: Row,
        built: Implementation,
        sets: Sequence[InputSet],
        references: Sequence[Reference],
    ) -> tuple[Sampler, str] | None:
        """Check the peer, and warm it up; None where it is wrong."""
        if not self._is_right(row, built, sets[0], references[0]):
            return None
        calls = [call_of(built, self.which, one) for one in sets]
        row["peak_memory_bytes"] = self._peak_memory(calls[0])
        prepared = self.timer.prepare(calls)
        for one, reference in zip(sets[1:], references[1:], strict=False):  # are not new any more
            if not self._is_right(row, built, one, reference):
                return None
        return prepared

    def _is_right(
        self, row: Row, built: Implementation, one: InputSet, reference: Reference
    ) -> bool:
        """Note the row's error against float64, and refuse it a time where that is too large."""
        tensors, gradient = built.prepare(*one)
        correctness.poison(reference.outputs, self.problem.dtype)
        found = correctness.outputs(built.call, tensors, gradient, self.which)
        errors = correctness.errors(found, reference.outputs)
        row["error"] = finite(correctness.largest(errors))
        for error, limit in zip(errors, reference.limits, strict=True):
            if not error <= limit:  # a NaN is neither
                self._refuse(row, "wrong", f"relative error {error:.1e}, allowed {limit:.0e}")
                return False
        return True

    def _peak_memory(self, call: Call) -> int | None:
        """Device memory that one call allocates at most, beside what is there before it."""
        if self.settings.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def _take_turns(self, contenders: list[_Contender]) -> None:
        """Sample the contenders round by round."""
        rounds = -(-self.settings.rounds // self.settings.visits)
        each = self.settings.seconds / rounds / self.settings.visits
        for turn in range(rounds):
            if turn == 1:
                self.record.write()  # else the last one would stand in for whoever ends the process
            for contender in list(contenders):
                self._announce([contender.row])
                try:
                    contender.samples += contender.sample(each)
                    self._note_time(contender)
                except Exception as error:  # as above
                    contenders.remove(contender)
                    self._fail([contender.row], error)
            contenders = contenders[1:] + contenders[:1]

    def _note_time(self, contender: _Contender) -> None:
        """Put what was sampled so far into the contender's row."""
        timing = summarize(contender.samples)
        if not timing.q20 > 0:
            raise RuntimeError(f"the clock gave {timing.q20} seconds for a call")
        row = contender.row
        floor = row["floor_us"]
        row.update(
            status="ok",
            note=contender.note,
            median_us=timing.median * 1e6,
            q20_us=timing.q20 * 1e6,
            q80_us=timing.q80 * 1e6,
            samples=timing.samples,
            tflops=self.cost and self.cost.flops / timing.median / 1e12,
            gbps=self.cost and self.cost.bytes / timing.median / 1e9,
            floor_fraction=None if floor is None else floor / (timing.median * 1e6),
        )

    def _announce(self, rows: Iterable[Row]) -> None:
        """Have the file say that those without a time are tried, before anything of them runs."""
        untimed = [row for row in rows if row["status"] != "ok"]
        for row in untimed:
            row.update(status="failed", note=TRIED)
            self.record.hold(row)
        if untimed:
            self.record.write()

    def _wait(self, row: Row) -> None:
        """Say that the row's turn is to come."""
        row.update(status=NOT_MEASURED, note=UNFINISHED)
        self.record.hold(row)

    def _refuse(self, row: Row, status: str, note: str) -> None:
        """Say why the row has no time, or has none any more."""
        row.update(dict.fromkeys(TIMES), samples=0, status=status, note=note)
        self.record.hold(row)

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        """Say in the rows what happened; stop everything where the device is lost."""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        for row in rows:
            self._refuse(row, "failed", reason)
        if self.settings.device.type != "cuda":
            return
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        try:
            torch.cuda.synchronize()
        except RuntimeError as lost:
            peers = ", ".join(row["peer"] for row in rows)
            raise DeviceLost(
                f"the GPU fails after {peers or 'inputs'}, {self.problem.name}: {reason}"
            ) from lost


def is_tried(row: Row) -> bool:
    """Whether the row's peer is being tried, or never came back."""
    return (row["status"], row["note"]) == ("failed", TRIED)


def compute_once(problem: Problem, which: Pass, peer: str, device: torch.device) -> None:
    """Compute a problem by a peer without timing it, so that its kernels are compiled.

    Raises:
        Exception: whatever the peer raises.
    """
    gradients = which != "forward"
    draw = Draw(device, problem.dtype)
    with machine.full_float32(problem.exact), torch.set_grad_enabled(gradients):
        tensors, gradient = input_set(problem.operation, draw, which, gradients=gradients)
        built = PEERS[peer](problem.operation, tensors[0])
        with built.context():
            correctness.outputs(built.call, *built.prepare(tensors, gradient), which)


def inside_of(
    built: Implementation, device: torch.device, *, gradients: bool
) -> Callable[[Callable[[], Any]], Any]:
    """What calls a function as the peer needs it: in its context, its thread, with gradients."""

    def here(function: Callable[[], Any]) -> Any:
        with built.context(), torch.set_grad_enabled(gradients):
            return function()

    if not built.own_thread:
        return here

    def there(function: Callable[[], Any]) -> Any:
        autograd: Any = torch.autograd
        with own_stream(device), autograd.set_multithreading_enabled(False):
            return here(function)

    thread = ThreadPoolExecutor(1)
    return lambda function: thread.submit(there, function).result()


def call_of(built: Implementation, which: Pass, one: InputSet) -> Call:
    """What is timed, on one input set; a backward pass's forward pass is done here."""
    tensors, gradient = built.prepare(*one)
    call = built.call
    if which == "forward":
        return lambda: call(*tensors)
    leaves = [t for t in tensors if t.requires_grad]
    if which == "full":
        return lambda: torch.autograd.grad(call(*tensors), leaves, gradient)
    y = call(*tensors)
    return lambda: torch.autograd.grad(y, leaves, gradient, retain_graph=True)


def input_set(
    operation: Operation, draw: Draw, which: Pass, *, gradients: bool = False
) -> InputSet:
    """Random tensors, which take gradients or not, and the gradient of the output."""
    y = operation.stock(*operation.tensors(Draw(torch.device("meta"), draw.dtype)))
    tensors = operation.tensors(draw)
    for tensor in operation.differentiable(tensors):
        tensor.requires_grad_(gradients)
    if which == "forward":
        return tensors, draw.normal().expand(y.shape)
    return tensors, operation.output_gradient(draw, y)


def input_sets(
    operation: Operation, draw: Draw, which: Pass, *, gradients: bool = False
) -> list[InputSet]:
    """So many of them that the last-level cache has lost one when its turn comes again."""
    tensors, gradient = first = input_set(operation, draw, which, gradients=gradients)
    both = bytes_held([*tensors, gradient])
    read = bytes_held(tensors) if which == "forward" else both
    cache = machine.last_level_cache(draw.device)
    count = min(MOST_SETS, -(-CACHES * cache // read), -(-CACHES_WITH_OUTPUTS * cache // both))
    return [first, *(_copied(first, which) for _ in range(count - 1))]


def _copied(one: InputSet, which: Pass) -> InputSet:
    """The same values elsewhere in memory: drawing others took more than half of a CPU's suite."""
    tensors, gradient = one
    copies = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    return copies, gradient if which == "forward" else gradient.clone()


def _timer(problem: Problem, device: torch.device) -> Timer:
    """The timer of what the problem wants timed."""
    if problem.timed == "device":
        return timer_for(device)
    kind = FirstCallTimer if problem.timed == "new length" else HostTimer
    return kind(settle=settle_for(device))
