"""The least time each operation can take on a device: its arithmetic or its memory traffic.

The roofline model of Williams et al. 2009 (doi:10.1145/1498765.1498785): no version of an operation
runs faster than its floating-point operations over the device's rate, nor than the bytes that it
must move, each input read once and each output written once, over the memory bandwidth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["float16", "bfloat16", "tf32", "float32"]


@dataclass(frozen=True)
class Device:
    """What a device can do at most.

    Attributes:
        name: as people call it.
        bandwidth: of its memory, in bytes per second.
        rates: dense multiply-adds of its matrix units, in FLOP/s (2 per multiply-add), without
            sparsity; ``"float32"`` is the rate at full float32 accuracy.
        source: where the figures come from.
    """

    name: str
    bandwidth: float
    rates: Mapping[Precision, float]
    source: str


def _device(
    name: str, bandwidth: float, half: float, tf32: float, float32: float, source: str
) -> Device:
    rates: dict[Precision, float] = {
        "float16": half,
        "bfloat16": half,
        "tf32": tf32,
        "float32": float32,
    }
    return Device(name, bandwidth, rates, source)


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _device("H200", 4.8e12, 989e12, 494e12, 67e12, "NVIDIA H200 datasheet, SXM"),
        _device("H100", 3.35e12, 989e12, 494e12, 67e12, "NVIDIA H100 datasheet, SXM"),
        _device("A100", 2.039e12, 312e12, 156e12, 19.5e12, "NVIDIA A100 datasheet, 80 GB SXM"),
        _device("L4", 0.3e12, 121e12, 60e12, 30.3e12, "NVIDIA L4 datasheet"),
        _device("MI300X", 5.3e12, 1307e12, 653e12, 163e12, "AMD Instinct MI300X datasheet"),
    )
}


def datasheet(name: str) -> Device | None:
    """The maker's figures for the device that torch calls `name`; None where none are on file.

    >>> datasheet("NVIDIA H100 80GB HBM3").source, datasheet("NVIDIA H100 PCIe")
    ('NVIDIA H100 datasheet, SXM', None)
    """
    # The figures are of whole SXM boards; their namesakes are slower.
    if re.search(r"PCIe|NVL|40GB|MIG", name, re.IGNORECASE):
        return None
    known = (device for key, device in DEVICES.items() if re.search(rf"\b{key}\b", name))
    return next(known, None)


@dataclass(frozen=True)
class Cost:
    """What an operation must do: floating-point operations, and bytes of memory traffic."""

    flops: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def compute_time(self, device: Device, precision: Precision) -> float:
        """Seconds that the arithmetic takes at the device's full rate."""
        return self.flops / device.rates[precision]

    def memory_time(self, device: Device) -> float:
        """Seconds that the traffic takes at the device's full bandwidth."""
        return self.bytes / device.bandwidth

    def floor(self, device: Device, precision: Precision) -> float:
        """The least time in seconds: the longer of the two."""
        return max(self.compute_time(device, precision), self.memory_time(device))


def linear_forward(
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    *,
    bias: bool = False,
    save_preactivation: bool = False,
) -> Cost:
    """Cost of (m, k) @ (k, n), plus a bias (n,), with the (m, n) preactivation written or not.

    >>> linear_forward(2, 3, 4, torch.float16)
    Cost(flops=48, bytes=52)
    """
    outputs = 1 + save_preactivation
    return _cost(2 * m * n * k, m * k + n * k + bias * n + outputs * m * n, dtype)


def linear_grad_input(m: int, n: int, k: int, dtype: torch.dtype) -> Cost:
    """Cost of g (m, n) @ weight (n, k)."""
    return linear_forward(m, k, n, dtype)


def linear_grad_weight(m: int, n: int, k: int, dtype: torch.dtype) -> Cost:
    """Cost of g^T (n, m) @ x (m, k)."""
    return linear_forward(n, k, m, dtype)


def conv1d_forward(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    dtype: torch.dtype,
    *,
    out_length: int,
    bias: bool = False,
    save_preactivation: bool = False,
) -> Cost:
    """Cost of a convolution of x (N, C_in, L) by weight (C_out, C_in / groups, K).

    Products with padding count as work, as is usual. Where the stride skips input samples, those
    need not be read.

    >>> conv1d_forward((1, 1, 4), (1, 1, 2), torch.float16, out_length=3)
    Cost(flops=12, bytes=18)
    """
    outputs = (1 + save_preactivation) * x_shape[0] * weight_shape[0] * out_length
    return _cost(
        _conv1d_flops(x_shape, weight_shape, out_length),
        _samples_read(x_shape, weight_shape, out_length)
        + math.prod(weight_shape)
        + bias * weight_shape[0]
        + outputs,
        dtype,
    )


def conv1d_grad_input(
    x_shape: Sequence[int], weight_shape: Sequence[int], dtype: torch.dtype, *, out_length: int
) -> Cost:
    """Cost of the gradient of x (N, C_in, L), written whole, zeros where no output used it."""
    grad = x_shape[0] * weight_shape[0] * out_length
    elements = grad + math.prod(weight_shape) + math.prod(x_shape)
    return _cost(_conv1d_flops(x_shape, weight_shape, out_length), elements, dtype)


def conv1d_grad_weight(
    x_shape: Sequence[int], weight_shape: Sequence[int], dtype: torch.dtype, *, out_length: int
) -> Cost:
    """Cost of the gradient of weight (C_out, C_in / groups, K)."""
    return conv1d_forward(x_shape, weight_shape, dtype, out_length=out_length)


def conv_transpose1d_forward(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    dtype: torch.dtype,
    *,
    groups: int,
    out_length: int,
    bias: bool = False,
    save_preactivation: bool = False,
) -> Cost:
    """Cost of a transposed convolution of x (N, C_in, L) by weight (C_in, C_out / groups, K).

    Each sample of x meets each of its channel's weights; products that padding cuts off count.

    >>> conv_transpose1d_forward((1, 1, 3), (1, 1, 2), torch.float16, groups=1, out_length=4)
    Cost(flops=12, bytes=18)
    """
    out_channels = weight_shape[1] * groups
    elements = math.prod(x_shape) + math.prod(weight_shape) + bias * out_channels
    elements += (1 + save_preactivation) * x_shape[0] * out_channels * out_length
    return _cost(_conv1d_flops(x_shape, weight_shape, x_shape[2]), elements, dtype)


def depthwise_backward(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    dtype: torch.dtype,
    *,
    out_length: int,
    activation: bool,
) -> Cost:
    """Cost of all gradients of a depthwise convolution: of x (N, C_in, L), weight and bias.

    It reads the output gradient, x, the weight and, with an activation, the saved tensor.
    """
    grads = (1 + activation) * x_shape[0] * weight_shape[0] * out_length
    elements = grads + 2 * math.prod(x_shape) + 2 * math.prod(weight_shape) + weight_shape[0]
    return _cost(2 * _conv1d_flops(x_shape, weight_shape, out_length), elements, dtype)


def epilogue_backward(shape: Sequence[int], dtype: torch.dtype, *, activation: bool) -> Cost:
    """Memory cost of the pass over an output gradient (outer, channels, inner).

    With an activation it reads the gradient and the saved tensor and writes the product; without
    one it only reads the gradient, for the bias. Its arithmetic never counts.
    """
    return _cost(0, (3 if activation else 1) * math.prod(shape) + shape[1], dtype)


def _conv1d_flops(x_shape: Sequence[int], weight_shape: Sequence[int], out_length: int) -> int:
    return 2 * x_shape[0] * out_length * math.prod(weight_shape)


def _samples_read(x_shape: Sequence[int], weight_shape: Sequence[int], out_length: int) -> int:
    batch, channels, length = x_shape
    return batch * channels * min(length, out_length * weight_shape[2])


def _cost(flops: int, elements: int, dtype: torch.dtype) -> Cost:
    return Cost(flops, elements * dtype.itemsize)
