"""Shapes of lazy modules from a checkpoint, without a forward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from tlazy.failure import add_place, named
from tlazy.isolation import plain_torch
from tlazy.nn.commit import all_or_nothing
from tlazy.nn.pending import pending_modules
from tlazy.nn.staging import Staging


def stage_state_dict(
    root: torch.nn.Module, shapes: Mapping[str, Any], prefix: str = ""
) -> Staging | None:
    """Stage every lazy module below `root` from the shapes in a checkpoint, without a forward.

    Args:
        shapes: keys to tensors, or to anything else with a ``shape``.
        prefix: of the keys that belong to `root`.

    Returns:
        None where the checkpoint holds nothing for a lazy module.

    Raises:
        RuntimeError: where a shape contradicts a constructor: key, expected and found shape; where
            none says how many inputs a module has.
    """
    staging = None
    modules = {
        (f"{prefix}{path}." if path else prefix): module
        for path, module in pending_modules(root).items()
    }
    stored = {  # by the tensor, which may have another name where modules share it
        id(tensor): tuple(shapes[start + name].shape)
        for start, module in modules.items()
        for name, tensor in _named(module)
        if start + name in shapes and not is_lazy(shapes[start + name])
    }
    with plain_torch():
        for start, module in modules.items():
            found = {name: stored[id(t)] for name, t in _named(module) if id(t) in stored}
            if found:
                staging = staging or Staging()
                _stage(staging, module, start, found)
    return staging


def _named(module: torch.nn.Module) -> list[tuple[str, Any]]:
    """The module's own tensors, lazy or not."""
    own = (*module._parameters.items(), *module._buffers.items())
    return [(name, tensor) for name, tensor in own if tensor is not None]


def _stage(
    staging: Staging, module: torch.nn.Module, start: str, found: Mapping[str, tuple[int, ...]]
) -> None:
    example = _example(module, start, found)
    lazy = {name: tensor for name, tensor in _named(module) if is_lazy(tensor)}
    # A class of the user's own may keep what it finds of its tensors, such as their device.
    known = type(module).__module__.startswith(("tlazy.nn.", "torch.nn."))
    whole = known and lazy.keys() <= found.keys()
    # Of a tensor in the checkpoint nothing is allocated before its shape is found to be right.
    meta = staging if whole else Staging(device="meta")
    twin = meta.add(module, (example,), {}, initialize=False, on_meta=True)
    _check_against_constructor(module, start, {n: found[n] for n in lazy if n in found}, twin)
    if whole:
        for name, tensor in lazy.items():
            device, dtype = staging.target(tensor)
            staging.give(tensor, torch.empty(found[name], device=device, dtype=dtype))
    else:
        staging.add(module, (example,), {}, initialize=not lazy.keys() <= found.keys())


def load_all_or_nothing(
    root: torch.nn.Module,
    staging: Staging | None,
    state: Mapping[str, Any],
    prefix: str,
    assign: bool,
    load: Callable[[Mapping[str, Any]], Any],
) -> Any:
    """Commit `staging`, then call ``load(state)``; where either raises, nothing has changed.

    Args:
        assign: whether lazy parameters shall share the memory of the tensors in `state`. They stay
            the objects that they are, so an optimizer goes on holding them; what `load` is given
            under their keys is themselves.
    """
    if staging is None:
        return load(state)
    if assign:
        taken = {key: t for key, t in _empty(root, prefix).items() if key in state}
        taken = {key: t for key, t in taken.items() if staging.planned(t) is not None}
        for key, tensor in taken.items():
            staging.give(tensor, state[key])
        state = copy.copy(state)  # a state_dict has metadata: it is more than its items
        state.update(taken)  # type: ignore[attr-defined]
    with all_or_nothing() as restorers:
        restorers.append(_backup(root))
        staging.commit(root, restorers)
        return load(state)


def _empty(root: torch.nn.Module, prefix: str) -> dict[str, Any]:
    """Tensors of `root` without values: placeholders, and those on the meta device."""
    state = root.state_dict(prefix=prefix, keep_vars=True)
    return {k: t for k, t in state.items() if isinstance(t, Tensor) and not _has_values(t)}


def _backup(root: torch.nn.Module) -> Any:
    """A function that puts back the tensors that exist already, and their values."""
    held: list[tuple[Any, dict[str, Any]]] = [
        (mapping, dict(mapping))
        for module in root.modules()
        for mapping in (module._parameters, module._buffers)
    ]
    tensors = {id(t): t for _, content in held for t in content.values() if _has_values(t)}
    values = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]

    def restore() -> None:
        for mapping, content in held:
            mapping.update(content)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)

    return restore


def _has_values(tensor: Any) -> bool:
    return tensor is not None and not is_lazy(tensor) and not tensor.is_meta


def _example(module: torch.nn.Module, start: str, found: Mapping[str, tuple[int, ...]]) -> Tensor:
    try:
        return input_for(module, found)
    except (RuntimeError, TypeError) as error:
        if _sizes_overflow(error):
            shapes = ", ".join(f"{start}{name} {shape}" for name, shape in found.items())
            raise RuntimeError(f"no tensor can have a shape of the checkpoint: {shapes}") from error
        add_place(error, named(start.rstrip("."), type(module).__name__))
        raise


def _sizes_overflow(error: Exception) -> bool:
    """Whether torch says of sizes that their product, or one of them, is no 64-bit number."""
    return "verflow" in str(error)


def _check_against_constructor(
    module: torch.nn.Module, start: str, found: Mapping[str, tuple[int, ...]], twin: torch.nn.Module
) -> None:
    """Compare the checkpoint's shapes with those that its own input width has given `twin`."""
    expected: dict[str, Any] = {**twin._parameters, **twin._buffers}
    for name, shape in found.items():
        if tuple(expected[name].shape) != shape:
            raise RuntimeError(
                f"size mismatch for {start}{name}: the checkpoint holds {shape}, "
                f"but {module} takes {tuple(expected[name].shape)}"
            )


def input_for(module: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """The smallest meta input for which the lazy `module` would have tensors of these shapes.

    A lazy module of a user's own says so itself, in a method ``input_for(shapes)``.

    Raises:
        RuntimeError: for a class that tlazy knows nothing about, and where no shape says how many
            inputs there are.
    """
    own = getattr(module, "input_for", None)
    if own is not None:
        return own(shapes)
    is_norm = isinstance(module, torch.nn.modules.batchnorm._NormBase)
    if not (is_norm or isinstance(module, (torch.nn.Linear, torch.nn.modules.conv._ConvNd))):
        raise RuntimeError(
            f"cannot tell the input of {type(module).__name__} from a checkpoint: give it a method "
            "input_for(shapes), or call tlazy.materialize(model, example_input) before loading"
        )
    shape = shapes.get("weight")
    if shape is None and is_norm:
        shape = next(filter(None, shapes.values()), None)
    if shape is None:
        raise RuntimeError(
            f"the checkpoint holds {', '.join(shapes)} of {module}, but nothing that says how many "
            "inputs it has: call tlazy.materialize(model, example_input) before loading"
        )
    if is_norm:
        sizes = [1, shape[0] if shape else 1, 1]
    elif isinstance(module, torch.nn.Linear):
        sizes = [1, shape[1] if len(shape) > 1 else 1]
    else:
        layer: Any = module
        width = shape[0] if layer.transposed else shape[1] * layer.groups if shape[1:] else 1
        sizes = [1, width, *layer.kernel_size]
    return torch.empty(sizes, device="meta")
