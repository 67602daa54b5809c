"""Roots whose first call materializes the whole tree below them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from tlazy.nn import first_call
from tlazy.nn.lazy import LazyModuleMixin
from tlazy.nn.pending import pending_modules
from tlazy.nn.refusal import RefusesWhileLazy
from tlazy.nn.state_dict import load_all_or_nothing, stage_state_dict


class Module(RefusesWhileLazy, torch.nn.Module):
    """``torch.nn.Module`` whose first call traces it and materializes every lazy layer in it.

    The first call runs ``forward`` on shapes alone, creates all parameters in one step, and then
    computes. Where it fails, nothing has changed and the next call starts anew.

    Layers that come into the tree later, in a list too, belong to it: the next call is a first
    call again. Only ``torch.nn.ModuleList.insert`` tells nobody; what it puts in waits for its own.

    >>> import torch
    >>> from tlazy import nn
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.hidden = nn.LazyLinear(16, activation="relu")
    ...         self.out = nn.LazyLinear(2)
    ...     def forward(self, x):
    ...         return self.out(self.hidden(x))
    >>> net = Net()
    >>> net(torch.randn(4, 7)).shape
    torch.Size([4, 2])
    >>> net.hidden
    Linear(in_features=7, out_features=16, bias=True, activation='relu')
    """

    def _infer_parameters(self, module: Any, args: Any, kwargs: Any = None) -> None:
        first_call.materialize_for_good(module, args, kwargs)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        for part in self.modules():
            if part is not self:
                _roots.setdefault(part, weakref.WeakSet()).add(self)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As ``torch.nn.Module.load_state_dict``; lazy layers take their shapes from it.

        With `assign` lazy parameters share the memory of the tensors in `state_dict`, but stay the
        objects that they are: an optimizer that holds them goes on holding them.

        Raises:
            RuntimeError: as torch's; where the model is lazy, it is then as it was before.
        """
        staging = stage_state_dict(self, state_dict)
        load = functools.partial(super().load_state_dict, strict=strict, assign=assign)
        return load_all_or_nothing(self, staging, state_dict, "", assign, load)


class Sequential(torch.nn.Sequential, Module):
    """``torch.nn.Sequential`` whose first call materializes every lazy layer in it.

    >>> import torch
    >>> from tlazy import nn
    >>> net = nn.Sequential(nn.LazyConv1d(8, 3), torch.nn.Flatten(), nn.LazyLinear(2))
    >>> net(torch.randn(4, 5, 12)).shape
    torch.Size([4, 2])
    >>> net[2].in_features
    80
    """

    def insert(self, index: int, module: torch.nn.Module) -> Any:
        super().insert(index, module)  # which registers nothing
        _arm(_roots_above(self), self, self)
        return self

    # torch's give a Sequential of torch's, whose layers would wait each for its own first call.
    def __add__(self, other: torch.nn.Sequential) -> Sequential:
        return Sequential(*super().__add__(other))

    def __mul__(self, other: int) -> Sequential:
        return Sequential(*super().__mul__(other))


# The Modules above a module: a list inside of one may get its layers long after the constructor.
_roots = WeakIdKeyDictionary()

# Modules of torch's, in no Module, with lazy layers of tlazy's below them.
_holders = WeakIdKeyDictionary()


@register_module_module_registration_hook
def _registered(parent: torch.nn.Module, name: str, child: Any) -> None:
    """Let the Modules above `parent` wait for their first call where `child` holds a lazy layer."""
    roots = _roots_above(parent)
    if roots and isinstance(child, torch.nn.Module):
        for part in child.modules():
            _roots.setdefault(part, weakref.WeakSet()).update(roots)
        _arm(roots, parent, child, name)
    elif isinstance(child, LazyModuleMixin) or child in _holders:
        _holders[parent] = True
        for path, part in child.named_modules(prefix=name):
            if isinstance(part, LazyModuleMixin):
                first_call.adopt_placeholders(part, path)


def _roots_above(module: torch.nn.Module) -> list[Module]:
    above = list(_roots.get(module, ()))
    return [*above, module] if isinstance(module, Module) else above


def _arm(
    roots: list[Module], parent: torch.nn.Module, part: torch.nn.Module, name: str = ""
) -> None:
    """Arm those of `roots` that (still) hold `parent`, whose child at `name` is `part`."""
    if not pending_modules(part):
        return
    places = ((_path(parent, root), root) for root in roots)
    found = [(path, root) for path, root in places if path is not None]
    for path, root in sorted(found, key=lambda place: len(place[0])):  # the outermost names it
        first_call.arm(root, part, ".".join(filter(None, (path, name))))


def _path(module: torch.nn.Module, root: torch.nn.Module) -> str | None:
    return next((path for path, part in root.named_modules() if part is module), None)
