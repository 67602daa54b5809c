"""Shapes of a model in whose forward values decide: a copy of it runs on real tensors, once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy
from torch.utils._pytree import tree_leaves

from tlazy.nn.placeholder import blank
from tlazy.nn.staging import Staging
from tlazy.recorder import Recorder, is_wrapped
from tlazy.spec import Spec


def has_data(model: torch.nn.Module, inputs: Any) -> bool:
    """Whether there are values to compute with everywhere."""
    leaves = tree_leaves(inputs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    tensors += [*model.parameters(), *model.buffers()]
    empty = any(isinstance(leaf, Spec) for leaf in leaves)
    return not empty and not any(tensor.is_meta or is_wrapped(tensor) for tensor in tensors)


class DryRun(Recorder):
    """Runs a copy of `model` with real tensors where values decide about the way."""

    def __init__(self, model: torch.nn.Module, reason: str) -> None:
        self.model = model
        self.dry_run = reason
        self.mode = nullcontext()
        self.rows = []
        self.calls = []
        self.stack = []
        self.counted = set()
        self._copy(model)

    def _fake(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if is_lazy(value):
            return blank(value, value.device, value.dtype)
        duplicate = value.detach().clone()
        if isinstance(value, Parameter):
            return Parameter(duplicate, value.requires_grad)
        return duplicate.requires_grad_(value.requires_grad)

    def _shaped(self, module: torch.nn.Module, args: Any, kwargs: Any) -> torch.nn.Module:
        staging = Staging()
        twin = staging.add(module, args, kwargs)
        staging.finish()
        return twin

    def _on(self, value: Tensor, device: torch.device) -> Tensor:
        moved = value.detach().to(device)
        return Parameter(moved, value.requires_grad) if isinstance(value, Parameter) else moved
