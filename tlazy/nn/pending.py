"""Modules that wait for their first call, and first calls that are under way."""

from __future__ import annotations

import dataclasses
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

# Held by whoever materializes. Reentrant: an initializer may itself call a lazy model.
materializing = threading.RLock()

Undo = Callable[[], None]

# Attributes of a module that only waiting for an input has put there.
WAITING = ("_initialize_hook", "_load_hook", "_result_hook", "_seed", "_placeholders")


def is_pending(module: torch.nn.Module) -> bool:
    """Whether `module` is a lazy module, torch's or tlazy's, that still waits for its input."""
    lazy = isinstance(module, torch.nn.modules.lazy.LazyModuleMixin)
    return lazy and "_initialize_hook" in module.__dict__


def pending_modules(root: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The lazy modules below `root` (or `root` itself) that still wait, by path."""
    return {path: module for path, module in root.named_modules() if is_pending(module)}


def swapped(module: torch.nn.Module) -> list[str]:
    """Tensors of a lazy module that stand in for its own, as inside of ``functional_call``."""
    own = module.__dict__.get("_placeholders", {})
    now = {**module._parameters, **module._buffers}
    plain = [n for n, p in module._parameters.items() if type(p) is Tensor]
    return plain + [
        name
        for name, placeholder in own.items()
        if name not in plain and now.get(name) is not placeholder and not _is_unknown(now.get(name))
    ]


def _is_unknown(tensor: Any) -> bool:
    return tensor is None or is_lazy(tensor)


def is_waiting_root(module: torch.nn.Module) -> bool:
    return "_initialize_hook" in module.__dict__ and not is_pending(module)


def stop_waiting(module: torch.nn.Module) -> None:
    """Remove the hooks of a module that has what it waited for; during a first call they stay."""
    if module in trials:
        return
    # The one that calls this goes last: where an interrupt leaves it, the next call does the rest.
    for name in ("_load_hook", "_result_hook", "_initialize_hook"):
        if name in module.__dict__:
            module.__dict__[name].remove()
            del module.__dict__[name]


class _Token:
    """Stands for a thread, and is gone with it."""


class _Thread(threading.local):
    """What each thread has of its own, also those that threading has not started."""

    def __init__(self) -> None:
        self.token = _Token()


_this_thread = _Thread()


@dataclasses.dataclass
class Trial:
    """A first call that runs: where it fails, what it has materialized is taken back.

    Attributes:
        undo: None once another thread relies on what this one has made.
        outer: the exception that was being handled when the call began.
        token: of the thread that makes the call. Whether that still runs is not asked of
            ``sys._current_frames``, which can wait for ever for a thread that starts, nor of a
            ``threading.Thread``, which does not know it of threads that it has not started.
    """

    undo: Undo | None
    outer: BaseException | None
    token: weakref.ref[_Token] = dataclasses.field(
        default_factory=lambda: weakref.ref(_this_thread.token)
    )

    @property
    def is_mine(self) -> bool:
        """Whether this thread makes the call."""
        return self.token() is _this_thread.token


trials = WeakIdKeyDictionary()  # of the modules that are being called


def keep_what_other_threads_try() -> None:
    """Let the first calls that other threads are in the middle of stand, whatever comes."""
    for trial in list(trials.values()):
        if not trial.is_mine:
            trial.undo = None


def being_called() -> Iterator[torch.nn.Module]:
    """The modules whose calls are under way in this thread, the innermost one first."""
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code is torch.nn.Module._call_impl.__code__:
            yield frame.f_locals["self"]
        frame = frame.f_back
