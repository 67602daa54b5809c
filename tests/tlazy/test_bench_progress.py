"""What `tlazy bench` says while it measures."""

from tests.tlazy.benchmarks import small_linear
from tlazy.bench.progress import progress


def test_steps_keep_their_numbers_where_a_visit_leaves_problems_out(capsys):
    problems = [small_linear(), small_linear(exact=True, passes=("full",))]
    first, second = problems
    steps = [
        (first, "forward"),
        (first, "full"),
        (second, "full"),
        (first, "full"),
        (first, "full"),
    ]
    with progress(problems, visits=3) as notify:
        for problem, which in steps:
            notify(problem, which, None)
            notify(problem, which, "eager")
    work = "linear 48,32,16"
    assert capsys.readouterr().err.splitlines() == [
        f"measuring {number} of 9: {work}, {which}, {step}"
        for number, which in (
            (1, "forward pass"),
            (2, "forward and backward pass"),
            (3, "forward and backward pass"),
            (5, "forward and backward pass"),
            (8, "forward and backward pass"),
        )
        for step in ("inputs", "eager")
    ]
