"""Each fused activation and its derivative, once: device functions on fp32 values."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """y = act(z), elementwise in fp32. NaN goes through, as in ATen."""
    if ACTIVATION == "relu":
        y = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "gelu":
        y = z * _normal_cdf(z)
    elif ACTIVATION == "gelu_tanh":
        y = z * _gelu_tanh_gate(z)
    elif ACTIVATION == "silu":
        y = z * tl.sigmoid(z)
    elif ACTIVATION == "sigmoid":
        y = tl.sigmoid(z)
    elif ACTIVATION == "tanh":
        y = _tanh(z)
    else:
        y = z
    return y


@triton.jit
def activation_grad(grad, saved, ACTIVATION: tl.constexpr):
    """grad * act'(z) in fp32; `saved` is z for those in NEEDS_PREACTIVATION, y for the rest."""
    if ACTIVATION == "relu":
        g = tl.where(saved <= 0, 0.0, grad)  # a choice, not a product: 0 * inf would be NaN
    elif ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * saved * saved)  # 1 / sqrt(2 pi)
        g = grad * (_normal_cdf(saved) + saved * density)
    elif ACTIVATION == "gelu_tanh":
        gate = _gelu_tanh_gate(saved)
        inner = 1.5957691216057308 * (1.0 + 0.134145 * saved * saved)  # 2 sqrt(2 / pi)
        g = grad * (gate + saved * gate * (1.0 - gate) * inner)
    elif ACTIVATION == "silu":
        gate = tl.sigmoid(saved)
        g = grad * gate * (1.0 + saved * (1.0 - gate))
    elif ACTIVATION == "sigmoid":
        g = grad * saved * (1.0 - saved)
    else:
        tl.static_assert(ACTIVATION == "tanh", "no such activation")
        g = grad * (1.0 - saved * saved)
    return g


@triton.jit
def _normal_cdf(z):
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def _gelu_tanh_gate(z):
    """0.5 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))), written as a sigmoid."""
    return tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))


@triton.jit
def _tanh(z):
    shrunk = tl.exp(-2.0 * tl.abs(z))
    size = (1.0 - shrunk) / (1.0 + shrunk)
    large = tl.where(z < 0, -size, size)
    # Near 0 that difference cancels; the Taylor series to z^9 is exact to fp32 up to 0.25.
    s = z * z
    series = 1.0 + s * (
        -0.3333333333333333
        + s * (0.13333333333333333 + s * (-0.05396825396825397 + s * 0.021869488536155203))
    )
    return tl.where(tl.abs(z) < 0.25, z * series, large)
