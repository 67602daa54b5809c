"""Plan off to the side, then commit in one step.

To give the placeholders of a lazy module their shapes, a *twin* of the module is built (same
attributes, own tensors), and the twin's ``initialize_parameters`` runs. The module itself changes
only in :meth:`Staging.commit`, which does everything or nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy

from tlazy import init as initialization
from tlazy.isolation import plain_torch, seeded
from tlazy.nn.commit import become, fill, settle, snapshot
from tlazy.nn.pending import (
    WAITING,
    Undo,
    is_waiting_root,
    keep_what_other_threads_try,
    swapped,
)
from tlazy.nn.placeholder import blank
from tlazy.nn.revert import forget, origin_of, remember


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
        on_meta: bool = False,
        seed: int | None = None,
        init: Callable[[torch.nn.Module], Any] | None = None,
    ) -> torch.nn.Module:
        """Build the twin of `module` for a call with `args` (meta tensors) and return it.

        `module` is left alone. Without `initialize` the twin's tensors are memory and no more, and
        `on_meta` not even that: each has to be given.
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
            # Values are drawn in one place, to be the same on every device.
            place = torch.device("meta" if on_meta else "cpu") if initialize or on_meta else None
            twin = self._twin(module, place)
            if later or not initialize:
                twin.__dict__["reset_parameters"] = _do_nothing
            elif seed is not None:
                twin.__dict__["_seed"] = seed
            twin.initialize_parameters(*args, **kwargs)  # type: ignore[operator]
            if twin.has_uninitialized_params():  # type: ignore[operator]
                raise RuntimeError(f"module {twin._get_name()} has not been fully initialized")
            for name in (*WAITING, "reset_parameters"):
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

    def commit(self, root: torch.nn.Module, restorers: list[Undo]) -> None:
        """Let the twins' tensors, attributes and classes become the modules' own.

        `root`'s containers no longer wait for a first call afterwards. Placeholders keep their
        identity, so an optimizer that holds them goes on holding the parameters.

        Args:
            restorers: of the surrounding ``all_or_nothing``; gets what takes each step back.
        """
        self.finish()
        origins = [origin_of(module, twin) for module, twin in self._pairs]
        with plain_torch():
            keep_what_other_threads_try()
            # The other threads' way in, each module's hook, closes only when it is complete.
            for placeholder, value in self._values.values():
                fill(placeholder, value, restorers)
            for (module, twin), origin in zip(self._pairs, origins, strict=True):
                restorers.append(functools.partial(forget, module))
                remember(module, origin)
                restorers.append(snapshot(module))
                become(module, twin)
            for container in reversed(list(root.modules())):
                if is_waiting_root(container):
                    restorers.append(snapshot(container, only_hooks=True))
                    settle(container, root)

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

    def _twin(self, module: torch.nn.Module, place: torch.device | None) -> torch.nn.Module:
        twin = object.__new__(type(module))
        twin.__dict__.update(module.__dict__)
        twin._parameters = {n: self._stand_in(p, place) for n, p in module._parameters.items()}
        twin._buffers = {n: self._stand_in(b, place) for n, b in module._buffers.items()}
        twin._modules = dict(module._modules)
        return twin

    def _stand_in(self, tensor: Any, place: torch.device | None) -> Any:
        """A tensor at `place` (None for where it is planned to be) that the twin may fill: a fresh
        placeholder, or a copy of what is there."""
        if tensor is None:
            return None
        if id(tensor) in self._values:
            return self._values[id(tensor)][1]
        device, dtype = self.target(tensor)
        if place is not None and device.type != "meta":
            device = place
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
        with torch._C.DisableTorchFunctionSubclass():  # four times as fast for a placeholder
            device, dtype = tensor.device, tensor.dtype
        if self.dtype is not None and (dtype.is_floating_point or dtype.is_complex):
            dtype = self.dtype
        return self.device or device, dtype

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


def _refuse_swapped(module: torch.nn.Module) -> None:
    names = swapped(module)
    if names:
        raise RuntimeError(
            f"{', '.join(names)} of a lazy {type(module).__name__} is another tensor for the "
            "moment, as inside of torch.func.functional_call, but not all of the model's "
            "uninitialized tensors are: call tlazy.materialize(model, example_input) first"
        )


def _class_to_become(module: torch.nn.Module) -> type[torch.nn.Module]:
    """The eager class, but only where this very class names it: a subclass keeps its forward."""
    return vars(type(module)).get("cls_to_become") or type(module)


def _draw(twin: Any, seed: Any) -> None:
    initialization.fan_in_uniform_(twin.weight, twin.bias, seed=seed)


def _call(draw: Callable[[], None]) -> None:
    draw()


def _do_nothing() -> None:
    pass
