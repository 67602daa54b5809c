"""What ``tlazy bench`` says while it measures: which problem, which pass, and which peer."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from tlazy.bench.measuring import Notify
from tlazy.bench.operations import Pass
from tlazy.bench.problems import SINGLE, Problem
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
    total = visits * sum(len(problem.passes) for problem in problems)
    number = 0

    def line(problem: Problem, which: Pass, peer: str | None) -> str:
        nonlocal number
        number += peer is None  # a problem's inputs come first
        return f"measuring {number} of {total}: {_work(problem, which)}, {peer or 'inputs'}"

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
