"""A device that fails every further call of its process."""

from __future__ import annotations

import torch

from tlazy.bench.timing import settle_for


class DeviceLost(RuntimeError):
    """The device fails every further call of this process."""


def raise_if_lost(device: torch.device, what: str) -> None:
    """Raise DeviceLost where the device cannot go on after `what` happened."""
    try:
        settle_for(device)()
    except RuntimeError as lost:
        raise DeviceLost(f"the GPU fails after {what}") from lost
