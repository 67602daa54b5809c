"""Parameters and buffers whose shape is not known yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from tlazy.nn.refusal import WAY_OUT

# torch's stubs leave it out.
_TorchPlaceholder: Any = torch.nn.parameter.UninitializedTensorMixin  # type: ignore[attr-defined]


class _Placeholder(_TorchPlaceholder):
    """What torch's placeholders lack: freezing, conversions, hooks, copies, and a name.

    Attributes:
        label: which tensor of which module it stands for, as far as that is known.
    """

    label: str

    # Each gives a placeholder of the new dtype and device; torch's own give an empty tensor, which
    # Module.to("meta") then takes for the parameter.
    _conversions = (
        Tensor.to,
        Tensor.half,
        Tensor.bfloat16,
        Tensor.float,
        Tensor.double,
        Tensor.type,
        Tensor.cuda,
        Tensor.cpu,
        Tensor.detach,
        torch.empty_like,
    )
    # These belong to the tensor object, which stays when it gets its shape.
    _lasting = (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook)

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        self.requires_grad = requires_grad
        return self

    def materialize(self, shape: Any, device: Any = None, dtype: Any = None) -> None:
        super().materialize(shape, device, dtype)
        self.__dict__.pop("label", None)

    def _like(self, data: Any) -> Any:
        return type(self)(*self._arguments(data))

    def _arguments(self, data: Any) -> tuple[Any, ...]:
        label = self.__dict__.get("label", "")
        return self.requires_grad, data.device, data.dtype, label

    def __reduce_ex__(self, proto: Any) -> Any:
        return type(self), self._arguments(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            memo[id(self)] = self._like(self)
        return memo[id(self)]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in cls._conversions:
            # Only dtype and device matter, and a plain tensor of those converts like any other.
            plain = torch.empty(0, dtype=args[0].dtype, device=args[0].device)
            return args[0]._like(func(plain, *args[1:], **(kwargs or {})))
        if func in cls._lasting:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if func is Tensor.copy_ and not all(map(is_lazy, args[:2])):
            # torch would copy a single value, and find fault with others without a name.
            raise ValueError(_needed_by(func, args, kwargs))
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except ValueError as error:
            raise ValueError(_needed_by(func, args, kwargs)) from error

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def share_memory_(self) -> Any:
        raise RuntimeError(_no_shape(self, "share memory on"))

    def size(self, dim: int | None = None) -> Any:
        raise RuntimeError(_no_shape(self))

    def _refused(self) -> Any:
        raise RuntimeError(_no_shape(self))

    shape = ndim = nbytes = T = mT = H = mH = property(_refused)


def _needed_by(func: Any, args: Any, kwargs: Any) -> str:
    leaves = tree_leaves((args, kwargs))
    first = next((leaf for leaf in leaves if isinstance(leaf, _Placeholder)), None)
    return f"{_no_shape(first)}; {getattr(func, '__name__', func)} needs one"


def _no_shape(placeholder: Any, doing: str = "take the shape of") -> str:
    label = "" if placeholder is None else placeholder.__dict__.get("label", "")
    return (
        f"cannot {doing} an uninitialized parameter or buffer of a lazy module"
        f"{label and f', {label}'}: {WAY_OUT}"
    )


class UninitializedParameter(_Placeholder, torch.nn.parameter.UninitializedParameter):
    """A parameter whose shape is not known yet."""

    def __new__(
        cls, requires_grad: bool = True, device: Any = None, dtype: Any = None, label: str = ""
    ) -> Any:
        with torch.inference_mode(False):  # what takes its place has to train
            self: Any = super().__new__(cls, requires_grad, device, dtype)
        self.label = label
        return self


class UninitializedBuffer(_Placeholder, torch.nn.parameter.UninitializedBuffer):
    """A buffer whose shape is not known yet."""

    def __new__(
        cls,
        requires_grad: bool = False,
        device: Any = None,
        dtype: Any = None,
        label: str = "",
        persistent: bool = True,
    ) -> Any:
        with torch.inference_mode(False):
            self: Any = super().__new__(cls, requires_grad, device, dtype, persistent)
        self.label = label
        return self

    def _arguments(self, data: Any) -> tuple[Any, ...]:
        return *super()._arguments(data), self.persistent


_OURS: dict[type, type] = {
    torch.nn.parameter.UninitializedParameter: UninitializedParameter,
    torch.nn.parameter.UninitializedBuffer: UninitializedBuffer,
}

# A state_dict of a lazy model holds placeholders, and is no code: torch.load may read it.
torch.serialization.add_safe_globals([UninitializedParameter, UninitializedBuffer])


def adopt(tensor: Tensor, label: str) -> None:
    """Give one of torch's placeholders what tlazy's can do, and either a label."""
    ours = _OURS.get(type(tensor))
    if ours is not None:
        tensor.__class__ = ours
    if isinstance(tensor, _Placeholder):
        tensor.label = label


def blank(placeholder: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A new placeholder of the same kind, trainable where `placeholder` is."""
    return type(placeholder)(placeholder.requires_grad, device, dtype)
