"""What a lazy module answers to parts of torch that cannot take one: names and the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

WAY_OUT = "call tlazy.materialize(model, example_input) first"

_MOST_NAMES = 4


def refuse_lazy(module: Any, doing: str) -> None:
    """Raise RuntimeError where a parameter or buffer of `module` has no shape yet."""
    tensors = chain(module.named_parameters(), module.named_buffers())
    names = [name for name, tensor in tensors if is_lazy(tensor)]
    if names:
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        raise RuntimeError(
            f"cannot {doing} a {type(module).__name__} that is still lazy, in its "
            f"{', '.join(names[:_MOST_NAMES])}{more}: {WAY_OUT}"
        )


def refuse_recording(module: torch.nn.Module, inputs: Any) -> None:
    """Raise RuntimeError where torch.jit or torch.fx records a call instead of making it."""
    if torch.jit.is_tracing():
        refuse_lazy(module, "record by torch.jit.trace")
    if any(isinstance(leaf, torch.fx.Proxy) for leaf in tree_leaves(inputs)):
        refuse_lazy(module, "record by torch.fx")


class _Answer:
    """An attribute that depends on the module; unlike a property it may be set."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer

    def __get__(self, module: Any, owner: Any = None) -> Any:
        return self if module is None else self.answer(module)


def _ignored_by_ddp(module: Any) -> Iterator[str]:
    refuse_lazy(module, "wrap in DistributedDataParallel")
    yield from ()


class _Scripting:
    """What torch.jit.script calls, and torch.jit.trace takes for a method, before all else."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self) -> Any:
        refuse_lazy(self.module, "compile by torch.jit.script")
        return self.module

    @property
    def _torchscript_modifier(self) -> None:
        refuse_lazy(self.module, "record by torch.jit.trace")


class RefusesWhileLazy:
    """For modules: attributes that torch looks at before it would fail without a name."""

    __prepare_scriptable__ = _Answer(_Scripting)
    _ddp_params_and_buffers_to_ignore = _Answer(_ignored_by_ddp)
