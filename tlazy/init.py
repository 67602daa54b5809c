"""Seeded initialization that does not depend on the order of anything else."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parameter import Parameter, is_lazy

from tlazy.arguments import check_init, check_model, check_seed
from tlazy.isolation import plain_torch, seeded
from tlazy.sharding import is_sharded, shard_like


def draw_seed() -> int:
    """Draw one 64-bit seed from the global CPU generator, as every tlazy layer does once."""
    with torch._C._DisableTorchDispatch():  # a real number even where all tensors are fake
        return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


def keyed_seed(seed: int, path: str) -> int:
    """The 64-bit seed of the module at `path` under `seed`: the same in every process.

    >>> keyed_seed(0, "head") == keyed_seed(0, "head") != keyed_seed(0, "body")
    True
    """
    digest = hashlib.blake2b(f"{seed}/{path}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def fan_in_uniform_(weight: torch.Tensor, bias: torch.Tensor | None, *, seed: int) -> None:
    """Fill `weight` and `bias` as ``torch.nn.Linear`` and ``torch.nn.Conv1d`` do.

    Both are drawn from U(-b, b) with b = 1/sqrt(fan_in), which is what
    ``kaiming_uniform_(a=sqrt(5))`` comes to (He et al. 2015, arXiv:1502.01852). The values come
    from a private CPU generator, so they are the same on every device.

    Args:
        weight: shape (out, in, *kernel); fan_in is the product of all but the first dimension.
        bias: shape (out,), or None.
        seed: 64-bit seed of the private generator.
    """
    fan_in = math.prod(weight.shape[1:])
    bound = 1.0 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.no_grad():
        for parameter in (weight, bias):
            if parameter is not None and not parameter.is_meta:
                _uniform_(parameter, bound, generator)


def _uniform_(parameter: torch.Tensor, bound: float, generator: torch.Generator) -> None:
    # Drawn in float32 on the CPU, so that other types and devices hold the same values, rounded.
    in_place = parameter.is_cpu and parameter.dtype is torch.float32 and parameter.is_contiguous()
    values = (
        parameter if in_place else torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
    )
    values.uniform_(-bound, bound, generator=generator)
    if not in_place:
        parameter.copy_(values)


def initialize(
    model: torch.nn.Module, seed: int, init: Callable[[torch.nn.Module], Any] | None = None
) -> None:
    """Give all parameters and buffers of `model` new values, keyed by `seed` and their paths.

    The values are those of ``tlazy.materialize(model, ..., seed=seed)``, whatever the device, the
    number of processes, and the part of a parameter that this process holds (``DTensor``). For a
    model on the meta device: shard it, call ``model.to_empty(device=...)``, then this.

    Args:
        init: called with a full copy of each module once it has its default values, as for
            ``materialize``; one without ``reset_parameters`` has none.

    Raises:
        TypeError: for a model that is no module, a seed that is no integer.
        RuntimeError: for a tensor without memory, and for a module that does not know its initial
            values; nothing has changed then.

    >>> import torch
    >>> from tlazy import nn
    >>> net = nn.Sequential(nn.Linear(3, 4, device="meta")).to_empty(device="cpu")
    >>> initialize(net, seed=0)
    >>> net[0].weight.abs().max() < 3 ** -0.5
    tensor(True)
    """
    check_model(model)
    seed = check_seed(seed)
    check_init(init)
    modules = {path: module for path, module in model.named_modules() if _tensors(module)}
    for path, module in modules.items():
        _check_ready(path, module, init)
    done: set[int] = set()  # a tied parameter has the values of its first owner
    with plain_torch():
        for path, module in modules.items():
            full = _full_copy(module)
            key = keyed_seed(seed, path)
            with seeded(key):
                _reset(full, key)
                if init is not None:
                    init(full)
            for tensor, value in zip(_tensors(module), _tensors(full), strict=True):
                if id(tensor) not in done:
                    done.add(id(tensor))
                    tensor.copy_(shard_like(value, tensor) if is_sharded(tensor) else value)


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    own = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in own if tensor is not None]


def _check_ready(path: str, module: torch.nn.Module, init: Any) -> None:
    where = f"{path or 'the model'} ({type(module).__name__})"
    if any(map(is_lazy, _tensors(module))):
        raise RuntimeError(f"{where} is lazy: call tlazy.materialize(model, example_input) first")
    if any(tensor.is_meta for tensor in _tensors(module)):
        raise RuntimeError(f"{where} is on the meta device: call model.to_empty(device=...) first")
    if init is None and _resetter(module) is None:
        raise RuntimeError(f"{where} has no reset_parameters: pass init=, which gives it values")


def _resetter(module: torch.nn.Module) -> Any:
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)


def _full_copy(module: torch.nn.Module) -> torch.nn.Module:
    """`module` with tensors of its own on the CPU, whole where it holds a part."""
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    copy._parameters = {
        name: None if p is None else Parameter(_whole(p), p.requires_grad)
        for name, p in module._parameters.items()
    }
    copy._buffers = {n: None if b is None else _whole(b) for n, b in module._buffers.items()}
    return copy


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")


def _reset(module: Any, seed: int) -> None:
    reset = _resetter(module)
    if reset is None:
        return
    if reset.__func__.__module__.startswith("tlazy.nn."):
        fan_in_uniform_(module.weight, module.bias, seed=seed)
        return
    module.__dict__["_seed"] = seed
    reset()
