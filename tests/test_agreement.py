"""`python -m perf.agreement`: two runs of a suite on a quiet machine agree, by its own clock."""

import random
import re

import pytest
import torch

from perf import agreement
from tlazy.bench.operations import Linear
from tlazy.bench.problems import Problem
from tlazy.bench.settings import Settings
from tlazy.bench.suites import SUITES

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
    assert "4 of 4 rows agree" in capsys.readouterr().out


@pytest.mark.parametrize("change", [1.2, 1.03, 0.8])
def test_a_run_that_became_slower_or_faster_disagrees(change, capsys):
    assert agreement.judge(run(100), run(100 * change)) == 1
    out = capsys.readouterr().out
    assert "0 of 4 rows agree" in out
    assert re.search(r"disagrees: small, full, eager: [\d.]+ to [\d.]+ us and [\d.]+ to", out)


def test_a_row_that_only_one_run_could_time_disagrees(capsys):
    assert agreement.judge(run(100), run(0)) == 1
    assert "disagrees: small, full, eager: ok and failed" in capsys.readouterr().out


def test_runs_without_a_time_do_not_agree(capsys):
    assert agreement.judge(run(0), run(0)) == 1
    assert "nothing was measured" in capsys.readouterr().err


def test_it_runs_by_the_real_clock_twice_and_judges_what_came_out(monkeypatch, capsys):
    judged = []
    judge = lambda *records: judged.append(records) or judge_of_the_module(*records)  # noqa: E731
    judge_of_the_module = agreement.judge
    monkeypatch.setattr(agreement, "judge", judge)
    problems = [Problem("sweep", "small", Linear(64, 64, 64), torch.float32, ("forward",))]
    monkeypatch.setitem(SUITES, "sweep", lambda: iter(problems))
    code = agreement.main(["--suite", "sweep", "--seconds", "0.05"])
    agree = int(re.search(r"(\d) of 2 rows agree", capsys.readouterr().out)[1])
    assert code == (agreement.AGREE if agree == 2 else agreement.DISAGREE)
    ((first, second),) = judged
    assert all(row["status"] == "ok" for row in (*first["rows"], *second["rows"]))
    assert first["rows"] != second["rows"]


def test_bad_seconds_are_one_line_and_exit_code_2(capsys):
    assert agreement.main(["--seconds", "nan"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_ends_it_without_a_traceback(monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(agreement, "measure", stopped)
    assert agreement.main(["--seconds", "0.05"]) == 130
