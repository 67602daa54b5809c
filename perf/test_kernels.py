"""The goals' problems on a GPU: a group for each, its peers side by side.

    pytest perf/test_kernels.py --benchmark-group-by=group

A time here is that of a call and of waiting for it, launch included, on input sets that no cache
holds. ``tlazy bench --suite goals`` times the device alone, and checks each kernel first.
"""

import itertools

import pytest
import torch

from tlazy.bench import machine
from tlazy.bench.calling import call_of, inside_of
from tlazy.bench.inputs import input_sets
from tlazy.bench.operations import Draw, Unsupported
from tlazy.bench.peers import PEERS, default_peers
from tlazy.bench.suites import SUITES
from tlazy.bench.timing import Kept

GPU = torch.device("cuda")
CASES = [
    pytest.param(problem, which, peer, id=f"{problem.name}-{which}-{peer}")
    for problem in SUITES["goals"]()
    for which in problem.passes
    for peer in default_peers(problem, GPU)
    if problem.timed == "device"
]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.mark.parametrize(("problem", "which", "peer"), CASES)
def test_kernel(benchmark, problem, which, peer):
    operation, gradients = problem.operation, which != "forward"
    generator = torch.Generator(GPU)
    generator.seed()
    draw = Draw(GPU, problem.dtype, generator)
    sets = input_sets(operation, draw, which, gradients=gradients)
    try:
        with torch.set_grad_enabled(gradients):
            built = PEERS[peer](operation, sets[0][0][0])
    except Unsupported as reason:
        pytest.skip(str(reason))
    shape = ",".join(map(str, operation.shape().values()))
    benchmark.group = f"{operation.op} {problem.name} {which} {shape} {problem.dtype}"
    benchmark.extra_info.update(device=torch.cuda.get_device_name(), backend=built.backend)

    def measure():
        calls = itertools.cycle([Kept(call_of(built, which, one)) for one in sets])

        def timed():
            next(calls)()
            torch.cuda.synchronize()

        benchmark.pedantic(timed, rounds=50, warmup_rounds=5)

    with machine.full_float32(problem.exact):
        inside_of(built, GPU, gradients=gradients)(measure)
