"""Lazy modules: plan off to the side, then commit in one step.

A lazy module holds placeholders where its parameters will be. To give them shapes, a *twin* of the
module is built (same attributes, own tensors), and the twin's ``initialize_parameters`` runs. The
module itself changes only in :meth:`Staging.commit`, which does everything or nothing.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn.parameter import Parameter, is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from tlazy import init

# Reentrant: an initializer may itself call a lazy model.
_materializing = threading.RLock()


_NO_SHAPE = (
    "cannot take the shape of an uninitialized parameter or buffer of a lazy module: "
    "call tlazy.materialize(model, example_input) first"
)

# torch's stubs leave it out.
_TorchPlaceholder: Any = torch.nn.parameter.UninitializedTensorMixin  # type: ignore[attr-defined]


class _Placeholder(_TorchPlaceholder):
    """What torch's placeholders lack: freezing, every conversion, and faithful pickles."""

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

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        self.requires_grad = requires_grad
        return self

    def _like(self, data: Any) -> Any:
        return type(self)(self.requires_grad, data.device, data.dtype)

    def __reduce_ex__(self, proto: Any) -> Any:
        return type(self), (self.requires_grad, self.device, self.dtype)

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
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except ValueError as error:
            raise ValueError(f"{_NO_SHAPE}; {getattr(func, '__name__', func)} needs one") from error

    @property
    def shape(self) -> Any:
        raise RuntimeError(_NO_SHAPE)


class UninitializedParameter(  # type: ignore[override]
    _Placeholder, torch.nn.parameter.UninitializedParameter
):
    """A parameter whose shape is not known yet."""


class UninitializedBuffer(  # type: ignore[override]
    _Placeholder, torch.nn.parameter.UninitializedBuffer
):
    """A buffer whose shape is not known yet."""

    def _like(self, data: Any) -> Any:
        like: Any = type(self)
        return like(self.requires_grad, data.device, data.dtype, self.persistent)

    def __reduce_ex__(self, proto: Any) -> Any:
        return type(self), (self.requires_grad, self.device, self.dtype, self.persistent)


class LazyModuleMixin(torch.nn.modules.lazy.LazyModuleMixin):
    """``torch.nn.modules.lazy.LazyModuleMixin`` that changes the module only when all went well.

    A subclass gives ``cls_to_become`` and ``initialize_parameters(*args, **kwargs)``, as for
    torch's mixin, and calls :meth:`add_placeholders` in its constructor. A subclass of a lazy
    layer that does not set ``cls_to_become`` itself keeps its class, and with it its ``forward``.
    """

    _seed: int

    def add_placeholders(self, bias: bool, device: Any, dtype: torch.dtype | None) -> None:
        """Set ``weight`` and ``bias`` to placeholders and draw the seed of their values."""
        placeholder: Any = UninitializedParameter
        self.weight = placeholder(device=device, dtype=dtype)
        self.bias = placeholder(device=device, dtype=dtype) if bias else None
        self._seed = init.draw_seed()

    def shape_parameters(self, weight: tuple[int, ...], bias: tuple[int, ...]) -> None:
        """Materialize ``weight`` and ``bias``; one that a tied layer has shaped must agree.

        Raises:
            RuntimeError: where it does not.
        """
        for name, shape in (("weight", weight), ("bias", bias)):
            parameter = getattr(self, name)
            if parameter is None:
                continue
            if not is_lazy(parameter) and tuple(parameter.shape) != shape:
                raise RuntimeError(
                    f"the input asks for a {name} of shape {shape}, but the {name} of this "
                    f"{type(self).__name__} already has shape {tuple(parameter.shape)}"
                )
        for name, shape in (("weight", weight), ("bias", bias)):
            if is_lazy(getattr(self, name)):
                getattr(self, name).materialize(shape)

    def reset_parameters(self) -> None:
        """Initialize from the seed drawn at construction; a no-op while shapes are unknown."""
        seed = getattr(self, "_seed", None)
        if self.has_uninitialized_params() or len(self.weight) == 0:  # type: ignore[misc]
            return
        if seed is None:  # a subclass that has kept its class
            super().reset_parameters()  # type: ignore[misc]
        else:
            init.fan_in_uniform_(self.weight, self.bias, seed=seed)

    def _infer_parameters(self, module: Any, args: Any, kwargs: Any = None) -> None:
        first_call(module, args, kwargs or {})

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        own: Any = self
        if is_pending(own) and (staging := stage_state_dict(own, state_dict, prefix)):
            staging.commit(own)
            # The class has changed, and super() of the old one is no longer ours to call.
            own._load_from_state_dict(state_dict, prefix, *rest)
        else:
            super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]


def blank(placeholder: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A new placeholder of the same kind, trainable where `placeholder` is."""
    return type(placeholder)(placeholder.requires_grad, device, dtype)


def is_pending(module: torch.nn.Module) -> bool:
    """Whether `module` is a lazy module, torch's or tlazy's, that still waits for its input."""
    lazy = isinstance(module, torch.nn.modules.lazy.LazyModuleMixin)
    return lazy and "_initialize_hook" in module.__dict__


def pending_modules(root: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The lazy modules below `root` (or `root` itself) that still wait, by path."""
    return {path: module for path, module in root.named_modules() if is_pending(module)}


def arm(root: torch.nn.Module, part: torch.nn.Module) -> None:
    """Make the first call of `root` materialize the whole tree, if anything in `part` is lazy."""
    modules = list(part.modules())
    if not any(map(is_pending, modules)):
        return
    for module in modules:
        _adopt_placeholders(module)
    if "_first_call_hook" not in root.__dict__:
        root._first_call_hook = root.register_forward_pre_hook(  # type: ignore[assignment]
            first_call, prepend=True, with_kwargs=True
        )


def _adopt_placeholders(module: torch.nn.Module) -> None:
    """Give torch's own lazy modules in a tlazy tree placeholders that convert and copy."""
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if type(tensor) is torch.nn.parameter.UninitializedParameter:
            tensor.__class__ = UninitializedParameter
        elif type(tensor) is torch.nn.parameter.UninitializedBuffer:
            tensor.__class__ = UninitializedBuffer


@torch._disable_dynamo  # under torch.compile the first call runs outside of the graph
def first_call(module: torch.nn.Module, args: Any, kwargs: Any = None) -> None:
    """Forward pre-hook: trace `module` on its first input and materialize everything below it.

    Threads that call the same model wait here for the one that came first.
    """
    from tlazy.trace import UntraceableError, trace  # they build on this module

    with _materializing:
        if not is_pending(module) and "_first_call_hook" not in module.__dict__:
            return
        try:
            plan = trace(module, *args, **(kwargs or {}))
        except UntraceableError:
            if is_pending(module):
                raise
            # Shapes alone do not lead through this forward: each layer goes alone.
            _disarm(module)
            return
        plan.materialize()


class Staging:
    """Twins of lazy modules with real tensors, ready to take the modules' place.

    Args:
        device: where the tensors go, None for where each placeholder is.
        dtype: of the floating-point tensors, None for each placeholder's own.
        initialize: whether values are wanted, or only memory for a checkpoint.
    """

    def __init__(
        self,
        device: Any = None,
        dtype: torch.dtype | None = None,
        initialize: bool = True,
    ) -> None:
        self.device = None if device is None else torch.device(device)
        self.dtype = dtype
        self.initialize = initialize
        self._pairs: list[tuple[torch.nn.Module, torch.nn.Module]] = []
        # By identity of the placeholder, so that tied layers get one tensor.
        self._values: dict[int, tuple[Any, Tensor]] = {}

    def add(
        self,
        module: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        seed: int | None = None,
        init: Callable[[torch.nn.Module], Any] | None = None,
    ) -> torch.nn.Module:
        """Build the twin of `module` for a call with `args` (meta tensors) and return it.

        `module` is left alone. `seed` replaces the one drawn at construction; `init` is called
        with the twin once it has its default values.
        """
        _refuse_swapped_parameters(module)
        with _plain_torch(), _seeded(seed):
            twin = self._twin(module)
            if not self.initialize:
                twin.__dict__["reset_parameters"] = _do_nothing
            if seed is not None and "_seed" in twin.__dict__:
                twin.__dict__["_seed"] = seed
            twin.initialize_parameters(*args, **kwargs)  # type: ignore[operator]
            if twin.has_uninitialized_params():  # type: ignore[operator]
                raise RuntimeError(f"module {twin._get_name()} has not been fully initialized")
            for name in ("_initialize_hook", "_load_hook", "_seed", "reset_parameters"):
                twin.__dict__.pop(name, None)
            twin.__class__ = _class_to_become(module)
            if init is not None:
                init(twin)
        self._collect(module, twin)
        return twin

    def _twin(self, module: torch.nn.Module) -> torch.nn.Module:
        twin = object.__new__(type(module))
        twin.__dict__.update(module.__dict__)
        twin._parameters = {name: self._stand_in(p) for name, p in module._parameters.items()}
        twin._buffers = {name: self._stand_in(b) for name, b in module._buffers.items()}
        twin._modules = dict(module._modules)
        return twin

    def _stand_in(self, tensor: Any) -> Any:
        """A tensor that the twin may fill: a fresh placeholder, or a copy of what is there."""
        if tensor is None:
            return None
        if id(tensor) in self._values:
            return self._values[id(tensor)][1]
        device, dtype = self._target(tensor)
        if self.initialize and device.type != "meta":
            device = torch.device("cpu")  # one place to draw values: the same on every device
        if is_lazy(tensor):
            stand_in = blank(tensor, device, dtype)
            self._values[id(tensor)] = tensor, stand_in
            return stand_in
        copy = tensor.detach().to(device, copy=True)
        if isinstance(tensor, Parameter):
            return Parameter(copy, tensor.requires_grad)
        return copy

    def _target(self, tensor: Any) -> tuple[torch.device, torch.dtype]:
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
                    device, _ = self._target(tensor)
                    with _plain_torch():
                        self._values[id(tensor)] = tensor, value.detach().to(device)

    def planned(self, placeholder: Any) -> Tensor | None:
        """What will take the place of `placeholder`, None where it stays lazy."""
        _, value = self._values.get(id(placeholder), (None, None))
        return value

    def commit(self, root: torch.nn.Module) -> Callable[[], None]:
        """Let the twins' tensors, attributes and classes become the modules' own, all or nothing.

        `root`'s containers no longer wait for a first call afterwards. Placeholders keep their
        identity, so an optimizer that holds them goes on holding the parameters.

        Returns:
            a function that takes everything back.
        """
        restorers: list[Callable[[], None]] = []

        def undo() -> None:
            while restorers:
                restorers.pop()()

        try:
            with _materializing, _plain_torch():
                # The other threads' way in, each module's hook, closes only when it is complete.
                for placeholder, value in self._values.values():
                    _fill(placeholder, value, restorers)
                for module, twin in self._pairs:
                    restorers.append(_snapshot(module))
                    _become(module, twin)
                for container in reversed(list(root.modules())):
                    if "_first_call_hook" in container.__dict__:
                        restorers.append(_snapshot(container))
                        self._settle(container, root)
        except BaseException:
            undo()
            raise
        return undo

    def _settle(self, container: torch.nn.Module, root: torch.nn.Module) -> None:
        # A part that the trace did not reach goes on waiting for its own first call.
        if container is root or not any(map(is_pending, container.modules())):
            _disarm(container)


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
        RuntimeError: where a shape contradicts a constructor: key, expected and found shape.
    """
    staging = None
    for path, module in pending_modules(root).items():
        start = f"{prefix}{path}." if path else prefix
        names = (*module._parameters, *module._buffers)
        found = {
            name: tuple(shapes[start + name].shape)
            for name in names
            if start + name in shapes and not is_lazy(shapes[start + name])
        }
        if not found:
            continue
        _check_against_constructor(module, start, found)
        missing = [name for name in _lazy_names(module) if name not in found]
        staging = staging or Staging(initialize=False)
        staging.initialize = bool(missing)
        staging.add(module, (input_for(module, found),), {})
    return staging


def _check_against_constructor(
    module: torch.nn.Module, start: str, found: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the checkpoint's shapes with those that its own input width would give."""
    probe = Staging(device="meta", initialize=False)
    twin = probe.add(module, (input_for(module, found),), {})
    expected = {**twin._parameters, **twin._buffers}
    for name in _lazy_names(module):
        shape = tuple(expected[name].shape)  # type: ignore[union-attr]
        if name in found and found[name] != shape:
            raise RuntimeError(
                f"size mismatch for {start}{name}: the checkpoint holds {found[name]}, "
                f"but {module} takes {shape}"
            )


def input_for(module: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """The smallest meta input for which the lazy `module` would have tensors of these shapes.

    A lazy module of a user's own says so itself, in a method ``input_for(shapes)``.

    Raises:
        RuntimeError: for a class that tlazy knows nothing about.
    """
    own = getattr(module, "input_for", None)
    if own is not None:
        return own(shapes)
    shape = shapes.get("weight") or shapes.get("running_mean") or next(iter(shapes.values()))
    if isinstance(module, torch.nn.Linear):
        sizes = [1, shape[1] if len(shape) > 1 else 1]
    elif isinstance(module, torch.nn.modules.conv._ConvNd):
        width = shape[0] if module.transposed else shape[1] * module.groups if shape[1:] else 1
        sizes = [1, width, *module.kernel_size]
    elif isinstance(module, torch.nn.modules.batchnorm._NormBase):
        sizes = [1, shape[0] if shape else 1, 1]
    else:
        raise RuntimeError(
            f"cannot tell the input of {type(module).__name__} from a checkpoint: give it a method "
            "input_for(shapes), or call tlazy.materialize(model, example_input) before loading"
        )
    return torch.empty(sizes, device="meta")


def _lazy_names(module: torch.nn.Module) -> list[str]:
    tensors: dict[str, Any] = {**module._parameters, **module._buffers}
    return [name for name, tensor in tensors.items() if is_lazy(tensor)]


def _refuse_swapped_parameters(module: torch.nn.Module) -> None:
    """Refuse to decide about a module whose placeholders are somewhere else for the moment."""
    for name, tensor in module._parameters.items():
        if tensor is not None and not isinstance(tensor, Parameter):
            raise RuntimeError(
                f"{name} of a lazy {type(module).__name__} is a plain tensor now, as inside of "
                "torch.func.functional_call: call tlazy.materialize(model, example_input) first"
            )


def _class_to_become(module: torch.nn.Module) -> type[torch.nn.Module]:
    """The eager class, but only where this very class names it: a subclass keeps its forward."""
    return vars(type(module)).get("cls_to_become") or type(module)


def _fill(placeholder: Any, value: Tensor, restorers: list[Callable[[], None]]) -> None:
    """Turn `placeholder` into a parameter (or buffer) of `value`, keeping the object."""
    if torch._has_compatible_shallow_copy_type(placeholder, value):
        restorers.append(
            functools.partial(_restore, placeholder, placeholder.data, type(placeholder))
        )
        placeholder.data = value
        placeholder.__class__ = placeholder.cls_to_become
    else:
        # Between the CPU and the meta device `.data` cannot be set; a swap keeps identity too.
        other = value
        if isinstance(placeholder, Parameter):
            other = Parameter(value, placeholder.requires_grad)
        torch.utils.swap_tensors(placeholder, other)
        restorers.append(functools.partial(torch.utils.swap_tensors, placeholder, other))


def _restore(placeholder: Any, data: Tensor, cls: type) -> None:
    placeholder.data = data
    placeholder.__class__ = cls


def _become(module: torch.nn.Module, twin: torch.nn.Module) -> None:
    for name in ("_parameters", "_buffers", "_modules"):
        for key, value in getattr(twin, name).items():
            getattr(module, name).setdefault(key, value)
    for name, value in twin.__dict__.items():
        if name not in _KEPT:
            module.__dict__[name] = value
    module.__class__ = type(twin)
    module.__dict__.pop("_seed", None)
    for name in ("_load_hook", "_initialize_hook"):
        if name in module.__dict__:
            module.__dict__.pop(name).remove()


def _disarm(container: torch.nn.Module) -> None:
    container.__dict__.pop("_first_call_hook").remove()


# Changed in place by a commit, never replaced: handles of hooks point at these objects.
_KEPT = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_load_state_dict_pre_hooks",
)


def _snapshot(module: torch.nn.Module) -> Callable[[], None]:
    """A function that gives `module` back its class, its attributes and its hooks."""
    cls, attributes = type(module), dict(module.__dict__)
    contents = [(attributes[name], attributes[name].copy()) for name in _KEPT]

    def restore() -> None:
        module.__class__ = cls
        for name in module.__dict__.keys() - attributes.keys():
            del module.__dict__[name]
        module.__dict__.update(attributes)
        for mapping, content in contents:
            mapping.clear()
            mapping.update(content)

    return restore


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Leave inference mode, autograd, vmap and fake tensors: what is made here has to last."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_disable_current_modes())
        stack.enter_context(temporarily_clear_interpreter_stack())
        yield


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed the global CPU generator for initializers that draw from it, then put it back."""
    if seed is None:
        yield
        return
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def _do_nothing() -> None:
    pass
