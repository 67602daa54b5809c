"""What surrounds a call is kept out of it: modes, transforms, random states."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

if torch.__version__ < "2.13" and torch.cuda.device_count() == 0:
    # Without a GPU, fake tensors of torch 2.11 keep what this makes in the thread that first needs
    # it, and crash when that thread is gone; the one that imports this stays.
    torch._C._ensureCUDADeviceGuardSet()


@contextmanager
def no_modes() -> Iterator[None]:
    """Leave vmap, grad and the other transforms, fake tensors and all dispatch modes."""
    with temporarily_clear_interpreter_stack(), _disable_current_modes():
        yield


@contextmanager
def plain_torch() -> Iterator[None]:
    """Leave inference mode and autograd too: what is made here has to last."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(no_modes())
        yield


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed the global CPU generator for those that draw from it, then put it back."""
    if seed is None:
        yield
        return
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


@contextmanager
def same_randomness_after(only_on_failure: bool = False) -> Iterator[None]:
    """Put Python's, NumPy's and torch's generators back to where they are now."""
    import numpy

    states = random.getstate(), numpy.random.get_state(), torch.default_generator.get_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    failed = True
    try:
        yield
        failed = False
    finally:
        if failed or not only_on_failure:
            random.setstate(states[0])
            numpy.random.set_state(states[1])
            torch.default_generator.set_state(states[2])
            if devices:
                torch.cuda.set_rng_state_all(devices)
