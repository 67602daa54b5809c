"""What all lazy modules share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.parameter import Parameter, is_lazy

from tlazy import init
from tlazy.nn.first_call import adopt_placeholders, materialize_for_good, wait_for_call
from tlazy.nn.pending import is_pending
from tlazy.nn.placeholder import UninitializedBuffer, UninitializedParameter
from tlazy.nn.refusal import RefusesWhileLazy
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
        adopt_placeholders(self, "")

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
