"""Roots whose first call materializes the whole tree below them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tlazy.nn import lazy
from tlazy.nn.state_dict import load_all_or_nothing, stage_state_dict


class Module(torch.nn.Module):
    """``torch.nn.Module`` whose first call traces it and materializes every lazy layer in it.

    The first call runs ``forward`` on shapes alone, creates all parameters in one step, and then
    computes. Where it fails, nothing has changed and the next call starts anew.

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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _arming(cls.__init__)  # type: ignore[method-assign]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, torch.nn.Module):
            lazy.arm(self, value, name)

    def add_module(self, name: str, module: torch.nn.Module | None) -> None:
        super().add_module(name, module)
        if module is not None:
            lazy.arm(self, module, name)

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


def _arming(initializer: Callable[..., None]) -> Callable[..., None]:
    """Look for lazy layers when a constructor is done: lists may have been filled in it."""

    @functools.wraps(initializer)
    def __init__(self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        initializer(self, *args, **kwargs)
        lazy.arm(self, self)

    return __init__
