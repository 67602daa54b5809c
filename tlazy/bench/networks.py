"""Whole networks as operations: tlazy's layers beside torch's, with the same weights."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

import tlazy
from tlazy import nn
from tlazy.bench.operations import Draw, Operation, Pass, bytes_held
from tlazy.models import MODELS
from tlazy_kernels.reference import ACTIVATIONS
from tlazy_kernels.roofline import Cost


@dataclass(frozen=True)
class Network(Operation):
    """A network of ``tlazy.models`` on (batch, channels, length), in training mode, no dropout.

    The floor counts its products, and its input, output and parameters once; what passes between
    layers could stay on the chip.
    """

    op: ClassVar[str] = "model"
    model: str
    batch: int
    channels: int
    length: int
    classes: int = 10

    @cached_property
    def net(self) -> torch.nn.Module:
        """Of tlazy's layers."""
        net = MODELS[self.model](self.classes)
        tlazy.materialize(net, tlazy.Spec(self.batch, self.channels, self.length), seed=0)
        for module in net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return net.train()

    @cached_property
    def stock_net(self) -> torch.nn.Module:
        """Of torch's layers, with the same names."""
        net = copy.deepcopy(self.net)
        pairs: Any = ((nn.Linear, torch.nn.Linear), (nn.Conv1d, torch.nn.Conv1d))
        module: Any
        for module in net.modules():
            for ours, theirs in pairs:
                if isinstance(module, ours):
                    module.__class__ = theirs
                    then = ACTIVATIONS.get(module.activation)
                    if then is not None:
                        module.register_forward_hook(lambda _, __, z, then=then: then(z))
        return net

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all parameters and buffers: found once, and not where torch's compiler looks on, which
        in 2.11 cannot trace how."""
        return tuple(self.net.state_dict())

    def tensors(self, draw: Draw) -> list[Tensor]:
        x = draw.normal(self.batch, self.channels, self.length)
        state = self.net.state_dict()
        return [x, *(self._moved(state[name], draw) for name in self.names)]

    def differentiable(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        learned = dict(self.net.named_parameters())
        state = zip(self.names, tensors[1:], strict=True)
        return [tensors[0], *(t for name, t in state if name in learned)]

    def stock(self, *tensors: Tensor) -> Tensor:
        return self._call(self.stock_net, *tensors)

    def fused(self, *tensors: Tensor) -> Tensor:
        return self._call(self.net, *tensors)

    def cost(self, dtype: torch.dtype, which: Pass) -> Cost:
        passes = 2 if which == "full" else 1
        draw = Draw(torch.device("meta"), dtype)
        tensors = self.tensors(draw)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.stock(*tensors)
        # Input gradients of the whole are asked for too, as of every operation.
        flops = counter.get_total_flops() * {"forward": 1, "backward": 2, "full": 3}[which]
        return Cost(int(flops), passes * bytes_held(tensors))

    def halved(self) -> Network | None:
        if self.batch > 4:
            return dataclasses.replace(self, batch=self.batch // 2)
        return dataclasses.replace(self, length=self.length // 2) if self.length > 64 else None

    def _call(self, net: torch.nn.Module, x: Tensor, *state: Tensor) -> Tensor:
        return functional_call(net, dict(zip(self.names, state, strict=True)), (x,))

    @staticmethod
    def _moved(tensor: Tensor, draw: Draw) -> Tensor:
        dtype = draw.dtype if tensor.is_floating_point() else tensor.dtype
        return torch.empty_like(tensor, device=draw.device, dtype=dtype).copy_(tensor)
