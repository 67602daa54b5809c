"""Everything about a model that could change, in a form that compares with ``==``."""

import random
from contextlib import contextmanager

import numpy
import pytest
import torch
from torch.nn.parameter import is_lazy

HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_hooks",
    "_load_state_dict_pre_hooks",
    "_state_dict_hooks",
)
TENSORS = ("_parameters", "_buffers")


@contextmanager
def refused(model, error, match=None):
    """Expect an error that leaves `model` and all random states exactly as they were."""
    before = snapshot(model)
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert snapshot(model) == before


def snapshot(model):
    """Classes, attributes, hooks, tensors with identity, values and gradients, random states."""
    modules = {path: _module(module) for path, module in model.named_modules()}
    numpys = str(numpy.random.get_state())
    return modules, torch.get_rng_state().tolist(), random.getstate(), numpys


def _module(module):
    attributes = {
        name: value.copy() if isinstance(value, (list, dict, set)) else value
        for name, value in vars(module).items()
        if name not in (*HOOKS, *TENSORS)
    }
    hooks = {name: dict(getattr(module, name)) for name in HOOKS}
    tensors = {
        (kind, name): _tensor(tensor)
        for kind in TENSORS
        for name, tensor in getattr(module, kind).items()
    }
    return type(module), attributes, hooks, tensors


def _tensor(tensor):
    if tensor is None:
        return None
    values = "lazy" if is_lazy(tensor) else tuple(tensor.shape)
    if not is_lazy(tensor) and not tensor.is_meta:
        values = values, tensor.tolist()
    what = type(tensor), tensor.dtype, tensor.device, tensor.requires_grad
    hooks = dict(tensor._backward_hooks or {})
    gradient = None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())
    # torch.compile marks the tensors that it has seen.
    attributes = {k: v for k, v in vars(tensor).items() if not k.startswith("_dynamo")}
    return id(tensor), what, values, hooks, gradient, attributes
