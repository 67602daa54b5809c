"""Floating-point operations of a forward, counted as it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class FlopCounter(TorchDispatchMode):
    """Counts by torch's own formulas; FlopCounterMode itself would put hooks on every module."""

    def __init__(self, count: Callable[[int], None]) -> None:
        from torch.utils.flop_counter import flop_registry

        super().__init__()
        self.count = count
        self.formulas = flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace == "prim":  # attributes such as x.device: the fake tensor knows
            return NotImplemented
        kwargs = kwargs or {}
        formula = self.formulas.get(func._overloadpacket)
        if formula is None:
            # In inference mode compound operators arrive whole.
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.count(int(formula(*args, **kwargs, out_val=out)))
        return out
