"""What the recorder has processes of their own do, each of which returns a code of ``workers``."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch._inductor import config as inductor

from perf import MAIN_SUITE, kernel_tests
from perf.workers import BAD_INPUT, DONE, LOST, OUT_OF_TIME
from tlazy.bench import command, machine, tuning
from tlazy.bench.calling import compute_once
from tlazy.bench.lost import DeviceLost
from tlazy.bench.measuring import measure
from tlazy.bench.peers import default_peers
from tlazy.bench.problems import Problem
from tlazy.bench.record import Record
from tlazy.bench.settings import Settings
from tlazy.bench.suites import SUITES
from tlazy.errors import UserError
from tlazy.outputs import check_writable
from tlazy.report.earlier import check_same_device
from tlazy_kernels import launch

MOST_TUNED = 8
# Processes that compile while the tests run, for whom, and the part of the GPU's memory of each.
COMPILERS, COMPILED, MEMORY_OF_COMPILER = 3, ("tlazy", "compile"), 0.15
# Where time is left once all is measured, it is come back to: two runs lie as far apart as visits.
VISITS = 2


def begin(out: Path, device: str, command_line: str, resume: Path | None, answer: Path) -> int:
    """Make the record and write its path, or what is wrong, as the answer."""
    where = torch.device(device)
    try:
        if resume is None:
            record = new_record(out, where, command_line)
        else:
            record = resumed_record(where, resume)
    except UserError as error:
        answer.write_text(json.dumps({"error": str(error)}))
        return BAD_INPUT
    answer.write_text(json.dumps({"path": str(record.path)}))
    if record.ceilings.bandwidth is None:
        every = (problem for suite in SUITES.values() for problem in suite())
        problems = command.in_dtype(every, where)
        ceilings = machine.measure_ceilings(where, command.precisions(problems, where))
        record.content["ceilings"] = dataclasses.asdict(ceilings)
        record.write()
    return DONE


def new_record(out: Path, device: torch.device, command_line: str) -> Record:
    """An empty record in the device's folder."""
    path = _folder(out, device) / time.strftime("%Y-%m-%d-%H%M%S.json", time.gmtime())
    check_writable("--out", path)
    record = Record(command_line, device, machine.Ceilings(), path)
    record.content["tests"] = kernel_tests.nothing_yet(kernel_tests.files())
    record.write()
    return record


def resumed_record(device: torch.device, resume: Path) -> Record:
    """The record `resume`, to go on with.

    Raises:
        UserError: where it is of another device or other versions.
    """
    record = Record.reopen(resume)
    check_same_device(record.content["machine"], machine.machine(device))
    before, now = record.content["versions"], machine.versions()
    if before != now:
        raise UserError(f"--resume {resume} was measured with {before}, not with {now}")
    return record


def _folder(out: Path, device: torch.device) -> Path:
    """The device's folder in `out`, which is made."""
    name = "cpu" if device.type == "cpu" else command.slug(machine.machine(device)["device"])
    try:
        (out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror or error}") from error
    return out / name


def measure_suites(path: str, device: str, suites: Sequence[str], deadline: float) -> int:
    """Measure what the record does not hold yet."""
    where = torch.device(device)

    def notify(problem: Problem, which: str, peer: str | None) -> None:
        print(f"{problem.suite}: {problem.name}, {which}, {peer or 'inputs'}", flush=True)

    settings = Settings(where, visits=VISITS, deadline=deadline, notify=notify)
    try:
        whole = measure(_problems(suites, where), Record.reopen(Path(path)), settings)
    except DeviceLost as error:
        print(error, file=sys.stderr, flush=True)
        return LOST
    return DONE if whole else OUT_OF_TIME


def _problems(suites: Sequence[str], device: torch.device) -> list[Problem]:
    """The problems of `suites`; what stands in two of them counts for the first."""
    found: dict[Problem, Problem] = {}
    for suite in suites:
        for problem in command.suite_problems(suite, device):
            found.setdefault(dataclasses.replace(problem, suite=""), problem)
    return list(found.values())


def compile_kernels(device: str, part: int, deadline: float) -> int:
    """Compile what every COMPILERS-th problem needs: of the main suite, then of all others as far
    as it is tlazy's, which is compiled on all cores at once."""
    where = torch.device(device)
    if device == "cuda":
        os.nice(10)  # tests that wait long for a core would be taken to hang
        torch.cuda.set_per_process_memory_fraction(MEMORY_OF_COMPILER)
    for problem in _problems(tuple(SUITES), where)[part::COMPILERS]:
        compiled = COMPILED if problem.suite == MAIN_SUITE else ("tlazy",)
        for peer, which in itertools.product(compiled, problem.passes):
            if time.monotonic() > deadline:
                return OUT_OF_TIME
            if peer in default_peers(problem, where):
                # Too large for its share of the memory, or broken: measuring it will say so.
                with suppress(Exception), _ahead(peer):
                    compute_once(problem, which, peer, where)
    return DONE


@contextmanager
def _ahead(peer: str) -> Iterator[None]:
    """Inside, tlazy compiles and does not compute: also on the way back, in this very thread.

    torch's compiler keeps no choice that it makes by time, on a GPU that others use as well.
    """
    autograd: Any = torch.autograd
    kept = inductor.patch(autotune_local_cache=False)
    with kept, autograd.set_multithreading_enabled(False):
        if peer == "tlazy":
            with launch.compiling_ahead():
                yield
        else:
            yield


def tune(path: str, deadline: float, done: Sequence[str]) -> int:
    """Search tiles for the most important problems, but for what is done."""
    device = torch.device("cuda")
    problems = command.suite_problems(MAIN_SUITE, device)[:MOST_TUNED]
    notify = functools.partial(print, flush=True)
    try:
        found = tuning.tune(problems, device, Path(path), deadline, notify=notify, skip=done)
    except (DeviceLost, UserError) as error:
        print(error, file=sys.stderr, flush=True)
        return LOST if isinstance(error, DeviceLost) else BAD_INPUT
    print(f"{len(found)} tiles in {path}", flush=True)
    return DONE
