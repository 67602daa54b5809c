"""The kernels train the network that ships, not just compute: forward, backward, update, repeat."""

import pytest
import torch

import tlazy
from tlazy.models import fcn

STEPS = 10


def losses(backend: str, device: str) -> list[float]:
    """Training losses of the FCN on random series, all random numbers alike in every call.

    By plain gradient descent: Adam divides a gradient by its own size, and so makes whole steps of
    the rounding in those that are zero, a bias before a batch norm. Its losses in float32 and in
    float64 lie 2e-3 apart after 20 steps; these lie 2e-7 apart, and 6e-6 where the gradients of one
    convolution are wrong by 1e-4.
    """
    torch.manual_seed(0)
    x, labels = torch.randn(STEPS, 4, 1, 16), torch.randint(2, (STEPS, 4))
    net = fcn(2).to(device)
    tlazy.materialize(net, x[0].to(device))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    seen = []
    with tlazy.backend(backend):
        for batch, target in zip(x.to(device), labels.to(device), strict=True):
            loss = torch.nn.functional.cross_entropy(net(batch), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
    return seen


def test_ten_steps_by_the_kernels_follow_atens_losses(device, exact_fp32):
    assert losses("triton", device) == pytest.approx(losses("aten", device), abs=3e-6)
