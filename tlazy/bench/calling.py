"""How a peer is called: on a set of inputs, in its context, and in its thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from tlazy.bench import correctness, machine
from tlazy.bench.inputs import InputSet, input_set
from tlazy.bench.operations import Draw, Pass
from tlazy.bench.peers import PEERS, Implementation
from tlazy.bench.problems import Problem
from tlazy.bench.timing import Call, own_stream


def call_of(built: Implementation, which: Pass, one: InputSet) -> Call:
    """What is timed, on one input set; a backward pass's forward pass is done here."""
    tensors, gradient = built.prepare(*one)
    call = built.call
    if which == "forward":
        return lambda: call(*tensors)
    leaves = [t for t in tensors if t.requires_grad]
    if which == "full":
        return lambda: torch.autograd.grad(call(*tensors), leaves, gradient)
    y = call(*tensors)
    return lambda: torch.autograd.grad(y, leaves, gradient, retain_graph=True)


def inside_of(
    built: Implementation, device: torch.device, *, gradients: bool
) -> Callable[[Callable[[], Any]], Any]:
    """What calls a function as the peer needs it: in its context, its thread, with gradients."""

    def here(function: Callable[[], Any]) -> Any:
        with built.context(), torch.set_grad_enabled(gradients):
            return function()

    if not built.own_thread:
        return here

    def there(function: Callable[[], Any]) -> Any:
        autograd: Any = torch.autograd
        with own_stream(device), autograd.set_multithreading_enabled(False):
            return here(function)

    thread = ThreadPoolExecutor(1)
    return lambda function: thread.submit(there, function).result()


def compute_once(problem: Problem, which: Pass, peer: str, device: torch.device) -> None:
    """Compute a problem by a peer without timing it, so that its kernels are compiled.

    Raises:
        Exception: whatever the peer raises.
    """
    gradients = which != "forward"
    draw = Draw(device, problem.dtype)
    with machine.full_float32(problem.exact), torch.set_grad_enabled(gradients):
        tensors, gradient = input_set(problem.operation, draw, which, gradients=gradients)
        built = PEERS[peer](problem.operation, tensors[0])
        with built.context():
            correctness.outputs(built.call, *built.prepare(tensors, gradient), which)
