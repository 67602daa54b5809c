"""What surrounds a call is kept out of it: modes, transforms, random states."""

from __future__ import annotations

import logging
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo.guards import set_is_in_mode_without_ignore_compile_internals
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _python_dispatch as dispatch

if torch.__version__ < "2.13" and torch.cuda.device_count() == 0:
    # Without a GPU, fake tensors of torch 2.11 keep what this makes in the thread that first needs
    # it, and crash when that thread is gone; the one that imports this stays.
    torch._C._ensureCUDADeviceGuardSet()


# What torch.utils._python_dispatch notes about the modes that are on.
_IN_MODE = (
    "_is_in_torch_dispatch_mode",
    "_is_in_non_infra_torch_dispatch_mode",
    "_is_in_any_mode_without_ignore_compile_internals",
)


@contextmanager
def ending_with(undo: Callable[[], object]) -> Iterator[None]:
    """Call `undo`, which may be called twice, at the end of the block.

    An interrupt can come between any two lines, the first one of a ``finally`` and the entry or the
    exit of another context manager included; whichever it is, `undo` is called after it.
    """
    try:
        try:
            yield
        finally:
            undo()
    finally:
        undo()


@contextmanager
def no_modes() -> Iterator[None]:
    """Leave vmap, grad and the other transforms, fake tensors and all dispatch modes.

    Afterwards those modes are on that were before, whatever the block has left on.
    """
    with (
        ending_with(_same_modes()),
        temporarily_clear_interpreter_stack(),
        dispatch._disable_current_modes(),
        ending_with(_leave_modes),  # or those from outside would not fit in again
    ):
        yield


def _leave_modes() -> None:
    while dispatch._len_torch_dispatch_stack():
        dispatch._pop_mode()


def _same_modes() -> Callable[[], None]:
    """A function that puts this thread's modes back to what they are now."""
    modes = dispatch._get_current_dispatch_mode_stack()
    notes = {name: getattr(dispatch, name) for name in _IN_MODE}
    grad, lifts = torch.is_grad_enabled(), torch._C._only_lift_cpu_tensors()

    def restore() -> None:
        if dispatch._get_current_dispatch_mode_stack() != modes:
            _leave_modes()
            for mode in modes:
                dispatch._push_mode(mode)
        vars(dispatch).update(notes)
        set_is_in_mode_without_ignore_compile_internals(notes[_IN_MODE[-1]])
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch._C._set_grad_enabled(grad)

    return restore


@contextmanager
def plain_torch() -> Iterator[None]:
    """Leave inference mode and autograd too: what is made here has to last."""
    if _inside.plain and _is_plain():  # the outer block puts the modes back at its end
        yield
        return
    outer = _inside.plain

    def leave() -> None:
        _inside.plain = outer

    with (
        no_modes(),
        torch.inference_mode(False),
        torch.no_grad(),
        ending_with(leave),
    ):
        _inside.plain = True
        yield


class _Inside(threading.local):
    """Whether this thread is in a block of :func:`plain_torch`."""

    plain = False


_inside = _Inside()


def _is_plain() -> bool:
    return not (
        torch.is_grad_enabled()
        or torch.is_inference_mode_enabled()
        or dispatch._len_torch_dispatch_stack()
        or torch._ops._len_torch_dispatch_stack_pre_dispatch()
        or torch._C._functorch.peek_interpreter_stack()
    )


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed the global CPU generator for those that draw from it, then put it back."""
    if seed is None:
        yield
        return
    before = torch.default_generator.get_state()
    with ending_with(lambda: torch.default_generator.set_state(before)):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def same_randomness_after(only_on_failure: bool = False) -> Iterator[None]:
    """Put Python's, NumPy's and torch's generators back to where they are now."""
    numpys: Any = sys.modules.get("numpy.random")  # who has not imported it has drawn nothing yet
    states = random.getstate(), numpys and numpys.get_state(), torch.default_generator.get_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    restoring = True

    def restore() -> None:
        if restoring:
            random.setstate(states[0])
            if numpys:
                numpys.set_state(states[1])
            torch.default_generator.set_state(states[2])
            if devices:
                torch.cuda.set_rng_state_all(devices)

    with ending_with(restore):
        yield
        restoring = not only_on_failure


@contextmanager
def quiet_fake_tensors() -> Iterator[None]:
    """Keep fake tensors from logging the exceptions that they raise."""
    logger = logging.getLogger(FakeTensor.__module__)

    def nothing(record: logging.LogRecord) -> bool:
        return False

    with ending_with(lambda: logger.removeFilter(nothing)):
        logger.addFilter(nothing)
        yield


@contextmanager
def unseen_by_checkpointing() -> Iterator[None]:
    """Hide what the trace saves for backward: activation checkpointing counts such tensors."""
    autograd: Any = torch._C._autograd
    if not autograd._saved_tensors_hooks_is_enabled():  # as inside of torch.func.grad
        yield
        return

    def itself(tensor: Tensor) -> Tensor:
        return tensor

    def remove() -> None:
        while (top := autograd._top_saved_tensors_default_hooks(True)) and top[0] is itself:
            autograd._pop_saved_tensors_default_hooks()

    with ending_with(remove):
        autograd._push_saved_tensors_default_hooks(itself, itself)
        yield
