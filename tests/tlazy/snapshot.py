"""Everything about a model that could change, in a form that compares with ``==``."""

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


def snapshot(model):
    """Classes, attributes, hooks, tensors with identity and values, and the random state."""
    modules = {path: _module(module) for path, module in model.named_modules()}
    return modules, torch.get_rng_state().tolist()


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
    return id(tensor), what, values
