"""One convolution's arguments, and the comparison of its three launchers with their twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from tests.tlazy_kernels.agreement import SMALL, assert_agrees, random
from tlazy_kernels import launch
from tlazy_kernels.configs import TileConfig
from tlazy_kernels.conv1d import conv1d_forward, conv1d_grad_input, conv1d_grad_weight


@dataclass(frozen=True)
class Convolution:
    """Sizes and settings; `padding` is (left, right)."""

    batch: int
    in_channels: int
    out_channels: int
    length: int
    taps: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1

    def __str__(self) -> str:
        return (
            f"{self.batch}x{self.in_channels}x{self.length} to {self.out_channels} k{self.taps} "
            f"s{self.stride} p{self.padding[0]},{self.padding[1]} d{self.dilation} g{self.groups}"
        )

    @property
    def depthwise(self) -> bool:
        """Whether it goes to the depthwise kernels."""
        return self.in_channels == self.groups

    @property
    def settings(self) -> tuple[int, tuple[int, int], int, int]:
        """As the launchers take them, after the tensors."""
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def out_length(self) -> int:
        reach = self.dilation * (self.taps - 1) + 1
        return (self.length + sum(self.padding) - reach) // self.stride + 1

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of x, weight, bias and the output's gradient."""
        return (
            (self.batch, self.in_channels, self.length),
            (self.out_channels, self.in_channels // self.groups, self.taps),
            (self.out_channels,),
            (self.batch, self.out_channels, self.out_length),
        )

    def operands(self, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x, weight, bias, grad), random."""
        x, weight, bias, grad = (
            random(*shape, dtype=dtype, device=device, seed=i)
            for i, shape in enumerate(self.shapes)
        )
        return x, weight, bias, grad


def channels_last(x: Tensor) -> Tensor:
    """`x`, of shape (N, C, L), with its channels side by side in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def assert_all_agree(
    case: Convolution,
    operands: tuple[Tensor, Tensor, Tensor | None, Tensor],
    config: TileConfig | None = SMALL,
    activation: str | None = None,
) -> None:
    """Forward, input gradient and weight gradient against their twins."""
    x, weight, bias, grad = operands
    settings = case.settings
    assert_agrees(conv1d_forward, x, weight, bias, *settings, activation=activation, config=config)
    assert_agrees(conv1d_grad_input, grad, weight, case.length, *settings, config=config)
    assert_agrees(conv1d_grad_weight, grad, x, case.taps, *settings, config=config)


def kernels_of(call: Callable[[], object]) -> set[str]:
    """The names of the kernels that a call runs, which nobody may have made before."""
    with mock.patch.object(launch, "_plans", {}):
        call()
        return {step.kernel.fn.__name__ for plan in launch._plans.values() for step in plan.steps}
