"""What only a GPU can show of a launch: streams, graphs, threads, devices, processes."""

from __future__ import annotations

import multiprocessing

import pytest
import torch

from tests import EMULATED
from tlazy_kernels.linear import linear_forward, linear_grad_weight

pytestmark = [
    pytest.mark.usefixtures("device"),  # as all tests that perf.record runs
    pytest.mark.skipif(
        EMULATED or not torch.cuda.is_available(), reason="needs a GPU, not one that is pretended"
    ),
]


@pytest.fixture(autouse=True)
def _unfilled() -> None:
    """As users have it: filled, new memory would not come by the shortest way."""
    torch.use_deterministic_algorithms(False)


def operands(device: str = "cuda") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a product whose plan splits the contraction and needs scratch memory for descriptors."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((16, 4096), (512, 4096), (512,))
    return tuple(
        torch.randn(*s, dtype=torch.bfloat16, device=device, generator=generator) for s in shapes
    )


def forward(*tensors: torch.Tensor) -> torch.Tensor:
    return linear_forward(*tensors, activation="gelu")[0]


def test_a_warm_launch_computes_what_the_first_did():
    """The first goes by Triton's own way, the next by the kept handle."""
    tensors = operands()
    first = forward(*tensors)
    for _ in range(3):
        assert torch.equal(forward(*tensors), first)


def test_launches_go_to_the_current_stream():
    tensors = operands()
    wanted = forward(*tensors)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.zeros_like(tensors[0])
        torch.cuda._sleep(50_000_000)
        x.copy_(tensors[0])  # after the sleep, on this stream: a launch elsewhere would read zeros
        found = forward(x, *tensors[1:])
    stream.synchronize()
    assert torch.equal(found, wanted)


def test_a_graph_captures_launches_and_replays_them():
    x, weight, bias = operands()
    forward(x, weight, bias)  # compiled before the capture, as every graph needs
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = forward(x, weight, bias)
    for seed in range(3):
        x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        assert torch.equal(found, forward(x, weight, bias))


def test_the_backward_pass_runs_in_autograds_thread():
    import tlazy.nn.functional as F

    x, weight, bias = (t.requires_grad_() for t in operands())
    for _ in range(3):
        F.linear(x, weight, bias, activation="gelu").float().square().sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, weight, bias))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_each_device_launches_its_own_kernels():
    for device in ("cuda:0", "cuda:1", "cuda:0"):
        tensors = operands(device)
        torch.testing.assert_close(forward(*tensors).cpu(), forward(*operands("cuda:0")).cpu())


def _launch_in_a_child(answers) -> None:
    try:
        linear_grad_weight(torch.ones(4, 4, device="cuda"), torch.ones(4, 4, device="cuda"))
    except RuntimeError as error:
        answers.put(str(error))
    else:
        answers.put("no error")


def test_a_forked_process_gets_torchs_own_error_and_no_stale_handle():
    forward(*operands())
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_launch_in_a_child, args=(answers,))
    child.start()
    try:
        assert "forked subprocess" in answers.get(timeout=60)
    finally:
        child.join(60)
