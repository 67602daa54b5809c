"""Layers: drop-in subclasses of torch.nn's, and their lazy forms."""

from torch.nn import Module, Sequential

from tlazy.nn.conv import Conv1d
from tlazy.nn.linear import Linear

__all__ = ["Conv1d", "Linear", "Module", "Sequential"]
