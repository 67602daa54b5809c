"""What public functions check first: one line that names the argument, what it is, what to pass."""

from __future__ import annotations

import operator
import os
from typing import Any

import torch

from tlazy.errors import quoted


def check_model(model: Any) -> None:
    """Raise TypeError unless `model` is a module."""
    if not isinstance(model, torch.nn.Module):
        raise _wrong("model", "a torch.nn.Module", model)


def check_tensor(name: str, x: Any) -> None:
    """Raise TypeError unless `x` is a tensor."""
    if not isinstance(x, torch.Tensor):
        raise _wrong(name, "a torch.Tensor", x)


def check_seed(seed: Any) -> int:
    """`seed` as an int; TypeError where it is no integer."""
    try:
        return operator.index(seed)
    except TypeError:
        raise _wrong("seed", "an integer", seed) from None


def check_init(init: Any) -> None:
    """Raise TypeError unless `init` is None or can be called with a module."""
    if init is not None and not callable(init):
        raise _wrong("init", "a function of a module, such as one that calls torch.nn.init", init)


def check_path(name: str, path: Any) -> None:
    """Raise TypeError unless `path` is a str or an os.PathLike."""
    if not isinstance(path, (str, os.PathLike)):
        raise _wrong(name, "the path of a safetensors file", path)


def check_dtype(dtype: Any) -> torch.dtype:
    """`dtype`; TypeError where it is none."""
    if not isinstance(dtype, torch.dtype):
        raise _wrong("dtype", "a torch.dtype, such as torch.float32", dtype)
    return dtype


def check_parameter_dtype(dtype: Any) -> None:
    """Raise TypeError unless parameters can have `dtype`, or it is None."""
    if dtype is None:
        return
    if not check_dtype(dtype).is_floating_point and not dtype.is_complex:
        raise _wrong("dtype", "floating-point or complex, as parameters are", dtype)


def check_device(device: Any) -> torch.device:
    """`device` as torch's; TypeError or RuntimeError, as torch raises, where it is none."""
    try:
        return torch.device(device)
    except (TypeError, RuntimeError) as error:
        wanted = "a torch.device or its name, such as 'cpu' or 'cuda:0'"
        raise type(error)(_wrong("device", wanted, device).args[0]) from None


def _wrong(name: str, wanted: str, value: Any) -> TypeError:
    return TypeError(f"{name} must be {wanted}, got {_described(value)}")


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, torch.dtype):
        return repr(value)
    kind = type(value).__name__
    article = "an" if kind[0] in "aeiou" else "a"
    if not isinstance(value, (str, int, float)):
        return f"{article} {kind}"
    return f"{article} {kind} ({quoted(value) if isinstance(value, str) else repr(value)})"
