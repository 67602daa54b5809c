"""Lazy layers on PyTorch, with fused Triton kernels for linear and direct conv1d."""

from tlazy import nn
from tlazy.dispatch import Backend, backend, backend_of

__version__ = "0.1.0"

__all__ = ["Backend", "backend", "backend_of", "nn"]
