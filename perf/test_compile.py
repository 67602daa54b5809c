"""What comes once: tracing a network, and its first call under torch.compile.

pytest perf/test_compile.py --benchmark-group-by=group
"""

import shutil

import pytest
import torch

import tlazy
from tlazy.bench.networks import Network
from tlazy.models import MODELS


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
