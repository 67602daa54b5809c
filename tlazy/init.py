"""Seeded initialization that does not depend on the order of anything else."""

from __future__ import annotations

import hashlib
import math

import torch


def draw_seed() -> int:
    """Draw one 64-bit seed from the global CPU generator, as every tlazy layer does once."""
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
