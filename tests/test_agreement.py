"""`python -m perf.agreement`: two runs of a suite on a quiet machine agree, by its own clock."""

import random

import pytest
import torch

from perf import agreement
from tlazy.bench.measuring import Settings
from tlazy.bench.operations import Linear
from tlazy.bench.suites import SUITES, Problem

CPU = torch.device("cpu")


class Quiet:
    """Says what each call takes, give or take a percent; may become slower."""

    def __init__(self, microseconds):
        self.microseconds, self.random = microseconds, random.Random(0)

    def prepare(self, calls):
        calls[0]()
        spread = [self.random.uniform(0.99, 1.01) for _ in range(25)]
        return lambda seconds: [self.microseconds * 1e-6 * factor for factor in spread], ""


def run(microseconds):
    operation = Linear(16, 8, 8)
    settings = Settings(CPU, timer=Quiet(microseconds))
    return agreement.run([Problem("sweep", "small", operation, torch.float32)], settings)


def test_runs_within_the_spread_agree(capsys):
    assert agreement.judge(run(100), run(100.5)) == 0
    assert "4 of 4 rows agree; the spreads of 4 overlap" in capsys.readouterr().out


@pytest.mark.parametrize("change", [1.2, 0.8])
def test_a_run_that_became_slower_or_faster_disagrees(change, capsys):
    assert agreement.judge(run(100), run(100 * change)) == 1
    out = capsys.readouterr().out
    assert "0 of 4 rows agree" in out
    assert "disagrees: small, full, eager: 1.2" in out


def test_runs_without_a_time_do_not_agree(capsys):
    assert agreement.judge(run(0), run(0)) == 1
    assert "nothing was measured" in capsys.readouterr().err


def test_it_runs_by_the_real_clock_twice(monkeypatch, capsys):
    problems = [Problem("sweep", "small", Linear(64, 64, 64), torch.float32, ("forward",))]
    monkeypatch.setitem(SUITES, "sweep", lambda: iter(problems))
    assert agreement.main(["--suite", "sweep", "--seconds", "0.05"]) in (0, 1)
    assert "of 2 rows agree" in capsys.readouterr().out


def test_bad_seconds_are_one_line_and_exit_code_2(capsys):
    assert agreement.main(["--seconds", "nan"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
