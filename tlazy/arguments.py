"""What every public function that takes a model checks first."""

from __future__ import annotations

from typing import Any

import torch


def check_model(model: Any) -> None:
    """Raise TypeError unless `model` is a module."""
    if isinstance(model, torch.nn.Module):
        return
    what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    raise TypeError(f"model must be a torch.nn.Module, got {what}")
