"""Each fused activation and its derivative, once: device functions on fp32 values.

They stand in kernels that wait for memory or feed matrix units, where every instruction counts. So
they are made of what is one instruction on NVIDIA's GPUs in each version of Triton: products,
`exp2` and `rsqrt`, which become ``ex2.approx.ftz`` and ``rsqrt.approx.ftz``. `tl.exp` minds
subnormal numbers in four, a division takes eight and `erf` thirty.

Each is within 6e-7 max(1, |z|) of float64, gelu within 1.5e-7, where the two are as far off as PTX
allows, by 2^-22.5 and 2^-22.9 of themselves; where they are rounded to nearest, within 3e-7.
"""

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
        y = z * _sigmoid(_gelu_tanh_inner(z))
    elif ACTIVATION == "silu":
        y = z * _sigmoid(z)
    elif ACTIVATION == "sigmoid":
        y = _sigmoid(z)
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
        density = tl.exp2(-0.7213475204444817 * saved * saved - 1.3257480647361595)
        g = grad * (_normal_cdf(saved) + saved * density)
    elif ACTIVATION == "gelu_tanh":
        gate, slope = _sigmoid_and_slope(_gelu_tanh_inner(saved))
        inner = 1.5957691216057308 * (1.0 + 0.134145 * saved * saved)  # 2 sqrt(2 / pi)
        g = grad * (gate + saved * slope * inner)
    elif ACTIVATION == "silu":
        gate, slope = _sigmoid_and_slope(saved)
        g = grad * (gate + saved * slope)
    elif ACTIVATION == "sigmoid":
        g = grad * saved * (1.0 - saved)
    else:
        tl.static_assert(ACTIVATION == "tanh", "no such activation")
        g = grad * (1.0 - saved * saved)
    return g


@triton.jit
def _normal_cdf(z):
    """The normal distribution's P(Z < z), to 1.4e-7, and from -5 on to 1e-3 of itself.

    log2 P(Z < -t) is nearly a parabola. The polynomial of degree 8 was found for the least largest
    error of P, and of t P where t > 1, by Lawson's algorithm on t <= 6: 2.5e-8. Its last
    coefficient is negative, and so it falls to -inf beyond: the tail is 0 there, and never NaN.
    """
    t = tl.abs(z)
    power = -0.00013039734039921314 + t * (2.6763324058265425e-05 - t * 1.7166593124784413e-06)
    power = 0.0072074998170137405 + t * (-0.0002602956665214151 + t * power)
    power = -0.45918503403663635 + t * (-0.05258222296833992 + t * power)
    tail = tl.exp2(-1.0 + t * (-1.1511071920394897 + t * power))
    return tl.where(z < 0, tail, 1.0 - tail)


@triton.jit
def _gelu_tanh_inner(z):
    """2 sqrt(2 / pi) (z + 0.044715 z^3), whose sigmoid is 0.5 (1 + tanh(half of it))."""
    return z * (1.5957691216057308 + 0.07135481282553486 * z * z)


@triton.jit
def _reciprocal(x):
    """1 / x of a number from 1 to inf, to 4e-7 of itself."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def _sigmoid(z):
    return _reciprocal(1.0 + tl.exp2(-1.4426950408889634 * z))  # log2(e)


@triton.jit
def _sigmoid_and_slope(z):
    """s and s (1 - s), of which nothing cancels: large factors may meet a slope near 0."""
    shrunk = tl.exp2(-1.4426950408889634 * tl.abs(z))
    large = _reciprocal(1.0 + shrunk)
    small = shrunk * large
    return tl.where(z < 0, small, large), small * large


@triton.jit
def _tanh(z):
    shrunk = tl.exp2(-2.8853900817779268 * tl.abs(z))
    size = (1.0 - shrunk) * _reciprocal(1.0 + shrunk)
    large = tl.where(z < 0, -size, size)
    # Near 0 that difference cancels; the Taylor series to z^9 is exact to fp32 up to 0.25.
    s = z * z
    series = 1.0 + s * (
        -0.3333333333333333
        + s * (0.13333333333333333 + s * (-0.05396825396825397 + s * 0.021869488536155203))
    )
    return tl.where(tl.abs(z) < 0.25, z * series, large)
