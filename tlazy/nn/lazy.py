"""Lazy modules, and what happens at the first call of a tree that holds some."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.parameter import Parameter, is_lazy

from tlazy import init
from tlazy.isolation import plain_torch
from tlazy.nn import staging
from tlazy.nn.placeholder import UninitializedBuffer, UninitializedParameter, adopt
from tlazy.nn.refusal import WAY_OUT, RefusesWhileLazy, refuse_recording
from tlazy.nn.staging import is_pending, materializing, pending_modules, swapped, trials
from tlazy.nn.state_dict import load_all_or_nothing, stage_state_dict

__all__ = ["LazyModuleMixin", "UninitializedBuffer", "UninitializedParameter"]


class LazyModuleMixin(RefusesWhileLazy, torch.nn.modules.lazy.LazyModuleMixin):
    """``torch.nn.modules.lazy.LazyModuleMixin`` that changes the module only when all went well.

    A subclass gives ``cls_to_become`` and ``initialize_parameters(*args, **kwargs)``, as for
    torch's mixin, and calls :meth:`add_placeholders` in its constructor. A subclass of a lazy
    layer that does not set ``cls_to_become`` itself keeps its class, and with it its ``forward``.
    """

    _seed: int
    _placeholders: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[misc]
        self.__dict__.pop("_initialize_hook").remove()  # torch's, which changes the module at once
        self._wait_for_call()

    def _wait_for_call(self) -> None:
        wait_for_call(self)

    def add_placeholders(self, bias: bool, device: Any, dtype: torch.dtype | None) -> None:
        """Set ``weight`` and ``bias`` to placeholders and draw the seed of their values."""
        placeholder: Any = UninitializedParameter
        self.weight = placeholder(device=device, dtype=dtype)
        self.bias = placeholder(device=device, dtype=dtype) if bias else None
        self._seed = init.draw_seed()
        _adopt_placeholders(self, "")  # type: ignore[arg-type]

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

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        super().register_parameter(name, param)  # type: ignore[misc]
        # Assigned by hand, to tie layers: its own from now on, unlike what functional_call swaps.
        if name in self.__dict__.get("_placeholders", ()):
            self._placeholders[name] = param

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
        materialize_for_good(module, args, kwargs)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        *rest: Any,
    ) -> None:
        own: Any = self
        staged = stage_state_dict(own, state_dict, prefix) if is_pending(own) else None
        tensors = {**own._parameters, **own._buffers}
        lacking = [n for n, t in tensors.items() if is_lazy(t) and prefix + n not in state_dict]
        if staged and strict and lacking:
            missing_keys += [prefix + name for name in lacking]  # load_state_dict raises for them
            return

        def load(state: Mapping[str, Any]) -> None:
            # Where the class has changed, super() of the old one is no longer ours to call.
            loader: Any = own if staged else super(LazyModuleMixin, own)
            loader._load_from_state_dict(state, prefix, local_metadata, strict, missing_keys, *rest)

        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        load_all_or_nothing(own, staged, state_dict, prefix, assign, load)


def arm(root: torch.nn.Module, part: torch.nn.Module, prefix: str = "") -> None:
    """Make the first call of `root` materialize the whole tree, if anything in `part` is lazy."""
    modules = dict(part.named_modules(prefix=prefix))
    if not any(map(is_pending, modules.values())):
        return
    for path, module in modules.items():
        if is_pending(module):
            _adopt_placeholders(module, path)
    wait_for_call(root)


def wait_for_call(module: Any) -> None:
    """Hook the beginning and the end of the next call of `module`."""
    if "_initialize_hook" not in module.__dict__:
        module._initialize_hook = module.register_forward_pre_hook(
            first_call, prepend=True, with_kwargs=True
        )
    if "_result_hook" not in module.__dict__:
        module._result_hook = module.register_forward_hook(end_of_first_call, always_call=True)


def _adopt_placeholders(module: torch.nn.Module, path: str) -> None:
    """Note which placeholders are the module's own, name them, and let them convert and copy."""
    tensors: dict[str, Any] = {**module._parameters, **module._buffers}
    lazy = {name: tensor for name, tensor in tensors.items() if is_lazy(tensor)}
    for name, tensor in lazy.items():
        adopt(tensor, f"{path}.{name}" if path else f"{name} of {type(module).__name__}")
    module.__dict__.setdefault("_placeholders", {}).update(lazy)
    # torch's own layers get their seed here. Norms draw nothing: their eager forms, which hold no
    # seed, can take their place without a change for the layers after them.
    if "_seed" not in module.__dict__ and not isinstance(
        module, torch.nn.modules.batchnorm._NormBase
    ):
        module.__dict__["_seed"] = init.draw_seed()


def _outside_of_graphs(function: Callable[..., None]) -> Any:
    """Let `function` run uncompiled under torch.compile; where that cannot be, say what to do."""
    skipped: Any = torch._disable_dynamo(function)
    skipped._torchdynamo_disable = True
    skipped._torchdynamo_disable_msg = f"the first call of a lazy model materializes it: {WAY_OUT}"
    return skipped


@_outside_of_graphs
def materialize_for_good(module: torch.nn.Module, args: Any, kwargs: Any = None) -> None:
    """Trace `module` on its first input and materialize everything below it, before a call.

    torch.compile asks a lazy module for this, under the name ``_infer_parameters``, before it
    traces the call itself; what is made here stays, whatever comes of the call.
    """
    from tlazy.trace import trace  # it builds on this module

    with materializing:
        pending = pending_modules(module)
        if not pending:
            staging.stop_waiting(module)
        elif not _is_functional(pending):
            trace(module, *args, **(kwargs or {})).commit()


@_outside_of_graphs
def first_call(module: torch.nn.Module, args: Any, kwargs: Any = None) -> None:
    """Forward pre-hook: trace `module` on its first input and materialize everything below it.

    Threads that call the same model wait here for the one that came first.
    """
    from tlazy.trace import trace  # it builds on this module

    with materializing:
        if module in trials:
            _join(module)
            return
        pending = pending_modules(module)
        if not pending:
            staging.stop_waiting(module)
            return
        if _is_functional(pending):
            return
        refuse_recording(module, (args, kwargs))
        plan = trace(module, *args, **(kwargs or {}))
        restore_buffers = _keep_buffers(module)
        trials[module] = staging.Trial(None, threading.get_ident(), sys.exc_info()[1])
        try:
            uncommit = plan.commit()
        except BaseException:
            del trials[module]
            raise

        def undo() -> None:
            restore_buffers()
            uncommit()

        trials[module].undo = undo


def _keep_buffers(root: torch.nn.Module) -> staging.Undo:
    """A function that puts the values of buffers back: a forward that fails has counted batches."""
    buffers: list[Any] = [b for b in root.buffers() if not is_lazy(b) and not b.is_meta]
    with plain_torch():
        values = [buffer.clone() for buffer in buffers]

    def restore() -> None:
        with plain_torch():
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)

    return restore


def _join(module: torch.nn.Module) -> None:
    """Note one more call of a module whose first call has not ended yet."""
    trial = trials[module]
    if trial.thread != threading.get_ident():
        trial.undo = None  # this call relies on what the first one has made
        return
    # A recursive call, or the first one was interrupted: either way it stands.
    del trials[module]
    staging.stop_waiting(module)


def _is_functional(pending: Mapping[str, torch.nn.Module]) -> bool:
    """Whether ``functional_call`` has swapped in all that is missing: nothing is left to decide."""
    tensors: list[Any] = [
        tensor
        for module in pending.values()
        for tensor in (*module._parameters.values(), *module._buffers.values())
    ]
    return any(map(swapped, pending.values())) and not any(map(is_lazy, tensors))


@_outside_of_graphs
def end_of_first_call(module: torch.nn.Module, args: Any, output: Any) -> None:
    """Forward hook, called after an error too: take the materialization back if there was one."""
    with materializing:
        trial = trials.get(module)
        if trial is None or trial.thread != threading.get_ident():
            return
        del trials[module]
        error = sys.exc_info()[1]
        if error is None or error is trial.outer:
            staging.stop_waiting(module)
        elif trial.undo is not None:
            trial.undo()
