"""A copy of a module tree that can be run without touching the original."""

from __future__ import annotations

import copy
import functools
import sys
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

_HOOKS = ("_initialize_hook", "_result_hook")
_HOOK_TABLES = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)

# Objects inside of objects inside of a module are not copied any more: a trainer or a logger that
# a hook belongs to leads to half of the program.
_OBJECT_DEPTH = 1


# Of torch.nn.modules.module. They are for "debugging/profiling purposes" (torch's documentation).
_GLOBAL_HOOKS = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_forward_hooks_always_called",
    "_global_forward_hooks_with_kwargs",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)


class Shadow:
    """Modules, lists, dicts and closures of a tree copied; tensors replaced; the rest shared.

    Shared submodules, tied parameters and references among modules stay what they are. Closures
    are copied because hooks write to them; what cannot be copied (a lock, a file) is shared.

    Args:
        model: the root, left alone.
        convert: gives what is to stand for a tensor.
    """

    def __init__(self, model: torch.nn.Module, convert: Callable[[Tensor], Any]) -> None:
        self._convert = convert
        self._copies: dict[int, Any] = {}
        self._originals: list[Any] = []  # keeps the ids in _copies from being used again
        self._modules: dict[int, tuple[torch.nn.Module, str]] = {}
        self._owners: dict[int, list[tuple[dict[str, Any], str]]] = {}
        self._depth = 0
        names = list(model.named_modules())
        for path, module in names:
            self._shell(module, path)
        for _, module in names:
            # torch.compile's wrapper: what it wraps runs as it is.
            if type(module).__name__ == "OptimizedModule":
                self._copies[id(module)] = self._copies[id(module._orig_mod)]
        names = [(path, module) for path, module in names if self._is_copied(module)]
        for _, module in names:
            self._fill(module)
        self.root: torch.nn.Module = self._copies[id(model)]

    def modules(self) -> Iterable[torch.nn.Module]:
        """Every copied module, registered in the tree or not."""
        originals = [original for original, _ in self._modules.values()]
        return [
            self._copies[id(module)]
            for module in originals
            if self._is_copied(module) and not isinstance(module, torch.jit.ScriptModule)
        ]

    def knows(self, module: torch.nn.Module) -> bool:
        """Whether `module` is a copy; a forward may call modules that it has just made."""
        return id(module) in self._modules

    def path(self, module: torch.nn.Module) -> str:
        return self._modules[id(module)][1]

    def original(self, module: torch.nn.Module) -> torch.nn.Module:
        return self._modules[id(module)][0]

    def replace(self, placeholder: Tensor, tensor: Tensor) -> None:
        """Put `tensor` wherever the shadow holds `placeholder`."""
        for mapping, name in self._owners.get(id(placeholder), ()):
            mapping[name] = tensor

    def _is_copied(self, module: torch.nn.Module) -> bool:
        return self.original(self._copies[id(module)]) is module

    def _remember(self, original: Any, duplicate: Any) -> Any:
        self._originals.append(original)
        self._copies[id(original)] = duplicate
        return duplicate

    def _shell(self, module: torch.nn.Module, path: str) -> torch.nn.Module:
        shell: torch.nn.Module
        if isinstance(module, torch.jit.ScriptModule):
            shell = copy.deepcopy(module)
        else:  # not the class's own __new__: torch.fx's makes a class without a forward
            shell = object.__new__(type(module))
            for name in _HOOK_TABLES:  # handles of hooks anywhere may point at them
                shell.__dict__[name] = self._remember(getattr(module, name), OrderedDict())
        self._modules[id(shell)] = module, path
        return self._remember(module, shell)

    def _fill(self, module: torch.nn.Module) -> None:
        shell = self._copies[id(module)]
        if isinstance(module, torch.jit.ScriptModule):
            return
        hidden = {"_compiled_call_impl", *_HOOKS, *_HOOK_TABLES}
        for name, value in module.__dict__.items():
            if name not in hidden:
                shell.__dict__[name] = self._copy(value)
        ours = {module.__dict__[name].id for name in _HOOKS if name in module.__dict__}
        for name in _HOOK_TABLES:
            hooks = getattr(module, name)
            kept = {key: hook for key, hook in hooks.items() if key not in ours}
            shell.__dict__[name].update(self._copy(kept))
        if "_initialize_hook" in module.__dict__:
            shell.__dict__["_initialize_hook"] = None  # still lazy, but inferred by the tracer
        if type(module)._call_impl is torch.nn.Module._call_impl:
            shell.__dict__["_compiled_call_impl"] = _unobserved_call(shell)
        own = shell.__dict__.get("_placeholders", {})
        for mapping in (shell._parameters, shell._buffers, own):
            for name, tensor in mapping.items():
                self._owners.setdefault(id(tensor), []).append((mapping, name))

    def _copy(self, value: Any) -> Any:
        if id(value) in self._copies:
            return self._copies[id(value)]
        if isinstance(value, weakref.ProxyTypes):
            return self._proxy(value)
        if isinstance(value, Tensor):
            return self._remember(value, self._convert(value))
        if isinstance(value, torch.nn.Module):
            shell = self._shell(value, f"unregistered.{type(value).__name__}")
            self._fill(value)
            return shell
        if isinstance(value, (list, dict, set, deque)):
            return self._container(value)
        if isinstance(value, RemovableHandle):
            return self._handle(value)
        if isinstance(value, tuple):
            items = [self._copy(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self._copy(value.__self__))
        if isinstance(value, functools.partial):
            keywords = self._copy(value.keywords)
            return type(value)(self._copy(value.func), *self._copy(value.args), **keywords)
        if isinstance(value, weakref.ref) and isinstance(value(), torch.nn.Module):
            return weakref.ref(self._copy(value()))
        return self._object(value)

    def _proxy(self, value: Any) -> Any:
        """A proxy of a module leads to its copy; it passes itself off as what it stands for."""
        try:
            module = next(value.modules()) if isinstance(value, torch.nn.Module) else None
        except ReferenceError:  # it outlived the module
            module = None
        return value if module is None else weakref.proxy(self._copy(module))

    def _handle(self, value: Any) -> Any:
        """A handle that removes the hook's copy: hooks may remove themselves when they run."""
        duplicate = self._remember(value, object.__new__(type(value)))
        duplicate.__dict__.update(value.__dict__)
        own, others = value.hooks_dict_ref(), [ref() for ref in value.extra_dict_ref]
        if own is not None:
            duplicate.hooks_dict_ref = weakref.ref(self._copy(own))
        tables = [weakref.ref(self._copy(table)) for table in others if table is not None]
        duplicate.extra_dict_ref = tuple(tables)
        return duplicate

    def _container(self, value: Any) -> Any:
        duplicate = self._remember(value, copy.copy(value))
        duplicate.clear()
        if isinstance(value, dict):
            duplicate.update({key: self._copy(item) for key, item in value.items()})
        elif isinstance(value, set):
            duplicate.update(self._copy(item) for item in value)
        else:
            duplicate.extend(self._copy(item) for item in value)
        return duplicate

    def _function(self, function: types.FunctionType) -> Any:
        if not function.__closure__ and not function.__defaults__:
            return function
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        duplicate = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            None,
            cells or None,
        )
        duplicate.__kwdefaults__ = function.__kwdefaults__
        duplicate.__dict__.update(function.__dict__)
        self._remember(function, duplicate)
        duplicate.__defaults__ = self._copy(function.__defaults__)
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            try:
                cell.cell_contents = self._copy(old.cell_contents)
            except ValueError:  # a cell that is still empty
                continue
        return duplicate

    def _object(self, value: Any) -> Any:
        if isinstance(value, torch.Generator):
            return self._remember(value, value.clone_state())
        if _is_state(value):
            return self._remember(value, copy.deepcopy(value))
        opaque = isinstance(value, (type, types.ModuleType)) or not hasattr(value, "__dict__")
        if opaque or self._depth >= _OBJECT_DEPTH:
            return value
        try:
            duplicate = copy.copy(value)
        except Exception:  # no two classes refuse to be copied in the same way
            return value
        if duplicate is value or type(duplicate) is not type(value):
            return value
        self._remember(value, duplicate)
        self._depth += 1
        try:
            duplicate.__dict__.update({k: self._copy(v) for k, v in value.__dict__.items()})
        finally:
            self._depth -= 1
        return duplicate


def _unobserved_call(module: torch.nn.Module) -> Any:
    """How torch calls `module`, less the global hooks; None where there are none."""
    scope = vars(torch.nn.modules.module)
    if not any(scope[name] for name in _GLOBAL_HOOKS):
        return None
    code = torch.nn.Module._call_impl.__code__
    without = {**scope, **{name: {} for name in _GLOBAL_HOOKS}}
    return types.MethodType(types.FunctionType(code, without), module)


def _is_state(value: Any) -> bool:
    """Whether a forward counts with it, or draws from it; NumPy's only where NumPy is loaded."""
    numpy: Any = sys.modules.get("numpy")
    kinds: tuple[type, ...] = (bytearray,)
    if numpy is not None:
        kinds += (numpy.ndarray, numpy.random.Generator, numpy.random.RandomState)
    return isinstance(value, kinds)
