"""Layers: drop-in subclasses of torch.nn's, and their lazy forms."""

from tlazy.nn.container import Module, Sequential
from tlazy.nn.conv import Conv1d, ConvTranspose1d, LazyConv1d, LazyConvTranspose1d
from tlazy.nn.lazy import LazyModuleMixin
from tlazy.nn.linear import LazyLinear, Linear

__all__ = [
    "Conv1d",
    "ConvTranspose1d",
    "LazyConv1d",
    "LazyConvTranspose1d",
    "LazyLinear",
    "LazyModuleMixin",
    "Linear",
    "Module",
    "Sequential",
]
