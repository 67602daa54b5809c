"""What the shapes of a model depend on, to tell whether a trace of it still holds."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

_SETTINGS = (bool, int, float, str, type(None))


class _Part(NamedTuple):
    module: torch.nn.Module
    kind: type
    shapes: dict[str, Any]
    settings: dict[str, Any]


Structure = dict[str, _Part]


def structure(model: torch.nn.Module) -> Structure:
    """The modules of `model` by path, with their classes, the shapes they hold, their settings."""
    return {path: _part(module) for path, module in model.named_modules()}


def refuse_changed(model: torch.nn.Module, traced: Structure) -> None:
    """Raise RuntimeError where `model` is not what it was when its structure was taken.

    Modes (``train``, ``eval``), devices, dtypes and values may have changed: no shape depends on
    them.
    """
    now = structure(model)
    for path in {**traced, **now}:
        change = _change(traced.get(path), now.get(path))
        if change:
            raise RuntimeError(
                f"{path or type(model).__name__} {change} since the trace: the plan no longer fits "
                "the model; call tlazy.trace(model, example_input) again"
            )


def _part(module: torch.nn.Module) -> _Part:
    tensors = {**module._parameters, **module._buffers}
    shapes = {name: _shape(tensor) for name, tensor in tensors.items()}
    settings = {
        name: value
        for name, value in vars(module).items()
        if _is_setting(value) and name != "training" and not name.startswith("_")
    }
    return _Part(module, type(module), shapes, settings)


def _is_setting(value: Any) -> bool:
    items = value if isinstance(value, tuple) else (value,)
    return all(isinstance(item, _SETTINGS) for item in items)


def _shape(tensor: Any) -> Any:
    if tensor is None:
        return None
    return "unknown" if is_lazy(tensor) else tuple(tensor.shape)


def _change(old: _Part | None, new: _Part | None) -> str:
    """What has become of a part, in words; empty where it is the same."""
    if old is None:
        return "has been added"
    if new is None:
        return "has been removed"
    if old.kind is not new.kind:
        return f"has become a {new.kind.__name__}, from a {old.kind.__name__},"
    if old.module is not new.module:
        return f"has become another {new.kind.__name__}"
    for then, now, what in (
        (old.shapes, new.shapes, "the shape of its "),
        (old.settings, new.settings, "its "),
    ):
        for name in {**then, **now}:
            before, after = then.get(name), now.get(name)
            if before is not after and before != after:
                return f"has changed {what}{name} from {before} to {after}"
    return ""
