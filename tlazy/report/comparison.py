"""tlazy beside its peers: the rows of a record, paired by problem."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tlazy.errors import counted
from tlazy.report import units
from tlazy.report.record import WORK

Row = Mapping[str, Any]
Verdict = Literal["faster", "slower", "even", "none"]
WORDS: Mapping[Verdict, str] = {
    "faster": "faster",
    "slower": "slower",
    "even": "no difference",
    "none": "no comparison",
}
US = "tlazy"


@dataclass(frozen=True)
class Duel:
    """A peer's row beside tlazy's row of the same problem.

    Attributes:
        index: of the peer's row in the record.
        peer: the peer's row.
        tlazy: the row it is compared with; None where tlazy was not run.
        speedup: the peer's median over tlazy's; None where one of them has no valid time.
        low, high: the speed-up between the unlucky and the lucky ends of both 20/80% quantiles.
    """

    index: int
    peer: Row
    tlazy: Row | None
    speedup: float | None = None
    low: float = math.nan
    high: float = math.nan

    @property
    def verdict(self) -> Verdict:
        """How tlazy did; "even" where the spreads overlap and leave open which is faster."""
        if self.speedup is None:
            return "none"
        if self.low <= 1 <= self.high:
            return "even"
        return "faster" if self.speedup > 1 else "slower"

    @property
    def words(self) -> str:
        """The verdict as people read it."""
        return WORDS[self.verdict]

    @property
    def missing(self) -> str:
        """Why there is no speed-up."""
        if self.tlazy is None:
            return "tlazy was not measured"
        return "; ".join(why(row) for row in (self.tlazy, self.peer) if row["status"] != "ok")


@dataclass
class Problem:
    """Everything that was measured on the same work."""

    suite: str
    op: str
    name: str
    shape: Mapping[str, Any]
    dtype: str
    pass_: str
    activation: str | None
    layout: str | None
    ours: list[tuple[int, Row]] = field(default_factory=list)
    duels: list[Duel] = field(default_factory=list)

    @property
    def label(self) -> str:
        """In words, all but the sizes."""
        parts = (self.name or self.op, self.dtype, self.pass_, self.activation, self.layout)
        return " · ".join(part for part in parts if part)


@dataclass(frozen=True)
class Score:
    """How tlazy did against one peer: each duel counts once, by its verdict.

    Attributes:
        mean, worst: of the speed-ups; None where no duel shows a difference.
    """

    peer: str
    faster: int
    slower: int
    even: int
    missing: int
    mean: float | None
    worst: float | None

    @property
    def headline(self) -> str:
        """What comes of all of them together.

        >>> Score("eager", faster=0, slower=0, even=4, missing=0, mean=None, worst=None).headline
        'no difference'
        """
        if self.mean is not None:
            return units.times(self.mean)
        return WORDS["even"] if self.even else "no figure"

    @property
    def explained(self) -> str:
        """What the headline is, where it is a figure.

        >>> Score("eager", faster=3, slower=0, even=1, missing=0, mean=1.5, worst=0.99).explained
        'geometric mean of 4 problems, worst 0.99×'
        """
        if self.mean is None or self.worst is None:
            return ""
        problems = counted(self.faster + self.slower + self.even, "problem")
        return f"geometric mean of {problems}, worst {units.times(self.worst)}"

    @property
    def words(self) -> str:
        """How often it was which, as people read it.

        >>> Score("eager", faster=3, slower=0, even=1, missing=0, mean=1.5, worst=0.99).words
        'faster in 3, slower in 0, no difference in 1'
        """
        counts = [f"faster in {self.faster}", f"slower in {self.slower}"]
        counts += [f"no difference in {self.even}"] if self.even else []
        counts += [f"not compared in {self.missing}"] if self.missing else []
        return ", ".join(counts)


def problems(rows: Sequence[Row]) -> list[Problem]:
    """The rows by problem, in the record's order."""
    found: dict[str, Problem] = {}
    peers: dict[int, list[tuple[int, Row]]] = {}
    for index, row in enumerate(rows):
        problem = found.setdefault(_key(row), _problem(row))
        if row["peer"] == US:
            problem.ours.append((index, row))
        else:
            peers.setdefault(id(problem), []).append((index, row))
    for problem in found.values():
        problem.duels = [_duel(problem, index, row) for index, row in peers.get(id(problem), ())]
    return list(found.values())


def scores(duels: Iterable[Duel]) -> list[Score]:
    """One score per peer, in order of appearance."""
    by_peer: dict[str, list[Duel]] = {}
    for duel in duels:
        by_peer.setdefault(duel.peer["peer"], []).append(duel)
    return [_score(peer, fought) for peer, fought in by_peer.items()]


def peer_names(rows: Iterable[Row]) -> list[str]:
    """The peers in order of appearance, tlazy before all."""
    names = dict.fromkeys(row["peer"] for row in rows)
    return [US, *(name for name in names if name != US)] if US in names else list(names)


def why(row: Row) -> str:
    """A row's status with its note.

    >>> why({"peer": "compile", "status": "failed", "note": "out of memory"})
    'compile: failed (out of memory)'
    """
    note = f" ({row['note']})" if row["note"] else ""
    return f"{row['peer']}: {row['status']}{note}"


def _key(row: Row) -> str:
    """The row's work, as text."""
    return json.dumps([row[name] for name in WORK], sort_keys=True)


def _problem(row: Row) -> Problem:
    return Problem(
        suite=row["suite"],
        op=row["op"],
        name=row["problem"],
        shape=row["shape"],
        dtype=row["dtype"],
        pass_=row["pass"],
        activation=row["activation"],
        layout=row["layout"],
    )


def _duel(problem: Problem, index: int, peer: Row) -> Duel:
    ours = problem.ours[0][1] if problem.ours else None
    if ours is None or ours["status"] != "ok" or peer["status"] != "ok":
        return Duel(index, peer, ours)
    return Duel(
        index,
        peer,
        ours,
        speedup=peer["median_us"] / ours["median_us"],
        low=peer["q20_us"] / ours["q80_us"],
        high=peer["q80_us"] / ours["q20_us"],
    )


def _score(peer: str, duels: Sequence[Duel]) -> Score:
    ratios = [duel.speedup for duel in duels if duel.speedup is not None]
    verdicts = Counter(duel.verdict for duel in duels)
    differ = verdicts["faster"] + verdicts["slower"] > 0
    return Score(
        peer=peer,
        faster=verdicts["faster"],
        slower=verdicts["slower"],
        even=verdicts["even"],
        missing=verdicts["none"],
        mean=math.exp(sum(map(math.log, ratios)) / len(ratios)) if differ else None,
        worst=min(ratios) if differ else None,
    )
