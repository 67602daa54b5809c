"""What comes once: tracing a network, its first call under torch.compile, compiling each kernel.

    pytest perf/test_compile.py --benchmark-group-by=group

The first call of a layer on a GPU waits for its kernels' compilation, which is the CPU's work and
is timed here without a GPU, for sm_90 in bfloat16. Loading the binary and the call itself come on
top; later processes find the binary in Triton's cache.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

import tlazy
from perf.compiler import TARGET
from tlazy.bench.networks import Network
from tlazy.models import MODELS
from tlazy_kernels import catalogue

ROOT = Path(__file__).parent.parent
KERNELS = [case.name for case in catalogue.cases(torch.bfloat16)]


@pytest.fixture(autouse=True)
def describe(benchmark):
    benchmark.extra_info.update(
        device="cpu", torch=torch.__version__, threads=torch.get_num_threads()
    )


@pytest.mark.parametrize("model", list(MODELS))
def test_trace(benchmark, model):
    """Shapes only: the batch is one that could not be computed in this time."""
    benchmark.group = f"trace {model}"
    spec = tlazy.Spec(4096, 1, 512)
    tlazy.trace(MODELS[model](10), spec)  # torch imports its compiler the first time
    benchmark.pedantic(
        lambda net: tlazy.trace(net, spec), setup=lambda: ((MODELS[model](10),), {}), rounds=5
    )


@pytest.mark.skipif(shutil.which("c++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize("peer", ["tlazy", "torch.nn"])
def test_first_compiled_call(benchmark, peer, monkeypatch, tmp_path):
    """From an empty cache to the output of the mlp."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network = Network("mlp", 8, 1, 64)
    net = (network.net if peer == "tlazy" else network.stock_net).eval()
    benchmark.group = "first call of torch.compile(mlp)"

    def first_call():
        torch._dynamo.reset()
        with torch.no_grad(), torch._inductor.utils.fresh_cache():
            return torch.compile(net)(torch.randn(8, 1, 64))

    import torch._inductor.utils

    benchmark.pedantic(first_call, rounds=2, warmup_rounds=1)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """A process that compiles the kernels whose names it is told."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    command = [sys.executable, "-m", "perf.compiler"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=env, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("name", KERNELS)
def test_first_compilation_of_a_kernel(benchmark, compiler, name):
    benchmark.group = f"compiling {name} for {TARGET} from nothing"
    benchmark.extra_info.update(triton=triton.__version__, target=TARGET, dtype="bfloat16")

    def compile_it():
        print(name, file=compiler.stdin, flush=True)
        return int(compiler.stdout.readline())

    assert benchmark.pedantic(compile_it, rounds=3, warmup_rounds=1) > 0
