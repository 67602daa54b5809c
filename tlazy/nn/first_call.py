"""The first call of a tree that holds lazy modules: trace, materialize, compute; or nothing."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from tlazy import init
from tlazy.failure import UNDONE, explain, failed_calls
from tlazy.isolation import plain_torch
from tlazy.nn.commit import all_or_nothing, take_back
from tlazy.nn.pending import (
    Trial,
    Undo,
    being_called,
    is_pending,
    materializing,
    pending_modules,
    stop_waiting,
    swapped,
    trials,
)
from tlazy.nn.placeholder import adopt
from tlazy.nn.refusal import WAY_OUT, refuse_recording


def arm(root: torch.nn.Module, part: torch.nn.Module, prefix: str = "") -> None:
    """Make the first call of `root` materialize the whole tree, if anything in `part` is lazy."""
    modules = dict(part.named_modules(prefix=prefix))
    if not any(map(is_pending, modules.values())):
        return
    for path, module in modules.items():
        if is_pending(module):
            adopt_placeholders(module, path)
    wait_for_call(root)


def wait_for_call(module: Any) -> None:
    """Hook the beginning and the end of the next call of `module`."""
    if "_initialize_hook" not in module.__dict__:
        module._initialize_hook = module.register_forward_pre_hook(
            first_call, prepend=True, with_kwargs=True
        )
    if "_result_hook" not in module.__dict__:
        module._result_hook = module.register_forward_hook(end_of_first_call, always_call=True)


def adopt_placeholders(module: Any, path: str) -> None:
    """Note which placeholders are the module's own, name them, and let them convert and copy."""
    tensors: dict[str, Any] = {**module._parameters, **module._buffers}
    lazy = {name: tensor for name, tensor in tensors.items() if is_lazy(tensor)}
    for name, tensor in lazy.items():
        adopt(tensor, f"{path}.{name}" if path else f"{name} of {type(module).__name__}")
    module.__dict__.setdefault("_placeholders", {}).update(lazy)
    # torch's own layers get their seed here. Norms draw nothing: their eager forms, which hold no
    # seed, can take their place without a change for the layers after them.
    if "_seed" not in module.__dict__ and not isinstance(
        module, torch.nn.modules.batchnorm._NormBase
    ):
        module.__dict__["_seed"] = init.draw_seed()


def _outside_of_graphs(function: Callable[..., None]) -> Any:
    """Let `function` run uncompiled under torch.compile; where that cannot be, say what to do."""
    skipped: Any = torch._disable_dynamo(function)
    skipped._torchdynamo_disable = True
    skipped._torchdynamo_disable_msg = f"the first call of a lazy model materializes it: {WAY_OUT}"
    return skipped


@_outside_of_graphs
def materialize_for_good(module: torch.nn.Module, args: Any, kwargs: Any = None) -> None:
    """Trace `module` on its first input and materialize everything below it, before a call.

    torch.compile asks a lazy module for this, under the name ``_infer_parameters``, before it
    traces the call itself; what is made here stays, whatever comes of the call.
    """
    from tlazy.tracing import trace  # it builds on this module

    with materializing:
        pending = pending_modules(module)
        if not pending:
            stop_waiting(module)
        elif not _is_functional(pending):
            trace(module, *args, **(kwargs or {})).materialize()


@_outside_of_graphs
def first_call(module: torch.nn.Module, args: Any, kwargs: Any = None) -> None:
    """Forward pre-hook: trace `module` on its first input and materialize everything below it.

    Threads that call the same model wait here for the one that came first.
    """
    from tlazy.tracing import trace  # it builds on this module

    with materializing:
        _let_interrupted_stand()
        if module in trials:
            _join(module)
            return
        pending = pending_modules(module)
        if not pending:
            stop_waiting(module)
            return
        if _is_functional(pending):
            return
        refuse_recording(module, (args, kwargs))
        plan = trace(module, *args, **(kwargs or {}))
        with all_or_nothing() as restorers:
            restorers.append(functools.partial(trials.pop, module, None))
            restorers.append(_keep_buffers(module))
            trial = trials[module] = Trial(None, sys.exc_info()[1])
            plan.commit(restorers)
            trial.undo = functools.partial(take_back, restorers)


def _keep_buffers(root: torch.nn.Module) -> Undo:
    """A function that puts the values of buffers back: a forward that fails has counted batches."""
    buffers: list[Any] = [b for b in root.buffers() if not is_lazy(b) and not b.is_meta]
    with plain_torch():
        values = [buffer.clone() for buffer in buffers]

    def restore() -> None:
        with plain_torch():
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)

    return restore


def _join(module: torch.nn.Module) -> None:
    """Note one more call of a module whose first call has not ended yet."""
    trial = trials[module]
    if not trial.is_mine:
        trial.undo = None  # this call relies on what the first one has made
        return
    del trials[module]  # a recursive call: what has been made stands
    stop_waiting(module)


def _let_interrupted_stand() -> None:
    """End the first calls that KeyboardInterrupt has ended: torch runs no hook after that."""
    for module, trial in list(trials.items()):
        if trial.is_mine:
            ended = all(other is not module for other in being_called())
        else:
            ended = trial.token() is None
        if ended:
            del trials[module]
            stop_waiting(module)


def _is_functional(pending: Mapping[str, torch.nn.Module]) -> bool:
    """Whether ``functional_call`` has swapped in all that is missing: nothing is left to decide."""
    tensors: list[Any] = [
        tensor
        for module in pending.values()
        for tensor in (*module._parameters.values(), *module._buffers.values())
    ]
    return any(map(swapped, pending.values())) and not any(map(is_lazy, tensors))


def _explain(error: Any, root: torch.nn.Module, args: Any) -> None:
    """Say in the message of `error` which call below `root` has failed, and that it is undone."""
    paths = {module: path for path, module in root.named_modules()}
    calls = ((module, inputs) for module, inputs in failed_calls(error) if module in paths)
    module, inputs = next(calls, (root, (args, {})))
    explain(error, root, paths[module], module, inputs, UNDONE)


@_outside_of_graphs
def end_of_first_call(module: torch.nn.Module, args: Any, output: Any) -> None:
    """Forward hook, called after an error too: take the materialization back if there was one."""
    with materializing:
        trial = trials.get(module)
        if trial is None or not trial.is_mine:
            return
        error = sys.exc_info()[1]
        failed = error is not None and error is not trial.outer
        if failed and trial.undo is not None:
            trial.undo()
            _explain(error, module, args)
            return
        del trials[module]
        if not failed:
            stop_waiting(module)
