"""The suites hold the problems that they are named after."""

import pytest
import torch

from tests.tlazy.benchmarks import SteadyTimer, measured, small_linear
from tlazy.bench import shapes, suites
from tlazy.bench.machine import Ceilings, float32
from tlazy.bench.problems import SMALL_FLOPS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", list(suites.SUITES))
def test_problems_of_a_suite_have_names_of_their_own_and_possible_shapes(name):
    problems = list(suites.SUITES[name]())
    assert len({problem.name for problem in problems}) == len(problems)
    for problem in problems:
        assert problem.suite == name
        shapes.check(problem.operation, problem.name)


def test_the_goals_ask_level_1_of_kernelbench_for_float32s_full_accuracy():
    for suite, exact in (("goals", True), ("kernelbench", False)):
        posed = [p for p in suites.SUITES[suite]() if "KernelBench 1/" in p.name]
        assert [problem.exact for problem in posed] == [exact] * 5


@pytest.mark.parametrize(("exact", "within"), [(True, "ieee"), (False, "tf32")])
def test_full_float32_is_switched_on_around_a_problem_that_asks_for_it(exact, within):
    conv = torch.backends.cudnn.conv
    seen = set()

    class Looking(SteadyTimer):
        def prepare(self, calls):
            seen.add(conv.fp32_precision)
            return super().prepare(calls)

    with float32(conv, "tf32"):
        measured(small_linear(passes=("forward",), exact=exact), timer=Looking())
        assert seen == {within}
        assert conv.fp32_precision == "tf32"


@pytest.mark.parametrize("name", list(suites.SUITES))
def test_a_small_suite_has_the_same_problems_at_sizes_for_a_laptop(name):
    for problem in suites.SUITES[name]():
        if problem.operation.op == "model" and problem.name != "mlp":
            continue  # counting a network's operations takes a second
        small = problem.small().operation
        assert small.op == problem.operation.op
        cost = small.cost(torch.float32, "forward")
        assert cost.flops <= 2 * SMALL_FLOPS or small.halved() is None
        shapes.check(small, problem.name)


@pytest.mark.parametrize(
    ("name", "microseconds"),
    [
        ("wav2vec2 layer 0", 246),
        ("wav2vec2 layer 1", 1019),
        ("wav2vec2 positional", 191),
        ("Whisper layer 1", 60),
        ("Whisper layer 2", 299),
        ("FCN layer 2", 54),
        ("InceptionTime k39", 13),
        ("TCN k3 d32", 17),
        ("WaveNet dilation 64", 85),
        ("EnCodec down 4/2", 23),
        ("DAC residual k7 d9", 51),
        ("UNet1D 256", 27),
        ("Conformer depthwise", 15),
        ("Mamba short convolution", 125),
    ],
)
def test_floors_of_the_goals_are_those_that_were_worked_out_by_hand(name, microseconds):
    (problem,) = (p for p in suites.SUITES["goals"]() if p.name == name)
    cost = problem.operation.cost(torch.bfloat16, "forward")
    floor = Ceilings(4.3e12, {"bfloat16": 790e12}).floor(cost, "bfloat16", "H200")
    assert floor * 1e6 == pytest.approx(microseconds, rel=0.045)


def test_kernelbench_has_its_convolutions_and_its_linear_problems():
    names = [problem.name.split()[1] for problem in suites.SUITES["kernelbench"]()]
    level2 = (9, 12, 29, 40, 53, 59, 63, 68, 70, 76, 81, 86, 95)
    assert sorted(names) == sorted(
        [f"1/{n}" for n in (67, 76, 64, 74, 79)] + [f"2/{n}" for n in level2]
    )
