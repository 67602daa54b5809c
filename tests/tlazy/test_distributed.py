"""Sharded and replicated models, started as users start them: by torchrun, over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import tlazy
from tests.tlazy.snapshot import refused
from tlazy import nn

ROOT = Path(__file__).parents[2]


def lazy():
    return nn.Sequential(
        nn.LazyConv1d(5, 3, padding="same", activation="relu"),
        torch.nn.LazyBatchNorm1d(),
        torch.nn.Flatten(),
        nn.LazyLinear(7, activation="tanh"),
        torch.nn.LazyLinear(3),
    )


def built(way, weights):
    """The network, distributed in this way, and what to call in its place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    size = dist.get_world_size()
    net = lazy()
    tlazy.trace(net, tlazy.Spec(8, 2, 9)).materialize(device="meta")
    mesh = init_device_mesh("cpu", (size,))
    if way == "sharded":
        for part in (net[0], net[3], net):
            fully_shard(part, mesh=mesh)
    if way == "tensor parallel":
        column = ColwiseParallel(use_local_output=False)  # parts of 7 are uneven
        parallelize_module(net, mesh, {"3": column, "4": RowwiseParallel()})
        assert net[3].weight.to_local().shape[0] < 7 or size == 1
    net.to_empty(device="cpu")
    if weights:
        tlazy.load(net, weights)
    else:
        tlazy.initialize(net, seed=3)
    if way == "replicated":
        return net, torch.nn.parallel.DistributedDataParallel(net)
    return net, net


def gathered(net):
    def full(t):
        return t.full_tensor() if hasattr(t, "full_tensor") else t

    return {name: full(t.detach()).clone() for name, t in net.state_dict().items()}


def train(net, model, way):
    rank, size = dist.get_rank(), dist.get_world_size()
    net[1].eval()  # statistics of a part of the batch would differ
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    data = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(8, 2, 9, generator=data)
        y = torch.randn(8, 3, generator=data)
        mine = slice(rank * 8 // size, (rank + 1) * 8 // size)
        if way == "tensor parallel":
            mine = slice(None)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x[mine]), y[mine]).backward()
        optimizer.step()


def results(weights):
    """All weights before and after training, by the way and whether they came from the file."""
    torch.manual_seed(dist.get_rank() + 7)  # nothing may depend on it
    found = {}
    for way in ("sharded", "replicated", "tensor parallel"):
        for path in (weights, None):
            net, model = built(way, path)
            before = gathered(net)
            train(net, model, way)
            found[way, path is not None] = before, gathered(net)
    return found


# What runs in every process; its arguments: the weights to read, the file to write.
WORKER = """
import gc, sys
import torch
import torch.distributed as dist
from tests.tlazy.test_distributed import results

torch.set_num_threads(1)
dist.init_process_group("gloo")
found = results(sys.argv[1])
if dist.get_rank() == 0:
    torch.save(found, sys.argv[2])
# What still uses the process group goes before it does, in all processes: gloo's threads abort a
# process that ends while they run.
gc.collect()
dist.barrier()
dist.destroy_process_group()
"""


def launched(folder, weights, size):
    """The results in so many processes."""
    script, result = folder / "worker.py", folder / "result.pt"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={size}", str(script), str(weights), str(result)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return torch.load(result)


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
@pytest.mark.usefixtures("one_thread", "one_process")
def test_row_24_weights_and_steps_do_not_depend_on_the_number_of_processes(tmp_path):
    expected, weights = lazy(), tmp_path / "w.safetensors"
    tlazy.materialize(expected, tlazy.Spec(8, 2, 9), seed=3)
    tlazy.save(expected, weights)
    one, two = results(weights), launched(tmp_path, weights, 2)
    for way, (before, after) in one.items():
        for name, value in expected.state_dict().items():
            assert torch.equal(before[name], value), (way, name)
            assert torch.equal(two[way][0][name], value), (way, name)
            torch.testing.assert_close(two[way][1][name], after[name], rtol=1e-5, atol=1e-6)
        assert sum(not torch.equal(before[name], after[name]) for name in before) >= 8


def test_row_24_what_has_no_initial_values_is_refused():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

    net = nn.Sequential(nn.Linear(3, 3), Scale())
    with refused(net, RuntimeError, match=r"1 \(Scale\) has no reset_parameters"):
        tlazy.initialize(net, seed=0)
    lazy_one = nn.Sequential(net[0], nn.LazyLinear(3))
    with refused(lazy_one, RuntimeError, match=r"1 \(LazyLinear\) is lazy.*tlazy\.materialize"):
        tlazy.initialize(lazy_one, seed=0)
    empty = nn.Linear(3, 3, device="meta")
    with refused(empty, RuntimeError, match=r"meta device: call model\.to_empty"):
        tlazy.initialize(empty, seed=0)
    tlazy.initialize(net, seed=0, init=lambda m: torch.nn.init.ones_(m.weight))
    assert net[1].weight.tolist() == [1.0] * 3
