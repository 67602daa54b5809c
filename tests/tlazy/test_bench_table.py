"""What `tlazy bench` prints: problems in the words that it takes, peers in the record's order."""

import io
import re

import pytest
import torch
from rich.console import Console

from tests.bench_record import record, row
from tlazy.bench import table
from tlazy.bench.operations import Conv1d
from tlazy.bench.problems import SINGLE, Problem
from tlazy.bench.progress import progress
from tlazy.bench.record import identity
from tlazy.bench.shapes import parse_shape
from tlazy.bench.suites import SUITES

MANY_OUTPUTS = Problem(SINGLE, "several outputs of a channel", Conv1d(2, 8, 50, 16, 4, groups=8))
EVERY = [problem for suite in SUITES.values() for problem in suite()] + [MANY_OUTPUTS]


def printed(*rows):
    console = Console(file=io.StringIO(), width=400)
    table.show(record(*rows), console)
    return console.file.getvalue()


def shown(*rows):
    """The table's first two columns, line by line."""
    lines = [line for line in printed(*rows).splitlines() if line.startswith("│")]
    return [tuple(cell.strip() for cell in line.split("│")[1:3]) for line in lines]


@pytest.mark.parametrize("problem", EVERY, ids=lambda problem: f"{problem.suite} {problem.name}")
def test_sizes_are_printed_as_the_command_takes_them(problem, capsys):
    with progress([problem]) as notify:
        notify(problem, "forward", None)
    _, _, told = capsys.readouterr().err.partition(": ")
    lines = [text for text, _ in shown(row() | identity(problem, "forward", "tlazy"))]
    assert lines[0] == problem.name
    assert told.startswith(lines[2])
    op, sizes = lines[2].split(" ")
    wanted = problem.operation.shape()
    then = wanted.pop("then", None)
    assert parse_shape(op, sizes).shape().items() >= wanted.items()
    assert then is None or then in lines[1]


def test_above_the_floor_is_explained_where_it_is_shown_alone():
    at_the_floor, above = row(floor_fraction=1.004), row("eager", floor_fraction=1.006)
    assert "│     100% │" in printed(at_the_floor)
    assert table.ABOVE_FLOOR not in printed(at_the_floor, row("fla", None))
    assert "│     101% │" in printed(at_the_floor, above)
    assert re.sub(r"\s+", " ", table.ABOVE_FLOOR) in re.sub(r"\s+", " ", printed(above))


def test_sizes_that_are_the_problems_name_stand_there_once():
    operation = parse_shape("depthwise", "2,8,50,4")
    problem = Problem(SINGLE, "depthwise 2,8,50,4", operation, torch.float32)
    rows = [row(peer) | identity(problem, "forward", peer) for peer in ("eager", "tlazy")]
    assert shown(*rows) == [
        ("depthwise 2,8,50,4", "eager (aten)"),
        ("float32 forward ncl", "tlazy (triton)"),
    ]
