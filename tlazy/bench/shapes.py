"""Sizes of operations as people type them: ``--shape``, read and written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tlazy.bench.networks import Network
from tlazy.bench.operations import Conv1d, ConvTranspose1d, Draw, Linear, Operation, depthwise
from tlazy.errors import UserError
from tlazy.models import MODELS

# By the names that the command takes.
BUILDERS: dict[str, Callable[..., Operation]] = {
    "linear": Linear,
    "conv1d": Conv1d,
    "depthwise": depthwise,
    "conv_transpose1d": ConvTranspose1d,
    "model": Network,
}


def parse_shape(op: str, text: str) -> Operation:
    """The operation that ``--shape`` describes: values in order, then ``name=value``.

    Raises:
        UserError: for sizes that are missing, unknown, of the wrong kind, or that do not fit.

    >>> parse_shape("linear", "512,1024,256,bias=false")
    Linear(m=512, n=1024, k=256, bias=False, activation=None)
    """
    builder = BUILDERS[op]
    hidden: frozenset[str] = getattr(builder, "beside_shape", frozenset())
    signature = inspect.signature(builder)
    shown = [p for p in signature.parameters.values() if p.name not in hidden]
    wanted = ",".join(
        p.name if p.default is p.empty else f"[{p.name}={p.default}]".lower() for p in shown
    )
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name in named:
            raise UserError(f"--shape {text}: {name} is given twice")
        if equals:
            named[name] = _value(value)
        else:
            positional.append(_value(name))
    try:
        bound = inspect.Signature(shown).bind(*positional, **named).arguments
    except TypeError as error:
        raise UserError(f"--shape {text}: {error}; {op} takes {wanted}") from None
    for parameter in shown:
        _check_value(text, parameter, bound.get(parameter.name, parameter.default))
    operation = builder(**bound)
    check(operation, f"--shape {text}")
    return operation


def as_typed(op: str, shape: Mapping[str, Any]) -> str:
    """``OP SIZES`` as ``tlazy bench OP --shape SIZES`` takes them; of a chain, its linear layer.

    >>> as_typed("linear", {"m": 8, "n": 4, "k": 2, "bias": True, "then": "add-relu"})
    'linear 8,4,2'
    """
    sizes = {name: size for name, size in shape.items() if name != "then"}
    if op == "depthwise" and sizes["in_channels"] == sizes["out_channels"]:
        del sizes["out_channels"], sizes["groups"]
    elif op == "depthwise":
        op = "conv1d"  # a depthwise one has no option for several outputs of a channel
    options = inspect.signature(BUILDERS[op]).parameters
    while (name := next(reversed(sizes))) in options and options[name].default == sizes[name]:
        del sizes[name]
    return f"{op} {','.join(str(size).lower() for size in sizes.values())}"


def check(operation: Operation, what: str) -> None:
    """Raise UserError, calling the operation `what`, unless its sizes fit together."""
    if isinstance(operation, Conv1d):
        groups = operation.groups
        for name in ("in_channels", "out_channels"):
            if (channels := getattr(operation, name)) % groups:
                raise UserError(
                    f"{what}: {name} (={channels}) must be divisible by groups (={groups})"
                )
    try:
        tensors = operation.tensors(Draw(torch.device("meta"), torch.float32))
        y = operation.stock(*tensors)
    except (RuntimeError, ValueError, ZeroDivisionError, OverflowError, TypeError) as error:
        raise UserError(f"{what}: {error}") from None
    if y.numel() == 0:
        raise UserError(f"{what}: the output of shape {tuple(y.shape)} is empty")


def _value(text: str) -> int | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        return text.strip()


def _check_value(text: str, parameter: inspect.Parameter, value: Any) -> None:
    name = parameter.name
    words: dict[str, tuple[str, ...]] = {
        "padding": ("valid", "same", "causal"),
        "model": tuple(MODELS),
    }
    if name == "bias":
        sound, wanted = isinstance(value, bool), "true or false"
    elif isinstance(value, str):
        allowed = words.get(name, ()) if "str" in str(parameter.annotation) else ()
        sound = value in allowed
        wanted = f"one of {', '.join(allowed)}" if allowed else "a whole number"
    else:
        least = 0 if name == "padding" else 1
        sound = isinstance(value, int) and not isinstance(value, bool) and value >= least
        wanted = f"a whole number of at least {least}"
        if name == "model":
            sound, wanted = False, f"one of {', '.join(MODELS)}"
    if not sound:
        raise UserError(f"--shape {text}: {name} must be {wanted}, got {value}")
