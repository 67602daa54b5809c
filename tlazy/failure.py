"""What the exception that ends a trace or a first call says: where, with what, and what to do."""

from __future__ import annotations

import reprlib
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tlazy.nn.pending import being_called, pending_modules

# What has become of the model: of a trace that failed, and of a call that began with one.
UNCHANGED = "no parameter has been created or changed"
UNDONE = "the parameters that this call had created are taken back"

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def named(path: str, layer: str) -> str:
    return f"{path} ({layer})" if path else layer


def add_place(error: Exception, place: str) -> None:
    """Say in the message where an error came from; the exception stays the one it is."""
    _append(error, f"\n  in {place}\n  {UNCHANGED}")


def explain(
    error: Exception,
    root: torch.nn.Module,
    path: str,
    module: torch.nn.Module,
    inputs: Inputs,
    left: str = UNCHANGED,
) -> None:
    """Say in the message which call has failed, with what, what is left of it, and what helps.

    Args:
        root: whose first call or trace it was.
        path: of `module` below `root`.
        module: the innermost one that was being called, as it is again now.
        inputs: its args and kwargs.
        left: UNCHANGED, or UNDONE where the layers had their parameters already.
    """
    place = place_of(root, path, module)
    helps = _way_out(error, module, inputs)
    kinds = ", ".join(dict.fromkeys(_kind(tensor) for tensor in _own(module)))
    holds = kinds and f"; its parameters are {kinds}"
    _append(
        error,
        f"\n  in {place}, called with {shown(inputs)}{holds}\n  {left}{helps and f': {helps}'}",
    )


def place_of(root: torch.nn.Module, path: str, module: torch.nn.Module) -> str:
    """The path and the class of `module`; the path begins above `root` where that is known."""
    return named(".".join(filter(None, (_path_above(root), path))), type(module).__name__)


def failed_calls(error: Exception) -> Iterator[tuple[torch.nn.Module, Inputs]]:
    """The modules that were being called when `error` was raised, the innermost one first."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        if frame.f_code is torch.nn.Module._call_impl.__code__:
            values = frame.f_locals
            yield values["self"], (values["args"], values["kwargs"])


def takes_tensors(module: torch.nn.Module) -> bool:
    """Whether it is one of torch's or tlazy's modules with a forward, which all do."""
    if isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict)):
        return False
    return type(module).__module__.startswith(("torch.nn.", "tlazy.nn."))


def tensors_in(inputs: Inputs) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def shown(inputs: Inputs) -> str:
    """Inputs in short: dtype, shape and device of tensors, the beginning of anything else.

    >>> shown(((torch.ones(2, 3), [4, "five"]), {"six": None}))
    "float32 (2, 3) on cpu, [4, 'five'], six=None"
    """
    args, kwargs = inputs
    parts = [*map(_brief.repr, args), *(f"{k}={_brief.repr(v)}" for k, v in kwargs.items())]
    return ", ".join(parts) or "nothing"


def pass_a_tensor(inputs: Inputs) -> str:
    """What to do about inputs without a tensor."""
    leaves = tree_leaves(inputs)
    sizes = leaves and all(type(leaf) is int for leaf in leaves)
    spec = f"tlazy.Spec({', '.join(map(str, leaves)) if sizes else '*shape'})"
    return f"pass a tensor, or for a trace {spec}"


class _Brief(reprlib.Repr):
    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, Tensor):
            return f"{_dtype(x)} {tuple(x.shape)} on {x.device}"
        return super().repr_instance(x, level)


_brief = _Brief()


def _path_above(root: torch.nn.Module) -> str:
    """The path of `root` in what it is part of: by its placeholders' labels, or by the call."""
    for path, module in pending_modules(root).items():
        for name, tensor in module.__dict__.get("_placeholders", {}).items():
            label = getattr(tensor, "__dict__", {}).get("label", "")
            end = f"{path}.{name}" if path else name
            if label.endswith(f".{end}"):
                return label.removesuffix(f".{end}")
    outermost = root
    for outermost in being_called():  # noqa: B007
        pass
    return next((path for path, part in outermost.named_modules() if part is root), "")


def _own(module: torch.nn.Module) -> list[Any]:
    tensors: tuple[Any, ...] = (*module._parameters.values(), *module._buffers.values())
    with torch._C.DisableTorchFunctionSubclass():  # placeholders refuse to answer some questions
        return [t for t in tensors if t is not None and (t.is_floating_point() or t.is_complex())]


def _kind(tensor: Tensor) -> str:
    return f"{_dtype(tensor)} on {tensor.device}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _way_out(error: Exception, module: torch.nn.Module, inputs: Inputs) -> str:
    given, own, text = tensors_in(inputs), _own(module), str(error)
    if not given:
        return pass_a_tensor(inputs)
    if own and given[0].device != own[0].device and "device" in text:
        mine, theirs = own[0].device, given[0].device
        return f"move the input by x.to({str(mine)!r}), or the model by model.to({str(theirs)!r})"
    if own and given[0].dtype != own[0].dtype and ("type" in text or "not implemented" in text):
        either = f"convert the input by x.to({own[0].dtype})"
        if given[0].is_floating_point() or given[0].is_complex():
            either += f", or the model by model.to({given[0].dtype})"
        return either
    return "call again with an input that fits" if takes_tensors(module) else ""


def _append(error: Exception, text: str) -> None:
    notes = getattr(error, "__notes__", ())
    if any(said in part for part in (str(error), *notes) for said in (UNCHANGED, UNDONE)):
        return  # by a first call inside of this one
    # A KeyError's argument is the key. What takes other arguments knows what to do with them.
    if len(error.args) == 1 and type(error.args[0]) is str and not isinstance(error, KeyError):
        error.args = (error.args[0] + text,)
    elif hasattr(error, "add_note"):  # from Python 3.11 on
        error.add_note(text.strip("\n"))
