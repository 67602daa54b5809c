"""What can be measured: an operation of given sizes, in stock PyTorch and in tlazy.

Each operation draws its own random tensors, computes with ``torch.nn.functional`` (`stock`) or with
``tlazy.nn.functional`` (`fused`), and knows the arithmetic and the memory traffic it cannot avoid.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

import tlazy.nn.functional as tlazy_functional
from tlazy_kernels import roofline
from tlazy_kernels.reference import ACTIVATIONS
from tlazy_kernels.roofline import Cost

# Torch warns of its own padded copy, which is a part of what is measured.
warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")

Pass = Literal["forward", "backward", "full"]
PASSES: tuple[Pass, ...] = ("forward", "backward", "full")
LAYOUTS = ("ncl", "nlc")


class Unsupported(Exception):
    """An implementation that cannot do an operation, and why."""


@dataclass(frozen=True)
class Draw:
    """Where an operation's random tensors come from: normally distributed, fresh at each call.

    On the device "meta" they have shapes only.
    """

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator | None = None

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Values of mean 0 and standard deviation `scale`."""
        if self.device.type == "meta":
            return torch.empty(shape, device=self.device, dtype=self.dtype)
        return torch.empty(shape, device=self.device, dtype=self.dtype).normal_(
            0.0, scale, generator=self.generator
        )

    def signal(self, batch: int, channels: int, length: int, layout: str) -> Tensor:
        """A tensor of shape (batch, channels, length), in memory as `layout` says."""
        if layout == "nlc":
            return self.normal(batch, length, channels).transpose(1, 2)
        return self.normal(batch, channels, length)


class Operation:
    """One operation on concrete sizes; a frozen dataclass whose fields are its shape."""

    op: ClassVar[str]
    activation: str | None = None
    layout: str | None = None

    # Fields that rows carry beside the shape.
    beside_shape: ClassVar[frozenset[str]] = frozenset({"activation", "layout"})

    def shape(self) -> dict[str, Any]:
        """The sizes by name."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {f.name: getattr(self, f.name) for f in fields if f.name not in self.beside_shape}

    def tensors(self, draw: Draw) -> list[Tensor]:
        """The input, then the parameters (and buffers, which take no gradient)."""
        raise NotImplementedError

    def differentiable(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Those of `tensors` that take a gradient: all but a network's buffers."""
        return tensors

    def output_gradient(self, draw: Draw) -> Tensor:
        """dL/dy for the backward pass, in the layout of the input."""
        return draw.normal(*self.output_shape())

    def stock(self, *tensors: Tensor) -> Tensor:
        """By PyTorch's own operators, in any floating dtype."""
        raise NotImplementedError

    def fused(self, *tensors: Tensor) -> Tensor:
        """By tlazy, with as much fused into its kernels as fits."""
        raise NotImplementedError

    def cost(self, dtype: torch.dtype, which: Pass) -> Cost:
        """The arithmetic, and the least traffic: each input read once, each output written once.

        A full pass is both passes, one after the other, through memory.
        """
        forward = self.forward_cost(dtype)
        if which == "forward":
            return forward
        tensors = self.tensors(Draw(torch.device("meta"), dtype))
        # It reads what the forward pass does, but for the bias, the gradient in place of the
        # output, and what the activation saved; it writes a gradient for each tensor.
        bias = sum(t.numel() for t in tensors if t.dim() == 1)
        saved = self.output_shape().numel() if self.activation is not None else 0
        more = saved - bias + sum(t.numel() for t in tensors)
        backward = Cost(2 * forward.flops, forward.bytes + more * dtype.itemsize)
        return backward if which == "backward" else forward + backward

    def forward_cost(self, dtype: torch.dtype) -> Cost:
        """Of the forward pass: the products alone count as arithmetic, 2 per multiply-add."""
        raise NotImplementedError

    def output_shape(self) -> torch.Size:
        """The output's."""
        return self.stock(*self.tensors(Draw(torch.device("meta"), torch.float32))).shape

    def halved(self) -> Operation | None:
        """The same kind of problem at about half the work; None where it cannot be smaller."""
        raise NotImplementedError

    def finish(self, z: Tensor) -> Tensor:
        """The activation of `z`, by PyTorch."""
        return z if self.activation is None else ACTIVATIONS[self.activation](z)


@dataclass(frozen=True)
class Linear(Operation):
    """``act(x @ weight.T + bias)`` for x of shape (m, k) and weight of shape (n, k)."""

    op: ClassVar[str] = "linear"
    m: int
    n: int
    k: int
    bias: bool = True
    activation: str | None = None

    def tensors(self, draw: Draw) -> list[Tensor]:
        bias = [draw.normal(self.n)] if self.bias else []
        weight = draw.normal(self.n, self.k, scale=self.k**-0.5)
        return [draw.normal(self.m, self.k), weight, *bias]

    def stock(self, *tensors: Tensor) -> Tensor:
        return self.finish(torch_functional.linear(*tensors))

    def fused(self, *tensors: Tensor) -> Tensor:
        return tlazy_functional.linear(*tensors, activation=self.activation)  # type: ignore[arg-type]

    def forward_cost(self, dtype: torch.dtype) -> Cost:
        return roofline.linear_forward(self.m, self.n, self.k, dtype, bias=self.bias)

    def halved(self) -> Linear | None:
        return _halve_largest(self, ("m", "n", "k"))


@dataclass(frozen=True)
class Conv1d(Operation):
    """``act(conv1d(x, weight) + bias)`` for x of shape (batch, in_channels, length).

    `layout` says how x lies in memory: ``"ncl"``, or ``"nlc"`` (channels last), seen through a
    transposed view, as models of (batch, length, channels) hand it over.
    """

    batch: int
    in_channels: int
    length: int
    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int | str = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = True
    activation: str | None = None
    layout: str = "ncl"

    @property
    def op(self) -> str:  # type: ignore[override]
        return "depthwise" if self.groups == self.in_channels > 1 else "conv1d"

    @property
    def span(self) -> int:
        """Samples from the first tap to the last."""
        return self.dilation * (self.kernel_size - 1) + 1

    def tensors(self, draw: Draw) -> list[Tensor]:
        fan_in = self.in_channels // self.groups * self.kernel_size
        weight = draw.normal(
            self.out_channels,
            self.in_channels // self.groups,
            self.kernel_size,
            scale=fan_in**-0.5,
        )
        bias = [draw.normal(self.out_channels)] if self.bias else []
        x = draw.signal(self.batch, self.in_channels, self.length, self.layout)
        return [x, weight, *bias]

    def output_gradient(self, draw: Draw) -> Tensor:
        batch, channels, length = self.output_shape()
        return draw.signal(batch, channels, length, self.layout)

    def stock(self, *tensors: Tensor) -> Tensor:
        x, weight, bias = _split(tensors)
        padding = self.padding
        if padding == "causal":
            x, padding = torch_functional.pad(x, (self.span - 1, 0)), 0
        settings: Any = (self.stride, padding, self.dilation, self.groups)
        return self.finish(torch_functional.conv1d(x, weight, bias, *settings))

    def stock_channels_last(self, *tensors: Tensor) -> Tensor:
        """By ATen's conv2d over a height of 1, for x and weight of 4 dimensions."""
        x, weight, bias = _split(tensors)
        padding: Any = self.padding
        if padding == "causal":
            x, padding = torch_functional.pad(x, (self.span - 1, 0)), 0
        around = padding if isinstance(padding, str) else (0, padding)
        settings: Any = ((1, self.stride), around, (1, self.dilation), self.groups)
        y = torch_functional.conv2d(x, weight, bias, *settings)
        return self.finish(y.squeeze(2))

    def fused(self, *tensors: Tensor) -> Tensor:
        x, weight, bias = _split(tensors)
        settings: Any = (self.stride, self.padding, self.dilation, self.groups)
        activation: Any = self.activation
        return tlazy_functional.conv1d(x, weight, bias, *settings, activation=activation)

    def forward_cost(self, dtype: torch.dtype) -> Cost:
        return roofline.conv1d_forward(
            (self.batch, self.in_channels, self.length),
            (self.out_channels, self.in_channels // self.groups, self.kernel_size),
            dtype,
            out_length=self.output_shape()[2],
            bias=self.bias,
        )

    def halved(self) -> Conv1d | None:
        if self.batch > 1:
            return dataclasses.replace(self, batch=self.batch // 2)
        if self.length >= max(512, 4 * self.span):
            return dataclasses.replace(self, length=self.length // 2)
        if self.in_channels == self.groups == self.out_channels and self.groups > 16:
            half = self.groups // 2
            return dataclasses.replace(self, in_channels=half, out_channels=half, groups=half)
        larger = "in_channels" if self.in_channels >= self.out_channels else "out_channels"
        half = getattr(self, larger) // 2
        if half < 16 or half % self.groups:
            return None
        return dataclasses.replace(self, **{larger: half})


def depthwise(
    batch: int,
    channels: int,
    length: int,
    kernel_size: int,
    stride: int = 1,
    padding: int | str = "causal",
    dilation: int = 1,
    bias: bool = True,
) -> Conv1d:
    """A convolution of each channel by itself; causal unless told otherwise."""
    sizes = (batch, channels, length, channels, kernel_size, stride, padding, dilation, channels)
    return Conv1d(*sizes, bias=bias)


@dataclass(frozen=True)
class ConvTranspose1d(Operation):
    """``act(conv_transpose1d(x, weight) + bias)`` for x of shape (batch, in_channels, length)."""

    op: ClassVar[str] = "conv_transpose1d"
    batch: int
    in_channels: int
    length: int
    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    bias: bool = True
    activation: str | None = None
    layout: str = "ncl"

    def tensors(self, draw: Draw) -> list[Tensor]:
        scale = (self.in_channels * self.kernel_size) ** -0.5
        weight = draw.normal(self.in_channels, self.out_channels, self.kernel_size, scale=scale)
        bias = [draw.normal(self.out_channels)] if self.bias else []
        return [
            draw.signal(self.batch, self.in_channels, self.length, self.layout),
            weight,
            *bias,
        ]

    def output_gradient(self, draw: Draw) -> Tensor:
        batch, channels, length = self.output_shape()
        return draw.signal(batch, channels, length, self.layout)

    def stock(self, *tensors: Tensor) -> Tensor:
        return self.finish(self._run(torch_functional.conv_transpose1d, *tensors))

    def fused(self, *tensors: Tensor) -> Tensor:
        activation: Any = self.activation
        fused = functools.partial(tlazy_functional.conv_transpose1d, activation=activation)
        return self._run(fused, *tensors)

    def forward_cost(self, dtype: torch.dtype) -> Cost:
        return roofline.conv_transpose1d_forward(
            (self.batch, self.in_channels, self.length),
            (self.in_channels, self.out_channels, self.kernel_size),
            dtype,
            groups=1,
            out_length=self.output_shape()[2],
            bias=self.bias,
        )

    def halved(self) -> ConvTranspose1d | None:
        if self.batch > 1:
            return dataclasses.replace(self, batch=self.batch // 2)
        if self.length >= 512:
            return dataclasses.replace(self, length=self.length // 2)
        return _halve_largest(self, ("in_channels", "out_channels"))

    def _run(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        x, weight, bias = _split(tensors)
        return function(
            x,
            weight,
            bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )


def _split(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    x, weight, *bias = tensors
    return x, weight, bias[0] if bias else None


def _halve_largest(operation: Any, names: tuple[str, ...], least: int = 16) -> Any:
    largest = max(names, key=lambda name: getattr(operation, name))
    half = getattr(operation, largest) // 2
    return dataclasses.replace(operation, **{largest: half}) if half >= least else None


def bytes_held(tensors: list[Tensor]) -> int:
    """Bytes of the elements of `tensors`."""
    return sum(math.prod(t.shape) * t.element_size() for t in tensors)
