"""Plan off to the side, then commit in one step.

To give the placeholders of a lazy module their shapes, a *twin* of the module is built (same
attributes, own tensors), and the twin's ``initialize_parameters`` runs. The module itself changes
only in :meth:`Staging.commit`, which does everything or nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from tlazy import init as initialization
from tlazy.isolation import plain_torch, seeded
from tlazy.nn.placeholder import UninitializedBuffer, UninitializedParameter, blank

# Reentrant: an initializer may itself call a lazy model.
materializing = threading.RLock()

Undo = Callable[[], None]

# Attributes of a module that only waiting for an input has put there.
_WAITING = ("_initialize_hook", "_load_hook", "_result_hook", "_seed", "_placeholders")

# Changed in place by a commit, never replaced: handles of hooks point at these objects.
_KEPT = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_load_state_dict_pre_hooks",
)


def is_pending(module: torch.nn.Module) -> bool:
    """Whether `module` is a lazy module, torch's or tlazy's, that still waits for its input."""
    lazy = isinstance(module, torch.nn.modules.lazy.LazyModuleMixin)
    return lazy and "_initialize_hook" in module.__dict__


def pending_modules(root: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The lazy modules below `root` (or `root` itself) that still wait, by path."""
    return {path: module for path, module in root.named_modules() if is_pending(module)}


def swapped(module: torch.nn.Module) -> list[str]:
    """Tensors of a lazy module that stand in for its own, as inside of ``functional_call``."""
    own = module.__dict__.get("_placeholders", {})
    now = {**module._parameters, **module._buffers}
    plain = [n for n, p in module._parameters.items() if type(p) is Tensor]
    return plain + [
        name
        for name, placeholder in own.items()
        if name not in plain and now.get(name) is not placeholder and not _lazy(now.get(name))
    ]


@dataclasses.dataclass(frozen=True)
class _Origin:
    """What a module was before a commit, without a reference to it."""

    cls: type
    became: type
    attributes: dict[str, Any]
    waiting: dict[str, Any]
    lazy: frozenset[str]


_origins = WeakIdKeyDictionary()  # weak, so that it keeps no model alive
_ABSENT = object()


class Staging:
    """Twins of lazy modules with real tensors, ready to take the modules' place.

    Args:
        device: where the tensors go, None for where each placeholder is.
        dtype: of the floating-point tensors, None for each placeholder's own.
    """

    def __init__(self, device: Any = None, dtype: torch.dtype | None = None) -> None:
        self.device = None if device is None else torch.device(device)
        self.dtype = dtype
        self._pairs: list[tuple[torch.nn.Module, torch.nn.Module]] = []
        # By identity of the placeholder, so that tied layers get one tensor.
        self._values: dict[int, tuple[Any, Tensor]] = {}
        self._given: set[int] = set()
        self._draws: list[Callable[[], None]] = []

    def add(
        self,
        module: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        initialize: bool = True,
        seed: int | None = None,
        init: Callable[[torch.nn.Module], Any] | None = None,
    ) -> torch.nn.Module:
        """Build the twin of `module` for a call with `args` (meta tensors) and return it.

        `module` is left alone. Without `initialize` the twin's tensors are memory and no more.
        `seed` replaces the one drawn at construction; `init` is called with the twin once it has
        its default values.

        Raises:
            RuntimeError: where the shapes stay unknown, or a swapped-in tensor has them.
        """
        _refuse_swapped(module)
        seed = module.__dict__.get("_seed") if seed is None else seed
        # What tlazy's own layers draw depends on nothing else, so it can be drawn in parallel. A
        # subclass may go on working with the values.
        own = type(module).__module__.startswith("tlazy.nn.")
        later = initialize and init is None and own and seed is not None
        with plain_torch(), seeded(seed if initialize else None):
            twin = self._twin(module, on_cpu=initialize)
            if later or not initialize:
                twin.__dict__["reset_parameters"] = _do_nothing
            elif seed is not None:
                twin.__dict__["_seed"] = seed
            twin.initialize_parameters(*args, **kwargs)  # type: ignore[operator]
            if twin.has_uninitialized_params():  # type: ignore[operator]
                raise RuntimeError(f"module {twin._get_name()} has not been fully initialized")
            for name in (*_WAITING, "reset_parameters"):
                twin.__dict__.pop(name, None)
            twin.__class__ = _class_to_become(module)
            if init is not None:
                init(twin)
            self._collect(module, twin)
        if later:
            self._draws.append(functools.partial(_draw, twin, seed))
        return twin

    def give(self, placeholder: Any, value: Tensor) -> None:
        """Let `value` itself take the place of `placeholder`, or of a tensor on the meta device."""
        self._values[id(placeholder)] = placeholder, value.detach()
        self._given.add(id(placeholder))

    def planned(self, placeholder: Any) -> Tensor | None:
        """What will take the place of `placeholder`, None where it stays lazy."""
        _, value = self._values.get(id(placeholder), (None, None))
        return value

    def commit(self, root: torch.nn.Module) -> Undo:
        """Let the twins' tensors, attributes and classes become the modules' own, all or nothing.

        `root`'s containers no longer wait for a first call afterwards. Placeholders keep their
        identity, so an optimizer that holds them goes on holding the parameters.

        Returns:
            a function that takes everything back.
        """
        self.finish()
        origins = [_origin(module, twin) for module, twin in self._pairs]
        restorers: list[Undo] = []

        def undo() -> None:
            while restorers:
                restorers[-1]()
                restorers.pop()

        try:
            with materializing, plain_torch():
                keep_what_other_threads_try()
                # The other threads' way in, each module's hook, closes only when it is complete.
                for placeholder, value in self._values.values():
                    _fill(placeholder, value, restorers)
                for (module, twin), origin in zip(self._pairs, origins, strict=True):
                    restorers.append(functools.partial(_origins.pop, module, None))
                    _origins[module] = origin
                    restorers.append(_snapshot(module))
                    _become(module, twin)
                for container in reversed(list(root.modules())):
                    if _is_waiting_root(container):
                        restorers.append(_snapshot(container, only_hooks=True))
                        _settle(container, root)
        except BaseException:
            undo()
            raise
        return undo

    def finish(self) -> None:
        """Draw the values that are left to draw, and bring all to their devices."""
        if self._draws:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                list(pool.map(_call, self._draws))
            self._draws.clear()
        with plain_torch():
            for key, (placeholder, value) in self._values.items():
                if key not in self._given:
                    self._values[key] = placeholder, value.to(self.target(placeholder)[0])

    def _twin(self, module: torch.nn.Module, on_cpu: bool) -> torch.nn.Module:
        twin = object.__new__(type(module))
        twin.__dict__.update(module.__dict__)
        twin._parameters = {n: self._stand_in(p, on_cpu) for n, p in module._parameters.items()}
        twin._buffers = {n: self._stand_in(b, on_cpu) for n, b in module._buffers.items()}
        twin._modules = dict(module._modules)
        return twin

    def _stand_in(self, tensor: Any, on_cpu: bool) -> Any:
        """A tensor that the twin may fill: a fresh placeholder, or a copy of what is there."""
        if tensor is None:
            return None
        if id(tensor) in self._values:
            return self._values[id(tensor)][1]
        device, dtype = self.target(tensor)
        if on_cpu and device.type != "meta":
            device = torch.device("cpu")  # one place to draw values: the same on every device
        if is_lazy(tensor):
            stand_in = blank(tensor, device, dtype)
            self._values[id(tensor)] = tensor, stand_in
            return stand_in
        copy = tensor.detach().to(device, copy=True)
        if isinstance(tensor, Parameter):
            return Parameter(copy, tensor.requires_grad)
        return copy

    def target(self, tensor: Any) -> tuple[torch.device, torch.dtype]:
        """Where what takes the place of `tensor` goes, and its type."""
        floating = tensor.dtype.is_floating_point or tensor.dtype.is_complex
        dtype = self.dtype if self.dtype is not None and floating else tensor.dtype
        return self.device or tensor.device, dtype

    def _collect(self, module: torch.nn.Module, twin: torch.nn.Module) -> None:
        self._pairs.append((module, twin))
        for old, new in (
            (module._parameters, twin._parameters),
            (module._buffers, twin._buffers),
        ):
            for name, tensor in old.items():
                value = new.get(name)
                if tensor is not None and value is not None and is_lazy(tensor):
                    self._values[id(tensor)] = tensor, value.detach()


def make_lazy_again(root: torch.nn.Module) -> list[str]:
    """Take back what commits did to the modules below `root`; see :func:`tlazy.dematerialize`."""
    changed = {path: m for path, m in root.named_modules() if m in _origins}
    for path, module in changed.items():
        _check_revertible(path, module, _origins[module])
    with materializing, plain_torch():
        for module in changed.values():
            _revert(module, _origins.pop(module))
    return list(changed)


def _check_revertible(path: str, module: torch.nn.Module, origin: _Origin) -> None:
    tensors = {**module._parameters, **module._buffers}
    odd = [n for n in origin.lazy if type(tensors.get(n)) not in (Parameter, Tensor)]
    if odd or type(module) is not origin.became:
        what = f"its {odd[0]} is a {type(tensors.get(odd[0])).__name__}" if odd else "its class is"
        raise RuntimeError(
            f"cannot make {path or 'the model'} ({type(module).__name__}) lazy again: {what} no "
            "longer what materializing made it; call tlazy.dematerialize before sharding or "
            "converting"
        )


def _revert(module: torch.nn.Module, origin: _Origin) -> None:
    for mapping, kind in (
        (module._parameters, UninitializedParameter),
        (module._buffers, UninitializedBuffer),
    ):
        for name in origin.lazy & mapping.keys():
            tensor: Any = mapping[name]
            if not is_lazy(tensor):  # a tied one may be already
                tensor.grad = None
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                tensor.__class__ = kind
                tensor.label = f"{name} of {origin.cls.__name__}"
            if name in origin.waiting.get("_placeholders", ()):
                origin.waiting["_placeholders"][name] = tensor
    for name, value in origin.attributes.items():
        if value is _ABSENT:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = value
    module.__dict__.update(origin.waiting)
    module.__class__ = origin.cls
    wait: Any = module
    wait._load_hook = wait._register_load_state_dict_pre_hook(wait._lazy_load_hook)
    if hasattr(wait, "_wait_for_call"):
        wait._wait_for_call()
    else:
        hook = wait.register_forward_pre_hook(wait._infer_parameters, with_kwargs=True)
        wait._initialize_hook = hook


def _origin(module: torch.nn.Module, twin: torch.nn.Module) -> _Origin:
    old, new = module.__dict__, twin.__dict__
    kept = (*_KEPT, *_WAITING)
    changed = [name for name in new if name not in kept and old.get(name, _ABSENT) is not new[name]]
    waiting = {name: old[name] for name in ("_seed",) if name in old}
    if "_placeholders" in old:
        waiting["_placeholders"] = dict.fromkeys(old["_placeholders"])
    tensors: dict[str, Any] = {**module._parameters, **module._buffers}
    return _Origin(
        cls=type(module),
        became=type(twin),
        attributes={name: old.get(name, _ABSENT) for name in changed},
        waiting=waiting,
        lazy=frozenset(name for name, tensor in tensors.items() if is_lazy(tensor)),
    )


def _refuse_swapped(module: torch.nn.Module) -> None:
    names = swapped(module)
    if names:
        raise RuntimeError(
            f"{', '.join(names)} of a lazy {type(module).__name__} is another tensor for the "
            "moment, as inside of torch.func.functional_call, but not all of the model's "
            "uninitialized tensors are: call tlazy.materialize(model, example_input) first"
        )


def _lazy(tensor: Any) -> bool:
    return tensor is None or is_lazy(tensor)


def _class_to_become(module: torch.nn.Module) -> type[torch.nn.Module]:
    """The eager class, but only where this very class names it: a subclass keeps its forward."""
    return vars(type(module)).get("cls_to_become") or type(module)


def _draw(twin: Any, seed: Any) -> None:
    initialization.fan_in_uniform_(twin.weight, twin.bias, seed=seed)


def _call(draw: Callable[[], None]) -> None:
    draw()


def _do_nothing() -> None:
    pass


def _fill(placeholder: Any, value: Tensor, restorers: list[Undo]) -> None:
    """Turn `placeholder` into a parameter (or buffer) of `value`, keeping the object."""
    if torch._has_compatible_shallow_copy_type(placeholder, value):
        attributes = dict(placeholder.__dict__)
        before = placeholder.data, type(placeholder), attributes
        restorers.append(functools.partial(_restore, placeholder, *before))
        placeholder.data = value
        placeholder.__class__ = getattr(placeholder, "cls_to_become", type(placeholder))
        placeholder.__dict__.pop("label", None)
    else:
        # Between the CPU and the meta device `.data` cannot be set; a swap keeps identity too.
        other = value.view_as(value)
        if isinstance(placeholder, Parameter):
            other = Parameter(value, placeholder.requires_grad)
        other.__dict__.update(placeholder.__dict__)
        other.__dict__.pop("label", None)
        torch.utils.swap_tensors(placeholder, other)
        restorers.append(functools.partial(torch.utils.swap_tensors, placeholder, other))


def _restore(placeholder: Any, data: Tensor, cls: type, attributes: dict[str, Any]) -> None:
    placeholder.grad = None
    placeholder.data = data
    placeholder.__class__ = cls
    placeholder.__dict__.update(attributes)


def _become(module: torch.nn.Module, twin: torch.nn.Module) -> None:
    for name in ("_parameters", "_buffers", "_modules"):
        for key, value in getattr(twin, name).items():
            getattr(module, name).setdefault(key, value)
    for name, value in twin.__dict__.items():
        if name not in _KEPT:
            module.__dict__[name] = value
    module.__class__ = type(twin)
    for name in ("_seed", "_placeholders"):
        module.__dict__.pop(name, None)
    stop_waiting(module)


def _is_waiting_root(module: torch.nn.Module) -> bool:
    return "_initialize_hook" in module.__dict__ and not is_pending(module)


def _settle(container: torch.nn.Module, root: torch.nn.Module) -> None:
    # A part that the trace did not reach goes on waiting for its own first call.
    if container is root or not any(map(is_pending, container.modules())):
        stop_waiting(container)


def stop_waiting(module: torch.nn.Module) -> None:
    """Remove the hooks of a module that has what it waited for; during a first call they stay."""
    if module in trials:
        return
    for name in ("_load_hook", "_initialize_hook", "_result_hook"):
        if name in module.__dict__:
            module.__dict__.pop(name).remove()


def _snapshot(module: torch.nn.Module, only_hooks: bool = False) -> Undo:
    """A function that gives `module` back its class, its attributes and its hooks."""
    cls = type(module)
    attributes = {
        name: value
        for name, value in module.__dict__.items()
        if not only_hooks or name in ("_initialize_hook", "_result_hook")
    }
    contents = [(module.__dict__[name], module.__dict__[name].copy()) for name in _KEPT]

    def restore() -> None:
        if not only_hooks:
            module.__class__ = cls
            for name in module.__dict__.keys() - attributes.keys():
                del module.__dict__[name]
        module.__dict__.update(attributes)
        for mapping, content in contents:
            # torch may be iterating over one that has not changed.
            if mapping.keys() != content.keys():
                mapping.clear()
                mapping.update(content)

    return restore


@dataclasses.dataclass
class Trial:
    """A first call that runs: where it fails, what it has materialized is taken back.

    Attributes:
        undo: None once another thread relies on what this one has made.
        thread: that makes the call.
        outer: the exception that was being handled when the call began.
    """

    undo: Undo | None
    thread: int
    outer: BaseException | None


trials = WeakIdKeyDictionary()  # of the modules that are being called


def keep_what_other_threads_try() -> None:
    """Let the first calls that other threads are in the middle of stand, whatever comes."""
    for trial in list(trials.values()):
        if trial.thread != threading.get_ident():
            trial.undo = None
