"""Lazy layers on PyTorch, with fused Triton kernels for linear and direct conv1d."""

from tlazy import nn
from tlazy.checkpoint import load, save
from tlazy.dispatch import Backend, backend, backend_of
from tlazy.init import initialize
from tlazy.plan import Trace
from tlazy.recorder import UntraceableError
from tlazy.spec import Spec
from tlazy.tracing import dematerialize, materialize, trace

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "Spec",
    "Trace",
    "UntraceableError",
    "backend",
    "backend_of",
    "dematerialize",
    "initialize",
    "load",
    "materialize",
    "nn",
    "save",
    "trace",
]
