"""What ``tlazy bench`` says while it measures: which problem, which pass, and which peer."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from tlazy.bench.operations import Pass
from tlazy.bench.problems import SINGLE, Problem
from tlazy.bench.settings import Notify
from tlazy.bench.shapes import as_typed

PASS_IN_WORDS: Mapping[Pass, str] = {
    "forward": "forward pass",
    "backward": "backward pass",
    "full": "forward and backward pass",
}


@contextmanager
def progress(problems: Sequence[Problem], visits: int = 1) -> Iterator[Notify]:
    """Give what is to be told of each step: it says so in place on a terminal, else in lines."""
    console = Console(stderr=True)
    work = ((problem, which) for problem in problems for which in problem.passes)
    places = {each: place for place, each in enumerate(work, 1)}
    before = last = 0

    def line(problem: Problem, which: Pass, peer: str | None) -> str:
        nonlocal before, last
        place = places[problem, which]
        if peer is None:  # its inputs come first, and in a further visit once more
            before += len(places) * (place <= last)
            last = place
        number = f"{before + place} of {visits * len(places)}"
        return f"measuring {number}: {_work(problem, which)}, {peer or 'inputs'}"

    if console.is_terminal:
        with console.status("starting") as status:
            yield lambda *step: status.update(escape(line(*step)))
        return
    yield lambda *step: print(line(*step), file=sys.stderr, flush=True)


def _work(problem: Problem, which: Pass) -> str:
    """The operation with its sizes, the pass and, of a suite, the problem's name."""
    operation = problem.operation
    name = "" if problem.suite == SINGLE else f" ({problem.name})"
    return f"{as_typed(operation.op, operation.shape())}{name}, {PASS_IN_WORDS[which]}"
