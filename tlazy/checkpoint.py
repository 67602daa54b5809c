"""Weights in safetensors files: ``save`` and ``load``.

safetensors is imported where a file is touched: benchmarks run where only torch and triton are.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from tlazy.arguments import check_model, check_path
from tlazy.files import replacing
from tlazy.nn.staging import Staging
from tlazy.nn.state_dict import load_all_or_nothing, stage_state_dict
from tlazy.sharding import is_sharded, shard_like

CPU = torch.device("cpu")
_LARGEST_HEADER = 100_000_000  # bytes; as much as safetensors allows itself


def save(model: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the parameters and buffers of `model` to a safetensors file.

    The file appears whole or not at all: an old one stays until the new one is complete. Tensors
    that share memory are written once.

    Raises:
        TypeError: for a model that is no module, a path that is none.
        ValueError: where `model` is still lazy or has tensors without data, and for an extra state
            that is no tensor; names the first one.
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
    check_model(model)
    check_path("path", path)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"cannot save {type(model).__name__}: {name} is a {type(tensor).__name__}, and a "
                "safetensors file holds tensors only; use torch.save(model.state_dict(), path)"
            )
        if is_lazy(tensor) or tensor.is_meta:
            lack = "has no shape yet" if is_lazy(tensor) else "is on the meta device, without data"
            raise ValueError(
                f"cannot save {type(model).__name__}: {name} {lack}; "
                "call tlazy.materialize(model, example_input) first"
            )
        if is_sharded(tensor):
            raise ValueError(
                f"cannot save {type(model).__name__}: this process holds a part of {name}; call "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict with "
                "full_state_dict=True in every process, and save what it returns"
            )
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    with replacing(path) as temporary:
        try:
            save_model(model, str(temporary))
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            code = int(number[1])
            raise OSError(code, os.strerror(code), os.fspath(path)) from error


def load(model: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Fill `model` from a safetensors file; lazy modules take their shapes from it.

    No forward and no initializer runs. Keys and shapes are checked before anything changes, and
    where something still goes wrong, an interrupt too, the model is as it was.

    On the CPU, parameters that have no values yet (lazy ones, those on the meta device) are not
    read but mapped: pages of the file become memory when they are used, and become the process's
    own when they are written, so training never changes the file. Something else that writes into
    the file, instead of replacing it as :func:`save` does, would change or break such a model.
    Parameters that have values are copied to; sharded ones (``DTensor``) take their shard.

    Args:
        path: of a safetensors file, or of the index of a sharded one
            (``model.safetensors.index.json``), whose shards lie beside it.

    Raises:
        TypeError: for a model that is no module, a path that is none.
        RuntimeError: for a shape that contradicts the model (key, expected and found shape), and
            for missing or unexpected keys.
        safetensors.SafetensorError: for a file that is truncated or not in this format.
        OSError: for one that cannot be read.
    """
    check_model(model)
    check_path("path", path)
    fill(model, path, None)


def fill(model: torch.nn.Module, path: str | os.PathLike[str], staging: Staging | None) -> None:
    """Check the file at `path`, commit the lazy modules that `staging` holds, and copy."""
    with ExitStack() as stack:
        wanted = _tensors(model)
        stored = _aliased(_opened(path, stack), wanted)
        _check_keys(model, wanted, path, stored)
        if staging is None:
            staging = stage_state_dict(model, stored) or Staging()
        _check_shapes(wanted, path, stored, staging)
        with torch.inference_mode(False):  # what takes a lazy parameter's place has to train
            state = _state(wanted, stored, staging)
        load = functools.partial(model.load_state_dict, strict=False)
        load_all_or_nothing(model, staging, state, "", assign=True, load=load)


def _tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


class _Stored:
    """A tensor in a file."""

    def __init__(self, file: Any, name: str) -> None:
        self.file = file
        self.name = name
        self.shape = tuple(file.get_slice(name).get_shape())

    def read(self) -> Tensor:
        """The tensor, as a private mapping of the file."""
        return self.file.get_tensor(self.name)

    def read_as(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The tensor where and as the model takes it; the mapping itself where that is the same.

        Raises:
            RuntimeError: for a type that has no conversion to the other.
        """
        value = self.read()
        self.check_type(value, dtype)
        try:
            return value.to(device, dtype)
        except NotImplementedError as error:
            raise self._cannot_become(value, dtype) from error

    def check_type(self, value: Tensor, dtype: torch.dtype) -> None:
        if value.is_complex() and not dtype.is_complex:  # torch would drop the imaginary part
            raise self._cannot_become(value, dtype)

    def _cannot_become(self, value: Tensor, dtype: torch.dtype) -> RuntimeError:
        return RuntimeError(
            f"{self.name} is of type {value.dtype} in the file, which does not become the "
            f"{dtype} of the model: convert the file, or the model by model.to(dtype)"
        )


def _opened(path: str | os.PathLike[str], stack: ExitStack) -> tuple[dict[str, _Stored], Any]:
    """What a file, or an index of files, holds, and the first one's metadata."""
    path = Path(path)
    if path.suffix != ".json":
        file = stack.enter_context(_safe_open(path))
        return {name: _Stored(file, name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    from safetensors import SafetensorError

    shards = _shards(path)
    files = {name: stack.enter_context(_safe_open(path.parent / name)) for name in shards}
    stored = {}
    for name, keys in shards.items():
        absent = set(keys) - set(files[name].keys())
        if absent:
            raise SafetensorError(
                f"{path} says that {min(absent)} is in {name}, but that file does not hold it"
            )
        stored.update({key: _Stored(files[name], key) for key in keys})
    return stored, None


def _shards(path: Path) -> dict[str, list[str]]:
    """The files that an index names, each with its keys.

    Raises:
        SafetensorError: for anything else than an index, and for files in other folders.
    """
    from safetensors import SafetensorError

    shards: dict[str, list[str]] = {}
    try:
        if path.stat().st_size > _LARGEST_HEADER:
            raise ValueError(f"it is larger than {_LARGEST_HEADER} bytes")
        for key, name in json.loads(path.read_text())["weight_map"].items():
            if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
                raise ValueError(f"{key} is said to be in {name!r}, which is not a file beside it")
            name.encode()  # half of a surrogate pair is no name of a file
            shards.setdefault(name, []).append(key)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SafetensorError(
            f"{path} is not an index of safetensors files: {type(error).__name__}: {error}"
        ) from error
    return shards


@contextmanager
def _safe_open(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if path.exists() and not path.is_file():  # a pipe would be waited for, a device be read
        raise OSError(errno.EINVAL, "it is there, and not a regular file", str(path))

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise SafetensorError(f"{path} is not a whole safetensors file: {error}") from error


def _aliased(
    opened: tuple[dict[str, _Stored], Any], wanted: Mapping[str, Tensor]
) -> dict[str, _Stored]:
    """With the names in the model: of tensors that shared memory only one is in the file."""
    stored, metadata = opened
    aliases = {
        alias: stored[name]
        for alias, name in (metadata or {}).items()
        if name in stored and alias not in stored
    }
    return {**stored, **{alias: aliases[alias] for alias in wanted if alias in aliases}}


def _state(
    wanted: Mapping[str, Tensor], stored: Mapping[str, _Stored], staging: Staging
) -> dict[str, Tensor]:
    """The values for the model's tensors, mapped where nothing has to be converted."""
    state = {}
    mapped: dict[int, Any] = {}  # by what is stored: two tensors must not share its memory
    for name, tensor in wanted.items():
        if name not in stored:
            continue
        if is_sharded(tensor):
            value = shard_like(stored[name].read_as(CPU, tensor.dtype), tensor)
        elif not is_lazy(tensor) and not tensor.is_meta:
            value = stored[name].read()  # to be converted while it is copied
            stored[name].check_type(value, tensor.dtype)
        else:
            device, dtype = staging.target(tensor)
            value = stored[name].read_as(CPU if device.type == "meta" else device, dtype)
            if mapped.setdefault(id(stored[name]), tensor) is not tensor:
                value = value.clone()
            staging.give(tensor, value)
        state[name] = value
    return state


def _check_keys(
    model: torch.nn.Module, wanted: Mapping[str, Tensor], path: Any, shapes: Mapping[str, Any]
) -> None:
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
    if is_lazy(tensor) or tensor.is_meta or is_sharded(tensor) or tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.untyped_storage().data_ptr()


def _check_shapes(
    wanted: Mapping[str, Tensor], path: Any, shapes: Mapping[str, Any], staging: Staging | None
) -> None:
    for name, tensor in wanted.items():
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
