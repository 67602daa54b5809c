"""Materializing taken back: what a module was, and how it becomes that again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from tlazy.isolation import plain_torch
from tlazy.nn.commit import KEPT, all_or_nothing, keep, snapshot
from tlazy.nn.pending import WAITING, Undo
from tlazy.nn.placeholder import UninitializedBuffer, UninitializedParameter


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a module was before a commit, without a reference to it."""

    cls: type
    became: type
    attributes: dict[str, Any]
    waiting: dict[str, Any]
    lazy: frozenset[str]


_origins = WeakIdKeyDictionary()  # weak, so that it keeps no model alive
_ABSENT = object()


def remember(module: torch.nn.Module, origin: Origin) -> None:
    _origins[module] = origin


def forget(module: torch.nn.Module) -> None:
    _origins.pop(module, None)


def make_lazy_again(root: torch.nn.Module, rearm: Callable[[], None]) -> list[str]:
    """Take back what commits did to the modules below `root`; see :func:`tlazy.dematerialize`.

    Args:
        rearm: lets the trees wait for their first call again; belongs to the same step.
    """
    with all_or_nothing() as restorers, plain_torch():
        changed = {path: m for path, m in root.named_modules() if m in _origins}
        for path, module in changed.items():
            _check_revertible(path, module, _origins[module])
        restorers += [snapshot(module) for module in root.modules()]
        for module in changed.values():
            origin = _origins[module]
            restorers.append(functools.partial(remember, module, origin))
            forget(module)
            _revert(module, origin, restorers)
        rearm()
    return list(changed)


def _check_revertible(path: str, module: torch.nn.Module, origin: Origin) -> None:
    tensors = {**module._parameters, **module._buffers}
    odd = [n for n in origin.lazy if type(tensors.get(n)) not in (Parameter, Tensor)]
    if odd or type(module) is not origin.became:
        what = f"its {odd[0]} is a {type(tensors.get(odd[0])).__name__}" if odd else "its class is"
        raise RuntimeError(
            f"cannot make {path or 'the model'} ({type(module).__name__}) lazy again: {what} no "
            "longer what materializing made it; call tlazy.dematerialize before sharding or "
            "converting"
        )


def _revert(module: torch.nn.Module, origin: Origin, restorers: list[Undo]) -> None:
    waiting = dict(origin.waiting)
    if "_placeholders" in waiting:
        waiting["_placeholders"] = dict(waiting["_placeholders"])
    for mapping, kind in (
        (module._parameters, UninitializedParameter),
        (module._buffers, UninitializedBuffer),
    ):
        for name in origin.lazy & mapping.keys():
            tensor: Any = mapping[name]
            if not is_lazy(tensor):  # a tied one may be already
                keep(tensor, restorers)
                tensor.grad = None
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                tensor.__class__ = kind
                tensor.label = f"{name} of {origin.cls.__name__}"
            if name in waiting.get("_placeholders", ()):
                waiting["_placeholders"][name] = tensor
    for name, value in origin.attributes.items():
        if value is _ABSENT:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = value
    module.__dict__.update(waiting)
    module.__class__ = origin.cls
    wait: Any = module
    wait._load_hook = wait._register_load_state_dict_pre_hook(wait._lazy_load_hook)
    if hasattr(wait, "_wait_for_call"):
        wait._wait_for_call()
    else:
        hook = wait.register_forward_pre_hook(wait._infer_parameters, with_kwargs=True)
        wait._initialize_hook = hook


def origin_of(module: torch.nn.Module, twin: torch.nn.Module) -> Origin:
    old, new = module.__dict__, twin.__dict__
    kept = (*KEPT, *WAITING)
    changed = [name for name in new if name not in kept and old.get(name, _ABSENT) is not new[name]]
    waiting = {name: old[name] for name in ("_seed",) if name in old}
    if "_placeholders" in old:
        waiting["_placeholders"] = dict.fromkeys(old["_placeholders"])
    tensors: dict[str, Any] = {**module._parameters, **module._buffers}
    return Origin(
        cls=type(module),
        became=type(twin),
        attributes={name: old.get(name, _ABSENT) for name in changed},
        waiting=waiting,
        lazy=frozenset(name for name, tensor in tensors.items() if is_lazy(tensor)),
    )
