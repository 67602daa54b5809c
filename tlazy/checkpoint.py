"""Weights in safetensors files: ``save`` and ``load``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch import Tensor
from torch.nn.parameter import is_lazy

from tlazy.files import replacing
from tlazy.nn.lazy import Staging, stage_state_dict


class _Header(NamedTuple):
    shape: tuple[int, ...]


def save(model: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the parameters and buffers of `model` to a safetensors file.

    The file appears whole or not at all: an old one stays until the new one is complete. Tensors
    that share memory are written once.

    Raises:
        ValueError: where `model` is still lazy or has tensors without data; names the first one.
        OSError: where the file cannot be written.

    >>> import tempfile, torch, tlazy
    >>> from tlazy import nn
    >>> path = f"{tempfile.mkdtemp()}/weights.safetensors"
    >>> tlazy.save(nn.Sequential(nn.Linear(3, 4)), path)
    >>> net = nn.Sequential(nn.LazyLinear(4))
    >>> tlazy.load(net, path)
    >>> net
    Sequential(
      (0): Linear(in_features=3, out_features=4, bias=True)
    )
    """
    for name, tensor in _tensors(model).items():
        if is_lazy(tensor) or tensor.is_meta:
            lack = "has no shape yet" if is_lazy(tensor) else "is on the meta device, without data"
            raise ValueError(
                f"cannot save {type(model).__name__}: {name} {lack}; "
                "call tlazy.materialize(model, example_input) first"
            )
    with replacing(path) as temporary:
        save_model(model, str(temporary))


def load(model: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Fill `model` from a safetensors file; lazy modules take their shapes from it.

    No forward and no initializer runs. Keys and shapes are checked before anything changes.

    Raises:
        RuntimeError: for a shape that contradicts the model (key, expected and found shape), and
            for missing or unexpected keys.
        safetensors.SafetensorError: for a file that is truncated or not in this format.
        OSError: for one that cannot be read.
    """
    fill(model, path, None)


def fill(model: torch.nn.Module, path: str | os.PathLike[str], staging: Staging | None) -> None:
    """Check the file at `path`, commit the lazy modules that `staging` holds, and copy."""
    with _opened(path) as file:
        names = _names(file, model)
        shapes = {
            name: _Header(tuple(file.get_slice(stored).get_shape()))
            for name, stored in names.items()
        }
        _check_keys(model, path, shapes)
        if staging is None:
            staging = stage_state_dict(model, shapes)
        _check_shapes(model, path, shapes, staging)
        state = {name: file.get_tensor(stored) for name, stored in names.items()}
        undo = staging.commit(model) if staging else None
        try:
            model.load_state_dict(state, strict=False)
        except BaseException:
            if undo:
                undo()
            raise


def _tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise SafetensorError(
            f"{os.fspath(path)} is not a whole safetensors file: {error}"
        ) from error


def _names(file: Any, model: torch.nn.Module) -> dict[str, str]:
    """Names in the model to names in the file: of tensors that shared memory only one is there."""
    names = {name: name for name in file.keys()}  # noqa: SIM118
    wanted = _tensors(model)
    for alias, stored in (file.metadata() or {}).items():
        if alias in wanted and alias not in names and stored in names:
            names[alias] = stored
    return names


def _check_keys(model: torch.nn.Module, path: Any, shapes: Mapping[str, Any]) -> None:
    wanted = _tensors(model)
    present = {_memory(tensor) for name, tensor in wanted.items() if name in shapes}
    missing = [
        name
        for name, tensor in wanted.items()
        if name not in shapes and (_memory(tensor) not in present)
    ]
    unexpected = [name for name in shapes if name not in wanted]
    lines = [
        f"{what} in {os.fspath(path)}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if lines:
        raise RuntimeError(f"cannot load {type(model).__name__}: " + "; ".join(lines))


def _memory(tensor: Tensor) -> Any:
    """Equal for tensors that share memory, and for tied placeholders."""
    if is_lazy(tensor) or tensor.is_meta or tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.untyped_storage().data_ptr()


def _check_shapes(
    model: torch.nn.Module, path: Any, shapes: Mapping[str, Any], staging: Staging | None
) -> None:
    for name, tensor in _tensors(model).items():
        value = staging.planned(tensor) if staging and is_lazy(tensor) else tensor
        if name not in shapes:
            continue
        if value is None:
            raise RuntimeError(
                f"{name} is still lazy: the traced call does not reach it. Call "
                "tlazy.load(model, path) instead, which takes all shapes from the file"
            )
        if tuple(value.shape) != shapes[name].shape:
            raise RuntimeError(
                f"size mismatch for {name}: the model takes {tuple(value.shape)}, "
                f"but {os.fspath(path)} holds {shapes[name].shape}"
            )
