"""Trace a model, give it its parameters, and take them back."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from tlazy.arguments import check_model
from tlazy.dry_run import DryRun, has_data
from tlazy.isolation import (
    no_modes,
    quiet_fake_tensors,
    same_randomness_after,
    unseen_by_checkpointing,
)
from tlazy.nn import container
from tlazy.nn.first_call import arm
from tlazy.nn.revert import make_lazy_again
from tlazy.plan import Trace
from tlazy.recorder import Recorder, UntraceableError


def trace(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Trace:
    """Run `model` on shapes alone: nothing is computed and nothing about the model changes.

    The forward of a copy runs, whose tensors have no data; the modules' own hooks run with it,
    those for all modules do not. What a forward writes to a global variable is not undone. A
    forward that depends on the values of tensors, or has parts compiled by TorchScript, is run once
    for real instead, as a copy with the values that materializing will give it; a warning says so.

    The first trace of a process takes about a second more: fake tensors, as any torch optimizer,
    import torch's compiler.

    Args:
        model: any module; lazy ones, tlazy's or torch's, become known.
        args, kwargs: as for calling `model`. A :class:`Spec`, a real or a meta tensor can stand
            for each tensor, inside of lists, tuples and dicts too.

    Raises:
        TypeError: for a model that is no module.
        UntraceableError: where shapes alone do not lead through the forward, and they are all that
            there is.
        whatever the forward raises, with the path of the module added.

    >>> import torch, tlazy
    >>> from tlazy import nn
    >>> net = nn.Sequential(nn.LazyConv1d(8, 3), torch.nn.Flatten(), nn.LazyLinear(2))
    >>> plan = tlazy.trace(net, tlazy.Spec(4, 5, 12))
    >>> plan
    <Trace of Sequential: 4 calls, 290 params>
    >>> net[2].in_features
    0
    """
    check_model(model)
    with (
        no_modes(),
        same_randomness_after(),
        unseen_by_checkpointing(),
        quiet_fake_tensors(),
    ):
        try:
            return Recorder(model, (args, kwargs)).run(args, kwargs)
        except UntraceableError as error:
            if not has_data(model, (args, kwargs)):
                raise
            reason = str(error)
        said = f"{reason.rstrip('.')}. It is run once for real instead"
        warnings.warn(said, stacklevel=_level_of_the_caller())
        return DryRun(model, reason).run(args, kwargs)


def _level_of_the_caller() -> int:
    """How many frames above :func:`trace` the first line is that is neither tlazy's nor torch's."""
    frame, level = sys._getframe(1), 1
    while frame.f_globals.get("__name__", "").partition(".")[0] in ("tlazy", "torch"):
        if frame.f_back is None:
            break
        frame, level = frame.f_back, level + 1
    return level


def materialize(
    model: torch.nn.Module,
    *args: Any,
    seed: int | None = None,
    init: Callable[[torch.nn.Module], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> Trace:
    """Trace `model` on an example input and create all its parameters, all or nothing.

    Args:
        args, kwargs: the example, as for :func:`trace`.
        seed, init, checkpoint, device, dtype: as for :meth:`Trace.materialize`.

    Returns:
        the trace.

    Raises:
        as :func:`trace` and :meth:`Trace.materialize`; nothing has changed then.

    >>> import torch, tlazy
    >>> net = torch.nn.Sequential(torch.nn.LazyConv2d(4, 3), torch.nn.LazyBatchNorm2d())
    >>> plan = tlazy.materialize(net, tlazy.Spec(2, 3, 8, 8), seed=0)
    >>> net[1].weight.shape
    torch.Size([4])
    """
    plan = trace(model, *args, **kwargs)
    plan.materialize(seed, init, checkpoint, device, dtype)
    return plan


def dematerialize(model: torch.nn.Module) -> list[str]:
    """Make every layer of `model` lazy again that a trace, a first call or a file has shaped.

    For after a wrong first batch. Parameters stay the objects that they are, so an optimizer goes
    on holding them; its state for them, and their gradients, have lost their meaning. The latter
    are dropped here; an optimizer that has stepped has to be built anew. What the layers get
    afterwards is drawn from the seeds of their construction. Layers of a copy (deepcopy, pickle)
    that was made afterwards are not known to have been lazy.

    Returns:
        the paths of these layers.

    Raises:
        TypeError: for a model that is no module.
        RuntimeError: where a layer is no longer what materializing made it, as after sharding.
            Nothing has changed then, nor after an interrupt in the middle.

    >>> import torch, tlazy
    >>> from tlazy import nn
    >>> net = nn.Sequential(nn.LazyLinear(4), torch.nn.ReLU())
    >>> net(torch.randn(2, 1000)).shape
    torch.Size([2, 4])
    >>> tlazy.dematerialize(net)
    ['0']
    >>> net(torch.randn(2, 3)).shape
    torch.Size([2, 4])
    """
    check_model(model)

    def rearm() -> None:
        for module in model.modules():
            if isinstance(module, container.Module):
                arm(module, module)

    return make_lazy_again(model, rearm)
