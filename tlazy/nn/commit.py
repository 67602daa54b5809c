"""One step of a commit each, with what takes it back."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy

from tlazy.nn.pending import Undo, is_pending, materializing, stop_waiting

# Changed in place by a commit, never replaced: handles of hooks point at these objects.
KEPT = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_load_state_dict_pre_hooks",
)


def fill(placeholder: Any, value: Tensor, restorers: list[Undo]) -> None:
    """Turn `placeholder` into a parameter (or buffer) of `value`, keeping the object."""
    if _takes(placeholder, value):
        keep(placeholder, restorers)
        placeholder.data = value
        placeholder.__class__ = getattr(placeholder, "cls_to_become", type(placeholder))
        placeholder.__dict__.pop("label", None)
    else:
        other = value.view_as(value)
        if isinstance(placeholder, Parameter):
            other = Parameter(value, placeholder.requires_grad)
        other.__dict__.update(placeholder.__dict__)
        other.__dict__.pop("label", None)
        restorers.append(functools.partial(_swap_back, placeholder, other))
        torch.utils.swap_tensors(placeholder, other)


def _takes(placeholder: Any, value: Tensor) -> bool:
    """Whether `.data` can be set to `value`; if not, a swap keeps the object's identity too.

    It cannot between the CPU and the meta device, and a tensor that was made in inference mode, as
    torch's own placeholders may be, would go on refusing to train.
    """
    with torch._C.DisableTorchFunctionSubclass():  # placeholders of torch's refuse to say it
        inference = placeholder.is_inference()
    return torch._has_compatible_shallow_copy_type(placeholder, value) and not inference


def keep(tensor: Any, restorers: list[Undo]) -> None:
    """Add what gives `tensor` back its memory, class, attributes and gradient."""
    before = tensor.data, type(tensor), dict(tensor.__dict__), tensor.grad
    restorers.append(functools.partial(_restore, tensor, *before))


def _restore(
    tensor: Any, data: Tensor, cls: type, attributes: dict[str, Any], grad: Tensor | None
) -> None:
    tensor.grad = None  # it has the shape of the other memory
    tensor.data = data
    tensor.__class__ = cls
    tensor.__dict__.clear()
    tensor.__dict__.update(attributes)
    if grad is not None:
        tensor.grad = grad


def _swap_back(placeholder: Any, other: Any) -> None:
    if is_lazy(other):  # it is what the placeholder was, so they have been swapped
        torch.utils.swap_tensors(placeholder, other)


def become(module: torch.nn.Module, twin: torch.nn.Module) -> None:
    for name in ("_parameters", "_buffers", "_modules"):
        for key, value in getattr(twin, name).items():
            getattr(module, name).setdefault(key, value)
    for name, value in twin.__dict__.items():
        if name not in KEPT:
            module.__dict__[name] = value
    module.__class__ = type(twin)
    for name in ("_seed", "_placeholders"):
        module.__dict__.pop(name, None)
    stop_waiting(module)


def settle(container: torch.nn.Module, root: torch.nn.Module) -> None:
    # A part that the trace did not reach goes on waiting for its own first call.
    if container is root or not any(map(is_pending, container.modules())):
        stop_waiting(container)


def snapshot(module: torch.nn.Module, only_hooks: bool = False) -> Undo:
    """A function that gives `module` back its class, its attributes and its hooks."""
    cls = type(module)
    attributes = {
        name: value
        for name, value in module.__dict__.items()
        if not only_hooks or name in ("_initialize_hook", "_result_hook")
    }
    contents = [(module.__dict__[name], module.__dict__[name].copy()) for name in KEPT]

    def restore() -> None:
        if not only_hooks:
            module.__class__ = cls
            for name in module.__dict__.keys() - attributes.keys():
                del module.__dict__[name]
        module.__dict__.update(attributes)
        for mapping, content in contents:
            # torch may be iterating over one that has not changed.
            if mapping.keys() != content.keys():
                mapping.clear()
                mapping.update(content)

    return restore


@contextmanager
def all_or_nothing() -> Iterator[list[Undo]]:
    """Hold the lock, and where the block raises, run what it has added to the list.

    Each of these functions may be called twice, and before what it takes back has happened.
    """
    restorers: list[Undo] = []
    with materializing:
        try:
            try:
                yield restorers
            except BaseException:
                take_back(restorers)
                raise
        except BaseException:  # an interrupt at the beginning of that
            take_back(restorers)
            raise


def take_back(restorers: list[Undo]) -> None:
    """Run all of `restorers`, the last one first; an interrupt has to wait until that is done."""
    try:
        while restorers:
            restorers[-1]()
            restorers.pop()
    except KeyboardInterrupt:
        take_back(restorers)
        raise
