"""One problem and pass: its peers side by side, on the same inputs, in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tlazy.bench import correctness, machine
from tlazy.bench.calling import call_of, inside_of
from tlazy.bench.inputs import InputSet, input_sets, sets_of_new_lengths
from tlazy.bench.lost import raise_if_lost
from tlazy.bench.operations import Draw, Pass, Unsupported
from tlazy.bench.peers import PEERS, Implementation
from tlazy.bench.problems import Problem
from tlazy.bench.record import Record, Row, finite
from tlazy.bench.rows import Rows, is_tried
from tlazy.bench.settings import Settings
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


class Group:
    """Checks and times the peers whose rows the record lacks."""

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
        self.rows = Rows(problem, which, settings.peers_of(problem), record, self.precision)
        self.missing = self.rows.missing
        self.samples: dict[str, list[float]] = {row["peer"]: [] for row in self.missing}

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
        timed = [row for row in self.missing if row["status"] == "ok"]
        if timed and self.problem.timed != "new length":
            self._visit(timed)

    def _visit(self, rows: Sequence[Row]) -> int:
        """Measure these rows' peers, and say how many had their turn."""
        self.settings.notify(self.problem, self.which, None)
        try:
            with machine.full_float32(self.problem.exact), own_stream(self.settings.device):
                entered = self._measure(rows)
        finally:
            for row in rows:
                if is_tried(row):  # what stopped the run from outside is no fault of it
                    self.rows.wait(row)
            self.record.write()
        if self.settings.device.type == "cuda":
            torch.cuda.empty_cache()  # the next problem needs blocks of other sizes
        return entered

    def _measure(self, rows: Sequence[Row]) -> int:
        untimed = [row for row in rows if row["status"] != "ok"]
        self.rows.announce(untimed)
        try:
            sets = self._input_sets()
            references = [self._reference(one) for one in self._checked(sets)]
        except RuntimeError as error:
            self._fail(untimed, error)
            return len(rows)
        for row in untimed:  # each one's announcement writes that the others wait for their turn
            self.rows.wait(row)
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
        operation, which = self.problem.operation, self.which
        draw = Draw(self.settings.device, self.problem.dtype, self.generator)
        if self.problem.timed == "new length":
            return sets_of_new_lengths(operation, draw, which, self.generator.initial_seed())
        return input_sets(operation, draw, which, gradients=self.gradients)

    def _checked(self, sets: Sequence[InputSet]) -> Sequence[InputSet]:
        """Those on which a peer has to be right: other sets hold the same values."""
        return sets if self.problem.timed == "new length" else sets[:1]

    def _reference(self, one: InputSet) -> Reference:
        """The right outputs on these inputs, and how wrong a peer's may be."""
        operation, which = self.problem.operation, self.which
        wanted = correctness.expected(operation, *one, which)
        return Reference(wanted, correctness.limits(operation, one, which, wanted, self.precision))

    def _enter(
        self, row: Row, sets: Sequence[InputSet], references: Sequence[Reference]
    ) -> _Contender | None:
        """Build and check the row's peer; None, and a row that says why, where it has no time."""
        self.rows.announce([row])
        self.settings.notify(self.problem, self.which, row["peer"])
        try:
            with torch.set_grad_enabled(self.gradients):
                built = PEERS[row["peer"]](self.problem.operation, sets[0][0][0])
            row["backend"] = built.backend
            inside = inside_of(built, self.settings.device, gradients=self.gradients)
            prepared = inside(lambda: self._prepare(row, built, sets, references))
        except Unsupported as error:
            self.rows.refuse(row, "unsupported", str(error))
            return None
        except Exception as error:  # a peer's own exceptions are any
            self._fail([row], error)
            return None
        if prepared is None:
            return None
        if row["status"] != "ok":
            self.rows.wait(row)  # the next row's announcement writes it
        sample, how = prepared
        precision = "float32 by tf32" if self.precision == "tf32" else ""
        note = "; ".join(filter(None, (built.note, precision, how)))
        samples = self.samples[row["peer"]]
        return _Contender(row, lambda seconds: inside(lambda: sample(seconds)), note, samples)

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
                note = f"relative error {error:.1e}, allowed {limit:.0e}"
                self.rows.refuse(row, "wrong", note)
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
                self.rows.announce([contender.row])
                try:
                    self._sample(contender, each)
                except Exception as error:  # as above
                    contenders.remove(contender)
                    self._fail([contender.row], error)
            contenders = contenders[1:] + contenders[:1]

    def _sample(self, contender: _Contender, seconds: float) -> None:
        contender.samples += contender.sample(seconds)
        timing = summarize(contender.samples)
        if not timing.q20 > 0:
            raise RuntimeError(f"the clock gave {timing.q20} seconds for a call")
        self.rows.note_time(contender.row, timing, contender.note)

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        """Say in the rows what happened; stop everything where the device is lost."""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        for row in rows:
            self.rows.refuse(row, "failed", reason)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        peers = ", ".join(row["peer"] for row in rows)
        what = f"{peers or 'inputs'}, {self.problem.name}: {reason}"
        raise_if_lost(self.settings.device, what)


def _timer(problem: Problem, device: torch.device) -> Timer:
    """The timer of what the problem wants timed."""
    if problem.timed == "device":
        return timer_for(device)
    kind = FirstCallTimer if problem.timed == "new length" else HostTimer
    return kind(settle=settle_for(device))
