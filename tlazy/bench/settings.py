"""How to measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tlazy.bench.operations import Pass
from tlazy.bench.peers import default_peers
from tlazy.bench.problems import Problem
from tlazy.bench.timing import Timer

# Of a problem and a pass, the peer that is tried next; None for their inputs, which come first.
Notify = Callable[[Problem, Pass, str | None], object]


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

    def peers_of(self, problem: Problem) -> Sequence[str]:
        """Who is measured at it."""
        return self.peers or default_peers(problem, self.device)
